"""Train, validation, test: stratified, repeatable, by group where groups are given.

Which of three ways is taken:
- The table has a split column: it is used as it stands. A part that it lacks is taken from the
  training part, as below, in the proportion that the fractions give the two.
- No groups: two calls of scikit-learn's `train_test_split` with the labels and the seed. First
  validation and test together, then one from the other; so the split of many a notebook can be
  had index for index.
- Groups: the greedy assignment of `by_group.py`. scikit-learn's StratifiedGroupKFold makes equal
  folds only, leaves classes of few groups out of folds, kept the classes' shares less well where
  groups are of uneven size, and took dozens of times as long on 30,000 pictures of 10,000 persons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from graft.data import by_group

Part = NDArray[np.int64]

PARTS = ("train", "val", "test")

# How a column or a folder may name the parts, and what we call them. 0, 1, 2 is CelebA's way.
PART_NAMES = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "training": "train", "testing": "test",
    "0": "train", "1": "val", "2": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Positions in the table, int64: in the table's order, or in the seed's where it drew them."""

    train: Part
    val: Part
    test: Part


def split(
    labels: NDArray[np.int64],
    *,
    groups: Sequence[str] | None,
    given: Sequence[str] | None,
    fractions: Sequence[float],
    seed: int,
) -> Split:
    """Three disjoint parts that make up the table, every class in each part that we make.

    Args:
        labels: [N] classes, 0 to C-1, each with enough members (see `rare`).
        groups: [N] what must stay on one side; None: every example is on its own.
        given: [N] "train", "val" or "test", from the table; None: nothing is given.
        fractions: of train, val and test; they add up to 1.
        seed: 0 to 2**32 - 1.

    Raises:
        DataError: the groups cannot be divided so that every part has every class.
    """
    parts = {p: _where(given, p) for p in PARTS if given is not None and p in given}
    missing = _missing(given)
    if not missing:
        return Split(**parts)
    pool = parts.pop("train", np.arange(len(labels)))
    shares = _shares(missing, fractions)
    if groups is None:
        made = _seeded(labels[pool], shares, seed)
    if groups is not None or not _is_whole(labels[pool], made):
        # Without groups: a class is too small for the calls above, each example is a group.
        names = pool if groups is None else np.asarray(groups, dtype=object)[pool]
        made = by_group.divide(labels[pool], names, shares, seed)
    return Split(**parts, **{name: pool[part] for name, part in made.items()})


def rare(
    labels: NDArray[np.int64],
    num_classes: int,
    *,
    groups: Sequence[str] | None,
    given: Sequence[str] | None,
) -> dict[int, int]:
    """Classes with too few members to be in each part that is made, and how many they have.

    Members are examples, or groups where they are given; with a split column, those of the training
    part. `needed` of them are enough.
    """
    pool = np.arange(len(labels)) if given is None else _where(given, "train")
    members = labels[pool]
    if groups is not None:
        codes = np.unique(np.asarray(groups, dtype=object)[pool], return_inverse=True)[1]
        members = np.unique(codes.astype(np.int64) * num_classes + members) % num_classes
    counts = np.bincount(members, minlength=num_classes)
    return {c: int(n) for c, n in enumerate(counts) if n < needed(given)}


def needed(given: Sequence[str] | None) -> int:
    """Members of a class that are enough: one for training, one for each part to be made."""
    return 1 + len(_missing(given))


def crossing(groups: Sequence[str], parts: Split) -> list[str]:
    """Groups with examples in more than one part, sorted."""
    names = np.asarray(groups, dtype=object)
    sides = [set(names[part]) for part in (parts.train, parts.val, parts.test)]
    shared = (sides[0] & sides[1]) | (sides[0] & sides[2]) | (sides[1] & sides[2])
    return sorted(shared)


def _where(given: Sequence[str], part: str) -> Part:
    return np.flatnonzero(np.asarray(given, dtype=object) == part).astype(np.int64)


def _missing(given: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(p for p in PARTS[1:] if given is None or p not in given)


def _shares(missing: Sequence[str], fractions: Sequence[float]) -> dict[str, float]:
    """Fractions of the pool, train first. In decimals: 0.1 + 0.2 must be 0.3, not a bit more,
    because scikit-learn rounds the size of a part up."""
    asked = {p: Decimal(str(f)) for p, f in zip(PARTS, fractions, strict=True)}
    total = sum((asked[p] for p in ("train", *missing)), Decimal(0))
    if len(missing) == 2:
        total = Decimal(1)
    shares = {p: asked[p] / total for p in missing}
    return {"train": float(1 - sum(shares.values())), **{p: float(s) for p, s in shares.items()}}


# --- without groups --------------------------------------------------------------------------


def _seeded(labels: NDArray[np.int64], shares: Mapping[str, float], seed: int) -> dict[str, Part]:
    """scikit-learn's split; nothing where a class is too small for it."""
    from sklearn.model_selection import train_test_split

    missing = [p for p in shares if p != "train"]
    exact = {p: Decimal(str(shares[p])) for p in missing}
    held = sum(exact.values(), Decimal(0))
    rows = np.arange(len(labels))
    try:
        train, rest = train_test_split(
            rows, test_size=float(held), stratify=labels, random_state=seed
        )
        if len(missing) == 1:
            return {"train": train, missing[0]: rest}
        val, test = train_test_split(
            rest, test_size=float(exact["test"] / held), stratify=labels[rest], random_state=seed
        )
    except ValueError:
        return {}
    return {"train": train, "val": val, "test": test}


def _is_whole(labels: NDArray[np.int64], parts: Mapping[str, Part]) -> bool:
    """Whether every class is in every part."""
    num_classes = len(np.unique(labels))
    return bool(parts) and all(len(np.unique(labels[p])) == num_classes for p in parts.values())
