"""Which drivers of a study are alive: the trials of one that is not are somebody else's to run.

A driver holds a lock on a file of its own in the machine's temporary folder, which no death leaves
held, and says in the study now and then that it is there. On its own machine the lock decides at
once; elsewhere, how old its last word is.
"""

import contextlib
import fcntl
import os
import socket
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import optuna

EVERY_S = 20.0
# Longer than clocks of machines differ, and than a storage may be busy.
SILENT_S = 120.0
_ATTR = "driver:"


class Presence:
    """This driver's sign of life, until `close`.

    Attributes:
        name: unique.
    """

    def __init__(self, study: optuna.Study) -> None:
        self.name = uuid.uuid4().hex[:12]
        self._study = study
        self._path = _path(self.name)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._is_over = threading.Event()
        self._say()
        self._thread = threading.Thread(target=self._beat, name="presence", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # the storage may be what has failed
            self._study.set_user_attr(_ATTR + self.name, None)
        self._path.unlink(missing_ok=True)
        os.close(self._file)

    def is_alive(self, driver: str) -> bool:
        """Whether a driver, as `name` has it, still runs."""
        return driver == self.name or is_alive(driver, self._study.user_attrs.get(_ATTR + driver))

    def has_company(self) -> bool:
        """Whether another driver of the study is alive."""
        attrs = self._study.user_attrs
        others = [key.removeprefix(_ATTR) for key in attrs if key.startswith(_ATTR)]
        return any(one != self.name and is_alive(one, attrs[_ATTR + one]) for one in others)

    def _beat(self) -> None:
        while not self._is_over.wait(EVERY_S):
            with contextlib.suppress(Exception):  # the next one may be heard
                self._say()

    def _say(self) -> None:
        self._study.set_user_attr(
            _ATTR + self.name, {"host": socket.gethostname(), "at": time.time()}
        )


def is_alive(driver: str, said: Any) -> bool:
    """By its lock if it runs here, else by what it said last."""
    if not isinstance(said, dict):  # it has left
        return False
    path = _path(driver)
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        is_here = said.get("host") == socket.gethostname()
        return not is_here and time.time() - float(said.get("at", 0)) < SILENT_S
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    path.unlink(missing_ok=True)
    return False


def _path(driver: str) -> Path:
    return Path(tempfile.gettempdir()) / f"hydra-study-{driver}.lock"
