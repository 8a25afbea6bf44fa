"""One entry of the trunk cache: its files, their digests, and the mapping that reads them.

    <key>/
    ├── header.json     its first line holds the digest of the rest: format, key, num_rows,
    │                   row_bytes, crc32 of every block, about
    └── data.bin        num_rows times row_bytes bytes

Only bytes and JSON: nothing that is read here can run.
"""

import errno
import fcntl
import hashlib
import json
import mmap
import os
import re
import time
import weakref
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graft.errors import CacheError
from graft.trunk.store import files

# Of the header and both files. An entry of another format is removed and made again.
FORMAT = 1
# Rows of a block, the unit of digest and of continuing an interrupted fill.
BLOCK_ROWS = 256
# A digest, or any other name without dots.
KEY = r"[0-9A-Za-z_-]{1,128}"
HEADER, DATA = "header.json", "data.bin"

_CHUNK_BYTES = 1 << 20
_THREADS = min(16, os.cpu_count() or 1)
# What a file that was damaged answers; anything else (too many open files) says nothing of it.
_DAMAGE = (errno.ENOENT, errno.ELOOP, errno.EIO, errno.EPERM)


class Damaged(CacheError):
    """An entry of ours that cannot be used, and why; it may be removed.

    Attributes:
        inode: of its folder, so that nothing that took its place is removed.
    """

    def __init__(self, why: str, inode: int) -> None:
        super().__init__(why)
        self.inode = inode


@dataclass(frozen=True)
class Plan:
    """What an entry holds: `num_rows` rows of `row_bytes` bytes, and JSON about them.

    Raises:
        ValueError: a key that is no file name, or nothing to hold.
    """

    key: str
    num_rows: int
    row_bytes: int
    about: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_key(self.key)
        if self.num_rows < 1 or self.row_bytes < 1:
            raise ValueError(f"{self.num_rows} rows of {self.row_bytes} bytes hold nothing.")

    @property
    def num_bytes(self) -> int:
        return self.num_rows * self.row_bytes

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """[start, stop) rows of each block."""
        starts = range(0, self.num_rows, BLOCK_ROWS)
        return [(start, min(start + BLOCK_ROWS, self.num_rows)) for start in starts]

    def as_json(self) -> dict[str, Any]:
        sizes = {"key": self.key, "num_rows": self.num_rows, "row_bytes": self.row_bytes}
        return {"format": FORMAT, **sizes, "about": dict(self.about)}


class Entry:
    """A complete entry, in memory as far as it is read; in use, and so kept, while this lives.

    That is until `close`, or until this and every array of it are gone. Other processes share
    its memory.
    """

    def __init__(self, data: int, plan: Plan) -> None:
        """`data`: the file's descriptor, locked; it is this object's from now on."""
        self.about, self.num_rows, self.row_bytes = plan.about, plan.num_rows, plan.row_bytes
        self._data, self._process = data, os.getpid()
        self._release = weakref.finalize(self, os.close, data)
        self._bytes = mmap.mmap(data, plan.num_bytes, access=mmap.ACCESS_READ)

    def rows(self) -> NDArray[np.uint8]:
        """[num_rows, row_bytes], read-only; stays readable whatever happens to the files."""
        flat = np.frombuffer(self._bytes, dtype=np.uint8)
        return flat.reshape(self.num_rows, self.row_bytes)

    def touch(self) -> None:
        """Say that it was used just now."""
        now = time.time_ns()
        with suppress(OSError):  # a cache that may only be read is of use too
            os.utime(self._data, ns=(now, now))

    def close(self) -> None:
        """From now on it may be removed. Its arrays stay readable."""
        # The mapping has its own copy of the descriptor: closing ours would not free the lock.
        # A forked child must not free it for its parent.
        if self._release.alive and os.getpid() == self._process:
            fcntl.flock(self._data, fcntl.LOCK_UN)
        self._release()


