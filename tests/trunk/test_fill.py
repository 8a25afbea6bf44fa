"""Filling: what is computed comes to the store, or to memory, and is counted once."""

import functools
import os
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from graft.errors import CacheError
from graft.fit.learner import autocast
from graft.trunk.fill import Task, Wanted, fill, fill_or_remember
from graft.trunk.rows import RowFormat
from graft.trunk.run import Frozen, Pace
from graft.trunk.store import Filler, Store

ROWS, SIZE = 600, 8


class Ends(nn.Module):
    """Two exits: the pictures doubled, and tripled."""

    def forward(self, x: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], ...]:
        return ((2 * x).flatten(1),), ((3 * x).flatten(1),)


def pictures(ranges: Sequence[tuple[int, int]]) -> Generator[torch.Tensor]:
    every = torch.arange(ROWS * SIZE, dtype=torch.float32).reshape(ROWS, SIZE)
    return (every[start:stop] for start, stop in ranges)


def task(told: list[int], kept: torch.Tensor | None = None) -> Task:
    format = RowFormat.of([torch.zeros(2, SIZE)], "float32", 2)
    wanted = [Wanted(key * 8, {}, (key,), format) for key in ("b", "a")]
    plainly = functools.partial(autocast, "float32", torch.device("cpu"))
    frozen = Frozen(Ends(), plainly, Pace((16,), must_be_equal=True), is_for_storing=True)
    return Task(wanted, ROWS, frozen, pictures, told.append, kept)


def doubled() -> np.ndarray:
    (every,) = pictures([(0, ROWS)])
    return (2 * every).numpy().view(np.uint8)


def test_all_that_is_wanted_is_stored_and_the_first_is_handed_over(tmp_path: Path) -> None:
    store, told = Store(tmp_path), list[int]()
    rows = fill(store, task(told))
    assert np.array_equal(rows.rows(), doubled()) and sum(told) == ROWS
    assert {entry.key for entry in store.entries() if entry.is_complete} == {"a" * 8, "b" * 8}
    assert [entry.key for entry in store.entries() if entry.in_use] == ["b" * 8]
    rows.close()


def test_what_is_wanted_beside_and_does_not_fit_is_left_out(tmp_path: Path) -> None:
    store, told = Store(tmp_path, limit_bytes=2 * ROWS * SIZE * 4 - 1), list[int]()
    found = fill_or_remember(store, task(told), 0)
    assert found is not None and found[1]
    assert np.array_equal(found[0].rows(), doubled()) and sum(told) == ROWS
    assert [entry.key for entry in store.entries()] == ["b" * 8]
    found[0].close()


@pytest.mark.parametrize("is_kept", [False, True])
def test_what_came_to_nothing_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    """A disk that fails half-way: all is computed again, and there are no more rows than that."""
    write, told = Filler.write, list[int]()
    monkeypatch.setattr("graft.trunk.fill.WRITERS", 1)

    def failing(self: Filler, start: int, rows: np.ndarray) -> None:
        if start >= 512:
            raise CacheError("The disk fails.")
        write(self, start, rows)

    monkeypatch.setattr(Filler, "write", failing)
    row_bytes = SIZE * 4
    kept = torch.empty((ROWS, row_bytes), dtype=torch.uint8) if is_kept else None
    found = fill_or_remember(Store(tmp_path), task(told, kept), ROWS * row_bytes)
    assert found is not None and not found[1]
    assert np.array_equal(found[0].rows(), doubled())
    assert any(count < 0 for count in told) and sum(told) == ROWS


def test_memory_that_is_not_there_is_said_by_nothing_found(tmp_path: Path) -> None:
    told = list[int]()
    assert fill_or_remember(None, task(told), ROWS * SIZE * 4 - 1) is None
    found = fill_or_remember(None, task(told), ROWS * SIZE * 4)
    assert found is not None and np.array_equal(found[0].rows(), doubled()) and sum(told) == ROWS
    assert not os.listdir(tmp_path)
