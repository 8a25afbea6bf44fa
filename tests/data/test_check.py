"""The check before training: what it refuses, what it notes, what it remembers."""

import os
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graft.data import check as module
from graft.data.check import BadPicture, Checked, check, leaks, message


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of four good pictures, 0.png to 3.png."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        _picture(i).save(folder / f"{i}.png")
    return folder


def _picture(seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(values)


def _check(root: Path, *ids: str, **limits: Any) -> Checked:
    """Of `ids`, or of every file in the folder, sorted."""
    names = list(ids) or sorted(os.listdir(root))
    options = {"max_pixels": 10_000, "min_side": 2, "workers": 2} | limits
    return check(names, [root / name for name in names], root, root.parent / "cache", **options)


def _reason(root: Path, name: str, **limits: Any) -> str:
    """Why the one bad picture among good ones is bad."""
    checked = _check(root, "0.png", name, "1.png", **limits)
    (bad,) = checked.bad
    assert (bad.id, bad.path, bad.row) == (name, root / name, 1)
    assert [bool(digest) for digest in checked.digests] == [True, False, True]
    return bad.reason


# --- what is bad -----------------------------------------------------------------------------


def _jpeg_half(path: Path) -> None:
    _picture(9).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _jpeg_zeros(path: Path) -> None:
    """As a broken download leaves it: the size is right, the rest was never written."""
    _picture(9).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def _png_zeros(path: Path) -> None:
    """Long runs decode from zeros without a word; only the checksums tell."""
    y, x = np.mgrid[:200, :300]
    picture = np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8)
    Image.fromarray(picture).save(path, "PNG")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def _unreadable_type(path: Path) -> None:
    Image.fromarray(np.full((9, 9), -5.0, dtype=np.float32)).save(path, "TIFF")


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda path: None, "no such file"),
        (_jpeg_half, "truncated or damaged"),
        (_jpeg_zeros, "truncated or damaged"),
        (_png_zeros, "truncated or damaged"),
        (lambda path: path.touch(), "an empty file"),
        (lambda path: path.write_text("a text"), "not a picture"),
        (lambda path: path.write_text("<!doctype html><p>Not found"), "not a picture"),
        (lambda path: path.mkdir(), "a folder, not a file"),
        (os.mkfifo, "a named pipe, not a file"),
        (lambda path: path.symlink_to(path), "too many levels of symbolic links"),
        (_unreadable_type, "no known range"),
    ],
)
def test_a_bad_file_is_found_and_the_others_are_not_disturbed(
    root: Path, make: Callable[[Path], Any], reason: str
) -> None:
    make(root / "x.jpg")
    assert reason in _reason(root, "x.jpg", max_pixels=100_000)


def test_a_device_is_never_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed_out: list[object] = []
    monkeypatch.setattr(os, "open", lambda path, *_: handed_out.append(path))
    (root / "x.png").symlink_to("/dev/tty")
    paths = [Path("/dev/zero"), root / "x.png"]
    checked = check(["a", "b"], paths, None, root.parent / "c", max_pixels=9, min_side=1)
    assert [bad.reason for bad in checked.bad] == ["a device, not a file"] * 2
    assert not handed_out


def test_a_link_inside_the_folder_is_followed_and_one_out_of_it_is_refused(root: Path) -> None:
    outside = root.parent / "canary.png"
    _picture(5).save(outside)
    (root / "in.png").symlink_to("0.png")
    (root / "out.png").symlink_to(outside)
    (root / "up").symlink_to(root.parent)
    os.utime(outside, (0, 0))  # as old as can be: reading it would move the time of access
    checked = _check(root, "in.png", "out.png", "up/canary.png")
    assert [bad.id for bad in checked.bad] == ["out.png", "up/canary.png"]
    assert all("a link out of" in bad.reason for bad in checked.bad)
    assert outside.stat().st_atime == 0
    assert outside.read_bytes() and outside.stat().st_atime > 0


def test_a_link_that_is_bent_out_of_the_folder_later_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLED_S", -1)
    (root / "sub").mkdir()
    (root / "0.png").rename(root / "sub/0.png")
    assert not _check(root, "sub/0.png").bad
    (root / "sub").rename(root.parent / "elsewhere")
    (root / "sub").symlink_to(root.parent / "elsewhere")
    assert "a link out of" in _check(root, "sub/0.png").bad[0].reason


@pytest.mark.parametrize("size, is_good", [((1, 1), False), ((1, 5000), False), ((2, 2), True)])
def test_the_shortest_side_is_limited(root: Path, size: tuple[int, int], is_good: bool) -> None:
    Image.new("RGB", size).save(root / "x.png")
    if is_good:
        assert not _check(root).bad
    else:
        reason = _reason(root, "x.png")
        assert reason == f"{size[0]}x{size[1]} pixels, a side shorter than dataset.min_side=2"
        assert not _check(root, min_side=1).bad


