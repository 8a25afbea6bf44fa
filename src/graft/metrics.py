"""Scores computed from predictions: pure functions.

A score that is not defined is left out, never NaN: the mean over classes, or the ranking of a
class's scores, means nothing where a class has no examples.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graft.record import Predictions


def scores(predictions: "Predictions") -> dict[str, float]:
    """What can be said of some predictions.

    Args:
        predictions: N examples of C classes, of one split.

    Returns:
        Fractions in [0, 1], those that are defined:
        accuracy;
        balanced_accuracy, the mean of the classes' recalls;
        f1, of the second class where there are two, else the mean of the classes' own;
        auroc, of the second class where there are two, else the mean of one against the rest;
        recall/<class>, for each class.
    """
    if not len(predictions.labels):
        return {}
    counts = confusion(predictions)
    recalls, f1s = recall(counts), f1(counts)
    aurocs = one_against_rest(predictions)
    of_all = slice(1, None) if len(predictions.classes) == 2 else slice(None)
    found = {
        "accuracy": float(counts.trace() / counts.sum()),
        "balanced_accuracy": float(recalls.mean()),
        "f1": float(f1s[of_all].mean()),
        "auroc": float(aurocs[of_all].mean()),
    }
    found |= {f"recall/{c}": float(r) for c, r in zip(predictions.classes, recalls, strict=True)}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def defined(labels: "NDArray[np.int64]", num_classes: int) -> set[str]:
    """Names of the scores that examples with these labels have, whatever is predicted of them."""
    from graft.record import Predictions

    found = np.unique(labels)  # one example a class is enough to tell
    said = np.zeros(len(found) if num_classes == 2 else (len(found), num_classes), np.float32)
    names = np.full(len(found), "", dtype=object)
    classes = tuple(map(str, range(num_classes)))
    return set(scores(Predictions(names, names, found, said, classes)))


def confusion(predictions: "Predictions") -> "NDArray[np.int64]":
    """Counts, int64 [C, C]: a row for each label, a column for each predicted class."""
    num_classes = len(predictions.classes)
    cells = predictions.labels * num_classes + predictions.predicted
    counts = np.bincount(cells, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def recall(counts: "NDArray[np.int64]") -> "NDArray[np.float64]":
    """Right answers among a class's examples, [C]; NaN without any."""
    return _ratio(counts.diagonal(), counts.sum(axis=1))


def precision(counts: "NDArray[np.int64]") -> "NDArray[np.float64]":
    """Right answers where a class was predicted, [C]; NaN where it never was."""
    return _ratio(counts.diagonal(), counts.sum(axis=0))


def f1(counts: "NDArray[np.int64]") -> "NDArray[np.float64]":
    """Harmonic mean of recall and precision, [C]; NaN for a class without examples."""
    members = counts.sum(axis=1)
    values = _ratio(2 * counts.diagonal(), members + counts.sum(axis=0))
    return np.where(members > 0, values, np.nan)


def one_against_rest(predictions: "Predictions") -> "NDArray[np.float64]":
    """Area under the ROC curve of each class against all others, [C]; NaN without both.

    Computed as the share of pairs that a class's score orders right, equal scores counting half.

    Source: J. A. Hanley and B. J. McNeil, Radiology 143 (1), 1982, pp. 29-36.
    """
    if predictions.scores.ndim == 1:  # of two classes, both areas are the same
        return np.full(2, _area(predictions.scores, predictions.labels == 1))
    of_class = predictions.scores
    areas = [_area(scores, predictions.labels == label) for label, scores in enumerate(of_class.T)]
    return np.array(areas)


def _area(scores: "NDArray[np.float32]", is_member: "NDArray[np.bool_]") -> float:
    members, others = int(is_member.sum()), int((~is_member).sum())
    if not members or not others:
        return math.nan
    # Ranks from 1; equal scores share the mean of theirs. scipy's rankdata is exact as well, and
    # takes longer than an epoch on stored activations.
    ordered = np.sort(scores)
    below = np.searchsorted(ordered, scores[is_member], "left")
    up_to = np.searchsorted(ordered, scores[is_member], "right")
    ranks = (below + up_to + 1) / 2
    return float((ranks.sum() - members * (members + 1) / 2) / (members * others))


def roc_points(
    scores: "NDArray[np.float32]", is_member: "NDArray[np.bool_]"
) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """The corners of a class's ROC curve, from (0, 0) to (1, 1).

    Importing scikit-learn for its `roc_curve` takes as long as all figures of a sweep.

    Args:
        scores: of N examples, members of the class and others, both there.
        is_member: [N].

    Returns:
        The share of the others, and of the members, whose scores are at least a threshold.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    right = np.cumsum(is_member[order])[ends]
    wrong = ends + 1 - right
    # On a straight line only its ends are corners.
    is_corner = (np.diff(wrong, 2) != 0) | (np.diff(right, 2) != 0)
    kept = np.concatenate([[True], is_corner, [True]]) if len(ends) > 1 else np.array([True])
    x, y = wrong[kept] / wrong[-1], right[kept] / right[-1]
    return np.concatenate([[0.0], x]), np.concatenate([[0.0], y])


def class_scores(predictions: "Predictions") -> "NDArray[np.float32]":
    """The probability of each class, [N, C], also where only that of the second is stored."""
    if predictions.scores.ndim == 2:
        return predictions.scores
    return np.stack([1 - predictions.scores, predictions.scores], axis=1)


def _ratio(
    part: "NDArray[np.int64] | NDArray[np.float64]", whole: "NDArray[np.int64]"
) -> "NDArray[np.float64]":
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
