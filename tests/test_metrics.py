import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as reference

from graft.metrics import class_scores, confusion, roc_points, scores
from graft.record import Predictions


def _predictions(
    labels: NDArray[np.int64], values: NDArray[np.floating], num_classes: int
) -> Predictions:
    ids = np.array([f"{i}.png" for i in range(len(labels))], dtype=object)
    splits = np.full(len(labels), "val", dtype=object)
    names = tuple(f"c{i}" for i in range(num_classes))
    return Predictions(ids, splits, labels.astype(np.int64), values.astype(np.float32), names)


def _binary(seed: int, size: int = 60) -> Predictions:
    random = np.random.default_rng(seed)
    # Coarse scores, so that there are ties.
    return _predictions(random.integers(0, 2, size), random.integers(0, 9, size) / 8, 2)


def _many(seed: int, num_classes: int = 5, size: int = 80) -> Predictions:
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), random.integers(0, num_classes, size)])
    return _predictions(labels, random.dirichlet(np.ones(num_classes), len(labels)), num_classes)


@pytest.mark.parametrize("seed", range(5))
def test_binary_scores_equal_scikit_learns(seed: int) -> None:
    one = _binary(seed)
    found = scores(one)
    labels, guess = one.labels, one.predicted
    assert found["accuracy"] == reference.accuracy_score(labels, guess)
    assert found["balanced_accuracy"] == pytest.approx(
        reference.balanced_accuracy_score(labels, guess)
    )
    assert found["f1"] == pytest.approx(reference.f1_score(labels, guess))
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(labels, one.scores))
    assert found["recall/c0"] == pytest.approx(reference.recall_score(labels, guess, pos_label=0))


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_many_classes_equal_scikit_learns(seed: int) -> None:
    one = _many(seed)
    found = scores(one)
    labels, guess = one.labels, one.predicted
    assert found["f1"] == pytest.approx(reference.f1_score(labels, guess, average="macro"))
    assert found["auroc"] == pytest.approx(
        reference.roc_auc_score(labels, one.scores, multi_class="ovr", average="macro")
    )
    every = reference.recall_score(labels, guess, average=None)
    assert [found[f"recall/c{i}"] for i in range(5)] == pytest.approx(every)


def test_the_second_class_is_the_one_that_f1_and_auroc_are_about() -> None:
    one = _predictions(np.array([0, 0, 0, 1]), np.array([0.1, 0.2, 0.9, 0.8]), 2)
    assert scores(one)["f1"] == pytest.approx(2 / 3)
    assert scores(one)["auroc"] == pytest.approx(2 / 3)


def test_a_score_of_one_half_is_the_second_class() -> None:
    assert scores(_predictions(np.array([1]), np.array([0.5]), 2))["accuracy"] == 1.0


@pytest.mark.parametrize("num_classes", [2, 4])
def test_without_one_class_what_needs_it_is_absent_and_nothing_is_nan(num_classes: int) -> None:
    labels = np.zeros(6, dtype=np.int64)
    values = np.full((6, num_classes), 1 / num_classes) if num_classes > 2 else np.full(6, 0.2)
    assert scores(_predictions(labels, values, num_classes)) == {"accuracy": 1.0, "recall/c0": 1.0}


def test_a_class_that_is_never_predicted_has_an_f1_of_zero() -> None:
    assert scores(_predictions(np.array([0, 1]), np.array([0.1, 0.1]), 2))["f1"] == 0.0


def test_no_examples_have_no_scores() -> None:
    assert scores(_predictions(np.array([], dtype=np.int64), np.array([]), 2)) == {}


def test_rows_of_the_confusion_matrix_are_labels() -> None:
    one = _predictions(np.array([0, 0, 1]), np.array([0.9, 0.1, 0.9]), 2)
    assert confusion(one).tolist() == [[1, 1], [0, 1]]


def test_both_classes_have_a_probability_where_one_is_stored() -> None:
    one = _predictions(np.array([0]), np.array([0.25]), 2)
    assert class_scores(one).tolist() == [[0.75, 0.25]]


@pytest.mark.parametrize("seed", range(5))
def test_roc_points_equal_scikit_learns(seed: int) -> None:
    one = _binary(seed)
    wrong, right, _ = reference.roc_curve(one.labels == 1, one.scores)
    found = roc_points(one.scores, one.labels == 1)
    assert np.array_equal(found[0], wrong)
    assert np.array_equal(found[1], right)


def test_roc_points_of_equal_scores_are_a_line() -> None:
    x, y = roc_points(np.full(4, 0.5, np.float32), np.array([True, False, False, True]))
    assert (list(x), list(y)) == ([0, 1], [0, 1])
