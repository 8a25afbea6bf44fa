"""Which classes there are, in which order, and which are too small to be learned."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from graft.config import Dataset, nearest
from graft.data import split
from graft.data.raw import listed
from graft.data.tables import Table, is_number
from graft.errors import DataError

# Names that other programs write for "unknown". Here they are classes, which may not be meant.
_LIKE_MISSING = ("na", "n/a", "nan", "none", "null", "unknown", "?")


def in_order(names: Collection[str]) -> tuple[str, ...]:
    """Sorted by value if all are numbers ("-1", "1", "10"), else as text."""
    if all(map(is_number, names)):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))


def chosen(
    names: Collection[str], config: Dataset, *, without: Collection[str] = ()
) -> tuple[str, ...]:
    """The classes in the order that the network has; of two, the second is the positive one.

    Args:
        names: the labels in use.
        config: `classes` fixes list and order, `positive` puts one of two last.
        without: classes that were left out.

    Raises:
        DataError: a class is listed twice, the positive one is not there, or only one is left.
    """
    asked = in_order(names) if config.classes is None else config.classes
    if len(set(asked)) < len(asked):
        raise DataError(f"dataset.classes=[{','.join(asked)}]: a class is listed twice.")
    classes = tuple(name for name in asked if name not in without)
    _refuse_one(classes, config)
    if config.positive is None:
        return classes
    return _positive_last(classes, config.positive)


def _refuse_one(classes: Sequence[str], config: Dataset) -> None:
    if len(classes) < 2:
        raise DataError(
            f"dataset.target={config.target} has fewer than two classes "
            f"({listed(classes) or 'none'}): there is nothing to tell apart."
        )


def _positive_last(classes: tuple[str, ...], positive: str) -> tuple[str, ...]:
    if positive not in classes:
        raise DataError(
            f"dataset.positive={positive} is not a class.{nearest(positive, classes)} "
            f"Classes: {listed(classes)}."
        )
    if len(classes) != 2:
        raise DataError(
            f"dataset.positive={positive} is for two classes; here are {len(classes)} "
            f"({listed(classes)})."
        )
    return (*(name for name in classes if name != positive), positive)


def codes(labels: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """[N] positions of labels in `classes`."""
    position = {name: i for i, name in enumerate(classes)}
    return np.fromiter(map(position.__getitem__, labels), dtype=np.int64, count=len(labels))


def too_small(table: Table, config: Dataset) -> Mapping[str, int]:
    """Classes with fewer members than the split needs, and how many they have.

    Raises:
        DataError: there are some, and `min_class` does not allow to leave them out.
    """
    names = in_order(set(table.labels) | set(config.classes or ()))
    _refuse_one(names, config)
    rare = split.rare(
        codes(table.labels, names), len(names), groups=table.groups, given=table.splits
    )
    small = {names[c]: count for c, count in rare.items()}
    if small and config.min_class == "error":
        need = split.needed(table.splits)
        what = "pictures" if table.groups is None else "groups"
        where = "" if table.splits is None else " in the training part"
        found_few = listed([f"{name!r} ({count})" for name, count in small.items()])
        raise DataError(
            f"dataset.target={config.target}: each class needs at least {need} {what}{where} for "
            f"the split; too few have {found_few}. "
            "Add some, or dataset.min_class=drop leaves these classes out."
        )
    return small


def notes(classes: Sequence[str]) -> list[str]:
    """What is odd about the classes' names, though allowed."""
    said = []
    missing = [name for name in classes if name.lower() in _LIKE_MISSING]
    if missing:
        said.append(f"Kept as a class of its own, not as a missing label: {listed(missing)}.")
    blanks = [repr(name) for name in classes if name != name.strip()]
    if blanks:
        said.append(f"Classes with blanks at the ends, kept as written: {listed(blanks)}.")
    alike: dict[object, list[str]] = {}
    for name in classes:
        word = float(name) if is_number(name) else " ".join(name.split()).casefold()
        alike.setdefault(word, []).append(repr(name))
    twice = [" and ".join(names) for names in alike.values() if len(names) > 1]
    if twice:
        said.append(f"Kept as different classes, though one may be meant: {listed(twice)}.")
    return said
