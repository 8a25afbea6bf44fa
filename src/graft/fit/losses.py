"""Losses: cross-entropy on one logit or on one logit per class."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from graft.config import CrossEntropy


def class_weights(
    config: CrossEntropy, labels: NDArray[np.int64], num_classes: int
) -> torch.Tensor | None:
    """[C] weights from the training labels [N], with mean 1 over the examples; or None."""
    if config.class_weights == "none":
        return None
    counts = np.bincount(labels, minlength=num_classes)
    return torch.tensor(len(labels) / (num_classes * counts), dtype=torch.float32)


def loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Mean cross-entropy, weighted by class where weights are given.

    Args:
        logits: float [B, 1] for two classes, else [B, C].
        labels: int64 [B].
        weights: [C], or None.
        label_smoothing: share of the target that is spread evenly over all classes.

    Returns:
        A scalar. With weights, the sum of weighted losses over the sum of the weights.
    """
    if logits.shape[1] > 1:
        return F.cross_entropy(logits, labels, weight=weights, label_smoothing=label_smoothing)
    targets = labels.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    each = F.binary_cross_entropy_with_logits(logits[:, 0], targets, reduction="none")
    if weights is None:
        return each.mean()
    of_example = weights[labels]
    return (each * of_example).sum() / of_example.sum()


def correct(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many of [B] are predicted right, as a tensor: reading it would wait for the device."""
    return (predicted(logits) == labels).sum()


def predicted(logits: torch.Tensor) -> torch.Tensor:
    """[B] classes: sigmoid(logit) >= 0.5 on one logit, else the largest."""
    if logits.shape[1] == 1:
        return (torch.sigmoid(logits[:, 0]) >= 0.5).long()
    return logits.argmax(dim=1)


def scores(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities: [B] of class 1 on one logit, else [B, C]."""
    if logits.shape[1] == 1:
        return torch.sigmoid(logits[:, 0])
    return torch.softmax(logits, dim=1)
