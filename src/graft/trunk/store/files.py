"""Files named within an open folder: never through a link, never another user's; and their locks.

A folder that was opened stays the same one, whatever takes its name meanwhile: what is renamed or
removed within it is what was looked at.
"""

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def open_within(folder: int, name: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the file or folder `name` of `folder`; what is made is private.

    Raises:
        OSError: it cannot be opened, is a symbolic link, or belongs to another user.
    """
    try:
        found = os.open(name, flags | _FLAGS, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno != errno.ENOENT and _is_link(folder, name):
            raise OSError(errno.ELOOP, "it is a symbolic link", name) from None
        raise
    if os.fstat(found).st_uid != os.geteuid():
        os.close(found)
        raise PermissionError(errno.EPERM, "it belongs to another user", name)
    return found


@contextmanager
def opened(folder: int, name: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    """`open_within`, closed at the end."""
    found = open_within(folder, name, flags)
    try:
        yield found
    finally:
        os.close(found)


def read(folder: int, name: str) -> bytes:
    """A whole small file."""
    with opened(folder, name) as found:
        return os.read(found, os.fstat(found).st_size)


def exists(folder: int, name: str) -> bool:
    """Whether anything has that name, a link that leads nowhere included."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def is_still(found: int, folder: int, name: str) -> bool:
    """Whether `name` is what `found` was opened from, and not gone or another."""
    try:
        now = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(now, os.fstat(found))


def discard(folder: int, name: str) -> None:
    """Remove a folder: nobody sees half of it, and who has its files mapped keeps them."""
    gone = f"{name}.{secrets.token_hex(4)}.gone"
    os.rename(name, gone, src_dir_fd=folder, dst_dir_fd=folder)
    shutil.rmtree(gone, ignore_errors=True, dir_fd=folder)


def lock(found: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether `found` is now locked; False, at once, where another holds it."""
    try:
        fcntl.flock(found, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def take(folder: int, name: str) -> int | None:
    """A descriptor that holds the lock file `name`, for `give_back`; None: another has it.

    The kernel frees it when its holder dies, however it dies.
    """
    held = open_within(folder, name, os.O_RDWR | os.O_CREAT)
    try:
        # Whoever had it removed the file before letting go: a lock on that one says nothing.
        if lock(held) and is_still(held, folder, name):
            return held
    except BaseException:
        os.close(held)
        raise
    os.close(held)
    return None


def give_back(folder: int, name: str, held: int) -> None:
    """Remove the lock file: whoever comes next makes another.

    So it is free at once, even where a child that was forked meanwhile has the descriptor too.
    """
    with suppress(OSError):
        os.unlink(name, dir_fd=folder)
    os.close(held)


def is_locked(folder: int, name: str, flags: int = os.O_RDWR) -> bool:
    """Whether anybody holds a lock on the file `name`, shared or not."""
    try:
        with opened(folder, name, flags) as found:
            return not lock(found)
    except OSError:
        return False


def _is_link(folder: int, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False
