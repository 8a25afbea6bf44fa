"""Epochs over an array of runs that see the same batches."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from graft.fit.learner import Learner
from graft.fit.losses import scores
from graft.metrics import scores as metric_scores
from graft.record import Predictions

# On two cores a frozen EfficientNet-Lite0 at 128 px runs about twice as fast on 16 pictures at a
# time as on 32: the activations of a part this small stay in the cache.
CPU_TRUNK_BATCH = 16


@dataclass(frozen=True)
class Batch:
    """Normalised pictures, float32 [B, 3, S, S], and labels, int64 [B], on the device."""

    pictures: torch.Tensor
    labels: torch.Tensor


class Trunk:
    """What every run of an array freezes: run once a batch for all of them, without gradients.

    With `module=None` nothing is shared, and the tails are whole networks.
    """

    def __init__(self, module: nn.Module | None, autocast: Callable[[], torch.autocast]) -> None:
        self.module, self._autocast = module, autocast

    def __call__(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.module is None:
            return (pictures,)
        with torch.no_grad(), self._autocast():
            if pictures.device.type != "cpu":
                return self._run(pictures)
            parts = [self._run(part) for part in _parts(pictures, CPU_TRUNK_BATCH)]
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))

    def _run(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert self.module is not None
        out: tuple[torch.Tensor, ...] = self.module(pictures)
        return out


class Watcher(Protocol):
    """Told what happens while an array trains."""

    def batch(self, epoch: int, done: int, total: int) -> None: ...
    def epoch(self, learner: Learner, row: dict[str, float]) -> None: ...


def fit(
    learners: Sequence[Learner],
    trunk: Trunk,
    *,
    epochs: int,
    train_batches: Callable[[int], tuple[int, Iterable[Batch]]],
    val_batches: Callable[[], Iterable[Batch]],
    classes: tuple[str, ...],
    watcher: Watcher,
) -> None:
    """Train an array of runs; results are left in the learners.

    Args:
        learners: runs that share data, trunk, batches and number of epochs.
        trunk: what they all freeze.
        epochs: at most this many; early stopping ends a run sooner.
        train_batches: epoch (1-based) -> number of batches, and the batches.
        val_batches: the validation set, always in the same order.
        classes: names of the classes, in the order of the labels.
        watcher: told of each batch and epoch.

    A run whose loss diverges, or that raises, keeps its error and leaves; the others go on.
    """
    active = list(learners)
    for epoch in range(1, epochs + 1):
        started = time.monotonic()
        for learner in active:
            learner.network.train()
        total, stream = train_batches(epoch)
        for done, batch in enumerate(stream, start=1):
            activations = trunk(batch.pictures)
            active = [learner for learner in active if _stepped(learner, activations, batch)]
            watcher.batch(epoch, done, total)
            if not active:
                break
        logits = evaluate(active, trunk, val_batches())
        for learner, (value, labels) in zip(list(active), logits, strict=True):
            _close_epoch(learner, value, labels, classes, time.monotonic() - started, watcher)
        active = [a for a in active if a.error is None and not a.is_out_of_patience]
        if not active:
            break


def evaluate(
    learners: Sequence[Learner], trunk: Trunk, batches: Iterable[Batch]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits float32 [N, outputs] and labels [N] of each learner, on the CPU."""
    for learner in learners:
        learner.network.eval()
    logits: list[list[torch.Tensor]] = [[] for _ in learners]
    labels: list[torch.Tensor] = []
    with torch.no_grad():
        for batch in batches if learners else ():
            # Kernels for a batch of one round differently, so a lone picture is seen twice.
            is_alone = len(batch.labels) == 1
            pictures = batch.pictures.repeat(2, 1, 1, 1) if is_alone else batch.pictures
            activations = trunk(pictures)
            labels.append(batch.labels)
            for learner, kept in zip(learners, logits, strict=True):
                kept.append(learner.logits(activations)[: len(batch.labels)])
    every_label = torch.cat(labels).cpu() if labels else torch.empty(0, dtype=torch.int64)
    return [(torch.cat(kept).cpu(), every_label) for kept in logits]


def predictions(
    logits: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...]
) -> Predictions:
    """Nameless predictions of one split: what the metrics of an epoch are computed from."""
    names = np.full(len(labels), "", dtype=object)
    return Predictions(names, names, labels.numpy(), scores(logits).numpy(), classes)


def _stepped(learner: Learner, activations: tuple[torch.Tensor, ...], batch: Batch) -> bool:
    try:
        learner.step(activations, batch.labels)
    except Exception as error:  # one run's failure must not end the runs beside it
        learner.error = error
    return learner.error is None


def _close_epoch(
    learner: Learner,
    logits: torch.Tensor,
    labels: torch.Tensor,
    classes: tuple[str, ...],
    seconds: float,
    watcher: Watcher,
) -> None:
    try:
        with torch.no_grad():
            value = learner.loss(logits.to(learner.device), labels.to(learner.device))
        val = {"loss": float(value)}
        if torch.isfinite(logits).all():
            every = metric_scores(predictions(logits, labels, classes))
            val |= {name: score for name, score in every.items() if "/" not in name}
        row = learner.end_epoch(val, seconds)
    except Exception as error:  # as above
        learner.error = error
    else:
        watcher.epoch(learner, row)


def _parts(pictures: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Slices of about `size` pictures, none of a single one unless that is all there is."""
    count = len(pictures)
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        yield pictures[start:end]
