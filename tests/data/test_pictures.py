"""Decoding: one rule for every kind of file, equal to torchvision's where that has one."""

import contextlib
import io
import itertools
import os
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from graft import machine
from graft.data.decode import Unreadable, decode, opened, rgb
from graft.data.pictures import Pictures, normalise

SIZE = 32


@pytest.fixture
def scene() -> Image.Image:
    """60 x 40, smooth, no two corners alike."""
    y, x = np.mgrid[:40, :60]
    channels = [x * 4, y * 6, (x + y) * 2.5]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def _expected(picture: Image.Image) -> NDArray[np.uint8]:
    small = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1)


def _saved(path: Path, picture: Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def _off_by(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> int:
    return int(abs(found.astype(int) - expected.astype(int)).max())


# --- the rule --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, 224, 17])
def test_plain_pictures_are_resized_bit_for_bit_as_torchvision_does(
    scene: Image.Image, tmp_path: Path, size: int
) -> None:
    from torchvision.transforms import Compose, PILToTensor, Resize

    path = _saved(tmp_path / "a.jpg", scene, quality=90)
    expected = Compose([Resize((size, size)), PILToTensor()])(Image.open(path).convert("RGB"))
    assert torch.equal(torch.from_numpy(decode(path, size)), expected)


def test_normalise_is_torchvisions_bit_for_bit() -> None:
    from torchvision.transforms import Compose, Normalize, ToTensor

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    picture = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    expected = Compose([ToTensor(), Normalize(mean, std)])(Image.fromarray(picture))
    batch = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None]
    assert torch.equal(normalise(batch, mean, std)[0], expected)
    assert batch.dtype == torch.uint8


HELD = {
    "png": ("L", "1", "P", "RGBA", "LA"),
    "tif": ("L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"),
    "jpg": ("L", "1", "CMYK", "YCbCr"),
    "bmp": ("L", "1", "P", "RGBA"),
    "gif": ("L", "1", "P"),
    "webp": ("L", "P", "RGBA", "LA"),
}


@pytest.mark.parametrize(
    "extension, mode", [(extension, mode) for extension, modes in HELD.items() for mode in modes]
)
def test_every_mode_comes_out_as_the_picture_it_was_made_of(
    scene: Image.Image, tmp_path: Path, mode: str, extension: str
) -> None:
    stored = scene.convert(mode)
    lossless = {"lossless": True} if extension == "webp" else {}
    path = _saved(tmp_path / f"a.{extension}", stored, quality=95, subsampling=0, **lossless)
    allowed = 10 if mode == "CMYK" or extension in ("jpg", "gif") else 3
    assert _off_by(decode(path, SIZE), _expected(stored)) <= allowed


def _half_clear(mode: str) -> Image.Image:
    """Left half opaque green, right half fully transparent red."""
    picture = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    picture.paste((0, 128, 0, 255), (0, 0, 20, 40))
    return picture.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("extension", ["png", "webp", "tif"])
def test_alpha_is_laid_over_white(tmp_path: Path, mode: str, extension: str) -> None:
    path = _saved(tmp_path / f"a.{extension}", _half_clear(mode), lossless=True)
    found = decode(path, 40)
    assert (found[:, :, 22:] == 255).all()
    assert abs(found[1, :, :18].astype(int) - (75 if mode == "LA" else 128)).max() <= 3


def test_half_alpha_is_halfway_to_white(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.png", Image.new("RGBA", (8, 8), (0, 0, 0, 128)))
    assert abs(decode(path, 8).astype(int) - 127).max() <= 1


@pytest.mark.parametrize("extension", ["png", "gif"])
def test_a_transparent_palette_entry_is_white(tmp_path: Path, extension: str) -> None:
    picture = Image.new("P", (20, 20), 1)
    picture.putpalette([0, 0, 0, 200, 30, 30])
    picture.paste(0, (0, 0, 10, 20))
    found = decode(_saved(tmp_path / f"a.{extension}", picture, transparency=0), 20)
    assert (found[:, :, :9] == 255).all()
    assert found[:, 0, 19].tolist() == [200, 30, 30]


@pytest.mark.parametrize("mode, key", [("L", 9), ("RGB", (9, 9, 9)), ("I;16", 9 * 257)])
def test_a_colour_key_is_white(tmp_path: Path, mode: str, key: Any) -> None:
    picture = Image.new(mode, (20, 20), key)
    path = _saved(tmp_path / "a.png", picture, transparency=key)
    assert (decode(path, 20) == 255).all()


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_and_not_cut_off(tmp_path: Path, extension: str) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    path = tmp_path / f"a.{extension}"
    if extension == "pgm":
        path.write_bytes(b"P5 64 64 65535\n" + ramp.astype(">u2").tobytes())
    else:
        Image.fromarray(ramp).save(path)
    found = decode(path, 64)
    assert _off_by(found[0], np.rint(ramp / 257).astype(np.uint8)) == 0
    assert abs(found.mean() - 127.5) < 1


def test_a_dark_16_bit_picture_stays_dark(tmp_path: Path) -> None:
    dark = Image.fromarray(np.full((8, 8), 514, dtype=np.uint16))
    assert (decode(_saved(tmp_path / "a.png", dark), 8) == 2).all()


def test_16_bit_colour_is_scaled(tmp_path: Path) -> None:
    values = np.array([0x1200, 0x8000, 0xFF00], dtype=">u2")
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P6 4 4 65535\n" + np.tile(values, 16).tobytes())
    assert abs(decode(path, 4)[:, 0, 0].astype(int) - [0x12, 0x80, 0xFF]).max() <= 1


@pytest.mark.parametrize("dtype, scale", [("f4", 1 / 255), ("f4", 1), ("f4", 257), ("i4", 257)])
def test_32_bit_grey_is_scaled_by_the_smallest_range_that_holds_it(
    scene: Image.Image, tmp_path: Path, dtype: str, scale: float
) -> None:
    grey = scene.convert("L")
    values = (np.asarray(grey, dtype=np.float64) * scale).astype(dtype)
    path = _saved(tmp_path / "a.tif", Image.fromarray(values))
    assert _off_by(decode(path, SIZE), _expected(grey)) <= 1


@pytest.mark.parametrize("odd", [-1.0, 70000.0, float("nan"), float("inf")])
def test_32_bit_values_of_unknown_range_are_refused(tmp_path: Path, odd: float) -> None:
    values = np.full((8, 8), 100, dtype=np.float32)
    values[3, 3] = odd
    path = _saved(tmp_path / "a.tif", Image.fromarray(values))
    with pytest.raises(Unreadable, match="no known range"):
        decode(path, 8)


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
def test_exif_orientations_one_to_eight_give_equal_pictures(
    scene: Image.Image, tmp_path: Path, extension: str
) -> None:
    back = [None, 0, 3, 1, 5, 2, 6, 4]  # what undoes each turn: members of Image.Transpose
    upright = None
    for orientation, turn in enumerate(back, 1):
        stored = scene if turn is None else scene.transpose(Image.Transpose(turn))
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.{extension}"
        stored.save(path, exif=exif, quality=100, subsampling=0, lossless=True)
        found = decode(path, SIZE)
        upright = found if upright is None else upright
        assert _off_by(found, upright) <= (4 if extension == "jpg" else 0), orientation


def test_metadata_that_cannot_be_read_does_not_spoil_a_picture(
    scene: Image.Image, tmp_path: Path
) -> None:
    path = _saved(tmp_path / "a.png", scene, exif=b"Exif\0\0not an EXIF block")
    assert np.array_equal(decode(path, SIZE), _expected(scene))


@pytest.mark.parametrize("extension", ["gif", "tif", "webp", "png"])
def test_the_first_frame_is_used(scene: Image.Image, tmp_path: Path, extension: str) -> None:
    other = Image.new("RGB", scene.size, "black")
    path = tmp_path / f"a.{extension}"
    scene.save(path, save_all=True, append_images=[other, other], lossless=True)
    assert _off_by(decode(path, SIZE), _expected(scene)) <= (30 if extension == "gif" else 0)


def test_content_decides_and_not_the_extension(scene: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    scene.save(path, format="PNG")
    assert np.array_equal(decode(path, SIZE), _expected(scene))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes_are_resized(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = _saved(tmp_path / "a.png", Image.new("RGB", shape, "blue"))
    assert decode(path, SIZE)[2].min() == 255


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_a_truncated_file_is_refused_and_never_filled_with_grey(
    scene: Image.Image, tmp_path: Path, fmt: str
) -> None:
    whole = io.BytesIO()
    scene.save(whole, fmt)
    path = tmp_path / "a"
    for keep in (0.3, 0.5, 0.8):
        path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * keep)])
        with pytest.raises(Unreadable):
            decode(path, SIZE)


def test_no_reader_outside_the_list_ever_runs(scene: Image.Image, tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.jpg", scene, format="EPS")
    with pytest.raises(Unreadable, match="not a picture"):
        decode(path, SIZE)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "make, reason",
    [
        (_fifo, "a named pipe, not a file"),
        (_loop, "too many levels of symbolic links"),
        (_device, "a device, not a file"),
        (lambda path: path.mkdir(), "a folder, not a file"),
        (lambda path: path.touch(), "an empty file"),
        (lambda path: path.write_text("hello"), "not a picture"),
        (lambda path: path.write_text("<html><body>404</body></html>"), "not a picture"),
        (lambda path: None, "no such file"),
    ],
)
def test_what_is_no_picture_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], Any], reason: str
) -> None:
    path = tmp_path / "x.jpg"
    make(path)
    with pytest.raises(Unreadable, match=reason) as caught:
        decode(path, SIZE)
    assert str(caught.value).startswith(str(path))


