"""Reads comma-separated text with a header, strictly: a cell is text and stays what is written.

The standard library's reader, not pandas': that one turns a class called "NA" into a missing value,
an id `007` into 7, and takes the first column for an index when a row has a field too many.
"""

import csv
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from graft.config import Dataset, nearest
from graft.data.raw import Raw, listed, rows
from graft.errors import DataError

# Rows that are turned into columns at a time: a million rows are never held as lists at once.
_CHUNK = 4096


@dataclass(frozen=True)
class Columns:
    """A table's columns by name, [N] texts each, and the line of each row (1-based)."""

    file: Path
    columns: Mapping[str, tuple[str, ...]]
    lines: Sequence[int]


def read_csv(path: Path, key: str) -> Columns:
    """The columns of a CSV file.

    Args:
        path: UTF-8 (a byte order mark is accepted), any line ends, commas.
        key: the configuration key that names the file, for messages.

    Raises:
        DataError: the file cannot be read, its header or encoding is not what is expected, a row
            has another number of fields than the header, or a quoted field holds a line break.
    """
    with open_text(path, key) as stream:
        reader = csv.reader(stream, strict=True)
        last = 0
        try:
            header = _header(next(reader, None), path)
            last = reader.line_num
            collected = _Collector(path, header)
            for row in reader:
                collected.add(row, last + 1, reader.line_num)
                last = reader.line_num
        except csv.Error as error:
            raise DataError(
                f"{path}, line {last + 1}: not readable as CSV ({error}). Is a quote unclosed?"
            ) from None
    return collected.finish()


def raw(
    table: Columns, config: Dataset, *, file: str, root: Path, root_key: str,
    group: str | None, split: str | None, notes: tuple[str, ...] = (),
) -> Raw:  # fmt: skip
    """The columns in use, taken out of a table by name.

    Raises:
        DataError: a column is not there; every missing one is named.
    """
    used = {"file": file, "target": config.target, "group": group, "split": split}
    # Quoted where a blank, which is part of the name, could not be seen.
    there = [name if name == name.strip() else repr(name) for name in table.columns]
    problems = [
        f"dataset.{key}={name} is not a column of {table.file}.{nearest(name, there)}"
        for key, name in used.items()
        if name is not None and name not in table.columns
    ]
    if problems:
        found = f"Columns found: {', '.join(there)}.{_no_header(table.columns)}"
        raise DataError("\n".join([*problems, found]))
    columns = table.columns
    return Raw(
        name=str(table.file), root=root, root_key=root_key,
        ids=columns[file], labels=columns[config.target],
        target=config.target, group=group, split=split,
        groups=None if group is None else columns[group],
        splits=None if split is None else columns[split],
        columns={name: c for name, c in columns.items() if name not in used.values()},
        lines=table.lines, notes=notes,
    )  # fmt: skip


@contextmanager
def open_text(path: Path, key: str) -> Iterator[TextIO]:
    """The file as text; whatever goes wrong while it is read becomes a DataError."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{key}={path} is not a file.")
        _refuse_utf16(path)
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield stream
    except UnicodeDecodeError:
        raise DataError(_not_utf8(path)) from None
    except FileNotFoundError:
        raise DataError(f"{key}={path} does not exist.") from None
    except OSError as error:
        raise DataError(f"{key}={path} cannot be read: {error.strerror}.") from None


class _Collector:
    """Gathers rows into columns, and what is wrong with them."""

    def __init__(self, path: Path, header: list[str]) -> None:
        self.path, self.header = path, header
        self.columns: list[list[str]] = [[] for _ in header]
        self.lines = array("q")
        self.chunk: list[list[str]] = []
        self.broken: list[int] = []
        self.uneven: dict[int, list[int]] = {}

    def add(self, row: list[str], line: int, last_line: int) -> None:
        if last_line != line:
            self.broken.append(line)
        elif len(row) != len(self.header):
            if row:  # a blank line is no row
                self.uneven.setdefault(len(row), []).append(line)
        else:
            self.chunk.append(row)
            self.lines.append(line)
            if len(self.chunk) == _CHUNK:
                self._flush()

    def finish(self) -> Columns:
        self._flush()
        problems = [
            f"{self.path}: {rows(lines)}: {_fields(count)}, but the header has "
            f"{len(self.header)} ({', '.join(self.header)}). A comma within a field needs quotes."
            for count, lines in self.uneven.items()
        ]
        if self.broken:
            problems.append(f"{self.path}: {rows(self.broken)}: a line break within quotes.")
        if not problems and not self.lines:
            problems.append(f"{self.path} has a header and no rows.")
        if problems:
            raise DataError("\n".join(problems))
        columns = {}
        for name in self.header:  # one by one: a column is not held as list and tuple at once
            columns[name] = tuple(self.columns.pop(0))
        return Columns(self.path, columns, self.lines)

    def _flush(self) -> None:
        # Interned: a column of a few values costs a pointer a row, not a string.
        for column, values in zip(self.columns, zip(*self.chunk, strict=True), strict=False):
            column.extend(map(sys.intern, values))
        self.chunk = []


def _header(row: list[str] | None, path: Path) -> list[str]:
    if row is None:
        raise DataError(f"{path} is empty: a header with the columns' names is expected.")
    if not row:
        raise DataError(f"{path}, line 1 is blank: a header with the columns' names is expected.")
    names = [name or f"column {i}" for i, name in enumerate(row, 1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: two columns have one name: {listed(twice)}.")
    for mark, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(row) == 1 and mark in row[0]:
            raise DataError(
                f"{path} is separated by {word}, but commas are expected. Header found: {row[0]!r}."
            )
    return names


def _no_header(names: Mapping[str, object]) -> str:
    is_data = any(name.lower().endswith((".jpg", ".jpeg", ".png")) for name in names)
    return " Is the header line missing?" if is_data else ""


def _fields(count: int) -> str:
    return f"{count} field{'s' if count > 1 else ''}"


def _refuse_utf16(path: Path) -> None:
    with path.open("rb") as stream:
        head = stream.read(4096)
    has_mark = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    # Without a mark every other byte of plain text is zero; a stray zero is left to other checks.
    if has_mark or head.count(0) > len(head) / 4:
        raise DataError(f"{path} is encoded as UTF-16: save it as UTF-8.")


def _not_utf8(path: Path) -> str:
    """Names the first line that is not UTF-8; lines end as the text reader ends them."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = line[error.start]
            return (
                f"{path}, line {number} is not UTF-8 (byte 0x{byte:02X}; Latin-1 or Windows-1252?):"
                " save it as UTF-8."
            )
    return f"{path} is not UTF-8: save it as UTF-8."