def _bomb(path: Path, side: int) -> None:
    """A PNG of side x side black pixels, one bit each: small as a file, huge when decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + side // 8)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def _peak_bytes() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_decompression_bomb_is_refused_from_its_header(root: Path, side: int) -> None:
    _bomb(root / "x.png", side)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    peak, took = _peak_bytes(), []
    for _ in range(3):  # the fastest counts: the machine may be busy
        start = time.perf_counter()
        checked = _check(root, "x.png", max_pixels=64_000_000, workers=1)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.1
    assert _peak_bytes() - peak < 50e6
    assert checked.bad[0].reason == (
        f"{side}x{side} is {side * side:,} pixels, more than dataset.max_pixels=64000000"
    )


def test_the_limit_of_pixels_is_a_setting(root: Path) -> None:
    Image.new("L", (200, 200)).save(root / "x.png")
    assert "more than dataset.max_pixels=39999" in _reason(root, "x.png", max_pixels=39_999)
    assert not _check(root, max_pixels=40_000).bad


# --- what is noted ---------------------------------------------------------------------------


def test_other_content_than_the_extension_says_is_noted_with_a_count(root: Path) -> None:
    for name in ("a.jpg", "b.JPG", "c.jpeg"):
        _picture(7).save(root / name, format="PNG")
    notes = _check(root).notes
    assert "2 pictures: extension .jpg, content PNG; read by content." in notes
    assert "1 pictures: extension .jpeg, content PNG; read by content." in notes


@pytest.mark.parametrize("extension, content", [("gif", "GIF"), ("tif", "TIFF"), ("webp", "WEBP")])
def test_several_frames_are_noted(root: Path, extension: str, content: str) -> None:
    frames = [_picture(i) for i in range(3)]
    frames[0].save(root / f"x.{extension}", save_all=True, append_images=frames[1:])
    frames[0].save(root / f"y.{extension}")
    assert _check(root).notes == (
        f"1 pictures: several frames or pages ({content}); the first is used.",
    )


def test_ordinary_pictures_need_no_note(root: Path) -> None:
    for extension in ("jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm"):
        _picture(8).save(root / f"x.{extension}")
    assert _check(root).notes == ()


# --- digests, and what is remembered ---------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was decoded; files count as settled as soon as they are written."""
    seen: list[Any] = []
    decode = module.rgb
    monkeypatch.setattr(module, "rgb", lambda picture: (seen.append(picture), decode(picture))[1])
    monkeypatch.setattr(module, "_SETTLED_S", -1)
    return seen


def test_equal_content_has_the_equal_digest_and_other_content_another(root: Path) -> None:
    (root / "copy.png").write_bytes((root / "2.png").read_bytes())
    first, second, third, fourth, copy = _check(root).digests
    assert copy == third
    assert len({first, second, third, fourth}) == 4
    assert all(len(digest) == 16 for digest in (first, second, third, fourth))


def test_a_second_check_decodes_nothing_and_says_the_same(root: Path, decoded: list[Any]) -> None:
    first = _check(root)
    assert len(decoded) == 4
    assert _check(root) == first
    assert len(decoded) == 4


@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_file_that_changed_is_noticed_by_its_digest(
    root: Path, decoded: list[Any], keeps_time: bool
) -> None:
    before = _check(root)
    path = root / "1.png"
    times = path.stat()
    Image.new("RGB", (30, 20), "red").save(path)
    if keeps_time:
        os.truncate(path, times.st_size)  # same size, zeros behind the end of the picture
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = _check(root)
    changed = [a != b for a, b in zip(before.digests, after.digests, strict=True)]
    assert changed == [False, True, False, False]
    assert len(decoded) == 5


def test_a_file_that_was_only_touched_is_not_decoded_again(root: Path, decoded: list[Any]) -> None:
    before = _check(root)
    os.utime(root / "1.png")
    assert _check(root) == before
    assert len(decoded) == 4


def test_a_file_written_a_moment_ago_is_not_trusted_by_its_time(root: Path) -> None:
    _check(root)
    (store,) = (root.parent / "cache").iterdir()
    assert all(not facts.stamp for facts in module._read(store).values())


def test_other_limits_hold_for_what_is_remembered(root: Path, decoded: list[Any]) -> None:
    _check(root)
    assert len(_check(root, max_pixels=599).bad) == 4
    assert len(_check(root, min_side=21).bad) == 4
    assert not _check(root, max_pixels=600, min_side=20).bad
    assert len(decoded) == 4


def test_a_repaired_file_is_good_again(root: Path, decoded: list[Any]) -> None:
    whole = (root / "2.png").read_bytes()
    (root / "2.png").write_bytes(whole[:60])
    assert [bad.row for bad in _check(root).bad] == [2]
    (root / "2.png").write_bytes(whole)
    assert not _check(root).bad


