"""The store where nothing can be written, and how it makes room."""

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.opened import needs_proc, num_open
from tests.trunk.stored import (
    ABOUT,
    BYTES,
    ROW_BYTES,
    ROWS,
    fill,
    half_fill,
    is_found,
    is_root,
    line,
    made,
    names,
    process,
    write_missing,
)

from graft.errors import CacheError, NoRoom
from graft.trunk.store import Store
from graft.trunk.store.entry import BLOCK_ROWS, Entry

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


@needs_proc
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
    with store.fill("a", ABOUT, ROWS, ROW_BYTES) as filler, pytest.raises(CacheError):
        write_missing(filler, made())
        filler.finish()
    assert num_open(store.folder) == 0


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
