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


def start(warm_up: str | None = None, more: Mapping[str, str] | None = None) -> None:
    """Start the worker of the first slot that there is by default; returns at once.

    Args:
        warm_up: as the launcher's setting of that name.
        more: what this process will have added to its environment when the launcher starts workers.
    """
    _waiting.append(_Ahead({**os.environ, **(more or {})}, warm_up))
    atexit.register(drop)


def take(environment: Mapping[str, str], warm_up: str | None) -> "Process | None":
    """The process that was started with exactly this, if there is one."""
    for one in _waiting:
        process = one.process()
        if process is not None and (one.environment, one.warm_up) == (environment, warm_up):
            _waiting.remove(one)
            if process.popen.poll() is None:
                return process
            process.close()
            break
    return None


def drop() -> None:
    """End what nobody has taken."""
    while _waiting:
        process = _waiting.pop().process()
        if process is not None:
            process.kill()
            process.close()


class _Ahead:
    """A process that is started in a thread: to ask for GPUs may take a while."""

    def __init__(self, environment: Mapping[str, str], warm_up: str | None) -> None:
        self.environment, self.warm_up = environment, warm_up
        self._process: Process | None = None
        self._thread = threading.Thread(target=self._start, name="ahead", daemon=True)
        self._thread.start()

    def process(self) -> "Process | None":
        """None: it could not be started; why not, the launcher will find out and say."""
        self._thread.join()
        return self._process

    def _start(self) -> None:
        from hydra_plugins.gpu_launcher import _devices
        from hydra_plugins.gpu_launcher._process import Process, environment

        self.environment = environment(_devices.by_default()[0], self.environment)
        with contextlib.suppress(OSError):
            self._process = Process(self.environment, self.warm_up)
