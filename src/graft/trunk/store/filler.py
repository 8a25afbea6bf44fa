"""An entry while it is being filled: what is there already, what is still to come.

    <key>.part/
    ├── data.bin        as it will be, with holes
    └── journal         a line on what it will hold, then a line a block: position and crc32

A block counts if its bytes have the crc32 of its line. So nothing need be flushed until the end:
a line whose bytes never reached the disk is a block to compute again.
"""

import errno
import json
import os
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from graft.errors import CacheError
from graft.trunk.store import files
from graft.trunk.store.entry import (
    BLOCK_ROWS,
    DATA,
    HEADER,
    Entry,
    Plan,
    locked_entry,
    seal,
    sound_blocks,
)

JOURNAL = "journal"
# Bytes that are written before the disk is told to begin.
FLUSH_BYTES = 1 << 30
PART = ".part"


class Filler:
    """Takes the blocks of one entry, in any order, from several threads.

    Attributes:
        entry: the entry, once it is complete. Set from the beginning where another process
            finished it first: then nothing is missing.
    """

    def __init__(self, path: Path, plan: Plan, ready: "Entry | Part") -> None:
        """`path`: the entry's folder, for messages."""
        self.entry = ready if isinstance(ready, Entry) else None
        self._part = ready if isinstance(ready, Part) else None
        self._path, self._plan = path, plan
        self._lock = threading.Lock()
        self._flusher = ThreadPoolExecutor(1, "flush")  # no thread before there is something to do
        self._flush_begun: Future[None] | None = None
        self._why_not = f"{path} was given up, or is complete."

    def missing(self) -> list[tuple[int, int]]:
        """[start, stop) rows of each block that is still to be written."""
        if self.entry is not None or self._part is None:
            return []
        crcs = self._part.crcs
        return [rows for i, rows in enumerate(self._plan.blocks) if i not in crcs]

    def write(self, start: int, rows: NDArray[np.uint8]) -> None:
        """Store one block, [n, row_bytes] uint8, of the rows from `start` on.

        Raises:
            ValueError: it is no block of this entry.
            CacheError: it cannot be written; what was written before is removed.
        """
        position, is_off = divmod(start, BLOCK_ROWS)
        blocks = self._plan.blocks
        if is_off or not 0 <= position < len(blocks) or rows.dtype != np.uint8:
            raise ValueError(f"Row {start} as {rows.dtype} begins no block of bytes.")
        expected = (blocks[position][1] - start, self._plan.row_bytes)
        if rows.shape != expected:
            raise ValueError(f"The block at row {start} has shape {rows.shape}, not {expected}.")
        data = np.ascontiguousarray(rows).data.cast("B")
        crc = zlib.crc32(data)  # several threads may be here at a time
        with self._writing() as part:
            part.write(position, start * self._plan.row_bytes, data, crc)
            is_flushing = self._flush_begun is not None and not self._flush_begun.done()
            if part.is_to_be_flushed and not is_flushing:
                # Beside what is written on: a disk takes longer than memory.
                self._flush_begun = self._flusher.submit(self._flush, part.unflushed())

    def finish(self) -> Entry:
        """The complete entry, flushed to disk, in its place and in use.

        Raises:
            ValueError: blocks are missing.
            CacheError: it cannot be written; what was written before is removed.
        """
        if self.entry is not None:
            return self.entry
        if self._flush_begun is not None:
            self._flush_begun.result()
        with self._writing() as part:
            if missing := self.missing():
                raise ValueError(f"{len(missing)} blocks of {self._path} are missing.")
            self.entry, self._part = part.finish(), None
        return self.entry

    def leave(self) -> None:
        """Nothing more can be written: its files are about to be closed."""
        self._part = None
        self._flusher.shutdown(wait=False)

    def _flush(self, data: int) -> None:
        """Let the disk begin: what `finish` waits for is less."""
        try:
            try:
                os.fsync(data)
            finally:
                os.close(data)  # some file systems only say here what is wrong
        except OSError as error:
            # The system says this once: `finish` would not hear of it.
            with self._writing():
                raise error

    @contextmanager
    def _writing(self) -> "Iterator[Part]":
        with self._lock:
            if self._part is None:
                raise CacheError(self._why_not)
            try:
                yield self._part
            except OSError as error:
                self._part.discard()
                self._part = None
                self._why_not = f"{self._path} cannot be written ({error.strerror or error})."
                raise CacheError(self._why_not) from error


