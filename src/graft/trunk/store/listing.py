"""What lies in the folder of the trunk cache, and how it is removed: never while it is in use."""

import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from graft.trunk.store import files
from graft.trunk.store.entry import DATA, HEADER, KEY, Damaged, read_header
from graft.trunk.store.filler import JOURNAL, PART, journal_about

LOCK = ".lock"
# A half-built entry that nobody went on with for so long is removed.
STALE_SECONDS = 24 * 3600

_KNOWN = {HEADER, DATA, JOURNAL}


@dataclass(frozen=True)
class Listed:
    """An entry as it lies there, not verified.

    Attributes:
        about: None where its header or journal cannot be read.
        num_bytes: its size once complete.
        num_missing: bytes of it that take no room on the disk yet.
        last_use: seconds since the epoch.
        in_use: being read, or being filled.
    """

    key: str
    about: Mapping[str, Any] | None
    num_bytes: int
    num_missing: int
    last_use: float
    is_complete: bool
    in_use: bool


def listed(folder: int) -> list[Listed]:
    """All entries, the last used first."""
    found = [_look(folder, name) for name in os.listdir(folder)]
    return sorted((e for e in found if e is not None), key=lambda e: e.last_use, reverse=True)


def _look(folder: int, name: str) -> Listed | None:
    """None where it is no entry of ours, or was removed meanwhile."""
    key, is_complete = name.removesuffix(PART), not name.endswith(PART)
    if not re.fullmatch(KEY, key):
        return None
    try:
        with files.opened(folder, name, os.O_RDONLY | os.O_DIRECTORY) as home:
            # Not any folder that somebody keeps here, or that the command line names by mistake.
            within = set(os.listdir(home))
            if not within <= _KNOWN or (is_complete and not within):
                return None
            own = DATA if DATA in within else "."
            there = os.stat(own, dir_fd=home, follow_symlinks=False)
            size = there.st_size if own == DATA else 0
            return Listed(
                key=key,
                about=_header_about(home) if is_complete else journal_about(home),
                num_bytes=size,
                num_missing=max(0, size - 512 * there.st_blocks),
                last_use=there.st_mtime,
                is_complete=is_complete,
                in_use=files.is_locked(home, DATA) or files.is_locked(folder, key + LOCK),
            )
    except OSError:
        return None


def _header_about(home: int) -> Mapping[str, Any] | None:
    try:
        return read_header(home)[0].about
    except (OSError, ValueError):
        return None


def remove(folder: int, key: str, kinds: tuple[str, ...] = ("", PART)) -> bool:
    """Whether nothing is left of an entry; False: it is being read or filled, and stays.

    `kinds`: what follows the key in the names of the folders to remove: nothing, or PART.
    """
    held = files.take(folder, key + LOCK)
    if held is None:
        return False
    try:
        names = [key + kind for kind in kinds if _look(folder, key + kind) is not None]
        return all([_discard_unread(folder, name) for name in names])
    finally:
        files.give_back(folder, key + LOCK, held)


def _discard_unread(folder: int, name: str) -> bool:
    with ExitStack() as stack:
        home = stack.enter_context(files.opened(folder, name, os.O_RDONLY | os.O_DIRECTORY))
        with suppress(OSError):  # nobody reads data that is not there
            data = stack.enter_context(files.opened(home, DATA, os.O_RDWR))
            if not files.lock(data):
                return False
        files.discard(folder, name)
    return True


def remove_damaged(folder: int, key: str, damaged: Damaged) -> bool:
    """False: another process has its lock, and so sees to it, or has done so."""
    held = files.take(folder, key + LOCK)
    if held is None:
        return False
    try:
        now = os.stat(key, dir_fd=folder, follow_symlinks=False)
        if now.st_ino == damaged.inode:
            files.discard(folder, key)
        return now.st_ino == damaged.inode
    except FileNotFoundError:
        return False
    finally:
        files.give_back(folder, key + LOCK, held)


def remove_gone(folder: int) -> None:
    """What was being removed when its process was killed."""
    for name in os.listdir(folder):
        if re.fullmatch(rf"{KEY}({re.escape(PART)})?\.[0-9a-f]{{8}}\.gone", name):
            shutil.rmtree(name, ignore_errors=True, dir_fd=folder)


def remove_leftovers(folder: int, but: str) -> None:
    """What killed processes left: old half-built entries, half-removed ones, locks of nothing.

    `but`: the key whose lock the caller holds.
    """
    for entry in listed(folder):
        is_old = time.time() - entry.last_use > STALE_SECONDS
        if is_old and not entry.is_complete and entry.key != but:
            with suppress(OSError):
                remove(folder, entry.key, (PART,))
    remove_gone(folder)
    for name in os.listdir(folder):
        if re.fullmatch(KEY + re.escape(LOCK), name) and name != but + LOCK:
            with suppress(OSError):
                held = files.take(folder, name)
                if held is not None:
                    files.give_back(folder, name, held)
