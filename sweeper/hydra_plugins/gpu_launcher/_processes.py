"""Executor: in worker processes, one a slot, that stay for the next array."""

import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection, wait

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.gpu_launcher._array import Array, Together, title
from hydra_plugins.gpu_launcher._job import failed
from hydra_plugins.gpu_launcher._slots import Slot
from hydra_plugins.gpu_launcher._worker import ALIVE

log = logging.getLogger(__name__)

# How long a worker that is told to stop may take to save what it has.
GRACE_S = 10.0


class ProcessExecutor:
    """See `_launch.Executor`.

    Args:
        slots: where arrays run, one at a time in each.
        timeout_s: a worker that logs nothing for so long is ended; None: never.
    """

    def __init__(
        self,
        context: HydraContext,
        task: TaskFunction,
        config: DictConfig,
        together: Together | None = None,
        *,
        slots: Sequence[Slot],
        timeout_s: float | None = None,
    ) -> None:
        self._slots, self._timeout_s = slots, timeout_s
        # The worker gets functions by value where they are of the script that was started.
        self._start = cloudpickle.dumps(
            {
                "context": context,
                "task": task,
                "together": together,
                "singletons": Singleton.get_state(),
                "logging": (config.hydra.hydra_logging, config.hydra.verbose),
            }
        )

    def run(
        self, arrays: Sequence[Array]
    ) -> Generator[tuple[Array, Sequence[JobReturn]], None, None]:
        # Longest first: a long one that starts last keeps the others waiting for it.
        waiting = deque(sorted(arrays, key=len, reverse=True))
        idle = [_Worker(slot, self._start) for slot in self._slots[: len(arrays)]]
        busy: list[_Worker] = []
        try:
            while waiting or busy:
                while waiting and idle:
                    worker = idle.pop(0)
                    worker.begin(waiting.popleft())
                    busy.append(worker)
                for worker in self._ready(busy):
                    results = worker.results(self._timeout_s)
                    if results is None:
                        continue
                    array = worker.array
                    busy.remove(worker)
                    if worker.is_alive:
                        idle.append(worker)
                    else:
                        worker.kill()  # what it had started
                        if waiting:
                            idle.append(_Worker(worker.slot, self._start))
                    yield array, results
        finally:
            _end(busy, idle)

    def _ready(self, busy: Sequence["_Worker"]) -> list["_Worker"]:
        """Workers that have said something, have ended, or have been silent for too long."""
        timeout = None
        if self._timeout_s is not None:
            heard = min(worker.heard_at for worker in busy)
            timeout = max(0.0, heard + self._timeout_s - time.monotonic())
        said = wait([worker.pipe for worker in busy], timeout)
        return [w for w in busy if w.pipe in said or w.is_silent(self._timeout_s)]


class _Worker:
    """The process in a slot, seen from the launcher."""

    def __init__(self, slot: Slot, start: bytes) -> None:
        self.slot = slot
        self.heard_at = time.monotonic()
        self._array: Array = ()
        ours, theirs = socket.socketpair()
        code = f"from hydra_plugins.gpu_launcher._worker import main; main({theirs.fileno()})"
        found = [path or os.getcwd() for path in sys.path]
        self._process = subprocess.Popen(
            # -P: no file that lies in the working directory is taken for a module.
            [sys.executable, "-P", "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(found), **slot.environment},
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self.pipe = Connection(ours.detach())
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
        log.info("%s: %s", self.slot.name, title(array))
        self._array, self.heard_at = array, time.monotonic()
        self._send(cloudpickle.dumps(list(array)))

    def results(self, timeout_s: float | None) -> Sequence[JobReturn] | None:
        """Of the array, once it has ended, in whatever way."""
        try:
            message = self.pipe.recv_bytes() if self.pipe.poll() else None
        except (EOFError, OSError):
            return self._failed(f"its process {self._end_in_words()}")
        if message is None:
            if not self.is_silent(timeout_s):
                return None
            self.kill()
            return self._failed(f"it said nothing for {timeout_s:g} s and was ended")
        self.heard_at = time.monotonic()
        if message[:1] == ALIVE:
            return None
        return [cloudpickle.loads(blob) for blob in pickle.loads(message[1:])]

    def dismiss(self) -> None:
        """Nothing more will come: it ends by itself."""
        self.pipe.close()

    def stop(self) -> None:
        """Tell it to end what it is doing."""
        with contextlib.suppress(OSError):
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> bool:
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it and what it has started."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.pipe.close()

    def _send(self, blob: bytes) -> None:
        with contextlib.suppress(OSError):  # it has died: its results will say so
            self.pipe.send_bytes(blob)

    def _failed(self, why: str) -> list[JobReturn]:
        return [failed(job, RuntimeError(why)) for job in self._array]

    def _end_in_words(self) -> str:
        try:
            code = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return "has closed its pipe"
        if code == -signal.SIGKILL:
            return "was killed by SIGKILL: most often, the machine had no memory left"
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"left with exit code {code}"


def _end(busy: Sequence[_Worker], idle: Sequence[_Worker]) -> None:
    """No process is left behind, whatever interrupts this."""
    try:
        for worker in busy:
            worker.stop()
        for worker in idle:
            worker.dismiss()
        deadline = time.monotonic() + GRACE_S
        for worker in [*busy, *idle]:
            worker.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in [*busy, *idle]:
            worker.kill()