class Part:
    """The folder of a half-built entry. The lock of its key is held all the while.

    Attributes:
        crcs: position and crc32 of each block that is there.
    """

    def __init__(self, folder: int, plan: Plan) -> None:
        """Its whole size counts from now on; its bytes take room as they come."""
        self._folder, self._plan, self._name = folder, plan, plan.key + PART
        self.crcs: dict[int, int] = {}
        self._num_unflushed = 0
        with suppress(FileExistsError):
            os.mkdir(self._name, 0o700, dir_fd=folder)
        with ExitStack() as stack:

            def opened(within: int, name: str, flags: int) -> int:
                return stack.enter_context(files.opened(within, name, flags))

            self._home = opened(folder, self._name, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(self._leave)
            make = os.O_RDWR | os.O_CREAT
            self._data = opened(self._home, DATA, make)
            self._journal = opened(self._home, JOURNAL, make | os.O_APPEND)
            os.ftruncate(self._data, plan.num_bytes)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def resume(self) -> None:
        """Keep the blocks that an interrupted fill left whole."""
        first = _line(self._plan.as_json())
        lines = files.read(self._home, JOURNAL).splitlines(keepends=True)
        if lines and lines[0] == first:
            self.crcs = sound_blocks(self._data, self._plan, _journalled(lines[1:]))
        # Anew, since its last line may be torn.
        os.ftruncate(self._journal, 0)
        _write(self._journal, first + b"".join(_line(block) for block in self.crcs.items()))

    def write(self, position: int, at: int, data: memoryview, crc: int) -> None:
        if not os.fstat(self._data).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "it was removed meanwhile", self._name)
        sent = 0
        while sent < len(data):
            sent += os.pwrite(self._data, data[sent:], at + sent)
        _write(self._journal, _line((position, crc)))
        self.crcs[position] = crc
        self._num_unflushed += len(data)

    @property
    def is_to_be_flushed(self) -> bool:
        """Whether much has been written since it was last."""
        return self._num_unflushed >= FLUSH_BYTES

    def unflushed(self) -> int:
        """The file, to be flushed and closed."""
        self._num_unflushed = 0
        return os.dup(self._data)

    def finish(self) -> Entry:
        os.fsync(self._data)
        crcs = [self.crcs[i] for i in range(len(self._plan.blocks))]
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with files.opened(self._home, HEADER, flags) as header:
            _write(header, seal({**self._plan.as_json(), "crc32": crcs}))
            os.fsync(header)
        os.fsync(self._home)
        entry = locked_entry(self._home, self._plan)  # nobody can remove it in between
        try:
            self._put_in_place()
        except BaseException:
            entry.close()
            raise
        return entry

    def discard(self) -> None:
        """Nothing of it is kept, and nothing more can be written."""
        self.crcs.clear()
        self._stack.close()

    def _put_in_place(self) -> None:
        os.rename(self._name, self._plan.key, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        os.fsync(self._folder)
        with suppress(OSError):
            os.unlink(JOURNAL, dir_fd=self._home)

    def _leave(self) -> None:
        with suppress(OSError):
            if not self.crcs and files.is_still(self._home, self._folder, self._name):
                files.discard(self._folder, self._name)


def journal_about(home: int) -> dict[str, Any] | None:
    """What a half-built entry says of itself; None where it says nothing."""
    try:
        first = json.loads(files.read(home, JOURNAL).split(b"\n")[0])
        return dict(first["about"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _journalled(lines: list[bytes]) -> dict[int, int]:
    """Position and crc32 of each block; a line that was torn or damaged says nothing."""
    found: dict[int, int] = {}
    for line in lines:
        with suppress(ValueError, TypeError):
            position, crc = json.loads(line)
            found[int(position)] = int(crc)
    return found


def _line(values: object) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _write(found: int, text: bytes) -> None:
    while text:
        text = text[os.write(found, text) :]
