"""What holds a slot on a Ray cluster: an actor with a worker process, whose words it passes on.

Jobs run in a process of the actor's, as they do for `hydra/launcher=slots`, not in the actor: Ray
calls an actor that can be asked meanwhile in threads, and jobs want the main thread, for signals.
So a job that crashes leaves its actor as it was, with an exit code that says how.
"""

import contextlib
import importlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from hydra_plugins.gpu_launcher import _ray_files
from hydra_plugins.gpu_launcher._child import Child, end
from hydra_plugins.gpu_launcher._devices import Slot
from hydra_plugins.gpu_launcher._job import Job
from hydra_plugins.gpu_launcher._ray_place import Home, Place, settle
from hydra_plugins.gpu_launcher._view import View
from hydra_plugins.gpu_launcher._worker import DONE, READY, Start

# What a worker says (`_worker`), and: lines of its output, and that it has ended, with an array or
# without.
SAID, COMPLAINED, ENDED, LEFT = b"o", b"e", b"x", b"l"

Event = tuple[bytes, bytes]


class Host:
    """The actor. Its methods are called in threads of their own, at the same time.

    Args:
        name: of the slot.
        start: see `_worker.start_of`.
        has_gpu: whether the slot has a device, or a part of one.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, name: str, start: Start, home: Home, has_gpu: bool) -> None:
        settle(home)
        self._start, self._home, self._has_gpu = start, home, has_gpu
        self._slot = Slot(name, {} if has_gpu else {"CUDA_VISIBLE_DEVICES": ""})
        self._lock = threading.Lock()
        self._bell, self._rope = Pipe(duplex=False)
        self._num_begun, self._began_ns = 0, time.time_ns()
        self._is_hurried = False
        self._ear = _Ear()
        self._worker = self._hired()

    def place(self) -> Place:
        """Where it is."""
        ray: Any = importlib.import_module("ray")
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "") if self._has_gpu else ""
        words = ray.util.get_node_ip_address() + (f", GPU {gpus}" if gpus else "")
        is_home = Path(self._home.sweep, self._home.marker).is_file()
        return Place(ray.get_runtime_context().get_node_id(), words, is_home)

    def begin(self, number: int, array: Sequence[Job]) -> None:
        """Start an array; its end will be heard of.

        Args:
            number: of the call: the second of the same number has no effect. Nor has one while the
                worker is dead: once there is another, the launcher calls again.
        """
        with self._lock:
            if number != self._num_begun and self._worker.is_idle and self._worker.is_alive:
                self._num_begun, self._began_ns = number, time.time_ns()
                self._worker.begin(array)

    def heard(self, seen: int, wait_s: float) -> list[Event]:
        """What the worker has said, as soon as there is something.

        Args:
            seen: how many events are known already; they are forgotten here.
        """
        self._ear.forget(seen)
        until = time.monotonic() + wait_s
        self._listen(0.0)
        while not (self._ear.events or self._is_hurried):
            left_s = until - time.monotonic()
            if left_s <= 0:
                break
            self._listen(left_s)
        return self._ear.events[:]

    def hurry(self) -> None:
        """From now on nobody waits here for something to be said."""
        self._is_hurried = True
        self._rope.send_bytes(b"")

    def kill(self) -> None:
        """End the worker."""
        with self._lock:
            self._over("was killed")
            self._rope.send_bytes(b"")

    def again(self, rest_s: float) -> None:
        """Start another worker where one has ended, after a rest.

        Raises:
            OSError: no process can be started.
        """
        time.sleep(rest_s)
        with self._lock:
            if self._worker.pipe.closed:
                self._worker = self._hired()

    def leave(self, seen: int) -> list[Event]:
        """End the worker in order: a job is told to, and has a while. What it has said last."""
        self._ear.forget(seen)
        with self._lock:
            end([self._worker])
        return self._ear.events[:]

    def changed(self, folders: Sequence[str]) -> list[_ray_files.File]:
        """Files in some folders that have changed since the array began."""
        return _ray_files.changed(folders, self._began_ns)

    def read(self, pieces: Sequence[_ray_files.Piece]) -> list[bytes | None]:
        """See `_ray_files.read`."""
        return _ray_files.read(pieces)

    def _hired(self) -> "_Relayed":
        # Ray holds Ctrl-C back in its workers; what jobs start should not inherit that.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return _Relayed(self._slot, self._start, self._ear)

    def _listen(self, wait_s: float) -> None:
        worker = self._worker
        pipes = [] if worker.pipe.closed else [worker.pipe]
        said = []
        with contextlib.suppress(OSError, ValueError):  # it is being ended
            said = wait([self._bell, *pipes, *worker.output.open], wait_s)
        with self._lock:
            while self._bell.poll():
                self._bell.recv_bytes()
            if worker.pipe.closed:
                return
            worker.output.forward(said)
            problem = worker.hear(None)
            if problem is not None:
                self._over(str(problem))

    def _over(self, words: str) -> None:
        if not self._worker.pipe.closed:
            self._worker.kill()
            self._ear.events.append((ENDED if self._worker.array else LEFT, words.encode()))


class _Relayed(Child):
    """A worker whose messages are passed on as they are: what a result is made of is not here."""

    _view: "_Ear"

    def _read(self, message: bytes) -> None:
        kind, blob = message[:1], message[1:]
        self.is_ready = self.is_ready or kind == READY
        if kind == DONE:
            self.array = ()
        self._view.events.append((kind, blob))


class _Ear(View):
    """Keeps what a worker says until the launcher has it."""

    def __init__(self) -> None:
        super().__init__(num_jobs=0, num_slots=1)
        self.events: list[Event] = []
        self._num_forgotten = 0

    def said(self, line: str, slot: str, *, is_error: bool) -> None:
        self.events.append((COMPLAINED if is_error else SAID, line.encode()))

    def forget(self, seen: int) -> None:
        """Drop the events before a number; a call that was overtaken by a later one drops none."""
        if seen > self._num_forgotten:
            del self.events[: seen - self._num_forgotten]
            self._num_forgotten = seen