@pytest.mark.timeout(20)
def test_a_file_that_turns_into_a_pipe_after_the_first_look_does_not_block(
    scene: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.stat(_saved(tmp_path / "a.png", scene))
    os.mkfifo(tmp_path / "pipe")
    assert stat.S_ISREG(before.st_mode)
    monkeypatch.setattr(os, "stat", lambda path, **_: before)
    with pytest.raises(Unreadable, match="a named pipe"):
        decode(tmp_path / "pipe", SIZE)


def test_the_limit_of_pixels_can_be_raised_above_pillows_own(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.png", Image.new("1", (14_000, 14_000)))
    with pytest.raises(Unreadable, match=r"14000x14000 .* dataset\.max_pixels=64000000"):
        decode(path, SIZE)
    with opened(path, max_pixels=200_000_000) as picture:
        assert picture.size == (14_000, 14_000)


def test_a_damaged_header_is_refused_whatever_the_decoder_raises(
    scene: Image.Image, tmp_path: Path
) -> None:
    """Bytes of small files are overwritten one after another: a picture, or Unreadable."""
    path = tmp_path / "a"
    for fmt in ("PNG", "TIFF", "GIF", "BMP", "WEBP", "JPEG"):
        whole = io.BytesIO()
        scene.resize((8, 8)).save(whole, fmt)
        for place, value in itertools.product(range(0, 60, 3), (0x00, 0xFF)):
            damaged = bytearray(whole.getvalue())
            damaged[place] = value
            path.write_bytes(damaged)
            with contextlib.suppress(Unreadable):
                assert decode(path, 4, max_pixels=10_000).shape == (3, 4, 4)


def test_a_turned_16_bit_picture_is_scaled_and_turned(tmp_path: Path) -> None:
    values = np.zeros((4, 6), dtype=np.uint16)
    values[0] = 65535  # the top row; orientation 6 shows it at the right
    exif = Image.Exif()
    exif[0x0112] = 6
    with opened(
        _saved(tmp_path / "a.png", Image.fromarray(values), exif=exif), max_pixels=None
    ) as picture:
        upright = rgb(picture)
    assert upright.size == (4, 6)
    assert (np.asarray(upright)[:, 3] == 255).all()
    assert (np.asarray(upright)[:, :3] == 0).all()


# --- the pictures of a table -----------------------------------------------------------------


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(1)
    return [
        _saved(tmp_path / f"{i}.png", Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8)))
        for i in range(10)
    ]


