"""A worker's process and the pipe to it: nothing here imports Hydra, or knows what a job is."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection

from hydra_plugins.gpu_launcher._devices import Slot

# How long one that was killed may take to end. Longer takes only one that a device driver holds;
# nobody waits for that.
LAST_S = 2.0


def environment(slot: Slot, ours: Mapping[str, str]) -> dict[str, str]:
    """What the worker of a slot sees: it finds the modules that we find, and its device."""
    found = [path or os.getcwd() for path in sys.path]
    return {**ours, "PYTHONPATH": os.pathsep.join(found), **slot.environment}


class Process:
    """A worker from its start on; its own side is `_worker.main`.

    Args:
        cwd: where it is started; None: where this process is.
        ahead: see `_worker.main`.

    Attributes:
        pipe: what it is told, and what it says.

    Raises:
        OSError: no process can be started.
    """

    def __init__(
        self, environment: Mapping[str, str], cwd: str | None = None, ahead: str | None = None
    ) -> None:
        ours, theirs = socket.socketpair()
        code = (
            "from hydra_plugins.gpu_launcher._worker import main; "
            f"main({theirs.fileno()}, {os.getpid()}, {ahead!r})"
        )
        with ours, theirs:
            self.popen = subprocess.Popen(
                # -P: no file that lies in the working directory is taken for a module. -u: what a
                # job prints is seen when it prints it.
                [sys.executable, "-P", "-u", "-c", code],
                env=environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            self.pipe = Connection(ours.detach())

    def kill(self) -> None:
        """End it and what it has started."""
        with contextlib.suppress(OSError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(LAST_S)

    def close(self) -> None:
        """Nothing more is told, and nothing is heard."""
        self.pipe.close()
        for stream in (self.popen.stdout, self.popen.stderr):
            if stream is not None:
                stream.close()
