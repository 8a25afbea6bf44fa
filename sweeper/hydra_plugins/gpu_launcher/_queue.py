"""Arrays that wait for a slot, and what becomes of those that failed.

A job that failed is retried up to `max_retries` times. An array whose process died says nothing of
which of its jobs was to blame: it goes on in two halves, which costs no job a retry. So one that
kills its process each time is found in a few starts, and the others come to their ends.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from hydra.core.utils import JobReturn

from hydra_plugins.gpu_launcher._array import Array, length
from hydra_plugins.gpu_launcher._job import Job, exception
from hydra_plugins.gpu_launcher.ends import NoResult

# How long the first retry of a job waits, the next one twice as long, and so on: what was not
# there, a port or a device, may be there a little later.
RETRY_S = 0.5
LONGEST_S = 30.0


@dataclass(frozen=True)
class Failure:
    """A job that failed.

    Attributes:
        retry: which retry of it comes next, counted from 1; 0: it has failed for good.
    """

    job: Job
    error: BaseException
    retry: int = 0


class Queue:
    """What is to be run; an executor takes from it until it is empty.

    Args:
        arrays: in the order in which they should be run.
        num_slots: how many of them can run at a time. Where there are fewer arrays, the largest
            are split, so that no slot stays idle. With several, the longest come first: a long one
            that starts last keeps the others waiting for it.
        max_retries: of each job.
        is_eager: whether a slot that has become free takes the next array before anybody has looked
            at what came out of the last one.
    """

    def __init__(
        self,
        arrays: Sequence[Array],
        num_slots: int = 1,
        max_retries: int = 0,
        *,
        is_eager: bool = False,
    ) -> None:
        self.is_eager = is_eager
        self._longest_first = num_slots > 1
        self._max_retries = max_retries
        self._retries: dict[int, int] = {}
        self._order = count()
        self._num_out = 0
        # Heaps: (rank, order, array) of what may be taken, (time, order, array) of what may not.
        self._ready: list[tuple[float, int, Array]] = []
        self._later: list[tuple[float, int, Array]] = []
        self.add(arrays, num_slots)

    def __len__(self) -> int:
        return len(self._ready) + len(self._later)

    @property
    def num_open(self) -> int:
        """Arrays that wait, and those that have been taken and are not settled."""
        return len(self) + self._num_out

    def add(self, arrays: Sequence[Array], num_free: int) -> None:
        """More to be run.

        Args:
            num_free: slots that nothing else is meant for: as in the beginning, large arrays are
                split until none of them stays idle.
        """
        for array in _split(arrays, num_free):
            heappush(self._ready, (self._rank(array), next(self._order), array))

    def due_in_s(self) -> float:
        """How long until something may be taken; 0: now. There must be something."""
        return 0.0 if self._ready else max(0.0, self._later[0][0] - time.monotonic())

    def take(self) -> Array | None:
        """The next array; None where there is none, or where it is too early for those left."""
        while self._later and self._later[0][0] <= time.monotonic():
            _, order, array = heappop(self._later)
            heappush(self._ready, (self._rank(array), order, array))
        if not self._ready:
            return None
        self._num_out += 1
        return heappop(self._ready)[2]

    def settle(
        self, array: Array, results: Sequence[JobReturn]
    ) -> tuple[list[tuple[Job, JobReturn]], list[Failure]]:
        """Take note of an array that has ended; what is to be run again waits from now on.

        Returns:
            (jobs that have ended, with their results; every failure)
        """
        self._num_out -= 1
        errors = [exception(result) for result in results]
        if len(array) > 1 and all(_may_be_anothers(error) for error in errors):
            for half in _halves(array):
                self._again(half)
            return [], []
        ended, failures, again = [], [], []
        for job, result, error in zip(array, results, errors, strict=True):
            retry = self._retry(job, error)
            if error is not None:
                failures.append(Failure(job, error, retry))
            if retry:
                again.append(job)
            else:
                ended.append((job, result))
        if again:
            self._again(again, max(self._retries[job.num] for job in again))
        return ended, failures

    def _rank(self, array: Array) -> float:
        return -length(array) if self._longest_first else 0.0

    def _retry(self, job: Job, error: BaseException | None) -> int:
        """Which retry of a job comes next; 0: none."""
        made = self._retries.get(job.num, 0)
        if error is None or getattr(error, "is_final", False) or made >= self._max_retries:
            return 0
        self._retries[job.num] = made + 1
        return made + 1

    def _again(self, array: Array, retry: int = 0) -> None:
        wait_s = min(RETRY_S * 2.0 ** (retry - 1), LONGEST_S) if retry else 0.0
        heappush(self._later, (time.monotonic() + wait_s, next(self._order), array))


def _may_be_anothers(error: BaseException | None) -> bool:
    """Whether another job of the array may be to blame."""
    return isinstance(error, NoResult) and not getattr(error, "is_final", False)


def _halves(array: Array) -> list[Array]:
    middle = (len(array) + 1) // 2
    return [array[:middle], array[middle:]]


def _split(arrays: Sequence[Array], num_slots: int) -> list[Array]:
    found = list(arrays)
    while found and len(found) < num_slots:
        several = [i for i, array in enumerate(found) if len(array) > 1]
        if not several:
            break
        place = max(several, key=lambda i: length(found[i]))
        found[place : place + 1] = _halves(found[place])
    return found
