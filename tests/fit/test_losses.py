"""Losses against torch's own, in the cases that both know."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from graft.config import CrossEntropy
from graft.fit.losses import class_weights, correct, loss, predicted, scores


def _two_logits(logit: torch.Tensor) -> torch.Tensor:
    """One logit as two with the same softmax."""
    return torch.cat([torch.zeros_like(logit), logit], dim=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0])], ids=["plain", "weighted"])
def test_one_logit_is_the_same_loss_as_two(smoothing: float, weights: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    logit, labels = torch.randn(7, 1), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    ours = loss(logit, labels, weights, 0.0 if weights is not None else smoothing)
    both = _two_logits(logit)
    theirs = F.cross_entropy(
        both, labels, weight=weights, label_smoothing=0.0 if weights is not None else smoothing
    )
    torch.testing.assert_close(ours, theirs)


def test_balanced_weights_are_inverse_to_the_class_shares() -> None:
    labels = np.array([0, 0, 0, 1])
    weights = class_weights(CrossEntropy(class_weights="balanced"), labels, 2)
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([4 / 6, 2.0]))
    assert float(weights[labels].mean()) == pytest.approx(1.0)


def test_no_weights_without_being_asked() -> None:
    assert class_weights(CrossEntropy(), np.array([0, 1]), 2) is None


@pytest.mark.parametrize("outputs", [1, 3])
def test_what_is_predicted_agrees_with_the_scores(outputs: int) -> None:
    torch.manual_seed(1)
    logits = torch.randn(50, outputs)
    probabilities = scores(logits)
    by_score = probabilities >= 0.5 if outputs == 1 else probabilities.argmax(dim=1)
    assert torch.equal(predicted(logits), by_score.long())
    assert int(correct(logits, predicted(logits))) == 50


def test_a_logit_of_zero_is_decided_as_positive() -> None:
    assert int(predicted(torch.zeros(1, 1))) == 1
