"""See `ahead`."""

import atexit
import contextlib
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hydra_plugins.gpu_launcher._process import Process

_waiting: list["_Ahead"] = []
_is_forbidden = False


def start(warm_up: str, more: Mapping[str, str] | None = None) -> None:
    """Start the worker of the first slot that there is by default; returns at once.

    In a worker it does nothing.

    Args:
        warm_up: as the launcher's setting of that name. It is called before anything is known of
            the jobs: what it registers with Hydra or OmegaConf is lost.
        more: what this process will have added to its environment when the launcher starts workers.
    """
    if not _is_forbidden:
        _waiting.append(_Ahead(warm_up, {**os.environ, **(more or {})}))
        atexit.register(drop)


def take(environment: Mapping[str, str], warm_up: str | None) -> "Process | None":
    """The process that was started with exactly this, and here, if there is one."""
    for one in _waiting:
        process = one.process()
        if process is not None and one.settings == (environment, os.getcwd(), warm_up):
            _waiting.remove(one)
            if process.popen.poll() is None:
                return process
            process.close()
            break
    return None


def drop() -> None:
    """End what nobody has taken."""
    while _waiting:
        _waiting.pop().end()


def forbid() -> None:
    """For a worker: start nothing."""
    global _is_forbidden
    _is_forbidden = True


class _Ahead:
    """A process that is started in a thread: to ask for GPUs may take seconds."""

    def __init__(self, warm_up: str, environment: Mapping[str, str]) -> None:
        self.settings: tuple[Mapping[str, str], str, str] = (environment, os.getcwd(), warm_up)
        self._process: Process | None = None
        self._is_over = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._start, name="ahead", daemon=True)
        self._thread.start()

    def process(self) -> "Process | None":
        """None: it could not be started; why not, the launcher will find out and say."""
        self._thread.join()
        return self._process

    def end(self) -> None:
        """Does not wait for a process that is yet to be started: it never will be."""
        with self._lock:
            self._is_over = True
        if self._process is not None:
            self._process.kill()
            self._process.close()

    def _start(self) -> None:
        from hydra_plugins.gpu_launcher import _devices
        from hydra_plugins.gpu_launcher._process import Process, environment

        ours, cwd, warm_up = self.settings
        seen = environment(_devices.by_default()[0], ours)
        self.settings = (seen, cwd, warm_up)
        with self._lock, contextlib.suppress(OSError):
            if not self._is_over:
                self._process = Process(seen, cwd, warm_up)