LIMITS = pytest.mark.parametrize("memory_limit_bytes", [0, 10**6], ids=["each time", "kept"])
WORKERS = pytest.mark.parametrize("workers", [0, 1, 3])


@LIMITS
@WORKERS
def test_a_batch_has_the_pictures_asked_for_in_order(
    paths: list[Path], memory_limit_bytes: int, workers: int
) -> None:
    asked = np.array([7, 0, 7, 3])
    with Pictures(paths, SIZE, workers=workers, memory_limit_bytes=memory_limit_bytes) as pictures:
        for _ in range(2):
            batch = pictures.batch(asked)
            assert batch.dtype == torch.uint8
            for found, example in zip(batch, asked, strict=True):
                assert np.array_equal(found, decode(paths[example], SIZE))
        assert pictures.batch(np.array([], dtype=np.int64)).shape == (0, 3, SIZE, SIZE)


@LIMITS
@WORKERS
def test_batches_are_those_of_batch(
    paths: list[Path], memory_limit_bytes: int, workers: int
) -> None:
    random = np.random.default_rng(2)
    orders = [random.integers(0, 10, 4) for _ in range(12)]
    with Pictures(paths, SIZE, workers=workers, memory_limit_bytes=memory_limit_bytes) as pictures:
        found = list(pictures.batches(iter(orders)))
        assert len(found) == 12
        for batch, order in zip(found, orders, strict=True):
            assert torch.equal(batch, pictures.batch(order))


