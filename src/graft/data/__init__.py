"""From a dataset's description to its examples: the one table that everything after works on."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graft.config import Dataset
from graft.data import classes as classes_
from graft.data import tables
from graft.data.raw import listed
from graft.data.split import PARTS, Split, crossing, split
from graft.data.tables import Table
from graft.errors import DataError
from graft.identity import digest as digest_of

Part = NDArray[np.int64]
_FIXED = ("id", "path", "label", "split", "group")


@dataclass(frozen=True)
class Examples:
    """N pictures with their labels, in the table's order, and who is in which part.

    Attributes:
        ids: [N] str objects, the file as the table names it.
        paths: [N], absolute.
        labels: int64 [N], positions in `classes`.
        classes: C names as the table writes them; of two, the second is the positive one.
        train, val, test: int64, positions in the table; disjoint.
        groups: [N] str objects, or None.
        columns: every other column, [N] texts each.
        notes: what the user should be told.
        digest: of ids, labels, classes, parts and groups; `digest_with` adds the pictures.
    """

    ids: NDArray[np.object_]
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    train: Part
    val: Part
    test: Part
    groups: NDArray[np.object_] | None
    columns: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    digest: str

    def digest_with(self, pictures: Sequence[str]) -> str:
        """Digest of the table and of the pictures' own digests, [N] in its order."""
        return digest_of({"table": self.digest, "pictures": list(pictures)})

    def parts(self) -> NDArray[np.object_]:
        """[N] "train", "val" or "test"."""
        names = np.empty(len(self.ids), dtype=object)
        for name in PARTS:
            names[getattr(self, name)] = name
        return names

    def table(self) -> dict[str, Sequence[object]]:
        """Columns id, path, label, split, group (if any), then the table's others, as text.

        A cell may begin with "=": whoever writes a CSV for a spreadsheet quotes it.
        """
        columns: dict[str, Sequence[object]] = {
            "id": self.ids.tolist(), "path": [str(p) for p in self.paths],
            "label": [self.classes[i] for i in self.labels], "split": self.parts().tolist(),
        }  # fmt: skip
        if self.groups is not None:
            columns["group"] = self.groups.tolist()
        for name, column in self.columns.items():
            columns[f"column {name}" if name in _FIXED else name] = column
        return columns

    def shares(self) -> dict[str, dict[str, int]]:
        """Part -> class -> number of examples, in the order of the classes."""
        counts = {
            part: np.bincount(self.labels[getattr(self, part)], minlength=len(self.classes))
            for part in PARTS
        }
        return {
            part: dict(zip(self.classes, found.tolist(), strict=True))
            for part, found in counts.items()
        }


def load(config: Dataset, cache: Path, *, drop: Collection[str] = ()) -> Examples:
    """Read a dataset's table, order its classes, split it.

    Args:
        config: which dataset.
        cache: folder where the built-in pictures are rendered, once.
        drop: ids of pictures to leave out, since they cannot be read. They leave the parts they
            were in; the other examples stay where they are.

    Raises:
        ConfigError, DataError: what is wrong with the request or the table; no picture is opened.
    """
    table = tables.read(config, cache)
    small = classes_.too_small(table, config)
    if small:
        table = _without(table, small)
    classes = classes_.chosen(set(table.labels), config, without=small)
    parts = _split(table, config)
    notes = [*table.notes, *classes_.notes(classes), *_side_notes(table, config, parts)]
    if drop:
        table, parts = _drop(table, parts, drop, notes)
    return _examples(dataclasses.replace(table, notes=tuple(notes)), classes, parts)


def _without(table: Table, small: Mapping[str, int]) -> Table:
    """The table without the classes that are too small, which it says."""
    keep = np.array([i for i, label in enumerate(table.labels) if label not in small])
    said = listed([f"{name!r} ({count})" for name, count in small.items()])
    count = f"{len(small)} class{'es' if len(small) > 1 else ''}"
    note = f"dataset.min_class=drop left out {count} with too few members: {said}."
    return dataclasses.replace(_rows(table, keep), notes=(*table.notes, note))


