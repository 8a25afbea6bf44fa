"""A worker process, seen from the launcher; its own side of the pipe is _worker.py."""

import contextlib
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Sequence
from multiprocessing.connection import wait

import cloudpickle
from hydra.core.utils import JobReturn

from hydra_plugins.gpu_launcher import _ahead
from hydra_plugins.gpu_launcher._array import Array
from hydra_plugins.gpu_launcher._devices import Slot
from hydra_plugins.gpu_launcher._job import Job, failed, in_words
from hydra_plugins.gpu_launcher._output import Output
from hydra_plugins.gpu_launcher._process import LAST_S, Process, environment
from hydra_plugins.gpu_launcher._view import View
from hydra_plugins.gpu_launcher._worker import ALIVE, READY, TOLD, Start
from hydra_plugins.gpu_launcher.ends import NoResult, TimedOut, Untold, WorkerDied

# How long a worker that is told to stop may take to save what it has.
GRACE_S = 10.0


class Child:
    """A process in a slot, from its start on.

    Attributes:
        array: what it runs; empty while it runs nothing.
        is_ready: whether it takes arrays: it has imported what it needs, and `warm_up` is over.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, slot: Slot, start: Start, view: View) -> None:
        self.slot, self._view = slot, view
        self.heard_at = time.monotonic()
        self.array: Array = ()
        self.is_ready = False
        self._timed_out: TimedOut | None = None
        warm_up, work = start
        seen = environment(slot, os.environ)
        self._process = _ahead.take(seen, warm_up) or Process(seen)
        self.pipe = self._process.pipe
        self.output = Output(self._process.popen, self._said)
        self._send(cloudpickle.dumps(slot.name))
        self._send(work)

    @property
    def is_alive(self) -> bool:
        return self._process.popen.poll() is None

    @property
    def is_idle(self) -> bool:
        return self.is_ready and not self.array

    @property
    def is_told_to_stop(self) -> bool:
        """Whether it was silent for too long, whatever it has said since."""
        return self._timed_out is not None

    @property
    def silent_at(self) -> float | None:
        """The `time.monotonic` since which it has said nothing; None: nothing is expected."""
        return None if self.is_idle else self.heard_at

    def begin(self, array: Array) -> None:
        self.array, self.heard_at = array, time.monotonic()
        self._send(cloudpickle.dumps(list(array)))

    def hear(self, timeout_s: float | None) -> Sequence[JobReturn] | NoResult | None:
        """The results of its array; or why nothing more can be expected of it; or nothing yet.

        Args:
            timeout_s: how long it may give no sign of life; None: for ever.
        """
        is_alive = self.is_alive  # first: whatever one that has ended has sent is there to be read
        try:
            if self.pipe.poll():
                return self._read(self.pipe.recv_bytes())
        except (EOFError, OSError):
            return self._died()
        if not is_alive:  # what it had started holds the pipe
            return self._died()
        return self._silenced(timeout_s) if self._is_silent(timeout_s) else None

    def _died(self) -> NoResult:
        return self._timed_out or WorkerDied(f"its process {self._end_in_words()}")

    def _silenced(self, timeout_s: float | None) -> NoResult | None:
        """First it is told to stop, and may save what it has; then it is over."""
        assert timeout_s is not None
        if self._timed_out is not None:
            return self._timed_out
        self._timed_out = TimedOut(f"it gave no sign of life for {timeout_s:g} s")
        self.stop()
        self.heard_at = time.monotonic() - timeout_s + min(timeout_s, LAST_S)
        return None

    def dismiss(self) -> None:
        """Nothing more will come: it ends by itself, or at once if it has done nothing yet."""
        if self.is_ready:
            self.pipe.close()
        else:
            self.kill()

    def stop(self) -> None:
        """Tell it to end what it is doing."""
        with contextlib.suppress(OSError):
            self._process.popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and what it has started."""
        self._process.kill()
        self.output.close()
        self.pipe.close()

    def _said(self, line: str, is_error: bool) -> None:
        self._view.said(line, self.slot.name, is_error=is_error)

    def _is_silent(self, timeout_s: float | None) -> bool:
        since = self.silent_at
        return not (timeout_s is None or since is None) and time.monotonic() - since >= timeout_s

    def _read(self, message: bytes) -> Sequence[JobReturn] | None:
        self.heard_at = time.monotonic()
        kind, blob = message[:1], message[1:]
        if kind == ALIVE:
            return None
        if kind == READY:
            self.is_ready = True
            return None
        if kind == TOLD:
            num, share, text = pickle.loads(blob)
            self._view.told(num, share, text, self.array)
            return None
        return [
            result_of(job, own) for job, own in zip(self.array, pickle.loads(blob), strict=True)
        ]

    def _send(self, blob: bytes) -> None:
        with contextlib.suppress(OSError):  # it has died: to hear it says so
            self.pipe.send_bytes(blob)

    def _end_in_words(self) -> str:
        try:
            code = self._process.popen.wait(LAST_S)
        except subprocess.TimeoutExpired:
            return "has closed its pipe"
        if code == -signal.SIGKILL:
            return "was killed by signal 9 (SIGKILL), possibly out of memory"
        if code < 0:
            return f"was ended by signal {-code} ({signal.Signals(-code).name})"
        return f"left with exit code {code}, without a result"


def result_of(job: Job, blob: bytes) -> JobReturn:
    try:
        return JobReturn(**cloudpickle.loads(blob))
    except Exception as error:  # the worker had a module that we have not
        return failed(job, Untold(f"its result cannot be read here ({in_words(error)})"))


def end(children: Sequence[Child]) -> None:
    """No process is left behind, whatever interrupts this."""
    try:
        for child in children:
            if child.array:
                child.stop()
            else:
                child.dismiss()
        _wait(children, time.monotonic() + GRACE_S)
    finally:
        for child in children:
            child.kill()


def _wait(children: Sequence[Child], deadline: float) -> None:
    """Until all have ended or the time has come; what they print meanwhile is shown."""
    while (alive := [child for child in children if child.is_alive]) and (
        time.monotonic() < deadline
    ):
        pipes = [pipe for child in alive for pipe in child.output.open]
        said = wait(pipes, 0.02)
        for child in alive:
            child.output.forward(said)
        if not pipes:
            time.sleep(0.005)
