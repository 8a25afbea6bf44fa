"""Fills of the store: interrupted, by many at once, and of what somebody removes meanwhile."""

import logging
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.trunk.stored import (
    ABOUT,
    DATA,
    ROW_BYTES,
    ROWS,
    fill,
    flip,
    half_fill,
    is_found,
    line,
    made,
    names,
    process,
    write_missing,
)

from graft.errors import CacheError
from graft.trunk.store import Store, files, listing
from graft.trunk.store.entry import BLOCK_ROWS, Damaged

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
