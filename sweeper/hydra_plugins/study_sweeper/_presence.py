"""Which drivers of a study are alive: the trials of one that is not are somebody else's to run.

A driver holds a lock on a file of its own in the machine's temporary folder, which no death leaves
held, and says in the study now and then that it is there. Whoever sees the same folder knows by the
lock at once; elsewhere, by how old its last word is.
"""

import contextlib
import fcntl
import os
import socket
import tempfile
import threading
import time
import uuid
import weakref
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
        self._file = _held(self.name)
        _alive.add(self)
        try:
            self._say()
        except BaseException:
            self._let_go()
            raise
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="presence", daemon=True)
        self._thread.start()

    def close(self, *, is_silent: bool = False) -> None:
        """
        Args:
            is_silent: whether the storage has failed: it would only be waited for.
        """
        self._is_over.set()
        if not is_silent:
            self._thread.join()
            with contextlib.suppress(Exception):
                self._study.set_user_attr(_ATTR + self.name, None)
        self._let_go()

    def word(self, driver: str) -> Any:
        """What a driver said last; None: it has left, or never was."""
        return self._study.user_attrs.get(_ATTR + driver)

    def is_alive(self, driver: str) -> bool:
        """Whether a driver, as `name` has it, still runs."""
        return driver == self.name or is_alive(driver, self.word(driver))

    def is_certain(self, driver: str) -> bool:
        """Whether that is known, not guessed by the time that has passed."""
        return driver == self.name or _by_lock(driver, self.word(driver)) is not None

    def has_company(self) -> bool:
        """Whether another driver of the study is alive."""
        attrs = self._study.user_attrs
        others = [key.removeprefix(_ATTR) for key in attrs if key.startswith(_ATTR)]
        return any(one != self.name and is_alive(one, attrs[_ATTR + one]) for one in others)

    def forget(self) -> None:
        """In a process that a job has forked: the lock is not to outlive the driver."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)

    def _beat(self) -> None:
        while not self._is_over.wait(EVERY_S):
            with contextlib.suppress(Exception):  # the next one may be heard
                self._hold_on()
                self._say()

    def _hold_on(self) -> None:
        """Temporary folders are swept of what is old."""
        if self._file is None:
            return
        try:
            os.utime(_path(self.name))
        except FileNotFoundError:
            before, self._file = self._file, _held(self.name)
            os.close(before)

    def _say(self) -> None:
        place = None if self._file is None else _place()
        self._study.set_user_attr(_ATTR + self.name, {"at": time.time(), "place": place})

    def _let_go(self) -> None:
        _alive.discard(self)
        if self._file is not None:
            _path(self.name).unlink(missing_ok=True)
            os.close(self._file)


def is_alive(driver: str, said: Any) -> bool:
    """By its lock if that can be seen from here, else by what it said last."""
    known = _by_lock(driver, said)
    return time.time() - float(said.get("at", 0)) < SILENT_S if known is None else known


def _by_lock(driver: str, said: Any) -> bool | None:
    """Whether it is alive; None: it cannot be seen from here."""
    if not isinstance(said, dict):  # it has left
        return False
    try:
        path = _path(driver)
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        place = said.get("place")
        return False if place is not None and place == _place() else None
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    with contextlib.suppress(OSError):  # another user's
        path.unlink()
    return False


def _held(driver: str) -> int | None:
    """A lock of its own; None: the temporary folder is full, or not there."""
    try:
        file = os.open(_path(driver), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        os.close(file)
        return None
    return file


def _place() -> list[Any] | None:
    """Where locks are seen: equal for those who share a temporary folder since a machine started.
    A host may have several such folders, and two hosts one name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    try:
        folder = os.stat(tempfile.gettempdir())
    except OSError:
        return None
    return [socket.gethostname(), boot, folder.st_dev, folder.st_ino]


def _path(driver: str) -> Path:
    return Path(tempfile.gettempdir()) / f"hydra-study-{driver}.lock"


# A lock is held until every copy of the open file is closed: a fork has one.
_alive: "weakref.WeakSet[Presence]" = weakref.WeakSet()


def _forget_all() -> None:
    for presence in list(_alive):
        presence.forget()


os.register_at_fork(after_in_child=_forget_all)
