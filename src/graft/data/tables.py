"""Reads labels and files, however they are written down, into one checked table."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from graft.collector import without_collector
from graft.config import (
    CelebaDataset,
    CsvDataset,
    Dataset,
    EmojiDataset,
    ImageFolderDataset,
    nearest,
)
from graft.data import celeba, class_folders, places
from graft.data.csv_table import raw, read_csv
from graft.data.raw import SHOWN, Raw, listed
from graft.data.split import PART_NAMES
from graft.errors import DataError


@dataclass(frozen=True)
class Table:
    """One row a picture, N rows, as read; without a split of our own making.

    Attributes:
        ids: the file as the table names it.
        paths: absolute.
        labels: text, exactly as written.
        splits: "train", "val" or "test" where a column or folder says so, else None.
        groups: what must stay on one side of a split, else None.
        columns: every other column, as text.
        notes: what the user should be told.
    """

    ids: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...] | None
    groups: tuple[str, ...] | None
    columns: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]


def read(config: Dataset, cache: Path) -> Table:
    """The table of a dataset.

    Args:
        config: which dataset; relative paths start from the working directory.
        cache: folder where the built-in pictures are rendered, once.

    Raises:
        ConfigError: keys that do not go together.
        DataError: everything that is wrong with the table: missing columns, labels, files, rows
            that contradict each other, names that lead out of the pictures' folder. No picture
            has been opened.
    """
    # A million new objects, and no cycles among them: looking for some takes half the time.
    with without_collector():
        return checked(_raw(config, cache), config)


def _raw(config: Dataset, cache: Path) -> Raw:
    match config:
        case EmojiDataset():
            from graft.data.emoji import render

            return _csv(config, render(cache) / "emoji.csv", "filename", None)
        case CelebaDataset():
            return celeba.read(config)
        case CsvDataset():
            return _csv(config, places.given(config.csv), config.file, config.images)
        case ImageFolderDataset():
            return class_folders.read(config)
    raise TypeError(f"no reader for {type(config).__name__}")


def _csv(config: Dataset, path: Path, file: str, images: str | None) -> Raw:
    """A CSV file; without `images` its pictures lie beside it."""
    table = read_csv(path, "dataset.csv")
    root = path.parent if images is None else places.folder(images, "dataset.images")
    return raw(
        table, config, file=file, root=root, root_key=f"dataset.images={images or path.parent}",
        group=config.group, split=config.split,
    )  # fmt: skip


def checked(table: Raw, config: Dataset) -> Table:
    """The table, if there is nothing wrong with it; equal rows are kept once."""
    problems = [
        *_label_problems(table, config),
        *_split_problems(table),
        *_group_problems(table),
        *places.problems(
            table,
            allow_absolute=config.absolute_paths,
            allow_missing=config.on_bad_image == "skip",
        ),
    ]
    repeats, contradictions = _repeats(table)
    if problems or contradictions:
        raise DataError("\n".join([*problems, *contradictions]))
    notes = list(table.notes)
    if repeats:
        many = f"{len(repeats):,} rows name a picture again and are"
        count = many if len(repeats) > 1 else "1 row names a picture again and is"
        notes.append(f"{table.name}: {count} left out ({table.rows(repeats)}).")
    return _table(table, set(repeats), tuple(notes))


def _table(table: Raw, left_out: set[int], notes: tuple[str, ...]) -> Table:
    keep = [i for i in range(len(table.ids)) if i not in left_out] if left_out else None
    ids = _kept(table.ids, keep)
    return Table(
        ids=ids,
        paths=tuple(map(table.root.__truediv__, ids)),
        labels=_kept(table.labels, keep),
        splits=None
        if table.splits is None
        else tuple(PART_NAMES[s.lower()] for s in _kept(table.splits, keep)),
        groups=None if table.groups is None else _kept(table.groups, keep),
        columns={name: _kept(column, keep) for name, column in table.columns.items()},
        notes=notes,
    )


def _kept(column: Sequence[str], keep: list[int] | None) -> tuple[str, ...]:
    if keep is None:
        return tuple(column)
    return itemgetter(*keep)(column) if len(keep) > 1 else (column[keep[0]],)


# --- what can be wrong -----------------------------------------------------------------------


def _label_problems(table: Raw, config: Dataset) -> list[str]:
    written = set(table.labels)
    where = f"{table.name}, dataset.target={table.target}"
    empty = {label for label in written if _is_missing(label, written, config)}
    problems = []
    if empty:
        found = [i for i, label in enumerate(table.labels) if label in empty]
        problems.append(f"{where}: {table.rows(found)}: no label. Fill it in, or remove the row.")
    if config.classes is None:
        return problems
    unknown = sorted(written - empty - set(config.classes))
    for label in unknown[:SHOWN]:
        found = [i for i, other in enumerate(table.labels) if other == label]
        problems.append(
            f"{where}: {table.rows(found)}: {label!r} is not one of dataset.classes="
            f"[{','.join(config.classes)}].{nearest(label, config.classes)}"
        )
    if len(unknown) > SHOWN:
        problems.append(f"{where}: {len(unknown)} unknown labels in all.")
    return problems


def _is_missing(label: str, written: set[str], config: Dataset) -> bool:
    """Blank, or the "NaN" that programs write into a column of numbers.

    Among names, "NaN" is a name like "NA" or "None"; and where the user lists it as a class.
    """
    if label != "NaN" or label in (config.classes or ()):
        return not label.strip()
    return len(written) > 1 and all(is_number(other) for other in written - {label, ""})


def is_number(text: str) -> bool:
    """Whether a class's name reads as a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _split_problems(table: Raw) -> list[str]:
    if table.splits is None:
        return []
    where = f"{table.name}, dataset.split={table.split}"
    written = set(table.splits)
    unknown = sorted(value for value in written if value.lower() not in PART_NAMES)
    if not unknown and "train" not in {PART_NAMES[value.lower()] for value in written}:
        return [f"{where}: no picture is in the training part. Found: {listed(sorted(written))}."]
    return [
        f"{where}: "
        f"{table.rows([i for i, other in enumerate(table.splits) if other == value])}: "
        f"{value!r} is not a split.{nearest(value.lower(), list(PART_NAMES))} "
        f"Allowed: {', '.join(PART_NAMES)}."
        for value in unknown[:SHOWN]
    ]


