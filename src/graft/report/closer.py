"""The winner seen closely: its classes, its slices, its worst mistakes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graft.errors import RecordError
from graft.metrics import class_scores, confusion, f1, one_against_rest
from graft.record import Predictions, Record
from graft.report.intervals import Estimate
from graft.report.thumbnails import thumbnail

if TYPE_CHECKING:
    import pandas as pd

# A column with more values than this is a name, not a slice.
MAX_VALUES = 12
MAX_SLICES = 12


@dataclass(frozen=True)
class ClassRow:
    """Figures of one class; None is not defined."""

    name: str
    total: int
    recall: Estimate | None
    precision: Estimate | None
    f1: float | None
    auroc: float | None


def class_rows(predictions: Predictions) -> list[ClassRow]:
    """A row for each class; many classes are ordered by recall, the worst first."""
    counts = confusion(predictions)
    f1s, areas = f1(counts), one_against_rest(predictions)
    rows = [
        ClassRow(
            name, int(counts[i].sum()), _share(counts[i, i], counts[i].sum()),
            _share(counts[i, i], counts[:, i].sum()), _defined(f1s[i]), _defined(areas[i]),
        )
        for i, name in enumerate(predictions.classes)
    ]  # fmt: skip
    if len(rows) <= MAX_VALUES:
        return rows
    return sorted(rows, key=lambda row: row.recall.value if row.recall else 2.0)


@dataclass(frozen=True)
class Slice:
    """Accuracy for each value of a column of the table of examples."""

    column: str
    rows: tuple[tuple[str, Estimate], ...]

    @property
    def gap(self) -> float:
        values = [found.value for _, found in self.rows]
        return max(values) - min(values)


def slices(record: Record, predictions: Predictions) -> list[Slice]:
    """Every column with a few values that is not the label itself, the widest gap first."""
    table = _joined(record, predictions)
    if table is None:
        return []
    found = []
    for column in table.columns:
        if column in ("id", "path", "label", "split", "is_right"):
            continue
        values = table[column].fillna("").astype(str)
        if 2 <= values.nunique() <= MAX_VALUES and not _is_same(values, table["label"]):
            found.append(_slice(str(column), values, table["is_right"]))
    return sorted(found, key=lambda one: -one.gap)


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: `score` is the probability given to what was predicted."""

    id: str
    label: str
    predicted: str
    score: float
    picture: str | None


def mistakes(record: Record, predictions: Predictions, count: int = 24) -> list[Mistake]:
    """The wrong answers that were given with the most confidence, worst first."""
    values = class_scores(predictions)
    guess, every = predictions.predicted, np.arange(len(values))
    confidence = values[every, guess] - values[every, predictions.labels]
    wrong = np.flatnonzero(guess != predictions.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    paths = _paths(record)
    names = predictions.classes
    return [
        Mistake(
            str(predictions.ids[i]), names[predictions.labels[i]], names[guess[i]],
            float(values[i, guess[i]]), _picture(paths, predictions.ids[i]),
        )
        for i in worst
    ]  # fmt: skip


# --- inside ---------------------------------------------------------------------------------


def _share(part: int, whole: int) -> Estimate | None:
    return Estimate(int(part), int(whole)) if whole else None


def _defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _examples(record: Record) -> "pd.DataFrame | None":
    """The table of examples; None where it was deleted or is damaged."""
    try:
        return record.examples.drop_duplicates("id")
    except (RecordError, OSError, ValueError, KeyError):
        return None


def _joined(record: Record, predictions: Predictions) -> "pd.DataFrame | None":
    """The rows of predicted examples, with `is_right`."""
    table = _examples(record)
    if table is None:
        return None
    right = dict(zip(predictions.ids, predictions.predicted == predictions.labels, strict=True))
    kept = table[table["id"].isin(right)]
    return kept.assign(is_right=kept["id"].map(right).astype(bool))


def _is_same(values: "pd.Series[str]", labels: "pd.Series[str]") -> bool:
    """Whether a column says the same as the label: the classes' own rows show that."""
    pairs = len(set(zip(values, labels, strict=True)))
    return pairs == values.nunique() == labels.nunique()


def _slice(column: str, values: "pd.Series[str]", is_right: "pd.Series[bool]") -> Slice:
    grouped = is_right.groupby(values, sort=False)
    totals = {str(v): Estimate(int(g.sum()), len(g)) for v, g in grouped}
    return Slice(column, tuple(sorted(totals.items())))


def _paths(record: Record) -> dict[str, str]:
    table = _examples(record)
    if table is None or "path" not in table:
        return {}
    return dict(zip(table["id"], table["path"].astype(str), strict=True))


def _picture(paths: dict[str, str], name: str) -> str | None:
    return thumbnail(Path(paths[name])) if name in paths else None
