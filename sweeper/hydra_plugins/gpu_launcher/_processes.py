"""Executor: in worker processes, one a slot, that stay for the next array.

A process is given an array once it is ready. One that dies before has cost no job anything; another
is started in its place, a few times, then the slot is left out.
"""

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait

from hydra.core.utils import JobReturn

from hydra_plugins.gpu_launcher._array import Array
from hydra_plugins.gpu_launcher._child import Child, end
from hydra_plugins.gpu_launcher._devices import Slot
from hydra_plugins.gpu_launcher._job import Job, Work, failed
from hydra_plugins.gpu_launcher._queue import Queue
from hydra_plugins.gpu_launcher._view import View
from hydra_plugins.gpu_launcher._worker import Start, start_of
from hydra_plugins.gpu_launcher.ends import NoResult, NotStarted

log = logging.getLogger(__name__)

# How long a slot rests after each process in turn that did not get ready; after the last it is
# left out. What was missing, memory or a device, may be there a little later.
RESTS_S = (0.5, 2.0, 8.0)
# So often the processes are looked at, should one end without its pipe being closed: what a job
# has started may hold it open.
LOOK_S = 1.0

Ended = tuple[Array, Sequence[JobReturn]]


class ProcessExecutor:
    """See `_launch.Executor`.

    Args:
        slots: where arrays run, one at a time in each.
        timeout_s: a worker that gives no sign of life for so long is ended; None: never.
        warm_up: dotted path of a function that a worker calls first, while the jobs are planned.
        get_ready: dotted path of a function that it then calls with the first job's configuration.
    """

    is_apart = True

    def __init__(
        self,
        slots: Sequence[Slot],
        timeout_s: float | None = None,
        warm_up: str | None = None,
        get_ready: str | None = None,
    ) -> None:
        self.slot_names: Sequence[str] = [slot.name for slot in slots]
        self._slots, self._timeout_s = slots, timeout_s
        self._warm_up, self._get_ready = warm_up, get_ready

    @contextmanager
    def started(self, work: Work, view: View, num_jobs: int, first: Job | None) -> Iterator[None]:
        self._view = view
        self._start = start_of(
            work, is_live=view.is_live, warm_up=self._warm_up, get_ready=self._get_ready,
            first=first,
        )  # fmt: skip
        self._places = [_Place(slot) for slot in self._slots]
        try:
            self._fill(num_jobs)
            yield
        finally:
            end(self._children)

    def run(self, queue: Queue) -> Generator[Ended, None, None]:
        while len(queue) or any(worker.array for worker in self._children):
            if all(place.is_left_out for place in self._places):
                yield from _given_up(queue, self._places)
                continue
            self._fill(len(queue))
            self._begin(queue)
            self._listen(self._wait_s(queue))
            for place in self._places:
                ended = place.hear(self._timeout_s)
                if ended is not None:
                    if queue.is_eager:
                        self._begin(queue)
                    yield ended

    @property
    def _children(self) -> list[Child]:
        return [place.worker for place in self._places if place.worker is not None]

    def _fill(self, num_arrays: int) -> None:
        """Processes for so many arrays, as far as there are slots."""
        missing = num_arrays - sum(1 for worker in self._children if not worker.array)
        now = time.monotonic()
        for place in self._places:
            if missing > 0 and place.worker is None and place.rests_until <= now:
                place.start(self._start, self._view)
                missing -= 1

    def _begin(self, queue: Queue) -> None:
        for worker in self._children:
            if worker.is_idle:
                array = queue.take()
                if array is None:
                    return
                self._view.begins(array, worker.slot.name)
                worker.begin(array)

    def _listen(self, wait_s: float) -> None:
        """Until a process says something; what it prints is shown."""
        children = self._children
        outputs = [pipe for worker in children for pipe in worker.output.open]
        said = wait([*(worker.pipe for worker in children), *outputs], wait_s)
        for worker in children:
            worker.output.forward(said)

    def _wait_s(self, queue: Queue) -> float:
        """Until somebody may have been silent for too long, or a retry is due."""
        waits = [LOOK_S]
        if self._timeout_s is not None:
            silent = [worker.silent_at for worker in self._children]
            limit = self._timeout_s - time.monotonic()
            waits += [since + limit for since in silent if since is not None]
        if len(queue) and any(worker.is_idle for worker in self._children):
            waits.append(queue.due_in_s())
        return max(0.0, min(waits))


class _Place:
    """A slot, and the process in it.

    Attributes:
        rests_until: `time.monotonic` before which no other process is started in it.
    """

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.worker: Child | None = None
        self.rests_until = 0.0
        self.why = ""
        self._num_failed = 0

    @property
    def is_left_out(self) -> bool:
        return self._num_failed > len(RESTS_S)

    def start(self, start: Start, view: View) -> None:
        try:
            self.worker = Child(self.slot, start, view)
        except OSError as error:
            self._failed(str(error))

    def hear(self, timeout_s: float | None) -> Ended | None:
        """An array that has ended, in whatever way."""
        worker = self.worker
        if worker is None:
            return None
        array, heard = worker.array, worker.hear(timeout_s)
        if worker.is_ready:
            self._num_failed = 0
        if heard is None:
            return None
        if not isinstance(heard, NoResult):
            worker.array = ()
            if worker.is_told_to_stop:  # it has come to its end first; the next array would not
                self._end(worker)
            return array, heard
        self._end(worker)
        if not worker.is_ready:
            self._failed(str(heard))
        # One that was ready and idle has died of nothing that it was given.
        return (array, [failed(job, heard) for job in array]) if array else None

    def _end(self, worker: Child) -> None:
        """End it, and what it has started."""
        worker.kill()
        self.worker = None

    def _failed(self, why: str) -> None:
        """No process got ready here."""
        self._num_failed += 1
        self.why = why
        if self.is_left_out:
            self.rests_until = float("inf")
            log.error(
                "%s is left out: no worker gets ready there. The last: %s", self.slot.name, why
            )
            return
        rest_s = RESTS_S[self._num_failed - 1]
        self.rests_until = time.monotonic() + rest_s
        log.warning("%s: %s, before it was ready; the next in %g s", self.slot.name, why, rest_s)


def _given_up(queue: Queue, places: Sequence[_Place]) -> Generator[Ended, None, None]:
    """What is left in the queue cannot be run."""
    error = NotStarted(f"no worker gets ready: {places[-1].why}. Above stands what it printed.")
    while len(queue):
        array = queue.take()
        if array is None:
            time.sleep(queue.due_in_s())
        else:
            yield array, [failed(job, error) for job in array]
