"""What a reader of labels hands over: names and texts as written, nothing checked yet.

Every check of a table's contents is made once, in `tables.py`, on this form.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

SHOWN = 10  # rows or names that a message lists before it only counts


@dataclass(frozen=True, kw_only=True)
class Raw:
    """One row a picture.

    Attributes:
        name: what messages call the table, e.g. "labels.csv".
        root: absolute folder that the file names start from.
        root_key: the folder as the user gave it, e.g. "dataset.images=faces/".
        ids: [N] the pictures' files, as the table names them.
        labels: [N] text, exactly as written.
        target, group, split: names of the columns in use, for messages.
        splits, groups: [N] text as written, or None.
        columns: every other column, [N] each.
        lines: [N] line of each row, 1-based as an editor shows it; None where rows are files.
        notes: what the user should be told.
    """

    name: str
    root: Path
    root_key: str
    ids: Sequence[str]
    labels: Sequence[str]
    target: str
    group: str | None = None
    split: str | None = None
    splits: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    columns: Mapping[str, tuple[str, ...]]
    lines: Sequence[int] | None = None
    notes: tuple[str, ...] = ()

    def rows(self, positions: Sequence[int]) -> str:
        """Where `positions` stand: "rows 2, 7, 9 (first 10 of 41)", or the files' names."""
        if self.lines is None:
            return listed([self.ids[i] for i in positions])
        return rows(self.lines[i] for i in positions)


def rows(lines: Iterable[int]) -> str:
    """ "row 2", "rows 2, 7" or "rows 2, 7, ... (first 10 of 41)"."""
    found = list(lines)
    return f"row{'s' if len(found) > 1 else ''} {listed([str(line) for line in found])}"


def listed(words: Sequence[str]) -> str:
    """The first ten words, and how many there are if there are more."""
    text = ", ".join(islice(words, SHOWN))
    return text if len(words) <= SHOWN else f"{text} (first {SHOWN} of {len(words):,})"
