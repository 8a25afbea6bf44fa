"""Executor: on a Ray cluster, in actors that hold a slot each and stay for the next array.

_ray_cluster.py  connect, count, leave
_ray_host.py     the actor: keeps a worker process on its node
_ray_slot.py     what is asked of an actor, and what becomes of its answers
_ray_files.py    files from a node without our file system
"""

import logging
import os
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from hydra_plugins.gpu_launcher._child import GRACE_S
from hydra_plugins.gpu_launcher._job import Job, Work, failed
from hydra_plugins.gpu_launcher._queue import Queue
from hydra_plugins.gpu_launcher._ray_cluster import Close, Demand, connect, the_ray
from hydra_plugins.gpu_launcher._ray_host import Host
from hydra_plugins.gpu_launcher._ray_luggage import Luggage, marked, sweep_folder
from hydra_plugins.gpu_launcher._ray_place import Home
from hydra_plugins.gpu_launcher._ray_room import Share, num_slots, room, share_of
from hydra_plugins.gpu_launcher._ray_slot import Ended, RaySlot
from hydra_plugins.gpu_launcher._view import View
from hydra_plugins.gpu_launcher._worker import start_of
from hydra_plugins.gpu_launcher.ends import NotStarted

log = logging.getLogger(__name__)

# How long jobs wait for a cluster that has no room left for any slot.
ROOM_S = 60.0
# So often the launcher looks round when nobody says anything.
LOOK_S = 1.0
# How long the files of jobs that were told to stop may take to come home.
HOMEWARD_S = 60.0


class RayExecutor:
    """See `_launch.Executor`.

    Args:
        demand: what is asked of the cluster.
        timeout_s: a worker that gives no sign of life for so long is ended; None: never.
        warm_up: dotted path of a function that a worker calls first, while the jobs are planned.
    """

    is_apart = True

    def __init__(
        self, demand: Demand, timeout_s: float | None = None, warm_up: str | None = None
    ) -> None:
        self._demand, self._timeout_s, self._warm_up = demand, timeout_s, warm_up

    @cached_property
    def slot_names(self) -> Sequence[str]:
        """Asked for the first time, it connects to the cluster; `started` ends that.

        Raises:
            HydraException: the cluster cannot be used, or has no room for a slot.
        """
        self._ray = the_ray()
        self._is_found = self._ray.is_initialized()
        self._close: Close = connect(self._demand)
        try:
            self._share: Share = share_of(self._ray, self._demand)
            count = num_slots(self._ray, self._share, self._demand.slots)
        except BaseException:
            self._close()
            raise
        return [f"ray {i}" for i in range(count)]

    @contextmanager
    def started(self, work: Work, view: View, num_jobs: int, first: Job | None) -> Iterator[None]:
        names = self.slot_names[:num_jobs]
        self._view = view
        self._slots: list[RaySlot] = []
        self._has_room_at = time.monotonic()
        try:
            with marked(sweep_folder(work)) as marker:
                self._luggage = Luggage(work, self._slots)
                self._make(work, marker)
                self._slots += [self._slot(name) for name in names]
                try:
                    yield
                finally:
                    self._end()
        finally:
            self._close()

    def run(self, queue: Queue) -> Generator[Ended, None, None]:
        while len(queue) or any(slot.array for slot in self._slots):
            self._begin(queue)
            for slot in self._answered(self._wait_s(queue)):
                if ended := slot.take():
                    if queue.is_eager:
                        self._begin(queue)
                    yield ended
            for slot in self._slots:
                if ended := slot.check(self._timeout_s):
                    yield ended
            if (why := self._no_room()) is not None:
                yield from _given_up(queue, why)

    # --- slots -------------------------------------------------------------------------------

    def _make(self, work: Work, marker: str) -> None:
        """What an actor is made of."""
        ray, demand = self._ray, self._demand
        # Where the connection is ours, it has this already; there alone it may name local folders.
        is_here = self._is_found and demand.runtime_env
        settings = {"runtime_env": dict(demand.runtime_env or {})} if is_here else {}
        # Ray restarts nothing by itself: what is run again, the queue decides.
        self._remote = ray.remote(
            num_gpus=self._share.num_gpus, num_cpus=self._share.num_cpus, max_restarts=0,
            max_task_retries=0, max_concurrency=4, **settings,
        )(Host)  # fmt: skip
        start = start_of(work, is_live=self._view.is_live, warm_up=self._warm_up)
        self._start = ray.put(start)
        has_own = "working_dir" in (demand.runtime_env or {})
        path = tuple(os.path.abspath(one) for one in sys.path)
        self._home = Home(None if has_own else os.getcwd(), path, str(sweep_folder(work)), marker)

    def _slot(self, name: str) -> RaySlot:
        return RaySlot(name, self._ray, self._hired, self._view, self._luggage)

    def _hired(self, name: str) -> Any:
        return self._remote.remote(name, self._start, self._home, self._share.num_gpus > 0)

    def _begin(self, queue: Queue) -> None:
        for slot in self._slots:
            if slot.is_idle:
                array = queue.take()
                if array is None:
                    return
                self._view.begins(array, slot.name)
                slot.begin(array)

    def _answered(self, wait_s: float) -> list[RaySlot]:
        """Slots whose answer has come."""
        asked = {slot.answer: slot for slot in self._slots if slot.answer is not None}
        if not asked:
            time.sleep(wait_s)
            return []
        come, _ = self._ray.wait(list(asked), num_returns=1, timeout=wait_s)
        if come:
            come, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=0)
        return [asked[answer] for answer in come]

    def _wait_s(self, queue: Queue) -> float:
        waits = [LOOK_S]
        if len(queue) and any(slot.is_idle for slot in self._slots):
            waits.append(queue.due_in_s())
        return min(waits)

    def _no_room(self) -> str | None:
        """Why nothing that waits will ever be run; None: there is hope."""
        now = time.monotonic()
        if all(slot.is_left_out for slot in self._slots):
            return f"no worker gets ready: {self._slots[-1].why}"
        if any(slot.is_ready for slot in self._slots):
            self._has_room_at = now
        if now - self._has_room_at < ROOM_S:
            return None
        if room(self._ray, self._share) > 0:
            log.warning("Nothing runs: what the slots need is in use by others. Waiting.")
            self._has_room_at = now
            return None
        return f"the Ray cluster has had no node for it for {ROOM_S:g} s"

    def _end(self) -> None:
        """No actor is left behind, whatever interrupts this."""
        try:
            for slot in self._slots:
                slot.leave()
            deadline = time.monotonic() + GRACE_S + HOMEWARD_S
            while (left_s := deadline - time.monotonic()) > 0 and any(
                slot.answer is not None for slot in self._slots
            ):
                for slot in self._answered(min(LOOK_S, left_s)):
                    slot.take()
        finally:
            for slot in self._slots:
                slot.kill()


def _given_up(queue: Queue, why: str) -> Generator[Ended, None, None]:
    """What is left in the queue cannot be run."""
    while len(queue):
        array = queue.take()
        if array is None:
            time.sleep(queue.due_in_s())
        else:
            yield array, [failed(job, NotStarted(why)) for job in array]
