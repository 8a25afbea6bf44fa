"""Computes activations that are not stored yet, several exits of the trunk in one pass."""

import functools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from graft import lanes
from graft.errors import CacheError, NoRoom
from graft.trunk.exits import Exit
from graft.trunk.rows import RowFormat
from graft.trunk.run import Frozen
from graft.trunk.store import Filler, Store

log = logging.getLogger("graft")

# Pictures whose activations are computed, then written while the next are computed. A fill holds so
# many in memory for each thread that writes, and once more; on a CPU the next ones' pictures, too.
STRETCH = 256
# Threads that write: a digest of what a fast GPU gives takes longer than the GPU.
WRITERS = 8


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
    """Rows of this process alone, in memory or in that of a device.

    Args:
        held: uint8 [num_rows, row_bytes]
    """

    def __init__(self, held: torch.Tensor) -> None:
        self._held = held

    def rows(self) -> NDArray[np.uint8]:
        """uint8 [num_rows, row_bytes]"""
        found: NDArray[np.uint8] = self._held.cpu().numpy()
        return found

    def close(self) -> None:
        pass


class Ahead(InMemory):
    """Rows that are in use on a device while the store is still flushing them to the disk.

    Args:
        held: uint8 [num_rows, row_bytes]
        fillers: of entries that are written whole.
        stack: what ends the fills.
    """

    def __init__(self, held: torch.Tensor, fillers: Sequence[Filler], stack: ExitStack) -> None:
        super().__init__(held)
        self._problems: list[Exception] = []
        # It does not know the rows: a disk may take longer than whoever wants them. Nothing is lost
        # with it: what it has not finished, the next who fills goes on with.
        given = (fillers, stack, self._problems)
        self._thread = threading.Thread(target=_finish, args=given, name="finish", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for the disk. What is wrong with it is said: nobody has lost anything yet."""
        self._thread.join()
        while self._problems:
            log.warning("%s What was computed is in use all the same.", self._problems.pop())


def _finish(fillers: Sequence[Filler], stack: ExitStack, problems: list[Exception]) -> None:
    try:
        with stack:
            for filler in fillers:
                filler.finish().close()
    except Exception as error:  # whatever it is, it costs time
        problems.append(error)


# Ranges of rows -> the network's input for each, on its device.
Inputs = Callable[[Sequence[tuple[int, int]]], Generator[torch.Tensor]]


@dataclass(frozen=True)
class Task:
    """Rows to have: those of the first that is wanted, and the others in the same pass.

    Attributes:
        wanted: in the order in which `frozen` gives their tensors; it may give more. What is
            wanted beside the first is for the store alone, and for whoever comes later.
        num_rows: of each.
        frozen: network input [B, 3, S, S] -> the tensors of all exits, one exit after the other.
        inputs: of ranges of rows.
        tell: called with how many more rows are there; fewer than none, where some came to nothing.
        kept: uint8 [num_rows, row_bytes] on a device, for the rows of the first: what is computed
            goes there, too, and is in use before the disk has it. None: nowhere else.
    """

    wanted: Sequence[Wanted]
    num_rows: int
    frozen: Frozen
    inputs: Inputs
    tell: Callable[[int], None]
    kept: torch.Tensor | None = None

    @property
    def alone(self) -> "Task":
        """The same for the first alone."""
        return replace(self, wanted=self.wanted[:1])


def fill_or_remember(
    store: Store | None, task: Task, memory_limit_bytes: int
) -> tuple[Rows, bool] | None:
    """The first rows that are wanted, in memory where the store cannot be used; None where there is
    no room either.

    What is wrong with the store is said in one warning.

    Returns:
        The rows, and whether they are stored.
    """
    try:
        if store is not None:
            return _fill_first(store, task), True
    except CacheError as error:
        log.warning("%s Going on without it.", error)
    num_bytes = task.num_rows * task.wanted[0].format.row_bytes
    if task.kept is None and num_bytes > memory_limit_bytes:
        return None
    return _remember(task.alone), False


def _fill_first(store: Store, task: Task) -> Rows:
    """What is wanted beside the first must not cost it its place: how much of the store is in use
    is only known when room is made."""
    try:
        return fill(store, task)
    except NoRoom:
        if len(task.wanted) == 1:
            raise
    return fill(store, task.alone)


def fill(store: Store, task: Task) -> Rows:
    """The first rows that are wanted: of all that are, what is not in the store is computed.

    Raises:
        NoRoom: not for all that is wanted; nothing was computed.
        CacheError: the store cannot be used (any more); what was computed is lost or will be gone
            on with.
    """
    wanted = task.wanted
    with ExitStack() as stack, _taken_back(task.tell) as tell:
        # In the order of their keys, as everybody does: else two processes wait for each other.
        fillers = {
            one.key: stack.enter_context(
                store.fill(one.key, one.about, task.num_rows, one.format.row_bytes)
            )
            for one in sorted(wanted, key=lambda one: one.key)
        }
        in_order = [fillers[one.key] for one in wanted]
        missing = {key: set(filler.missing()) for key, filler in fillers.items()}
        is_new = sum(stop - start for start, stop in missing[wanted[0].key]) == task.num_rows
        kept = task.kept if is_new else None  # what is there already, only the disk has
        ranges = sorted(set().union(*missing.values()))
        tell(task.num_rows - sum(stop - start for start, stop in ranges))
        with _Writers(tell) as writers:
            for start, stop, packed in _computed(task, ranges):
                if kept is not None:
                    kept[start:stop].copy_(packed[0])
                writers.write(
                    stop - start,
                    [
                        functools.partial(_write, fillers[one.key], start, _OnHost(rows))
                        for one, rows in zip(wanted, packed, strict=True)
                        if (start, stop) in missing[one.key]
                    ],
                )
            writers.wait()
        if kept is not None:
            return Ahead(kept, in_order, stack.pop_all())
        first, *others = [filler.finish() for filler in in_order]
        for other in others:
            other.close()
        return first


def _remember(task: Task) -> Rows:
    """The rows of the one that is wanted, without a store."""
    shape, held = (task.num_rows, task.wanted[0].format.row_bytes), task.kept
    if held is None:
        held = torch.empty(shape, dtype=torch.uint8)
    for start, stop, (rows,) in _computed(task, [(0, task.num_rows)]):
        held[start:stop].copy_(rows)
        task.tell(stop - start)
    return InMemory(held)


@contextmanager
def _taken_back(tell: Callable[[int], None]) -> Iterator[Callable[[int], None]]:
    """What is told in here, taken back where the store cannot be used: it is begun anew."""
    told = 0

    def counted(count: int) -> None:
        nonlocal told
        told += count
        tell(count)

    try:
        yield counted
    except CacheError:
        tell(-told)
        raise


def _computed(
    task: Task, ranges: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, list[torch.Tensor]]]:
    """Each range, in stretches, with its packed rows on their device, for each that is wanted."""
    shorter = [
        (start, min(start + STRETCH, stop))
        for whole_start, stop in ranges
        for start in range(whole_start, stop, STRETCH)
    ]
    stream = task.inputs(shorter)
    if task.frozen.pace.num_lanes > 1:
        stream = lanes.one_ahead(stream)
    with closing(stream):
        for start, stop in shorter:
            tensors = iter(task.frozen.tried(next(stream)))
            own = [[next(tensors) for _ in one.exit] for one in task.wanted]
            packed = [one.format.pack(t) for one, t in zip(task.wanted, own, strict=True)]
            yield start, stop, packed


class _OnHost:
    """Packed rows, uint8 [B, row_bytes], on their way from a device: nobody waits for them yet."""

    def __init__(self, rows: torch.Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if rows.device.type == "cuda":
            stream = torch.cuda.current_stream(rows.device)  # of this GPU, not of the first
            pinned = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            rows = pinned.copy_(rows, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(stream)
        self._rows = rows.cpu()

    def numpy(self) -> NDArray[np.uint8]:
        if self._arrived is not None:
            self._arrived.synchronize()
        found: NDArray[np.uint8] = self._rows.numpy()
        return found


def _write(filler: Filler, start: int, rows: _OnHost) -> None:
    filler.write(start, rows.numpy())


class _Writers:
    """Threads that store what was computed while the next rows are being computed.

    Args:
        tell: called, in the thread that writes from here, with how many more rows are stored.
    """

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._num_threads = min(WRITERS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._num_threads, "store")
        self._open: deque[tuple[int, list[Future[None]]]] = deque()
        self._tell = tell

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write(self, num_rows: int, work: Sequence[Callable[[], None]]) -> None:
        """Have it done soon; waits while too much is open. Raises what went wrong before."""
        self._open.append((num_rows, [self._pool.submit(one) for one in work]))
        while len(self._open) > self._num_threads:
            self._settle()

    def wait(self) -> None:
        """Until all is done. Raises what went wrong."""
        while self._open:
            self._settle()

    def _settle(self) -> None:
        num_rows, futures = self._open.popleft()
        for future in futures:
            future.result()
        self._tell(num_rows)
