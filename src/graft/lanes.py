"""Threads that work side by side on a CPU, so that no processor waits for another.

Each operation of a small network is shared out among the processors, and ends when the slowest has
done its part; between operations Python and some kernels keep one of them busy. Two pieces of work
side by side fill each other's gaps: a network's parts, or the steps of two runs
(docs/decisions/0016). Each piece runs as it would alone, on as many OpenMP threads, so no bit
changes.
"""

import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from types import TracebackType
from typing import Self, TypeVar

import torch

COUNT = 2
# What a lane may have before it that is not done. More hides no more gaps, and holds memory.
AHEAD = 4

Input = TypeVar("Input")
Output = TypeVar("Output")


def count(device: torch.device) -> int:
    """How many lanes are worth having on a device."""
    # Who limits torch to one thread wants no second one; threads that spin while they wait take
    # the processor from whom they wait for.
    is_spinning = os.environ.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE"
    is_shared = device.type == "cpu" and torch.get_num_threads() > 1 and not is_spinning
    return COUNT if is_shared else 1


def each(work: Callable[[Input], Output], inputs: Sequence[Input], num_lanes: int) -> list[Output]:
    """`work` of each input, in order; whichever lane is free takes the next.

    Nothing goes on after this, whatever ends it: the rest is dropped, what has begun is waited for.
    """
    if num_lanes == 1 or len(inputs) == 1:
        return [work(one) for one in inputs]
    pool = _pool(num_lanes, torch.get_num_threads())
    coming = [pool.submit(work, one) for one in inputs]
    try:
        return [one.result() for one in coming]
    except BaseException:
        wait([one for one in coming if not one.cancel()])
        raise


def one_ahead(items: Generator[Output]) -> Generator[Output]:
    """The same items, each made while the one before it is being used. Close it, or use it up."""
    with closing(items), _threads(1, "ahead") as pool:
        coming = pool.submit(_next, items)
        while given := coming.result():
            coming = pool.submit(_next, items)
            yield given.pop()  # whoever takes it may let go of it before asking for the next


def _next(items: Generator[Output]) -> list[Output]:
    """One item, or none."""
    return list(itertools.islice(items, 1))


class Lanes:
    """Lanes that are each given their own work, and do it in that order.

    A lone lane is the caller's own thread. What a lane raises comes out of `do` or `wait`.
    """

    def __init__(self, num_lanes: int) -> None:
        numbers = range(num_lanes) if num_lanes > 1 else ()
        self._pools = [_threads(1, f"lane{i}") for i in numbers]
        self._open: list[deque[Future[object]]] = [deque() for _ in self._pools]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing goes on after this; what has not begun is dropped."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in self._pools:
            pool.shutdown()

    def do(self, number: int, work: Callable[[], object]) -> None:
        """Have it done behind what lane `number` was given before; numbers go round."""
        if not self._pools:
            work()
            return
        lane = number % len(self._pools)
        if len(self._open[lane]) == AHEAD:
            self._open[lane].popleft().result()
        self._open[lane].append(self._pools[lane].submit(work))

    def wait(self) -> None:
        """Until all is done."""
        for tasks in self._open:
            while tasks:
                tasks.popleft().result()


def _threads(count: int, name: str) -> ThreadPoolExecutor:
    """Threads of our own, which know as many OpenMP threads as the caller."""
    return ThreadPoolExecutor(
        count, name, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
    )


@functools.cache
def _pool(num_lanes: int, num_threads: int) -> ThreadPoolExecutor:
    """Kept, with its threads and their OpenMP threads."""
    return _threads(num_lanes, "lane")
