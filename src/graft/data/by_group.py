"""Divides groups between parts: each whole, sizes as asked, every class in every part."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from graft.errors import DataError

# Orders in which the groups are tried before they are said to be indivisible.
_ORDERS = 50

# A group's classes and how many examples of each: [(class, count), ...].
Group = list[tuple[int, int]]


def divide(
    labels: NDArray[np.int64], names: NDArray[np.generic], shares: Mapping[str, float], seed: int
) -> dict[str, NDArray[np.int64]]:
    """Each part's rows, in the table's order.

    Args:
        labels: [N] classes.
        names: [N] groups, sortable; which rows are together matters, not the order of the rows.
        shares: part -> fraction of the rows that it should have.
        seed: decides between groups of one size.

    Raises:
        DataError: no way was found to have every class in every part.
    """
    codes = np.unique(names, return_inverse=True)[1].astype(np.int64)
    groups = _count(codes, labels)
    side = _assign(groups, labels, list(shares.values()), seed)
    return {p: np.flatnonzero(side[codes] == i) for i, p in enumerate(shares)}


def _count(codes: NDArray[np.int64], labels: NDArray[np.int64]) -> list[Group]:
    num_classes = int(labels.max()) + 1
    pairs, counts = np.unique(codes * num_classes + labels, return_counts=True)
    groups: list[Group] = [[] for _ in range(int(codes.max()) + 1)]
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        groups[pair // num_classes].append((pair % num_classes, count))
    return groups


def _assign(
    groups: Sequence[Group], labels: NDArray[np.int64], shares: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """A part, 0 to P-1, for each group; every class in every part.

    Groups come largest first, equal ones in the seed's order, since small ones even out what large
    ones leave. Where that order leads nowhere (a few groups with several classes each), others are
    tried: of 900 tables of 3 to 6 groups that can be divided, the first order failed for 3.
    """
    wanted = np.outer(shares, np.bincount(labels)).tolist()
    random = np.random.default_rng(seed)
    order = random.permutation(len(groups))
    sizes = np.array([sum(n for _, n in group) for group in groups])
    order = order[np.argsort(-sizes[order], kind="stable")]
    for _ in range(_ORDERS):
        side, have = _greedy(groups, order.tolist(), wanted)
        if _complete(groups, side, have, wanted):
            return side
        order = random.permutation(len(groups))
    raise DataError(
        "dataset.group: no way was found to divide the groups so that training, validation and "
        "test each have every class. Use a finer group, a split column, or dataset.group=null."
    )


def _greedy(
    groups: Sequence[Group], order: Iterable[int], wanted: Sequence[Sequence[float]]
) -> tuple[NDArray[np.int64], list[list[int]]]:
    """Each group goes where it lowers the distance from what is wanted the most: the sum over parts
    and classes of (have - wanted)^2 / wanted.

    Sizes and class shares are weighed together so, and a large group does not end in a small part.
    """
    have = [[0] * len(part) for part in wanted]
    side = np.zeros(len(groups), dtype=np.int64)
    for g in order:
        costs = [_cost(groups[g], *part) for part in zip(have, wanted, strict=True)]
        side[g] = costs.index(min(costs))
        _add(groups[g], have[side[g]], +1)
    return side, have


def _cost(group: Group, have: Sequence[int], wanted: Sequence[float]) -> float:
    """What adding the group does to a part's distance from what is wanted."""
    return sum(n * (2 * (have[c] - wanted[c]) + n) / wanted[c] for c, n in group)


def _add(group: Group, have: list[int], sign: int) -> None:
    for c, n in group:
        have[c] += sign * n


def _complete(
    groups: Sequence[Group],
    side: NDArray[np.int64],
    have: Sequence[list[int]],
    wanted: Sequence[Sequence[float]],
) -> bool:
    """Move groups, in place, until every part has every class; whether that was possible.

    A part that lacks a class gets the group that costs least.
    """
    members: dict[int, list[int]] = {}
    for g, group in enumerate(groups):
        for c, _ in group:
            members.setdefault(c, []).append(g)
    for c in sorted(members, key=lambda c: (len(members[c]), c)):
        for part in range(len(have)):
            if have[part][c]:
                continue
            spare = _spare(groups, members[c], side, have)
            if not spare:
                return False
            _move(groups, spare, part, side, have, wanted)
    return True


def _spare(
    groups: Sequence[Group],
    members: Iterable[int],
    side: NDArray[np.int64],
    have: Sequence[Sequence[int]],
) -> list[int]:
    """Groups that can leave their part without any class being lost there."""
    return [g for g in members if all(have[side[g]][c] > n for c, n in groups[g])]


def _move(
    groups: Sequence[Group],
    spare: Sequence[int],
    part: int,
    side: NDArray[np.int64],
    have: Sequence[list[int]],
    wanted: Sequence[Sequence[float]],
) -> None:
    def change(g: int) -> float:
        old = side[g]
        _add(groups[g], have[old], -1)
        cost = _cost(groups[g], have[part], wanted[part])
        cost -= _cost(groups[g], have[old], wanted[old])
        _add(groups[g], have[old], +1)
        return cost

    chosen = min(spare, key=change)
    _add(groups[chosen], have[side[chosen]], -1)
    _add(groups[chosen], have[part], +1)
    side[chosen] = part
