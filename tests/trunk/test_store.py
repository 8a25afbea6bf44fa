"""The store of the trunk cache: what it gives back is what was put in, or nothing."""

import errno
import json
import logging
import os
import random
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.opened import needs_proc, num_open
from tests.trunk.stored import (
    ABOUT,
    BYTES,
    DATA,
    HEADER,
    ROW_BYTES,
    ROWS,
    fill,
    flip,
    half_fill,
    is_found,
    is_root,
    made,
    names,
    write_missing,
)

from graft.errors import CacheError
from graft.trunk.store import Store
from graft.trunk.store import entry as entries
from graft.trunk.store.entry import BLOCK_ROWS

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


@needs_proc
def test_no_descriptor_is_left_open(store: Store) -> None:
    fill(store).close()

    def again(use: Callable[[], object]) -> None:
        for _ in range(5):
            use()

    again(lambda: is_found(store))
    again(lambda: half_fill(store, "b"))
    again(lambda: (fill(store, "c").close(), store.remove("c")))
    again(store.entries)
    flip(store.folder / "a" / DATA, 5)
    again(lambda: is_found(store))
    assert num_open(store.folder) == 0
