"""`results.csv`: a row for every run that was asked for."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graft.metrics import scores
from graft.record import Record, write_whole

# Scripts rely on the first four; docs/record.md describes them all.
FIGURES = (
    "best_epoch", "val_accuracy", "test_accuracy", "seconds",
    "train_accuracy", "val_loss",
    "val_balanced_accuracy", "test_balanced_accuracy",
    "val_f1", "test_f1", "val_auroc", "test_auroc",
    "trainable_parameters", "reason",
)  # fmt: skip


def results(
    records: Sequence[Record], asked: Sequence[Mapping[str, Any]]
) -> list[dict[str, object]]:
    """One row for each run that was asked for, in that order.

    Args:
        records: those that there are.
        asked: {"run": folder name, "choices": {key: value as typed}} each.

    Returns:
        Rows with the same keys: run, status, the swept keys, then `FIGURES`. Figures of
        validation and test are computed from the stored predictions, `train_accuracy` and
        `val_loss` are those of the best epoch. What a run does not have is None.
    """
    found = {record.name: record for record in records}
    axes = list(dict.fromkeys(key for run in asked for key in run["choices"]))
    rows = []
    for run in asked:
        record = found.get(run["run"])
        status = record.info["status"] if record else "skipped"
        row = {"run": run["run"], "status": status}
        row |= {axis: run["choices"].get(axis) for axis in axes}
        rows.append(row | dict.fromkeys(FIGURES) | _figures(record))
    return rows


def write_csv(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write rows as UTF-8 with a header; what is None is left empty.

    Texts are written as `cell` has them.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["run", "status"]

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", errors="replace", newline="") as stream:
            lines = csv.writer(stream, lineterminator="\n")
            lines.writerow([cell(column) for column in columns])
            lines.writerows([[cell(row.get(column)) for column in columns] for row in rows])

    write_whole(path, write)


def cell(value: object) -> object:
    """A value as it is written into a CSV file.

    A text that a spreadsheet would take for a formula (its first character is one of = + - @, and
    it is no number) gets an apostrophe in front. A text of several lines becomes one.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    text = " ".join(value.splitlines()).strip()
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and not _is_number(text) else text


def _figures(record: Record | None) -> dict[str, object]:
    if record is None:
        return {"reason": "not run"}
    info = record.info
    figures: dict[str, object] = {
        "seconds": (info.get("timings_s") or {}).get("total"),
        "trainable_parameters": (info.get("parameters") or {}).get("trainable"),
        "reason": info.get("reason"),
    }
    if not record.is_completed:
        return figures
    best = record.epochs.iloc[int(info["best_epoch"]) - 1]
    figures |= {"best_epoch": int(info["best_epoch"])}
    figures |= {key: float(best[key]) for key in ("train_accuracy", "val_loss")}
    for split in ("val", "test"):
        for name, value in scores(record.predictions.of(split)).items():
            if f"{split}_{name}" in FIGURES:
                figures[f"{split}_{name}"] = value
    return figures


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False
