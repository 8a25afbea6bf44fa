"""The store of the trunk cache: what it gives back is what was put in, or nothing."""

import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from graft.errors import CacheError, NoRoom
from graft.trunk.store import Store, files, listing
from graft.trunk.store import entry as entries
from graft.trunk.store.entry import BLOCK_ROWS, Damaged, Entry
from graft.trunk.store.filler import Filler

ROWS, ROW_BYTES = 3 * BLOCK_ROWS + 5, 64
BYTES = ROWS * ROW_BYTES
ABOUT = {"network": "resnet18", "shape": [4, 4], "é": 0.1}
HEADER, DATA = "header.json", "data.bin"
is_root = os.geteuid() == 0


def made(key: str = "a", num_rows: int = ROWS) -> NDArray[np.uint8]:
    seed = sum(key.encode())
    return np.random.default_rng(seed).integers(0, 256, (num_rows, ROW_BYTES), dtype=np.uint8)


def write_missing(filler: Filler, rows: NDArray[np.uint8], count: int = 1000) -> None:
    for start, stop in filler.missing()[:count]:
        filler.write(start, rows[start:stop])


def fill(store: Store, key: str = "a", num_rows: int = ROWS) -> Entry:
    with store.fill(key, ABOUT, num_rows, ROW_BYTES) as filler:
        write_missing(filler, made(key, num_rows))
        return filler.finish()


def half_fill(store: Store, key: str = "a", count: int = 2) -> None:
    with store.fill(key, ABOUT, ROWS, ROW_BYTES) as filler:
        write_missing(filler, made(key), count)


def names(store: Store) -> set[str]:
    return {path.name for path in store.folder.iterdir()} - {".lock"}


