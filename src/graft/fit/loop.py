"""Epochs over an array of runs that see the same batches."""

import math
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import nn

from graft.config import RunConfig
from graft.errors import Diverged
from graft.fit.learner import Learner
from graft.fit.losses import scores
from graft.fit.recorded import Recorder
from graft.fit.stack import Stack, chain, stacks
from graft.lanes import Lanes
from graft.metrics import scores as metric_scores
from graft.record import Predictions


@dataclass(frozen=True)
class Batch:
    """What the trunk is given of B examples, tensors [B, ...], and their labels, int64 [B]."""

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor


# What every run of an array freezes, run once a batch for all of them: inputs -> tails' inputs.
Trunk = Callable[[tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]


class Watcher(Protocol):
    """Told what happens while an array trains."""

    def batch(self, epoch: int, done: int, total: int) -> None: ...
    def epoch(self, rows: Mapping[Learner, dict[str, float]]) -> None: ...


def fit(
    learners: Sequence[Learner],
    trunk: Trunk,
    *,
    num_batches: int,
    train_batches: Callable[[int], Iterable[Batch]],
    val_batches: Callable[[], Iterable[Batch]],
    classes: tuple[str, ...],
    watcher: Watcher,
    num_lanes: int = 1,
) -> None:
    """Train runs side by side; results are left in the learners.

    Args:
        learners: runs that share data, trunk and batches, all behind the same epoch. Those whose
            tails are small and alike are trained as one (see stack.py), the others one after the
            other on each batch, or in lanes.
        trunk: what they all freeze.
        num_batches: of an epoch.
        train_batches: epoch (1-based) -> its batches.
        val_batches: the validation set, always in the same order.
        classes: names of the classes, in the order of the labels.
        watcher: told of each batch and, at the end of an epoch, of every run's row.
        num_lanes: how many runs that are not stacked may make their steps at once.

    A run whose loss diverges, that raises, or that its judge ends, keeps its error and leaves; the
    others go on. So does one that has had its epochs or is out of patience. Judges of runs that go
    on hear of the epochs before first.
    """
    for learner in learners:
        _hear_judge(learner, learner.history)
    active = [learner for learner in learners if learner.error is None]
    if len(active) < len(learners):
        watcher.epoch({})  # some have ended with the epochs that they brought
    if not active:
        return
    together = stacks(learners) if can_stack(learners[0].tail, learners[0].config) else []
    stacked = {learner for stack in together for learner in stack.learners}
    separate = [learner for learner in active if learner not in stacked]
    num_lanes = min(num_lanes, len(separate))
    (behind,) = {len(learner.history) for learner in learners}
    # A GPU's lanes are streams, which this thread asks for steps.
    num_threads = num_lanes if learners[0].device.type == "cpu" else 1
    recorders = [learner.recorder for learner in separate]
    with Lanes(num_threads) as lanes, Recorder.in_lanes(recorders, num_lanes):
        for epoch in range(behind + 1, max(learner.config.epochs for learner in learners) + 1):
            started = time.monotonic()
            for learner in active:
                learner.network.train()
            # On a CPU, which lane makes a run's steps: another one at most where an epoch ends.
            lane = {learner: i for i, learner in enumerate(active) if learner not in stacked}
            for done, batch in enumerate(train_batches(epoch), start=1):
                activations = trunk(batch.inputs)
                for stack in together:
                    _step_all(stack, activations, batch, active)
                for learner, number in lane.items():
                    lanes.do(number, partial(_step, learner, activations, batch))
                watcher.batch(epoch, done, num_batches)
                if all(learner.error for learner in active):
                    break
            lanes.wait()
            for recorder in recorders:
                recorder.wait()
            for learner in active:
                if learner.error is not None:
                    learner.release()  # room for those that go on
            active = [learner for learner in active if learner.error is None]
            logits = evaluate(active, trunk, val_batches(), lanes)
            seconds = time.monotonic() - started
            rows = {
                learner: _closed_epoch(learner, value, labels, classes, seconds)
                for learner, (value, labels) in logits.items()
            }
            watcher.epoch({learner: row for learner, row in rows.items() if row is not None})
            active = [learner for learner in active if not learner.is_done]
            if not active:
                return


def can_stack(tail: nn.Module, config: RunConfig) -> bool:
    """Whether a tail may be trained as one with others; then it always is, alone too."""
    # The scaler of float16 looks at one run's gradients at a time.
    return config.precision != "float16" and chain(tail) is not None


def evaluate(
    learners: Sequence[Learner],
    trunk: Trunk,
    batches: Iterable[Batch],
    lanes: Lanes | None = None,
) -> dict[Learner, tuple[torch.Tensor, torch.Tensor]]:
    """Logits float32 [N, outputs] and labels [N] of each learner, on the CPU.

    One that raises keeps its error, and is left out.
    """
    for learner in learners:
        learner.network.eval()
    lanes = lanes or Lanes(1)
    logits: list[list[torch.Tensor]] = [[] for _ in learners]
    labels: list[torch.Tensor] = []
    for batch in batches if learners else ():
        # Kernels for a batch of one round differently, so a lone example is seen twice.
        is_alone = len(batch.labels) == 1
        inputs = tuple(torch.cat((t, t)) if is_alone else t for t in batch.inputs)
        activations = trunk(inputs)
        labels.append(batch.labels)
        for number, (learner, kept) in enumerate(zip(learners, logits, strict=True)):
            lanes.do(number, partial(_add_logits, kept, learner, activations, len(batch.labels)))
    lanes.wait()
    every_label = torch.cat(labels).cpu() if labels else torch.empty(0, dtype=torch.int64)
    return {
        learner: (torch.cat(kept).cpu(), every_label)
        for learner, kept in zip(learners, logits, strict=True)
        if learner.error is None
    }


@torch.no_grad()
def _add_logits(
    kept: list[torch.Tensor], learner: Learner, activations: tuple[torch.Tensor, ...], count: int
) -> None:
    if learner.error is not None:
        return
    try:
        kept.append(learner.logits(activations)[:count])
    except Exception as error:  # as in a step
        _leave(learner, error)


def predictions(
    logits: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...]
) -> Predictions:
    """Nameless predictions of one split: what the metrics of an epoch are computed from."""
    names = np.full(len(labels), "", dtype=object)
    return Predictions(names, names, labels.numpy(), scores(logits).numpy(), classes)