def test_what_fits_is_decoded_once_and_what_does_not_each_time(paths: list[Path]) -> None:
    every = np.arange(10)
    fits = 10 * 3 * SIZE * SIZE
    with (
        Pictures(paths, SIZE, memory_limit_bytes=fits) as kept,
        Pictures(paths, SIZE, memory_limit_bytes=fits - 1) as again,
    ):
        assert (kept.is_kept, again.is_kept) == (True, False)
        before = kept.batch(every), again.batch(every)
        assert torch.equal(*before)
        for path in paths:
            Image.new("RGB", (9, 9), "red").save(path)
        assert torch.equal(kept.batch(every), before[0])
        assert (again.batch(every)[:, 0] == 255).all()


def test_a_batch_is_a_copy(paths: list[Path]) -> None:
    with Pictures(paths, SIZE, memory_limit_bytes=10**6) as pictures:
        first = pictures.batch(np.array([0]))
        untouched = first.clone()
        first.zero_()
        assert torch.equal(pictures.batch(np.array([0])), untouched)


@LIMITS
def test_a_file_that_is_gone_is_named_by_the_batch_that_needs_it(
    paths: list[Path], memory_limit_bytes: int
) -> None:
    paths[4].unlink()
    with Pictures(paths, SIZE, memory_limit_bytes=memory_limit_bytes) as pictures:
        pictures.batch(np.array([3, 5]))
        with pytest.raises(Unreadable, match=r"4\.png: no such file"):
            list(pictures.batches([np.array([3, 4])]))


def test_only_a_few_batches_are_begun_ahead(paths: list[Path]) -> None:
    taken = []

    def orders() -> Any:
        for i in range(10):
            taken.append(i)
            yield np.array([i])

    with Pictures(paths, SIZE, workers=1) as pictures:
        stream = pictures.batches(orders())
        next(stream)
        assert len(taken) == 1 + Pictures.AHEAD
        stream.close()  # type: ignore[attr-defined]
        pictures.batch(np.arange(10))


def test_threads_may_share_the_pictures(paths: list[Path]) -> None:
    expected = np.stack([decode(path, SIZE) for path in paths])
    wrong = []
    with Pictures(paths, SIZE, workers=2, memory_limit_bytes=10**6) as pictures:

        def ask(seed: int) -> None:
            for _ in range(20):
                order = np.random.default_rng(seed).permutation(10)
                if not np.array_equal(pictures.batch(order), expected[order]):
                    wrong.append(seed)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_available_memory_is_plausible() -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**26 < machine.available_bytes() <= physical


def test_what_a_container_uses_already_is_not_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for cached files that nobody uses."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    before = machine.available_bytes()
    values = {"memory.max": "1000000\n", "memory.current": "900000\n",
              "memory.stat": "anon 5\ninactive_file 400000\nactive_file 9\n"}  # fmt: skip
    for name, text in values.items():
        (tmp_path / name).write_text(text)
    assert machine.available_bytes() == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_bytes() == pytest.approx(before, rel=0.5)


def test_a_picture_within_its_header_is_not_trusted(tmp_path: Path) -> None:
    """A TIFF whose header promises strips far beyond the end of the file."""
    path = _saved(tmp_path / "a.tif", Image.new("L", (16, 16)))
    data = bytearray(path.read_bytes())
    place = data.index(struct.pack("<HHI", 273, 4, 1)) + 8
    data[place : place + 4] = struct.pack("<I", 2**31)
    path.write_bytes(data)
    with pytest.raises(Unreadable):
        decode(path, 8)
