import math

import numpy as np
import pytest
from scipy.stats import binom

from graft.errors import RecordError
from graft.record import Predictions
from graft.report.intervals import (
    Estimate,
    difference_interval,
    holm,
    paired,
    repeated,
    spread,
    wilson_interval,
)


def _predictions(is_right: list[bool], ids: list[str] | None = None) -> Predictions:
    labels = np.arange(len(is_right)) % 2
    names = ids or [f"{i}.png" for i in range(len(is_right))]
    chances = np.where(np.array(is_right), labels, 1 - labels).astype(np.float32)
    splits = np.full(len(names), "val", dtype=object)
    return Predictions(np.array(names, dtype=object), splits, labels, chances, ("a", "b"))


@pytest.mark.parametrize(
    ("correct", "total", "expected"),
    # Newcombe, Stat. Med. 17 (8), 1998, table I: the score method.
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611))],
)
def test_wilson_interval_equals_the_published_ones(
    correct: int, total: int, expected: tuple[float, float]
) -> None:
    assert wilson_interval(correct, total) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_wilson_interval_covers_as_often_as_it_says(share: float) -> None:
    total = 60
    chance = binom.pmf(np.arange(total + 1), total, share)
    covered = [(lambda e: e[0] <= share <= e[1])(wilson_interval(k, total)) for k in range(61)]
    assert 0.92 < float(chance[covered].sum()) < 0.98


@pytest.mark.parametrize(
    ("correct", "total", "level"), [(-1, 5, 0.95), (6, 5, 0.95), (0, 0, 0.95), (1, 2, 95)]
)
def test_impossible_counts_and_levels_are_refused(correct: int, total: int, level: float) -> None:
    with pytest.raises(ValueError, match="no interval"):
        wilson_interval(correct, total, level)


def test_all_right_reaches_one_and_none_right_reaches_zero() -> None:
    assert Estimate(7, 7).high == 1.0
    assert Estimate(0, 7).low == 0.0


def test_interval_of_a_paired_difference_equals_the_published_one() -> None:
    # Fagerland, Lydersen and Laake, Stat. Med. 33 (16), 2014: airway hyper-responsiveness.
    assert difference_interval(1, 1, 7, 12) == pytest.approx((-0.507, -0.026), abs=5e-4)


def test_paired_counts_who_is_right_alone() -> None:
    a = _predictions([True, True, True, False, True, False])
    b = _predictions([True, False, False, True, True, False])
    found = paired(a, b)
    assert (found.both, found.only_a, found.only_b, found.neither) == (2, 2, 1, 1)
    assert found.difference == pytest.approx(1 / 6)
    assert found.low < found.difference < found.high


def test_mcnemar_is_exact() -> None:
    found = paired(_predictions([True] * 6 + [False]), _predictions([False] * 7))
    assert found.p == pytest.approx(2 * 0.5**6)


def test_runs_that_agree_everywhere_do_not_differ() -> None:
    one = _predictions([True, False, True])
    found = paired(one, one)
    assert (found.difference, found.p) == (0.0, 1.0)


def test_examples_are_matched_by_id_not_by_order() -> None:
    a = _predictions([True, False, True, True], ["a", "b", "c", "d"])
    order = np.array([2, 1, 0, 3])
    b = Predictions(a.ids[order], a.splits, a.labels[order], a.scores[order], a.classes)
    assert paired(a, b).p == 1.0
    assert paired(a, b).both == 3


def test_pairs_in_one_order_and_in_another_say_the_same() -> None:
    random = np.random.default_rng(0)
    a, b = (_predictions((random.random(200) < share).tolist()) for share in (0.9, 0.8))
    order = random.permutation(200)
    shuffled = Predictions(b.ids[order], b.splits, b.labels[order], b.scores[order], b.classes)
    assert paired(a, b) == paired(a, shuffled)


@pytest.mark.parametrize("names", [["a", "b", "x"], ["a", "b"]])
def test_other_examples_are_not_compared(names: list[str]) -> None:
    a = _predictions([True, True, True], ["a", "b", "c"])
    with pytest.raises(RecordError, match="no common set"):
        paired(a, _predictions([True] * len(names), names))


def test_holm_adjusts_in_the_order_given() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_spread_is_mean_lowest_highest() -> None:
    found = spread([0.5, 0.75, 1.0])
    assert (found.mean, found.low, found.high, found.count) == (0.75, 0.5, 1.0, 3)
    assert math.isclose(spread([0.3]).mean, 0.3)


def test_the_interval_of_repeated_differences_is_students() -> None:
    """Against scipy's own, which takes long to import."""
    from scipy import stats

    values = [0.03, 0.01, 0.06, -0.02]
    found = repeated(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.mean, found.count) == (pytest.approx(0.02), 4)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
