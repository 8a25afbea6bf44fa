"""The trunk cache: entries on disk under a key that names what determined them.

    <folder>/
    ├── .lock           held while room is made
    ├── <key>/          a complete entry: see entry.py
    ├── <key>.part/     a half-built one: see filler.py
    └── <key>.lock      held while it is filled, or removed

Processes and later sweeps share it. It knows bytes only, and costs time, never a result: whatever
is wrong with an entry, it is removed and made again; whatever is wrong with the folder is one
CacheError, after which the caller goes on without.
"""

import fcntl
import json
import logging
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.errors import CacheError, NoRoom
from graft.trunk.store import files
from graft.trunk.store.entry import Damaged, Entry, Plan, check_key, open_entry
from graft.trunk.store.filler import Filler, Part
from graft.trunk.store.listing import (
    LOCK,
    Listed,
    listed,
    remove,
    remove_damaged,
    remove_gone,
    remove_leftovers,
)

log = logging.getLogger("graft")

# What an entry leaves free on the disk: this, or a twentieth of its own size.
RESERVE_BYTES = 64 << 20
POLL_SECONDS = 0.2


class Store:
    """The entries in one folder, which is made (0700) when the first is filled."""

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self.folder, self.limit_bytes = folder.absolute(), limit_bytes
        self._has_warned = False

    def find(self, key: str) -> Entry | None:
        """The complete entry, every byte of it verified just now; None: there is none.

        One that is damaged, or of another format, is removed, with a warning.
        """
        check_key(key)
        try:
            with self._opened() as folder:
                return self._sound(folder, key)
        except OSError:  # `fill` says why
            return None
        except CacheError as error:
            log.warning("%s", str(error))
            return None

    def damage(self, key: str) -> str | None:
        """What is wrong with a complete entry, which is then removed; None: nothing.

        Raises:
            CacheError: it cannot be read, or cannot be removed.
        """
        check_key(key)
        with self._surfacing(), self._opened() as folder:
            try:
                entry = open_entry(folder, key)
            except Damaged as error:
                remove_damaged(folder, key, error)
                return str(error)
            if entry is not None:
                entry.close()
            return None

    @contextmanager
    def fill(
        self, key: str, about: Mapping[str, Any], num_rows: int, row_bytes: int
    ) -> Iterator[Filler]:
        """Fill an entry, as the only process that does.

        Waits while another fills it; that may be this process itself. Who fills several at a time
        enters them in the order of their keys, as everybody does: else two wait for each other.
        Left without `finish`, what was written is kept for the next who fills it.

        Args:
            key: what determined the bytes, as a digest.
            about: how to read them, and where they are from; JSON.

        Raises:
            NoRoom: it does not fit the limit or the disk, whatever unused entries are removed.
            CacheError: the folder cannot be used.
        """
        plan = Plan(key, num_rows, row_bytes, json.loads(json.dumps(about)))
        with ExitStack() as stack:
            with self._surfacing():
                filler = self._begin(stack, plan)
            stack.callback(filler.leave)
            yield filler

    def is_being_filled(self, key: str) -> bool:
        """Whether a process, perhaps this one, fills an entry now: `fill` would wait for it."""
        check_key(key)
        try:
            with self._opened() as folder:
                return files.is_locked(folder, key + LOCK)
        except OSError:
            return False

    def entries(self) -> list[Listed]:
        """All that lies there, half-built ones too, the last used first.

        Raises:
            CacheError: the folder cannot be read.
        """
        with self._surfacing():
            try:
                with self._opened() as folder:
                    return listed(folder)
            except FileNotFoundError:
                return []

    def remove(self, key: str) -> bool:
        """Whether nothing is left of an entry; False: it is in use, and stays.

        Raises:
            CacheError: it cannot be removed.
        """
        check_key(key)
        with self._surfacing():
            try:
                with self._opened() as folder:
                    return remove(folder, key)
            except FileNotFoundError:
                return True

    def remove_gone(self) -> None:
        """What is left of entries whose removal was interrupted: nobody sees them any more.

        Raises:
            CacheError: the folder cannot be read.
        """
        with self._surfacing(), suppress(FileNotFoundError), self._opened() as folder:
            remove_gone(folder)

    def size(self) -> int:
        """Bytes of all entries, half-built ones as if they were complete."""
        return sum(entry.num_bytes for entry in self.entries())

    @contextmanager
    def _opened(self) -> Iterator[int]:
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mode = os.fstat(folder).st_mode
            if mode & (stat.S_IWGRP | stat.S_IWOTH) and not self._has_warned:
                self._has_warned = True
                log.warning("Others may write to the cache %s: chmod go-w it.", self.folder)
            yield folder
        finally:
            os.close(folder)

    @contextmanager
    def _surfacing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = error.strerror or str(error)
            raise CacheError(f"The cache {self.folder} cannot be used ({why}).") from error

    def _sound(self, folder: int, key: str) -> Entry | None:
        try:
            entry = open_entry(folder, key)
        except Damaged as error:
            if remove_damaged(folder, key, error):
                log.warning("%s is damaged (%s), and is rebuilt.", self.folder / key, str(error))
            return None
        except CacheError as error:
            raise CacheError(f"In {self.folder}: {error}") from error
        if entry is not None:
            entry.touch()
        return entry

    def _begin(self, stack: ExitStack, plan: Plan) -> Filler:
        """A filler for what is not there yet; `stack` ends what it began."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = stack.enter_context(self._opened())
        entry = self._wait(stack, folder, plan.key)
        if entry is not None:
            return Filler(self.folder / plan.key, plan, entry)
        with files.opened(folder, LOCK, os.O_RDWR | os.O_CREAT) as making_room:
            fcntl.flock(making_room, fcntl.LOCK_EX)
            remove_leftovers(folder, plan.key)
            self._make_room(folder, plan)
            part = stack.enter_context(Part(folder, plan))
        part.resume()
        return Filler(self.folder / plan.key, plan, part)

    def _wait(self, stack: ExitStack, folder: int, key: str) -> Entry | None:
        """The entry, as soon as it is complete; None: its lock is ours, until `stack` ends."""
        began, has_said, name = time.monotonic(), False, key + LOCK
        while True:
            entry = self._sound(folder, key)
            if entry is not None:
                return entry
            held = files.take(folder, name)
            if held is not None and not files.exists(folder, key):
                stack.callback(files.give_back, folder, name, held)
                return None
            if held is not None:  # completed between the two looks
                files.give_back(folder, name, held)
                continue
            if not has_said and time.monotonic() - began > 1:
                has_said = True
                log.info("Waiting for another process that computes this (%s) ...", key[:12])
            time.sleep(POLL_SECONDS)

    def _make_room(self, folder: int, plan: Plan) -> None:
        """Remove what was not used for longest, until the plan fits; nothing if it cannot."""
        while lacking := [one for one in self._bounds(folder, plan) if one.excess > 0]:
            worst = max(lacking, key=lambda one: one.excess - one.idle)
            idle = reversed(_idle(listed(folder), plan))
            if worst.excess > worst.idle or not any(remove(folder, e.key) for e in idle):
                raise NoRoom(
                    f"The cache {self.folder} has no room for {plan.num_bytes:,} bytes: "
                    f"{worst.why}, and what is not in use takes {worst.idle:,}."
                )

    def _bounds(self, folder: int, plan: Plan) -> "list[_Bound]":
        """The disk, and the limit, if there is one."""
        there = listed(folder)
        others, idle = [e for e in there if e.key != plan.key], _idle(there, plan)
        own = [e.num_missing for e in there if e.key == plan.key and not e.is_complete]
        # What others have begun is theirs, though its bytes are not on the disk yet.
        promised = sum(e.num_missing for e in others if e.in_use and not e.is_complete)
        free = shutil.disk_usage(folder).free - promised
        reserve = max(plan.num_bytes // 20, RESERVE_BYTES)
        short = (own[0] if own else plan.num_bytes) + reserve - free
        on_disk = sum(e.num_bytes - e.num_missing for e in idle)
        why = f"the disk has {free:,} left, of which {reserve:,} stay free"
        found = [_Bound(short, on_disk, why)]
        if self.limit_bytes is not None:
            taken = sum(e.num_bytes for e in others)
            over = taken + plan.num_bytes - self.limit_bytes
            why = f"{taken:,} of its limit of {self.limit_bytes:,} are taken"
            found.append(_Bound(over, sum(e.num_bytes for e in idle), why))
        return found


@dataclass(frozen=True)
class _Bound:
    """What an entry must fit in: bytes that are too many, what idle entries take, and words."""

    excess: int
    idle: int
    why: str


def _idle(there: list[Listed], plan: Plan) -> list[Listed]:
    return [entry for entry in there if not entry.in_use and entry.key != plan.key]
