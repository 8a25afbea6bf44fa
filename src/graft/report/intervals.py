"""How sure a figure is: intervals, and the paired comparison of two runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from graft.errors import RecordError
from graft.record import Predictions

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Below this, a difference is called clear. Said in the report wherever the word is used.
CLEAR = 0.05


def wilson_interval(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of an accuracy measured on independent examples.

    Chosen over the normal approximation because it stays inside [0, 1] and keeps its coverage
    near 1, where accuracies are.

    Args:
        correct: examples predicted right, 0 <= correct <= total.
        total: examples scored, at least 1.
        level: two-sided coverage as a fraction (0.95, not 95).

    Returns:
        (low, high), fractions in [0, 1].

    Raises:
        ValueError: a count or the level is out of range.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (158), 1927, pp. 209-212.
    """
    if not (0 <= correct <= total and total >= 1 and 0 < level < 1):
        raise ValueError(f"no interval for {correct} of {total} at level {level}")
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    share = correct / total
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = math.sqrt(z2 * (share * (1 - share) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    low = 0.0 if correct == 0 else max(0.0, middle - half)
    high = 1.0 if correct == total else min(1.0, middle + half)
    return low, high


@dataclass(frozen=True)
class Estimate:
    """A share of `total` examples, with its 95 % interval."""

    correct: int
    total: int

    @property
    def value(self) -> float:
        return self.correct / self.total

    @property
    def low(self) -> float:
        return wilson_interval(self.correct, self.total)[0]

    @property
    def high(self) -> float:
        return wilson_interval(self.correct, self.total)[1]


def accuracy(predictions: Predictions) -> Estimate | None:
    """The share that is right, or None without examples."""
    is_right = predictions.predicted == predictions.labels
    return Estimate(int(is_right.sum()), len(is_right)) if len(is_right) else None


@dataclass(frozen=True)
class Paired:
    """Two runs on the same examples.

    Attributes:
        both, only_a, only_b, neither: how many examples they predict right.
        difference: accuracy of a minus accuracy of b; `low` and `high`: its 95 % interval.
        p: of McNemar's exact test, two-sided.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float
    low: float
    high: float
    p: float

    @property
    def total(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither


def paired(a: Predictions, b: Predictions) -> Paired:
    """Compare two runs on the same examples, matched by id.

    The test asks whether the examples that one run alone predicts right are as many as those that
    the other alone does. It needs no approximation, so few of them are no problem.

    Raises:
        RecordError: they are not the same examples with the same labels, or there are none.

    Sources: Q. McNemar, Psychometrika 12 (2), 1947, pp. 153-157 (test; here with the exact
    binomial distribution). R. G. Newcombe, Stat. Med. 17 (22), 1998, pp. 2635-2650 (interval:
    his method 10).
    """
    from scipy.special import bdtr  # scipy.stats takes three times as long to import

    right = _right_of_both(a, b)
    both, neither = int(right.all(axis=1).sum()), int((~right).all(axis=1).sum())
    only_a, only_b = (int((right[:, i] & ~right[:, 1 - i]).sum()) for i in (0, 1))
    differing = only_a + only_b
    # At 1/2 the binomial distribution is symmetric: both tails are alike.
    p = 2 * float(bdtr(min(only_a, only_b), differing, 0.5)) if differing else 1.0
    low, high = difference_interval(both, only_a, only_b, neither)
    return Paired(
        both, only_a, only_b, neither, (only_a - only_b) / len(right), low, high, min(p, 1.0)
    )


def paired_with_each(one: Predictions, others: Sequence[Predictions]) -> list[tuple[Paired, float]]:
    """One run against others on the same examples, each with its p adjusted for being many.

    Raises:
        RecordError: as `paired`.
    """
    pairs = [paired(one, other) for other in others]
    return list(zip(pairs, holm([pair.p for pair in pairs]), strict=True))


def difference_interval(
    both: int, only_a: int, only_b: int, neither: int, level: float = 0.95
) -> tuple[float, float]:
    """Newcombe's interval for the difference of two paired shares, within [-1, 1].

    It joins the two Wilson intervals, allowing for how much the two agree.
    """
    total = both + only_a + only_b + neither
    a, b = (both + only_a) / total, (both + only_b) / total
    low_a, high_a = wilson_interval(both + only_a, total, level)
    low_b, high_b = wilson_interval(both + only_b, total, level)
    agreement = _agreement(both, only_a, only_b, neither)
    return (
        a - b - _joined(a - low_a, high_b - b, agreement),
        a - b + _joined(high_a - a, b - low_b, agreement),
    )


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for being many, in the order given.

    Source: S. Holm, Scand. J. Stat. 6 (2), 1979, pp. 65-70.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, values[i] * (len(values) - rank)))
        adjusted[i] = highest
    return adjusted


@dataclass(frozen=True)
class Spread:
    """One figure over several seeds."""

    mean: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Mean, lowest and highest of at least one value."""
    return Spread(sum(values) / len(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Repeated:
    """A difference that was measured with several seeds: its mean, with the 95 % interval."""

    mean: float
    low: float
    high: float
    count: int


def repeated(differences: Sequence[float], level: float = 0.95) -> Repeated:
    """The mean of at least two differences, one a seed, and Student's interval for it.

    It says how much is left to the seeds; that other examples might say something else, it
    does not know.

    Source: Student, Biometrika 6 (1), 1908, pp. 1-25.
    """
    from scipy.special import stdtrit  # as above

    count, mean = len(differences), float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(count)
    half = float(stdtrit(count - 1, (1 + level) / 2)) * error
    return Repeated(mean, mean - half, mean + half, count)


def _right_of_both(a: Predictions, b: Predictions) -> "NDArray[np.bool_]":
    """Whether a, and b, predict an example right, bool [N, 2]."""
    if _have_one_order(a, b):
        return np.stack([one.predicted == one.labels for one in (a, b)], axis=1)
    is_a, is_b = _right(a), _right(b)
    if not is_a or {k: v[0] for k, v in is_a.items()} != {k: v[0] for k, v in is_b.items()}:
        raise RecordError("These runs have no common set of examples: they cannot be compared.")
    return np.array([(is_a[key][1], is_b[key][1]) for key in is_a])


def _have_one_order(a: Predictions, b: Predictions) -> bool:
    """Whether their rows are of the same examples, as in a sweep: matching by id takes far more."""
    columns = ((a.ids, b.ids), (a.splits, b.splits), (a.labels, b.labels))
    return (
        len(a.labels) > 0
        and a.classes == b.classes
        and all(np.array_equal(one, other) for one, other in columns)
    )


def _right(predictions: Predictions) -> dict[tuple[str, str], tuple[str, bool]]:
    """(split, id) -> name of the label, and whether it was predicted."""
    is_right = predictions.predicted == predictions.labels
    names = [predictions.classes[i] for i in predictions.labels]
    keys = zip(predictions.splits, predictions.ids, strict=True)
    return dict(zip(keys, zip(names, is_right.tolist(), strict=True), strict=True))


def _agreement(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Correlation of the two, reduced towards 0 where it is positive (Newcombe's method 10)."""
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if margins == 0:
        return 0.0
    product = float(both * neither - only_a * only_b)
    if product > 0:
        product = max(0.0, product - (both + only_a + only_b + neither) / 2)
    return product / math.sqrt(margins)


def _joined(one: float, other: float, agreement: float) -> float:
    return math.sqrt(max(0.0, one**2 - 2 * agreement * one * other + other**2))
