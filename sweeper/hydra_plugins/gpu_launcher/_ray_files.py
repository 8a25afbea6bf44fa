"""Files that jobs have left on another node, brought home in pieces.

A node says what has changed in a folder; the launcher asks for the pieces that it has not got, and
puts the files together in the same folder at home. Nothing of what the node says is believed: a
file lands inside its folder, or nowhere.
"""

import contextlib
import os
import stat
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from uuid import uuid4

# So much travels at a time: while one slot's files come home, the others are listened to.
PIECE = 8 << 20
# File systems keep their own, coarser time.
_MARGIN_NS = 1_000_000_000


class File(NamedTuple):
    """A file on a node.

    Attributes:
        folder: as the launcher has asked for it.
        name: its path in there, with slashes.
        size: bytes.
        mode: permission bits.
        changed_ns, modified_ns: when its entry, and its content, were last changed there.
    """

    folder: str
    name: str
    size: int
    mode: int
    changed_ns: int
    modified_ns: int


class Piece(NamedTuple):
    """Bytes of a file: where they begin, and how many."""

    file: File
    start: int
    length: int

    @property
    def is_last(self) -> bool:
        return self.start + self.length >= self.file.size


# --- on the node ----------------------------------------------------------------------------


def changed(folders: Sequence[str], since_ns: int) -> list[File]:
    """Plain files in some folders that have changed since; links are neither named nor followed."""
    return [
        file
        for folder in folders
        for file in _files(folder)
        if file.changed_ns >= since_ns - _MARGIN_NS
    ]


def _files(folder: str) -> Iterator[File]:
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            with contextlib.suppress(OSError):  # it has gone meanwhile
                found = path.lstat()
                if stat.S_ISREG(found.st_mode):
                    name = path.relative_to(folder).as_posix()
                    mode = stat.S_IMODE(found.st_mode) & 0o777
                    times = (found.st_ctime_ns, found.st_mtime_ns)
                    yield File(folder, name, found.st_size, mode, *times)


def read(pieces: Sequence[Piece]) -> list[bytes | None]:
    """Some pieces; None for one whose file has gone."""
    return [_read(piece) for piece in pieces]


def _read(piece: Piece) -> bytes | None:
    try:
        with Path(piece.file.folder, piece.file.name).open("rb") as stream:
            stream.seek(piece.start)
            return stream.read(piece.length)
    except OSError:
        return None


# --- at home --------------------------------------------------------------------------------


class Unsafe(ValueError):
    """The name of a file leads out of its folder."""


def fetched(
    files: Sequence[File], homes: Mapping[str, Path]
) -> Generator[list[Piece], list[bytes | None], list[tuple[File, Exception]]]:
    """Ask for files piece by piece, and write each under its name once it is whole.

    Args:
        homes: for each folder, as the node was asked for it, the folder at home.

    Yields:
        Pieces; to be sent what `read` gives for them.

    Returns:
        Files that could not be written, and why.
    """
    failures: list[tuple[File, Exception]] = []
    landing = _Landing(homes)
    try:
        for pieces in _loads(files):
            for piece, content in zip(pieces, (yield pieces), strict=True):
                try:
                    landing.take(piece, content)
                except (OSError, Unsafe) as error:
                    failures.append((piece.file, error))
                    landing.drop()
    finally:
        landing.drop()
    return failures


def _loads(files: Sequence[File]) -> Iterator[list[Piece]]:
    """Pieces, as many at a time as may travel together."""
    load: list[Piece] = []
    for file in files:
        for start in range(0, max(file.size, 1), PIECE):
            piece = Piece(file, start, min(PIECE, file.size - start))
            if load and sum(one.length for one in load) + piece.length > PIECE:
                yield load
                load = []
            load.append(piece)
    if load:
        yield load


class _Landing:
    """One file at a time, written beside its place and then moved there."""

    def __init__(self, homes: Mapping[str, Path]) -> None:
        self._homes = homes
        self._part: Path | None = None

    def take(self, piece: Piece, content: bytes | None) -> None:
        """Write a piece; those of a file come in order.

        Raises:
            Unsafe: the file would lie elsewhere.
            OSError: it cannot be written.
        """
        file = piece.file
        if piece.start == 0:
            self.drop()
            self._target = landing_place(self._homes[file.folder], file.name)
            self._part = self._target.with_name(f".{uuid4().hex}.part")
            self._part.open("xb").close()
        if content is None:
            self.drop()
        if self._part is None:  # an earlier piece of it is missing
            return
        with self._part.open("ab") as stream:
            stream.write(content or b"")
        if piece.is_last:
            self._part.chmod(file.mode)
            os.utime(self._part, ns=(file.modified_ns, file.modified_ns))
            os.replace(self._part, self._target)
            self._part = None

    def drop(self) -> None:
        """Forget a file that is not whole."""
        if self._part is not None:
            self._part.unlink(missing_ok=True)
            self._part = None


def landing_place(home: Path, name: str) -> Path:
    """Where a file belongs; the folders on the way are made.

    Raises:
        Unsafe: the name is absolute, climbs, or passes through a link.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise Unsafe(f"{name!r} is not a name in a folder")
    place = home
    for part in parts[:-1]:
        place = place / part
        if place.is_symlink():
            raise Unsafe(f"{name!r} passes through the link {part!r}")
    place.mkdir(parents=True, exist_ok=True)
    return place / parts[-1]
