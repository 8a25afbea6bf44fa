"""Computes activations that are not stored yet, several exits of the trunk in one pass."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from graft.errors import CacheError
from graft.trunk.exits import Exit
from graft.trunk.rows import RowFormat
from graft.trunk.run import Frozen
from graft.trunk.store import Store

log = logging.getLogger("graft")

# Pictures whose activations are computed, then written: what a fill holds in memory at a time.
STRETCH = 256


@dataclass(frozen=True)
class Wanted:
    """Rows to have: the activations at one exit of some pictures, all in one view.

    Attributes:
        key: of the entry.
        about: for whoever lists the store, and to read the rows.
        exit: where they leave the trunk.
        format: of a row.
    """

    key: str
    about: Mapping[str, Any]
    exit: Exit
    format: RowFormat


class Rows(Protocol):
    """Filled rows: an entry of the store, or memory."""

    def rows(self) -> NDArray[np.uint8]: ...
    def close(self) -> None: ...


class InMemory:
    """Rows of this process alone, where there is no store to be used."""

    def __init__(self, num_rows: int, row_bytes: int) -> None:
        self._rows = np.empty((num_rows, row_bytes), dtype=np.uint8)

    def rows(self) -> NDArray[np.uint8]:
        """uint8 [num_rows, row_bytes]"""
        return self._rows

    def close(self) -> None:
        pass


# Ranges of rows -> the network's input for each, on its device.
Inputs = Callable[[Sequence[tuple[int, int]]], Iterator[torch.Tensor]]


def fill(
    store: Store | None,
    wanted: Sequence[Wanted],
    num_rows: int,
    frozen: Frozen,
    inputs: Inputs,
    tell: Callable[[int], None],
) -> list[Rows]:
    """The rows of every exit, from the store as far as they are there, computed as far as not.

    Args:
        store: None: into memory.
        wanted: in the order in which `frozen` gives their tensors.
        num_rows: of each.
        frozen: network input [B, 3, S, S] -> the tensors of all exits, one exit after the other.
        inputs: of ranges of rows.
        tell: called with how many more rows are there.

    Raises:
        CacheError: the store cannot be used (any more); what was computed is lost or will be gone
            on with.
    """
    if store is None:
        memory = [InMemory(num_rows, one.format.row_bytes) for one in wanted]
        for start, stop, packed in _computed([(0, num_rows)], wanted, frozen, inputs):
            for into, rows in zip(memory, packed, strict=True):
                into.rows()[start:stop] = rows
            tell(stop - start)
        return list(memory)
    with ExitStack() as stack:
        # In the order of their keys, as everybody does: else two processes wait for each other.
        fillers = {
            one.key: stack.enter_context(
                store.fill(one.key, one.about, num_rows, one.format.row_bytes)
            )
            for one in sorted(wanted, key=lambda one: one.key)
        }
        missing = {key: set(filler.missing()) for key, filler in fillers.items()}
        ranges = sorted(set().union(*missing.values()))
        tell(num_rows - sum(stop - start for start, stop in ranges))
        for start, stop, packed in _computed(ranges, wanted, frozen, inputs):
            for one, rows in zip(wanted, packed, strict=True):
                if (start, stop) in missing[one.key]:
                    fillers[one.key].write(start, rows)
            tell(stop - start)
        return [fillers[one.key].entry or fillers[one.key].finish() for one in wanted]


def _computed(
    ranges: Sequence[tuple[int, int]], wanted: Sequence[Wanted], frozen: Frozen, inputs: Inputs
) -> Iterator[tuple[int, int, list[NDArray[np.uint8]]]]:
    """Each range with its packed rows, uint8 [stop - start, row_bytes] an exit."""
    shorter = [
        (start, min(start + STRETCH, stop))
        for whole_start, stop in ranges
        for start in range(whole_start, stop, STRETCH)
    ]
    stream = inputs(shorter)
    for start, stop in shorter:
        tensors = frozen.tried(next(stream))
        packed, first = [], 0
        for one in wanted:
            last = first + len(one.exit)
            packed.append(one.format.pack(tensors[first:last]).cpu().numpy())
            first = last
        yield start, stop, packed


def fill_or_remember(
    store: Store | None,
    wanted: Sequence[Wanted],
    num_rows: int,
    frozen: Frozen,
    inputs: Inputs,
    tell: Callable[[int], None],
    memory_limit_bytes: int,
) -> list[Rows] | None:
    """`fill`, in memory where the store cannot be used; None where there is no room either.

    What is wrong with the store is said in one warning.
    """
    try:
        if store is not None:
            return fill(store, wanted, num_rows, frozen, inputs, tell)
    except CacheError as error:
        log.warning("%s Going on without it.", error)
    if num_rows * sum(one.format.row_bytes for one in wanted) > memory_limit_bytes:
        return None
    return fill(None, wanted, num_rows, frozen, inputs, tell)