@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.99])
def test_a_damaged_cache_is_made_again(root: Path, decoded: list[Any], where: float) -> None:
    first = _check(root)
    (store,) = (root.parent / "cache").iterdir()
    data = bytearray(store.read_bytes())
    data[int(where * len(data))] ^= 1
    store.write_bytes(data)
    assert _check(root) == first
    assert len(decoded) == 8


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"abc\n{}"])
def test_a_cache_that_is_something_else_is_ignored(root: Path, content: bytes) -> None:
    first = _check(root)
    (store,) = (root.parent / "cache").iterdir()
    store.write_bytes(content)
    assert _check(root) == first


def test_a_cache_of_another_version_is_ignored(
    root: Path, decoded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _check(root)
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    _check(root)
    assert len(decoded) == 8


def test_a_cache_that_cannot_be_written_costs_a_note_only(root: Path) -> None:
    (root.parent / "cache").write_text("a file of that name")
    checked = _check(root)
    assert not checked.bad
    assert "will be checked again" in checked.notes[-1]


def test_an_interrupted_check_keeps_what_it_has_done(root: Path, decoded: list[Any]) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _check(root, workers=1, progress=interrupt)
    done = len(decoded)
    assert 2 <= done <= 4
    decoded.clear()
    _check(root)
    assert len(decoded) <= 2


def test_progress_counts_to_the_total(root: Path, decoded: list[Any]) -> None:
    for _ in range(2):
        told: list[tuple[int, int]] = []
        _check(root, progress=lambda done, total, told=told: told.append((done, total)))
        assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_names_that_are_no_text_are_checked_and_remembered(root: Path, decoded: list[Any]) -> None:
    odd = os.fsdecode(b"\xff\xfe name.png")
    (root / "0.png").rename(root / odd)
    assert not _check(root).bad
    assert not _check(root).bad
    assert len(decoded) == 4


def test_checks_at_the_same_time_do_not_disturb_each_other(root: Path) -> None:
    found: list[Checked] = []
    threads = [threading.Thread(target=lambda: found.append(_check(root))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [found[0]] * 4
    assert len(os.listdir(root.parent / "cache")) == 1


@pytest.mark.slow
def test_a_second_check_of_30000_pictures_takes_seconds(root: Path, decoded: list[Any]) -> None:
    data = (root / "0.png").read_bytes()
    for i in range(30_000):
        (root / f"{i}.png").write_bytes(data)
    _check(root)
    start = time.perf_counter()
    assert not _check(root).bad
    assert time.perf_counter() - start < 5


# --- what is said ----------------------------------------------------------------------------


def _bad(count: int) -> list[BadPicture]:
    return [BadPicture(f"{i}.png", Path(f"/p/{i}.png"), i, "empty") for i in range(count)]


def test_the_message_names_row_path_and_reason_of_each_and_what_to_do() -> None:
    assert message(_bad(2), 970, "error") == (
        "2 of 970 pictures cannot be used (row 1 is the first picture):\n"
        "  row 1: /p/0.png: empty\n"
        "  row 2: /p/1.png: empty\n"
        "Repair or replace them, or leave them out: dataset.on_bad_image=skip."
    )


def test_the_message_lists_ten_and_counts_the_rest() -> None:
    lines = message(_bad(1234), 30_000, "error").splitlines()
    assert lines[0].startswith("1,234 of 30,000 pictures")
    assert lines[-2] == "  and 1,224 more"
    assert len(lines) == 13


def test_the_message_of_a_skip_says_that_they_are_left_out() -> None:
    assert message(_bad(1), 10, None).endswith("\nRepair or replace them, or leave them out.")
    text = message(_bad(1), 10, "skip")
    assert "dataset.on_bad_image=skip leaves them out" in text
    assert "Repair" not in text


def test_equal_pictures_in_different_splits_are_a_problem() -> None:
    found = leaks(
        ["a", "b", "c", "d"], ["1", "2", "1", "3"], ["x"] * 4, ["train", "train", "test", "val"]
    )
    (problem,) = found.problems
    assert problem.startswith("2 pictures that are copies of each other stand in more than one")
    assert "a (train) and c (test)" in problem
    assert not found.notes


def test_equal_pictures_with_other_labels_are_noted_with_a_count() -> None:
    found = leaks(list("abcde"), list("11122"), list("xyxzz"), ["train"] * 5)
    assert not found.problems
    assert found.notes == (
        "3 pictures that are copies of each other have different labels, such as a (x) and b (y).",
    )


def test_copies_on_one_side_with_one_label_and_bad_pictures_are_no_leak() -> None:
    assert leaks(["a", "b"], ["1", "1"], ["x", "x"], ["val", "val"]) == ((), ())
    assert leaks(["a", "b"], ["", ""], ["x", "y"], ["val", "test"]) == ((), ())