def _group_problems(table: Raw) -> list[str]:
    if table.groups is None or all(map(str.strip, set(table.groups))):
        return []
    found = [i for i, group in enumerate(table.groups) if not group.strip()]
    return [f"{table.name}, dataset.group={table.group}: {table.rows(found)}: no group."]


def _repeats(table: Raw) -> tuple[list[int], list[str]]:
    """Rows that name a picture again, and what the rows of a picture say differently."""
    names = [os.path.normpath(name) for name in table.ids]
    if len(set(names)) == len(names):
        return [], []
    first: dict[str, int] = {}
    repeats, contradictions = [], []
    for i, name in enumerate(names):
        before = first.setdefault(name, i)
        if before == i:
            continue
        repeats.append(i)
        for key, column in _decisive(table).items():
            if column[before] != column[i]:
                contradictions.append(
                    f"{table.ids[i]} ({table.rows([before, i])}): {key} {column[before]!r} "
                    f"and {column[i]!r}"
                )
    if not contradictions:
        return repeats, []
    return repeats, [f"{table.name}: rows of one picture differ: {listed(contradictions)}."]


def _decisive(table: Raw) -> dict[str, Sequence[str]]:
    """Columns in which two rows of one picture must not differ."""
    columns = {"label": table.labels, "split": table.splits, "group": table.groups}
    return {key: column for key, column in columns.items() if column is not None}