def _rows(table: Table, keep: NDArray[np.int64]) -> Table:
    """Some rows of a table."""

    def kept(column: Sequence[str]) -> tuple[str, ...]:
        return tuple(column[i] for i in keep)

    return dataclasses.replace(
        table,
        ids=kept(table.ids),
        paths=tuple(table.paths[i] for i in keep),
        labels=kept(table.labels),
        splits=None if table.splits is None else kept(table.splits),
        groups=None if table.groups is None else kept(table.groups),
        columns={name: kept(column) for name, column in table.columns.items()},
    )


def _split(table: Table, config: Dataset) -> Split:
    # By the classes' natural order: which class is called positive must not change the split.
    names = classes_.in_order(set(table.labels))
    return split(
        classes_.codes(table.labels, names),
        groups=table.groups,
        given=table.splits,
        fractions=config.fractions,
        seed=config.split_seed,
    )


def _side_notes(table: Table, config: Dataset, parts: Split) -> list[str]:
    """What the user should know of the parts; groups on two sides are an error unless allowed."""
    notes = []
    if table.groups is not None and table.splits is not None:
        shared = crossing(table.groups, parts)
        said = f"the split column puts groups on two sides: {listed(shared)}."
        if shared and config.on_leak == "error":
            raise DataError(
                f"dataset.group={config.group}, dataset.split={config.split}: {said} "
                "dataset.on_leak=warn allows it, dataset.split=null splits by group."
            )
        notes += [f"Leak: {said}"] if shared else []
    for name in PARTS[1:]:
        lacking = sorted(set(table.labels) - {table.labels[i] for i in getattr(parts, name)})
        if lacking:
            notes.append(f"No {name} pictures of these classes: {listed(lacking)}.")
    return notes


def _drop(
    table: Table, parts: Split, drop: Collection[str], notes: list[str]
) -> tuple[Table, Split]:
    """Table and parts without some pictures, none of which may be a test picture.

    Raises:
        DataError: one is; or a class has no training picture left, or validation none at all.
    """
    drop = frozenset(drop)
    bad = np.array([name in drop for name in table.ids])
    tested = [table.ids[i] for i in np.sort(parts.test) if bad[i]]
    if tested:
        raise DataError(
            "dataset.on_bad_image=skip leaves out training and validation pictures only, since a "
            f"smaller test is another test. Unreadable in the test part: {listed(tested)}. "
            "Repair them, or remove their rows from the table."
        )
    position = np.cumsum(~bad) - 1
    left = {name: getattr(parts, name)[~bad[getattr(parts, name)]] for name in PARTS}
    gone = set(table.labels) - {table.labels[i] for i in left["train"]}
    if gone or not len(left["val"]):
        raise DataError(
            "dataset.on_bad_image=skip would leave "
            + (f"no training pictures of {listed(sorted(gone))}." if gone else "no validation.")
        )
    notes.append(f"dataset.on_bad_image=skip left out {int(bad.sum()):,} pictures.")
    kept = Split(**{name: position[part].astype(np.int64) for name, part in left.items()})
    return _rows(table, np.flatnonzero(~bad)), kept


def _examples(table: Table, classes: tuple[str, ...], parts: Split) -> Examples:
    values = {
        "ids": table.ids, "labels": table.labels, "classes": classes, "groups": table.groups,
        **{name: getattr(parts, name).tolist() for name in PARTS},
    }  # fmt: skip
    groups = None if table.groups is None else np.array(table.groups, dtype=object)
    return Examples(
        ids=np.array(table.ids, dtype=object), paths=table.paths,
        labels=classes_.codes(table.labels, classes), classes=classes,
        train=parts.train, val=parts.val, test=parts.test,
        groups=groups, columns=table.columns, notes=table.notes, digest=digest_of(values),
    )  # fmt: skip