def _step(learner: Learner, activations: tuple[torch.Tensor, ...], batch: Batch) -> None:
    if learner.error is not None:
        return
    try:
        learner.step(activations, batch.labels)
    except Exception as error:  # one run's failure must not end the runs beside it
        _leave(learner, error)


def _leave(learner: Learner, error: Exception) -> None:
    """With its error, and without what its frames hold: those that go on may need the room."""
    learner.error = error
    traceback.clear_frames(error.__traceback__)


def _step_all(
    stack: Stack, activations: tuple[torch.Tensor, ...], batch: Batch, active: Sequence[Learner]
) -> None:
    among = {one for one in active if one.error is None}.intersection(stack.learners)
    if not among:
        return
    try:
        stack.step(activations, batch.labels, among)
    except Exception as error:  # they are one computation: what ends it ends them all
        for learner in among:
            _leave(learner, error)


def _closed_epoch(
    learner: Learner,
    logits: torch.Tensor,
    labels: torch.Tensor,
    classes: tuple[str, ...],
    seconds: float,
) -> dict[str, float] | None:
    """The epoch's row of metrics; None if it has none, and the run is over."""
    try:
        with torch.no_grad():
            value = learner.loss(logits.to(learner.device), labels.to(learner.device))
        val = {"loss": float(value)}
        if math.isfinite(val["loss"]):
            _check_finite(learner, logits)
            every = metric_scores(predictions(logits, labels, classes))
            val |= {name: score for name, score in every.items() if "/" not in name}
        row = learner.end_epoch(val, seconds)
    except Exception as error:  # as above
        learner.error = error
        return None
    _hear_judge(learner, [row])
    return row


def _check_finite(learner: Learner, logits: torch.Tensor) -> None:
    """A loss may look at the label's own output alone; the others count in every metric."""
    if not torch.isfinite(logits).all():
        raise Diverged(
            f"an output on validation became infinite in epoch {len(learner.history) + 1} at "
            f"optimizer.lr={learner.config.optimizer.lr:g}. A smaller rate usually helps."
        )


def _hear_judge(learner: Learner, rows: Sequence[Mapping[str, float]]) -> None:
    try:
        learner.hear_judge(rows)
    except Exception as error:  # as above
        learner.error = error