def flip(path: Path, bit: int) -> None:
    with path.open("rb+") as stream:
        stream.seek(bit // 8)
        byte = stream.read(1)[0]
        stream.seek(bit // 8)
        stream.write(bytes([byte ^ (1 << bit % 8)]))


def is_found(store: Store, key: str = "a") -> bool:
    found = store.find(key)
    if found is not None:
        found.close()
    return found is not None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache" / "activations")


# What a process of its own begins with: the functions above, for one folder.
SCRIPT = """
import os, sys, time
import numpy as np
from pathlib import Path
from graft.trunk.store import Store
folder, num_rows, row_bytes = Path(sys.argv[1]), {rows}, {row_bytes}
store = Store(folder)
def made(key):
    random = np.random.default_rng(sum(key.encode()))
    return random.integers(0, 256, (num_rows, row_bytes), dtype=np.uint8)
def say(text):
    print(text, flush=True)
"""


@contextmanager
def process(store: Store, code: str) -> Iterator["subprocess.Popen[str]"]:
    script = SCRIPT.format(rows=ROWS, row_bytes=ROW_BYTES) + code
    command = [sys.executable, "-c", script, str(store.folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def line(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


# -- what it is for


def test_what_was_put_in_comes_out(store: Store) -> None:
    fill(store).close()
    found = Store(store.folder).find("a")
    assert found is not None
    assert (found.about, found.num_rows, found.row_bytes) == (ABOUT, ROWS, ROW_BYTES)
    assert np.array_equal(found.rows(), made())
    assert not found.rows().flags.writeable
    assert names(store) == {"a"} and {p.name for p in (store.folder / "a").iterdir()} == {
        HEADER,
        DATA,
    }
    assert json.loads((store.folder / "a" / HEADER).read_text())["num_rows"] == ROWS


def test_what_was_never_put_in_is_not_found(store: Store) -> None:
    assert store.find("a") is None and store.entries() == [] and store.size() == 0
    assert not store.folder.parent.exists()  # looking makes nothing
    fill(store).close()
    assert store.find("b") is None


def test_the_entry_of_finish_is_the_one_that_is_found(store: Store) -> None:
    with closing(fill(store)) as entry:
        assert np.array_equal(entry.rows(), made()) and entry.about == ABOUT


def test_an_entry_that_is_there_has_nothing_missing(store: Store) -> None:
    fill(store).close()
    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
        assert filler.missing() == [] and filler.entry is not None
        assert np.array_equal(filler.finish().rows(), made())


def test_several_entries_are_filled_in_one_pass(store: Store) -> None:
    a = store.fill("a", ABOUT, ROWS, ROW_BYTES)
    b = store.fill("b", ABOUT, ROWS, ROW_BYTES)
    with a as one, b as two:
        for start, stop in one.missing():
            one.write(start, made("a")[start:stop])
            two.write(start, made("b")[start:stop])
        one.finish().close()
        two.finish().close()
    for key in "ab":
        found = store.find(key)
        assert found is not None and np.array_equal(found.rows(), made(key))


def test_blocks_may_come_in_any_order(store: Store) -> None:
    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
        for start, stop in reversed(filler.missing()):
            filler.write(start, made()[start:stop])
        assert np.array_equal(filler.finish().rows(), made())


@pytest.mark.parametrize(
    ("start", "rows"),
    [
        (1, made()[1:257]),
        (0, made()[:255]),
        (0, made()[:256, :63]),
        (-BLOCK_ROWS, made()[:256]),
        (4 * BLOCK_ROWS, made()[:256]),
        (0, made()[:256].astype(np.int16)),
    ],
)
def test_what_is_no_block_is_refused(store: Store, start: int, rows: Any) -> None:
    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler, pytest.raises(ValueError):
        filler.write(start, rows)


def test_an_entry_with_blocks_missing_is_not_finished(store: Store) -> None:
    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
        write_missing(filler, made(), 3)
        with pytest.raises(ValueError, match="1 blocks"):
            filler.finish()
    assert not is_found(store)


@pytest.mark.parametrize("key", ["", "..", "../x", "a/b", "a.part", "a.lock", "a\n", "x" * 200])
def test_a_key_that_is_no_plain_name_is_refused(store: Store, key: str) -> None:
    for ask in (store.find, store.remove, lambda k: store.fill(k, {}, 1, 1).__enter__()):
        with pytest.raises(ValueError, match="key"):
            ask(key)


def test_a_filler_that_was_left_writes_nothing(store: Store) -> None:
    """Its descriptors may be those of other files by now."""
    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
        write_missing(filler, made(), 1)
    others = [(store.folder.parent / str(i)).open("w") for i in range(20)]
    with pytest.raises(CacheError):
        filler.write(BLOCK_ROWS, made()[BLOCK_ROWS : 2 * BLOCK_ROWS])
    for other in others:
        other.close()
        assert Path(other.name).stat().st_size == 0
    with store.fill("b", ABOUT, ROWS, ROW_BYTES) as filler:
        write_missing(filler, made("b"))
        filler.finish()
        with pytest.raises(CacheError):
            filler.write(0, made()[:BLOCK_ROWS])
    assert is_found(store, "b")


# -- K1, K2, K9: damage


@pytest.mark.parametrize("name", [HEADER, DATA])
def test_a_truncated_entry_is_removed(store: Store, name: str) -> None:
    chance = random.Random(1)
    for _ in range(10):
        fill(store).close()
        path = store.folder / "a" / name
        os.truncate(path, chance.randrange(path.stat().st_size))
        assert store.find("a") is None
        assert names(store) == set()


def test_a_longer_entry_is_removed(store: Store) -> None:
    for name in (HEADER, DATA):
        fill(store).close()
        with (store.folder / "a" / name).open("ab") as stream:
            stream.write(b"\n")
        assert store.find("a") is None and names(store) == set()


@pytest.mark.parametrize(("name", "times"), [(HEADER, 25), (DATA, 25)])
def test_an_entry_with_a_flipped_bit_is_never_used(store: Store, name: str, times: int) -> None:
    chance = random.Random(2)
    for _ in range(times):
        fill(store).close()
        path = store.folder / "a" / name
        flip(path, chance.randrange(8 * path.stat().st_size))
        assert store.find("a") is None
        assert names(store) == set()


@pytest.mark.parametrize("name", [HEADER, DATA])
def test_an_entry_without_one_of_its_files_is_removed(store: Store, name: str) -> None:
    fill(store).close()
    (store.folder / "a" / name).unlink()
    assert store.find("a") is None and names(store) == set()


def test_a_damaged_entry_is_said_once_and_made_again(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store).close()
    flip(store.folder / "a" / DATA, 12345)
    with closing(fill(store)) as entry:
        assert np.array_equal(entry.rows(), made())
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1 and "rebuilt" in warned[0] and "1 of 4 blocks" in warned[0]


def test_swapped_blocks_are_noticed(store: Store) -> None:
    fill(store).close()
    path = store.folder / "a" / DATA
    size, data = BLOCK_ROWS * ROW_BYTES, path.read_bytes()
    path.write_bytes(data[size : 2 * size] + data[:size] + data[2 * size :])
    assert not is_found(store)


def test_an_entry_under_the_name_of_another_is_not_used(store: Store) -> None:
    fill(store).close()
    (store.folder / "a").rename(store.folder / "b")
    assert not is_found(store, "b") and names(store) == set()


def test_an_entry_of_another_format_is_made_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(entries, "FORMAT", entries.FORMAT + 1)
    fill(store).close()
    monkeypatch.undo()
    assert not is_found(store)
    assert "format 2 instead of 1" in caplog.text and names(store) == set()
    fill(store).close()
    assert is_found(store)


def test_too_many_open_files_remove_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store).close()

    def pread(*_: object) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", pread)
        assert not is_found(store)
    assert is_found(store)


# -- K3: interrupted


def test_a_fill_goes_on_where_a_killed_one_was(store: Store) -> None:
    code = """
with store.fill("a", {about}, num_rows, row_bytes) as filler:
    for start, stop in filler.missing()[:2]:
        filler.write(start, made("a")[start:stop])
    say("half")
    time.sleep(60)
"""
    with process(store, code.replace("{about}", repr(ABOUT))) as child:
        assert line(child) == "half"
        assert not is_found(store)  # not while it is built
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not is_found(store)
    assert [e.is_complete for e in store.entries()] == [False]
    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
        assert filler.missing() == [(512, 768), (768, ROWS)]
        write_missing(filler, made())
        assert np.array_equal(filler.finish().rows(), made())
    assert names(store) == {"a"}


def test_a_fill_that_fails_keeps_what_it_wrote(store: Store) -> None:
    with pytest.raises(KeyError), store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
        write_missing(filler, made(), 1)
        raise KeyError
    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
        assert len(filler.missing()) == 3


def test_a_fill_that_wrote_nothing_leaves_nothing(store: Store) -> None:
    with store.fill("a", ABOUT, ROWS, ROW_BYTES):
        assert names(store) == {"a.part", "a.lock"}
    assert names(store) == set()


def test_a_damaged_block_of_a_half_built_entry_is_computed_again(store: Store) -> None:
    half_fill(store, count=3)
    flip(store.folder / "a.part" / DATA, 8 * (BLOCK_ROWS * ROW_BYTES + 7))
    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
        assert filler.missing() == [(256, 512), (768, ROWS)]
        write_missing(filler, made())
        filler.finish().close()
    found = store.find("a")
    assert found is not None and np.array_equal(found.rows(), made())


@pytest.mark.parametrize(("cut", "left"), [(1, 1), (3, 2), (12, 2), (25, 3)])
def test_a_torn_journal_costs_blocks_and_no_more(store: Store, cut: int, left: int) -> None:
    half_fill(store, count=3)
    path = store.folder / "a.part" / "journal"
    os.truncate(path, path.stat().st_size - cut)
    for count in (1, 1000):
        with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
            assert len(filler.missing()) == left
            write_missing(filler, made(), count)
            left = len(filler.missing())
            assert len(path.read_bytes().splitlines()) == 1 + 4 - left
            if left == 0:
                filler.finish().close()
                break
    found = store.find("a")
    assert found is not None and np.array_equal(found.rows(), made())


def test_a_half_built_entry_cut_short_is_filled_again(store: Store) -> None:
    half_fill(store, count=3)
    os.truncate(store.folder / "a.part" / DATA, 300 * ROW_BYTES)
    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
        assert filler.missing()[0] == (256, 512)


@pytest.mark.parametrize(
    ("about", "num_rows", "row_bytes"),
    [({}, ROWS, ROW_BYTES), (ABOUT, ROWS - 1, ROW_BYTES), (ABOUT, ROWS, 2 * ROW_BYTES)],
)
def test_a_half_built_entry_of_other_bytes_is_not_gone_on_with(
    store: Store, about: dict[str, Any], num_rows: int, row_bytes: int
) -> None:
    half_fill(store)
    with store.fill("a", about, num_rows, row_bytes) as filler:
        assert len(filler.missing()) == 4
        rows = np.zeros((num_rows, row_bytes), np.uint8)
        write_missing(filler, rows)
        assert np.array_equal(filler.finish().rows(), rows)


def test_an_old_half_built_entry_goes_without_the_complete_one(store: Store) -> None:
    half_fill(store)
    (store.folder / "a.part").rename(store.folder / "kept")
    fill(store).close()
    (store.folder / "kept").rename(store.folder / "a.part")
    os.utime(store.folder / "a.part" / DATA, (0, 0))
    fill(store, "b").close()
    assert names(store) == {"a", "b"}


def test_leftovers_of_killed_processes_are_removed(store: Store) -> None:
    half_fill(store, "old")
    half_fill(store, "new")
    fill(store, "whole").close()
    long_ago = time.time() - listing.STALE_SECONDS - 60
    for key in ("old.part", "whole"):
        os.utime(store.folder / key / DATA, (long_ago, long_ago))
    (store.folder / "orphan.lock").touch()
    (store.folder / "x.0123abcd.gone").mkdir()
    (store.folder / "x.0123abcd.gone" / DATA).touch()
    (store.folder / "mine.txt").touch()
    fill(store, "b").close()
    assert names(store) == {"new.part", "whole", "b", "mine.txt"}


# -- K4: many at once


def test_of_eight_processes_one_builds(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "built"
    code = f"""
sys.stdin.readline()
with store.fill("a", {ABOUT!r}, num_rows, row_bytes) as filler:
    if filler.missing():
        with open({str(log)!r}, "a") as stream:
            stream.write("built ")
        time.sleep(0.5)
    for start, stop in filler.missing():
        filler.write(start, made("a")[start:stop])
    rows = filler.finish().rows()
say("same" if np.array_equal(rows, made("a")) else "different")
"""
    children = [process(store, code) for _ in range(8)]
    running = [child.__enter__() for child in children]
    try:
        for child in running:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        assert [line(child) for child in running] == ["same"] * 8
    finally:
        for context in children:
            context.__exit__(None, None, None)
    assert log.read_text() == "built "
    assert names(store) == {"a"}


def test_another_takes_over_from_a_killed_builder(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    code = f"""
with store.fill("a", {ABOUT!r}, num_rows, row_bytes) as filler:
    filler.write(0, made("a")[:256])
    say("half")
    time.sleep(60)
"""
    waiting = """
with store.fill("a", {}, num_rows, row_bytes):
    say("taken over")
"""
    with process(store, code) as builder, caplog.at_level(logging.INFO, "graft"):
        assert line(builder) == "half"
        with process(store, waiting) as waiter:
            time.sleep(1)
            assert not (store.folder / "a").exists()
            builder.kill()
            killed = time.monotonic()
            assert line(waiter) == "taken over"
            assert time.monotonic() - killed < 10
    assert is_found(store) is False


def test_what_is_completed_between_two_looks_is_used(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = files.take

    def late(folder: int, name: str) -> int | None:
        monkeypatch.undo()
        fill(store).close()
        return take(folder, name)

    monkeypatch.setattr(files, "take", late)
    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
        assert filler.entry is not None and filler.missing() == []


def test_a_lock_whose_file_was_removed_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lock = os.open(tmp_path, os.O_RDONLY), files.lock

    def late(found: int) -> bool:
        (tmp_path / "a.lock").unlink()  # as its last holder does
        return lock(found)

    with monkeypatch.context() as patch:
        patch.setattr(files, "lock", late)
        assert files.take(folder, "a.lock") is None
    held = files.take(folder, "a.lock")
    assert held is not None and files.take(folder, "a.lock") is None
    files.give_back(folder, "a.lock", held)
    os.close(folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_does_not_keep_a_fill_from_the_next(store: Store) -> None:
    with store.fill("a", ABOUT, ROWS, ROW_BYTES):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        began = time.monotonic()
        fill(store).close()
        assert time.monotonic() - began < 10
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_what_took_the_place_of_a_damaged_entry_is_kept(store: Store) -> None:
    fill(store).close()
    folder = os.open(store.folder, os.O_RDONLY)
    inode = (store.folder / "a").stat().st_ino
    assert not listing.remove_damaged(folder, "a", Damaged("as it was", inode + 1))
    assert is_found(store)
    assert listing.remove_damaged(folder, "a", Damaged("as it is", inode))
    os.close(folder)
    assert names(store) == set()


@pytest.mark.slow
def test_who_waits_says_so_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    code = f"""
with store.fill("a", {ABOUT!r}, num_rows, row_bytes) as filler:
    say("began")
    time.sleep(2)
    for start, stop in filler.missing():
        filler.write(start, made("a")[start:stop])
    filler.finish()
"""
    with process(store, code) as builder, caplog.at_level(logging.INFO, "graft"):
        assert line(builder) == "began"
        with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
            assert filler.entry is not None
            assert np.array_equal(filler.entry.rows(), made())
    assert caplog.text.lower().count("waiting for another process") == 1


# -- K5: a folder that cannot be used


@pytest.mark.parametrize("below", ["file", "file/activations", "file/x/y"])
def test_a_folder_that_cannot_be_is_one_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    store = Store(tmp_path / below)
    assert store.find("a") is None
    with pytest.raises(CacheError, match=r"file.* cannot be used \((Not a dir|File ex)"):
        fill(store)
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(is_root, reason="root may write anywhere")
def test_a_read_only_folder_is_one_error(store: Store) -> None:
    fill(store).close()
    store.folder.chmod(0o500)
    try:
        assert is_found(store)
        with pytest.raises(CacheError, match="Permission denied"):
            fill(store, "b")
    finally:
        store.folder.chmod(0o700)


@contextmanager
def mounted(where: Path, options: str) -> Iterator[None]:
    where.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)]
    if not is_root or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def test_a_read_only_file_system_is_one_error_and_can_be_read(tmp_path: Path) -> None:
    where = tmp_path / "small"
    with mounted(where, "size=1m"):
        store = Store(where)
        fill_without_reserve(store)
        subprocess.run(["mount", "-o", "remount,ro", str(where)], check=True)
        found = store.find("a")
        assert found is not None and np.array_equal(found.rows(), made())
        assert [(e.key, e.in_use) for e in store.entries()] == [("a", False)]
        with pytest.raises(CacheError, match="Read-only"):
            fill(store, "b")
        with pytest.raises(CacheError, match="Read-only"):
            store.remove("a")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one. Another fills it up behind our back."""
    monkeypatch.setattr("graft.trunk.store.store.RESERVE_BYTES", 0)
    where = tmp_path / "small"
    with mounted(where, "size=256k"):
        store = Store(where / "activations")
        with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
            write_missing(filler, made(), 1)
            with suppress_full(), (where / "other").open("wb", buffering=0) as other:
                while True:
                    other.write(bytes(4096))
            with pytest.raises(CacheError, match="No space left"):
                write_missing(filler, made())
        assert names(store) == set()
        (where / "other").unlink()
        fill(store).close()
        assert is_found(store)


@contextmanager
def suppress_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        assert error.errno == errno.ENOSPC


def fill_without_reserve(store: Store) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graft.trunk.store.store.RESERVE_BYTES", 0)
        fill(store).close()


@pytest.mark.parametrize("flush_bytes", [1 << 30, 1], ids=["in the end", "meanwhile"])
@pytest.mark.parametrize("name", ["pwrite", "fsync", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_fails_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str, code: int, flush_bytes: int
) -> None:
    monkeypatch.setattr("graft.trunk.store.filler.FLUSH_BYTES", flush_bytes)
    real, calls = getattr(os, name), 0

    def failing(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == (3 if name == "pwrite" else 1):
            raise OSError(code, os.strerror(code))
        return real(*given, **named)

    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
        monkeypatch.setattr(os, name, failing)
        with pytest.raises(CacheError) as raised:
            write_missing(filler, made())
            filler.finish()
        monkeypatch.undo()
        for word in (os.strerror(code), str(store.folder / "a")):
            assert word in str(raised.value)
        assert names(store) <= {"a.lock"}
        with pytest.raises(CacheError):  # it stays given up
            filler.write(0, made()[:BLOCK_ROWS])
        with pytest.raises(CacheError):
            filler.finish()
    assert names(store) == set() and not is_found(store)


def test_a_flush_that_fails_leaves_no_descriptor_open(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graft.trunk.store.filler.FLUSH_BYTES", 1)
    real = os.fsync

    def failing(file: int) -> None:
        if threading.current_thread().name.startswith("flush"):
            raise OSError(errno.EIO, "Input/output error")
        real(file)

    monkeypatch.setattr(os, "fsync", failing)
    before = len(os.listdir("/proc/self/fd"))
    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler, pytest.raises(CacheError):
        write_missing(filler, made())
        filler.finish()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_flush_that_is_slow_holds_up_no_block_and_no_descriptors(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is written meanwhile: one flush at a time."""
    monkeypatch.setattr("graft.trunk.store.filler.FLUSH_BYTES", 1)
    real, dup, may, copies = os.fsync, os.dup, threading.Event(), []

    def slow(file: int) -> None:
        assert may.wait(60)
        real(file)

    monkeypatch.setattr(os, "fsync", slow)
    monkeypatch.setattr(os, "dup", lambda file: (copies.append(dup(file)), copies[-1])[1])
    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
        write_missing(filler, made())
        assert len(copies) == 1
        may.set()
        filler.finish().close()
    assert is_found(store)


def test_blocks_may_come_from_several_threads(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graft.trunk.store.filler.FLUSH_BYTES", 3 * BLOCK_ROWS * ROW_BYTES)
    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler, ThreadPoolExecutor(4) as pool:
        starts = [start for start, _ in filler.missing()]
        wait([
            pool.submit(filler.write, start, made()[start : start + BLOCK_ROWS])
            for start in reversed(starts)
        ])  # fmt: skip
        filler.finish().close()
    found = store.find("a")
    assert found is not None and np.array_equal(found.rows(), made())


def test_of_several_threads_each_hears_why_nothing_can_be_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler, ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr(os, "pwrite", pwrite)
        futures = [
            pool.submit(filler.write, start, made()[start:stop]) for start, stop in filler.missing()
        ]
        for future in futures:
            assert "No space left" in str(future.exception())
    assert names(store) == set()


def test_one_entry_that_cannot_be_written_leaves_the_other_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = store.fill("a", ABOUT, ROWS, ROW_BYTES)
    b = store.fill("b", ABOUT, ROWS, ROW_BYTES)

    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with a as one, b as two:
        with monkeypatch.context() as patch, pytest.raises(CacheError):
            patch.setattr(os, "pwrite", pwrite)
            write_missing(one, made("a"))
        write_missing(two, made("b"))
        two.finish().close()
    assert names(store) == {"b"} and is_found(store, "b")


def test_a_limit_on_the_size_of_files_leaves_nothing(store: Store) -> None:
    code = """
import resource
from graft.errors import CacheError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    with store.fill("a", {}, num_rows, row_bytes):
        say("begun")
except CacheError as error:
    say(error)
"""
    with process(store, code) as child:
        assert "File too large" in line(child)
        child.wait()
    assert names(store) == set()


# -- K6: room


def test_the_least_recently_used_make_room(store: Store) -> None:
    store = Store(store.folder, limit_bytes=3 * BYTES)
    for key in "abc":
        fill(store, key).close()
    assert is_found(store, "a")  # used last
    fill(store, "d").close()
    assert names(store) == {"a", "c", "d"}
    for key in "ef":
        fill(store, key).close()
        assert store.size() <= 3 * BYTES
    assert names(store) == {"d", "e", "f"}


def test_what_is_being_read_is_never_removed(store: Store) -> None:
    store = Store(store.folder, limit_bytes=3 * BYTES)
    for key in "abc":
        fill(store, key).close()
    reading = """
entry = store.find("b")
rows = entry.rows()
del entry  # its rows are enough
say("reads")
sys.stdin.readline()
say(np.array_equal(rows, made("b")))
"""
    found = store.find("a")
    assert found is not None
    with process(store, reading) as child:
        assert line(child) == "reads"
        for key in "def":
            fill(store, key).close()
            assert store.size() <= 3 * BYTES
        assert names(store) == {"a", "b", "f"}
        assert not store.remove("a") and not store.remove("b")
        assert {e.key for e in store.entries() if e.in_use} == {"a", "b"}
        with closing(fill(store, "g")), pytest.raises(NoRoom, match="limit"):
            fill(store, "h")  # all are being read
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
        assert line(child) == "True"
    assert np.array_equal(found.rows(), made("a"))
    found.close()
    assert store.remove("a") and store.remove("b") and names(store) == {"g"}


def test_an_entry_is_in_use_until_it_and_its_rows_are_gone(store: Store) -> None:
    entry: Entry | None = fill(store)
    assert entry is not None
    rows: Any = entry.rows()[3:5]
    entry = None
    assert not store.remove("a")
    rows = None
    assert rows is None and store.remove("a")


def test_what_is_being_filled_is_never_removed(store: Store) -> None:
    store = Store(store.folder, limit_bytes=2 * BYTES)
    a = store.fill("a", ABOUT, ROWS, ROW_BYTES)
    with a as one, store.fill("b", ABOUT, ROWS, ROW_BYTES) as two:
        with pytest.raises(NoRoom):
            fill(store, "c")
        assert not store.remove("a")
        for key, filler in (("a", one), ("b", two)):
            write_missing(filler, made(key))
            filler.finish().close()
    assert names(store) == {"a", "b"}


def test_abandoned_entries_make_room_too(store: Store) -> None:
    store = Store(store.folder, limit_bytes=2 * BYTES)
    half_fill(store, "a", count=1)
    fill(store, "b").close()
    fill(store, "c").close()
    assert names(store) == {"b", "c"}


def test_an_entry_above_the_limit_removes_nothing(store: Store) -> None:
    store = Store(store.folder, limit_bytes=BYTES)
    fill(store, "a").close()
    with pytest.raises(NoRoom, match=f"{2 * BYTES:,}") as raised:
        fill(store, "b", 2 * ROWS)
    assert str(store.folder) in str(raised.value)
    assert names(store) == {"a"}


@pytest.mark.parametrize(("spare", "fits"), [(1, True), (-1, False)])
def test_the_disk_keeps_a_reserve(
    store: Store, monkeypatch: pytest.MonkeyPatch, spare: int, fits: bool
) -> None:
    class Usage:
        free = BYTES + (64 << 20) + spare

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    if fits:
        fill(store).close()
    else:
        with pytest.raises(NoRoom, match="disk"):
            fill(store)
    assert is_found(store) == fits


def test_abandoned_entries_whose_removal_frees_nothing_are_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the disk a half-built entry takes what was written of it, not its whole size."""
    fill(store, "a").close()
    half_fill(store, "b", count=1)
    there = names(store)

    class Usage:
        free = 64 << 20

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(NoRoom, match="disk"):
        fill(store, "c", 2 * ROWS)
    assert names(store) == there


def test_what_others_are_yet_to_write_is_not_free(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 2 * BYTES + (64 << 20) - 1

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with store.fill("a", ABOUT, ROWS, ROW_BYTES), pytest.raises(NoRoom):
        fill(store, "b")
    fill(store, "b").close()


# -- K8: whose it is


def test_the_folder_and_all_in_it_are_private(store: Store) -> None:
    fill(store).close()
    half_fill(store, "b")
    places = [store.folder, *store.folder.rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in places} == {0o700, 0o600}
    assert store.folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_write_to_is_said_once(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store).close()
    assert caplog.text == ""
    store.folder.chmod(0o770)
    assert is_found(store) and is_found(store)
    fill(store, "b").close()
    assert caplog.text.count("chmod go-w") == 1


@pytest.mark.skipif(not is_root, reason="only root gives files away")
@pytest.mark.parametrize("name", ["", HEADER, DATA])
def test_what_belongs_to_another_is_not_used(
    store: Store, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store).close()
    os.chown(store.folder / "a" / name, 12345, -1)
    assert not is_found(store)
    assert "belongs to another user" in caplog.text
    if name == "":
        assert names(store) == {"a"}  # not ours to remove
        with pytest.raises(CacheError, match="another user"):
            fill(store)
        assert store.entries() == [] and store.size() == 0
    else:
        assert names(store) == set()


def test_an_entry_of_another_user_is_not_used(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store).close()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        assert not is_found(store)
        with pytest.raises(CacheError, match="another user"):
            fill(store)
    assert is_found(store)


@pytest.mark.parametrize("name", ["", HEADER, DATA])
def test_a_link_is_not_followed(
    store: Store, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store).close()
    place, target = store.folder / "a" / name, tmp_path / "target"
    place.rename(target)
    place.symlink_to(target)
    before = {p: p.read_bytes() for p in [target, *target.rglob("*")] if p.is_file()}
    assert not is_found(store)
    assert "symbolic link" in caplog.text
    if name == "":
        with pytest.raises(CacheError, match="symbolic link"):
            fill(store)
        assert not store.remove("a") or place.is_symlink()
    else:
        fill(store).close()
        assert is_found(store)
    assert before and {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize("name", ["a.part", "a.part/data.bin", "a.part/journal", "a.lock", ".lock"])
def test_no_link_is_written_through(store: Store, tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    if name == "a.part":
        target.mkdir()
    else:
        target.write_text("mine")
    (store.folder / name).parent.mkdir(parents=True)
    (store.folder / name).symlink_to(target)
    with pytest.raises(CacheError, match="symbolic link"):
        fill(store)
    assert list(target.iterdir()) == [] if target.is_dir() else target.read_text() == "mine"


def test_what_is_not_an_entry_is_neither_listed_nor_removed(store: Store) -> None:
    fill(store).close()
    (store.folder / "photos").mkdir()
    (store.folder / "photos" / "cat.png").touch()
    (store.folder / "empty").mkdir()
    assert [e.key for e in store.entries()] == ["a"]
    store.remove("photos")
    small = Store(store.folder, limit_bytes=BYTES)
    fill(small, "b").close()
    assert names(store) == {"photos", "empty", "b"}


# -- K11: removed while in use


def rmtree(path: Path) -> None:
    subprocess.run(["rm", "-r", str(path)], check=True)


@pytest.mark.parametrize("what", ["a", "."])
def test_rows_stay_readable_when_their_files_are_gone(store: Store, what: str) -> None:
    fill(store).close()
    found = store.find("a")
    assert found is not None
    rmtree((store.folder / what).resolve())
    assert np.array_equal(found.rows(), made())
    assert not is_found(store)
    fill(store).close()
    assert is_found(store)
    rows = found.rows()
    found.close()
    assert np.array_equal(rows, made())


@pytest.mark.parametrize("what", ["a.part", "a.part/data.bin", "."])
@pytest.mark.parametrize("written", [2, 1000])
def test_a_fill_whose_files_are_removed_is_one_error(store: Store, what: str, written: int) -> None:
    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
        write_missing(filler, made(), written)
        rmtree((store.folder / what).resolve())
        with pytest.raises(CacheError, match=r"removed|No such file"):
            write_missing(filler, made(), 1)  # what is left to compute need not be
            assert written == 1000
            filler.finish()
    assert not is_found(store)
    fill(store).close()
    assert is_found(store)


def test_a_fill_never_takes_what_another_began_after_the_folder_was_removed(store: Store) -> None:
    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler:
        write_missing(filler, made())
        rmtree(store.folder)
        with store.fill("a", ABOUT, ROWS, ROW_BYTES) as other:
            write_missing(other, made(), 1)
            with pytest.raises(CacheError):
                filler.finish()
            write_missing(other, made())
            assert np.array_equal(other.finish().rows(), made())


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_closed_entry_of_a_forked_child_stays_in_use_here(store: Store) -> None:
    entry = fill(store)
    child = os.fork()
    if child == 0:
        entry.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert not store.remove("a")
    entry.close()
    assert store.remove("a")


# -- what it costs


def test_filling_and_finding_hold_no_more_than_a_block(store: Store) -> None:
    num_rows, row_bytes = 20 * BLOCK_ROWS, 16_384  # 84 MB, blocks of 4 MB
    block = np.ones((BLOCK_ROWS, row_bytes), np.uint8)
    tracemalloc.start()
    try:
        with store.fill("a", ABOUT, num_rows, row_bytes) as filler:
            for start, _ in filler.missing():
                filler.write(start, block)
            filler.finish().close()
        assert tracemalloc.get_traced_memory()[1] < block.nbytes
        assert is_found(store)
        assert tracemalloc.get_traced_memory()[1] < 2 * block.nbytes
    finally:
        tracemalloc.stop()


def test_no_descriptor_is_left_open(store: Store) -> None:
    fill(store).close()
    before = len(os.listdir("/proc/self/fd"))

    def again(use: Callable[[], object]) -> None:
        for _ in range(5):
            use()

    again(lambda: is_found(store))
    again(lambda: half_fill(store, "b"))
    again(lambda: (fill(store, "c").close(), store.remove("c")))
    again(store.entries)
    flip(store.folder / "a" / DATA, 5)
    again(lambda: is_found(store))
    assert len(os.listdir("/proc/self/fd")) == before