def open_entry(folder: int, key: str) -> Entry | None:
    """The entry, every block of it read and compared with its digest just now; None: not there.

    Raises:
        Damaged: it cannot be used.
        CacheError: what has its name is not ours to use or to remove, or cannot be opened.
    """
    try:
        home = files.open_within(folder, key, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"{key} cannot be used: {error.strerror}.") from error
    try:
        return _verified(home, folder, key)
    except (OSError, ValueError) as error:
        if not files.is_still(home, folder, key):
            return None  # it was removed while it was read
        if isinstance(error, OSError) and error.errno not in _DAMAGE:
            raise CacheError(f"{key} cannot be read: {error.strerror}.") from error
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise Damaged(why, os.fstat(home).st_ino) from error
    finally:
        os.close(home)


def locked_entry(home: int, plan: Plan) -> Entry:
    """An entry whose bytes are known to be sound, in use from now on.

    Raises:
        OSError: its file is not there, or has another length.
    """
    data = files.open_within(home, DATA)
    try:
        fcntl.flock(data, fcntl.LOCK_SH)  # who holds the other kind only looks, or removes
        size = os.fstat(data).st_size
        if size != plan.num_bytes:
            said = f"it has {size:,} bytes instead of {plan.num_bytes:,}"
            raise OSError(errno.EIO, said, DATA)
    except BaseException:
        os.close(data)
        raise
    return Entry(data, plan)


def read_header(home: int) -> tuple[Plan, list[int]]:
    """What an entry holds, and the crc32 of each block.

    Raises:
        OSError, ValueError: it cannot be read, or is not as it was written.
    """
    values = unseal(files.read(home, HEADER))
    if values.get("format") != FORMAT:
        raise ValueError(f"{HEADER} has format {values.get('format')} instead of {FORMAT}")
    try:
        plan = Plan(values["key"], values["num_rows"], values["row_bytes"], values["about"])
        return plan, list(values["crc32"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{HEADER} lacks something: {error}") from error


def seal(values: Mapping[str, Any]) -> bytes:
    """JSON whose first line holds the digest of the others."""
    rest = json.dumps(values, indent=1).removeprefix("{").encode()
    return b'{"blake2b": "%s",' % _digest(rest) + rest


def unseal(sealed: bytes) -> dict[str, Any]:
    """Raises ValueError where any byte differs from what `seal` wrote."""
    first, _, rest = sealed.partition(b"\n")
    if first != b'{"blake2b": "%s",' % _digest(b"\n" + rest):
        raise ValueError(f"{HEADER} does not have the digest that it names")
    return dict(json.loads(sealed))


def sound_blocks(data: int, plan: Plan, crcs: Mapping[int, int]) -> dict[int, int]:
    """Those blocks (position: crc32) of `crcs` whose bytes on disk have that crc32."""
    blocks = plan.blocks
    known = [i for i in crcs if 0 <= i < len(blocks)]
    with ThreadPoolExecutor(_THREADS) as pool:  # reading and crc32 both let the others run
        found = pool.map(lambda i: _crc32(data, *blocks[i], plan.row_bytes), known)
        return {i: crc for i, crc in zip(known, found, strict=True) if crc == crcs[i]}


def check_key(key: str) -> None:
    """Raises ValueError where a key is not plain letters, digits, - and _."""
    if not re.fullmatch(KEY, key):
        raise ValueError(f"{key!r} cannot be the key of an entry.")


def _verified(home: int, folder: int, key: str) -> Entry:
    plan, crcs = read_header(home)
    if plan.key != key or len(crcs) != len(plan.blocks):
        raise ValueError(f"{HEADER} is of another entry")
    entry = locked_entry(home, plan)
    try:
        if not files.is_still(home, folder, key):
            raise FileNotFoundError(errno.ENOENT, "it was removed", key)
        num_bad = len(crcs) - len(sound_blocks(entry._data, plan, dict(enumerate(crcs))))
        if num_bad:
            raise ValueError(f"{DATA} is damaged in {num_bad} of {len(crcs)} blocks")
    except BaseException:
        entry.close()
        raise
    return entry


def _crc32(data: int, start: int, stop: int, row_bytes: int) -> int:
    """Of some rows, read in small pieces: a read that fails is an error, in a mapping a signal."""
    crc, at, end = 0, start * row_bytes, stop * row_bytes
    while at < end:
        chunk = os.pread(data, min(_CHUNK_BYTES, end - at), at)
        if not chunk:
            return -1
        crc, at = zlib.crc32(chunk, crc), at + len(chunk)
    return crc


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=32).hexdigest().encode()
