"""Executor: in worker processes, one a slot, that stay for the next array."""

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

import cloudpickle
from hydra.core.utils import JobReturn

from hydra_plugins.gpu_launcher._array import Array
from hydra_plugins.gpu_launcher._job import Work, failed
from hydra_plugins.gpu_launcher._output import Output
from hydra_plugins.gpu_launcher._queue import Queue
from hydra_plugins.gpu_launcher._slots import Slot
from hydra_plugins.gpu_launcher._view import View
from hydra_plugins.gpu_launcher._worker import ALIVE, TOLD, start_of
from hydra_plugins.gpu_launcher.ends import TimedOut, WorkerDied

# How long a worker that is told to stop may take to save what it has.
GRACE_S = 10.0
# How long one that has closed its pipe may take to end.
LAST_S = 2.0


class ProcessExecutor:
    """See `_launch.Executor`.

    Args:
        slots: where arrays run, one at a time in each.
        timeout_s: a worker that gives no sign of life for so long is ended; None: never.
        warm_up: dotted path of a function that a worker calls first, while the jobs are planned.
    """

    is_apart = True

    def __init__(
        self, slots: Sequence[Slot], timeout_s: float | None = None, warm_up: str | None = None
    ) -> None:
        self.slot_names: Sequence[str] = [slot.name for slot in slots]
        self._slots, self._timeout_s, self._warm_up = slots, timeout_s, warm_up
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []

    @contextmanager
    def started(self, work: Work, view: View, num_jobs: int) -> Iterator[None]:
        self._view = view
        self._start = start_of(work, is_live=view.is_live, warm_up=self._warm_up)
        try:
            self._idle += [self._worker(slot) for slot in self._slots[:num_jobs]]
            yield
        finally:
            _end(self._busy, self._idle)
            self._busy, self._idle = [], []

    def run(self, queue: Queue) -> Generator[tuple[Array, Sequence[JobReturn]], None, None]:
        while len(queue) or self._busy:
            self._begin(queue)
            for worker in self._heard(queue):
                results = worker.results(self._timeout_s)
                if results is None:
                    continue
                array = worker.array
                self._free(worker)
                yield array, results

    def _begin(self, queue: Queue) -> None:
        while self._idle and (array := queue.take()) is not None:
            worker = self._idle.pop(0)
            if not worker.is_alive:  # it has died of nothing that it was given
                worker.kill()
                worker = self._worker(worker.slot)
            self._view.begins(array, worker.slot.name)
            worker.begin(array)
            self._busy.append(worker)

    def _heard(self, queue: Queue) -> list["_Worker"]:
        """Busy workers that have said something, have ended, or have been silent for too long."""
        workers = [*self._busy, *self._idle]
        pipes = [worker.pipe for worker in self._busy]
        said = wait([*pipes, *(o for w in workers for o in w.output.open)], self._wait_s(queue))
        for worker in workers:
            worker.output.forward(said)
        return [w for w in self._busy if w.pipe in said or w.is_silent(self._timeout_s)]

    def _wait_s(self, queue: Queue) -> float | None:
        """Until somebody may have been silent for too long, or a retry is due."""
        waits = []
        if self._timeout_s is not None and self._busy:
            heard = min(worker.heard_at for worker in self._busy)
            waits.append(max(0.0, heard + self._timeout_s - time.monotonic()))
        if self._idle and len(queue):
            waits.append(queue.due_in_s())
        return min(waits) if waits else None

    def _free(self, worker: "_Worker") -> None:
        """Its array has ended: it, or another in its place, takes the next one."""
        self._busy.remove(worker)
        if not worker.is_alive:
            worker.kill()  # what it had started
            worker = self._worker(worker.slot)
        self._idle.append(worker)

    def _worker(self, slot: Slot) -> "_Worker":
        return _Worker(slot, self._start, self._view)


class _Worker:
    """The process in a slot, seen from the launcher."""

    def __init__(self, slot: Slot, start: bytes, view: View) -> None:
        self.slot, self._view = slot, view
        self.heard_at = time.monotonic()
        self._array: Array = ()
        ours, theirs = socket.socketpair()
        code = f"from hydra_plugins.gpu_launcher._worker import main; main({theirs.fileno()})"
        found = [path or os.getcwd() for path in sys.path]
        self._process = subprocess.Popen(
            # -P: no file that lies in the working directory is taken for a module. -u: what a job
            # prints is seen when it prints it.
            [sys.executable, "-P", "-u", "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(found), **slot.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self.output = Output(self._process, lambda stream, line: view.said(stream, line, slot.name))
        self.pipe = Connection(ours.detach())
        self._send(cloudpickle.dumps(slot.name))
        self._send(start)

    @property
    def array(self) -> Array:
        return self._array

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def is_silent(self, timeout_s: float | None) -> bool:
        return timeout_s is not None and time.monotonic() - self.heard_at >= timeout_s

    def begin(self, array: Array) -> None:
        self._array, self.heard_at = array, time.monotonic()
        self._send(cloudpickle.dumps(list(array)))

    def results(self, timeout_s: float | None) -> Sequence[JobReturn] | None:
        """Of the array, once it has ended, in whatever way."""
        try:
            message = self.pipe.recv_bytes() if self.pipe.poll() else None
        except (EOFError, OSError):
            return self._failed(WorkerDied(f"its process {self._end_in_words()}"))
        if message is None:
            if not self.is_silent(timeout_s):
                return None
            self.kill()
            return self._failed(TimedOut(f"it gave no sign of life for {timeout_s:g} s"))
        self.heard_at = time.monotonic()
        if message[:1] == TOLD:
            num, share, text = pickle.loads(message[1:])
            self._view.told(num, share, text, self._array)
        if message[:1] in (ALIVE, TOLD):
            return None
        return [cloudpickle.loads(blob) for blob in pickle.loads(message[1:])]

    def dismiss(self) -> None:
        """Nothing more will come: it ends by itself."""
        self.pipe.close()

    def stop(self) -> None:
        """Tell it to end what it is doing."""
        with contextlib.suppress(OSError):
            self._process.send_signal(signal.SIGTERM)

    def wait(self, deadline: float) -> None:
        """Until it has ended or the time has come; what it prints meanwhile is shown."""
        while self.is_alive and time.monotonic() < deadline:
            self.output.forward(wait(self.output.open, 0.05) if self.output.open else [])
            if not self.output.open:
                time.sleep(0.05)

    def kill(self) -> None:
        """End it and what it has started."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.output.close()
        self.pipe.close()

    def _send(self, blob: bytes) -> None:
        with contextlib.suppress(OSError):  # it has died: its results will say so
            self.pipe.send_bytes(blob)

    def _failed(self, why: Exception) -> list[JobReturn]:
        return [failed(job, why) for job in self._array]

    def _end_in_words(self) -> str:
        try:
            code = self._process.wait(LAST_S)
        except subprocess.TimeoutExpired:
            return "has closed its pipe"
        if code == -signal.SIGKILL:
            return "was killed by signal 9 (SIGKILL), possibly out of memory"
        if code < 0:
            return f"was ended by signal {-code} ({signal.Signals(-code).name})"
        return f"left with exit code {code}, without a result"


def _end(busy: Sequence[_Worker], idle: Sequence[_Worker]) -> None:
    """No process is left behind, whatever interrupts this."""
    try:
        for worker in busy:
            worker.stop()
        for worker in idle:
            worker.dismiss()
        deadline = time.monotonic() + GRACE_S
        for worker in [*busy, *idle]:
            worker.wait(deadline)
    finally:
        for worker in [*busy, *idle]:
            worker.kill()
