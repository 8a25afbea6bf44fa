"""Who decodes: processes give what threads give, and one that dies costs nothing but time."""

import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graft.aside import Aside
from graft.data import decoders
from graft.data.check import check
from graft.data.decode import Unreadable
from graft.data.decoders import Decoders
from graft.data.pictures import Pictures

COUNT, SIZE = 100, 24


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(0)
    found = [tmp_path / f"{i}.png" for i in range(COUNT)]
    for path in found:
        Image.fromarray(random.integers(256, size=(30, 40, 3), dtype=np.uint8)).save(path)
    return found


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Three workers and a few files are enough for processes; their ids, as they are started."""
    monkeypatch.setattr(decoders, "PROCESSES_FROM", 3)
    monkeypatch.setattr(decoders, "MANY", 50)
    ids: list[int] = []
    begin = Decoders._started

    def noted(self: Decoders) -> Aside:
        process = begin(self)
        ids.append(process.pid)
        return process

    monkeypatch.setattr(Decoders, "_started", noted)
    yield ids
    assert wait_until_gone(ids), "a process is left"


def wait_until_gone(ids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in ids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("limit", [None, 0], ids=["kept", "decoded each time"])
def test_processes_give_what_the_calling_thread_gives(
    paths: list[Path], started: list[int], limit: int | None
) -> None:
    order = np.random.default_rng(1).integers(COUNT, size=(9, 17))
    with Pictures(paths, SIZE, workers=0, memory_limit_bytes=limit) as alone:
        expected = [batch.numpy() for batch in alone.batches(order)]
    assert not started
    with Pictures(paths, SIZE, workers=3, memory_limit_bytes=limit) as shared:
        found = [batch.numpy() for batch in shared.batches(order)]
        assert len(started) == 3
    for one, other in zip(found, expected, strict=True):
        assert (one == other).all()


def test_processes_end_when_every_picture_is_kept(paths: list[Path], started: list[int]) -> None:
    with Pictures(paths, SIZE, workers=3) as pictures:
        first = pictures.batch(np.arange(COUNT))
        assert wait_until_gone(started)
        assert (pictures.batch(np.arange(COUNT)) == first).all()
        assert len(started) == 3


def test_a_file_that_cannot_be_used_is_named(paths: list[Path], started: list[int]) -> None:
    paths[41].write_bytes(b"no picture")
    with Pictures(paths, SIZE, workers=3) as pictures:
        with pytest.raises(Unreadable, match=r"41\.png: not a picture"):
            list(pictures.batches(np.arange(COUNT).reshape(4, 25)))
        assert len(pictures.batch(np.arange(40))) == 40


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_process_that_is_killed_costs_no_picture(
    paths: list[Path], started: list[int], when: str
) -> None:
    with Pictures(paths, SIZE, workers=0) as alone:
        expected = alone.batch(np.arange(COUNT))
    with Pictures(paths, SIZE, workers=3, memory_limit_bytes=0) as pictures:
        pictures.batch(np.arange(20))
        killed = set(started) if when == "before" else set()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        for number, batch in enumerate(pictures.batches(np.arange(COUNT).reshape(20, 5))):
            alive = [pid for pid in started if pid not in killed]
            if when == "meanwhile" and number % 4 == 0 and alive:
                os.kill(alive[-1], signal.SIGKILL)
                killed.add(alive[-1])
            assert (batch == expected[5 * number : 5 * number + 5]).all()
        assert len(started) > 3 <= len(killed)


def test_who_still_waits_when_processes_end_is_served(
    paths: list[Path], started: list[int]
) -> None:
    """Two batches of the same pictures: the first to be whole ends the processes."""
    every = np.arange(COUNT)
    with Pictures(paths, SIZE, workers=0) as alone:
        expected = alone.batch(every)
    for _ in range(5):
        with Pictures(paths, SIZE, workers=3) as pictures:
            for batch in pictures.batches([every] * 6):
                assert (batch == expected).all()


def test_what_a_function_raises_costs_no_process(started: list[int]) -> None:
    with Decoders("decode", 3, 1000) as three:
        for _ in range(7):
            with pytest.raises(ValueError, match="math domain"):
                three.submit(three.call, math.sqrt, -1).result(timeout=20)
        assert three.submit(three.call, os.getpid).result(timeout=20) in started


def test_a_check_by_processes_finds_what_threads_find(
    paths: list[Path], started: list[int], tmp_path: Path
) -> None:
    paths[7].write_bytes(b"no picture")
    paths[80].write_bytes(paths[80].read_bytes()[:200])
    names = [path.name for path in paths]

    def checked(cache: str, workers: int) -> object:
        (tmp_path / cache).mkdir(exist_ok=True)
        return check(
            names, paths, tmp_path / cache, max_pixels=10**6, min_side=8, workers=workers
        )  # fmt: skip

    by_processes = checked("a", 3)
    assert len(started) == 3
    assert by_processes == checked("b", 2) == checked("a", 3)
    assert len(started) == 3  # what is known is not decoded again, and needs no process


def test_a_decoder_has_not_imported_torch(started: list[int]) -> None:
    with Decoders("decode", 3, 1000) as three:
        three.submit(three.call, os.getpid).result()
        maps = Path(f"/proc/{started[0]}/maps").read_text()
    assert "libtorch" not in maps and "_imaging" in maps


def test_few_files_or_workers_are_for_threads(started: list[int]) -> None:
    for workers, num_files in ((3, 49), (2, 1000), (0, 1000), (1, 1000)):
        with Decoders("decode", workers, num_files) as few:
            assert few.submit(few.call, os.getpid).result() == os.getpid()
    assert not started
