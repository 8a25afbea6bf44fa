"""Locks between processes: a file that is held open, and free as soon as its holder is gone.

The kernel frees the lock of a process that dies, however it dies, so nobody has to clear up after
one. The file stays; what it says of its last holder means nothing while nobody holds it.
"""

import errno
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

try:
    import fcntl
except ImportError:  # not Unix: there is no lock, and each process must be told apart by hand
    fcntl = None  # type: ignore[assignment]

_EVERY_S = 0.1
# A network file system may know no locks. That is no reason to refuse to work on it.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class Locked(Exception):
    """Another has the lock: `pid`, `host` and `since` (seconds since 1970), None if not known."""

    def __init__(self, path: Path, pid: int | None, host: str | None, since: float | None) -> None:
        super().__init__(path, pid, host, since)
        self.path, self.pid, self.host, self.since = path, pid, host, since

    def __str__(self) -> str:
        if self.pid is None:
            return "another process"
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {began}"


class Lock:
    """A lock, exclusive or shared, on a file that says who holds it. Not held until `acquire`.

    Two objects exclude each other within one process too. As a context manager it is acquired at
    once, unless it is held already, and released at the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    @property
    def is_held(self) -> bool:
        return self._file is not None

    def acquire(self, wait_s: float = 0.0, shared: bool = False) -> bool:
        """Hold the lock; whether it had to be waited for.

        Args:
            wait_s: how long to wait for another that holds it.
            shared: together with others that share it. The file then names the last to come.

        Raises:
            Locked: another holds it still; `str()` of it says who.
            OSError: the file cannot be opened.
        """
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        until, has_waited = time.monotonic() + wait_s, False
        try:
            while not _is_taken(file, shared):
                # Who only looks has it for a moment: once more, however short the wait.
                if has_waited and time.monotonic() >= until:
                    raise Locked(self.path, **_holder(file))
                has_waited = True
                time.sleep(_EVERY_S)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        _write_holder(file)
        return has_waited

    def look(self) -> None:
        """Raise `Locked` where another holds it exclusively; leave everything as it is."""
        file = os.open(self.path, os.O_RDONLY)
        try:
            if not _is_taken(file, shared=True):
                raise Locked(self.path, **_holder(file))
        finally:
            os.close(file)

    def release(self) -> None:
        """Nothing happens where it is not held."""
        if self._file is None:
            return
        file, self._file = self._file, None
        if fcntl is not None:
            # Closing is not enough where a forked child has the file open too.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)

    def __enter__(self) -> Self:
        if not self.is_held:
            self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _is_taken(file: int, shared: bool) -> bool:
    """Whether the lock is ours now."""
    if fcntl is None:
        return True
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _write_holder(file: int) -> None:
    said = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()})
    with suppress(OSError):  # a full disk: the lock counts, not what is said of it
        os.ftruncate(file, 0)
        os.pwrite(file, said.encode(), 0)


def _holder(file: int) -> dict[str, Any]:
    """What the holder says of itself."""
    try:
        said = json.loads(os.pread(file, 1000, 0))
        return {key: said[key] for key in ("pid", "host", "since")}
    except (OSError, ValueError, KeyError, TypeError):
        return dict.fromkeys(("pid", "host", "since"))


def held_by(path: Path) -> str:
    """Who holds the lock of a file now, in words; empty where nobody does, or there is no file."""
    if not path.exists():
        return ""
    lock = Lock(path)
    try:
        lock.look()
    except Locked as holder:
        return str(holder)
    except OSError:
        return ""
    return ""
