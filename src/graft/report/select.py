"""The winner, by validation only: nothing here looks at a test example."""

import itertools
import math
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from graft.config import METRICS
from graft.errors import RecordError
from graft.identity import digest
from graft.metrics import scores
from graft.record import Record
from graft.report.sweep import completed


def ranked(records: Sequence[Record]) -> list[Record]:
    """The completed runs, best first.

    The order is that of each run's own `metric` on validation, at its best epoch. Of equal runs
    the one with the lower validation loss comes first, if their losses are of one kind, then the
    one asked for first.

    Args:
        records: in the order in which they were asked for.

    Raises:
        RecordError: the runs cannot be compared: `why_not_comparable`.
    """
    found = completed(records)
    problem = why_not_comparable(found)
    if problem is not None:
        raise RecordError(problem)
    merits = {record.name: _merit(record) for record in found}

    def merit(record: Record) -> float:
        return merits[record.name]

    order: list[Record] = []
    for _, equal in itertools.groupby(sorted(found, key=merit, reverse=True), merit):
        tied = list(equal)
        has_order = len(tied) > 1 and have_one_loss(tied)
        order += sorted(tied, key=val_loss) if has_order else tied
    return order


def selection(record: Record) -> float:
    """The value that selects: the run's own metric on validation, at its best epoch.

    Computed from the stored predictions, but for the loss, which depends on the run's own
    weights and is read from its metrics. NaN where the metric is not defined.
    """
    metric = record.info["metric"]
    if metric == "val_loss":
        return val_loss(record)
    found = scores(record.predictions.of("val"))
    return found.get(metric.removeprefix("val_"), math.nan)


def val_loss(record: Record) -> float:
    return float(record.epochs["val_loss"].iloc[int(record.info["best_epoch"]) - 1])


def have_one_loss(records: Sequence[Record]) -> bool:
    """Whether their losses are of one kind: class weights and smoothing change what they say."""
    found = []
    for record in records:
        with suppress(RecordError, OSError, LookupError):  # unreadable: nobody knows better
            found.append(record.config["loss"])
    return all(loss == found[0] for loss in found)


def why_not_comparable(records: Sequence[Record]) -> str | None:
    """What keeps completed runs from being ranked, or None.

    A number on other examples, or of another kind, is not more or less. Such runs are shown side
    by side, and none is called the best.
    """
    metrics = list(dict.fromkeys(record.info["metric"] for record in records))
    if len(metrics) > 1:
        return f"they were selected by different metrics ({', '.join(metrics)})"
    classes = {tuple(record.info["classes"]) for record in records}
    if len(classes) > 1:
        return "they tell different classes apart"
    if len({_validated_on(record) for record in records}) > 1:
        return "they were validated on different examples"
    if metrics == ["val_loss"] and not have_one_loss(records):
        return "they were selected by validation losses of different kinds (loss differs)"
    return None


def _validated_on(record: Record) -> str:
    """Digest of the validation examples and their labels, whatever their order."""
    val = record.predictions.of("val")
    order = np.argsort(val.ids.astype(str), kind="stable")
    return digest([val.ids[order].tolist(), val.labels[order].tolist()])


def _merit(record: Record) -> float:
    """More is better; a run whose metric is not defined comes last."""
    value = selection(record)
    if not math.isfinite(value):
        return -math.inf
    return value if METRICS[record.info["metric"]] == "max" else -value
