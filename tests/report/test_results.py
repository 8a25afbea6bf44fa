import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from graft.record import EPOCHS, PREDICTIONS, RUN, SWEEP, read_json, write_json
from graft.report.__main__ import write_report
from graft.report.results import FIGURES, results, write_csv
from graft.report.sweep import load


def _rows(path: Path) -> list[dict[str, object]]:
    sweep = load(path)
    return results(sweep.records, sweep.asked)


def _written(rows: list[dict[str, object]], path: Path) -> list[dict[str, str]]:
    write_csv(rows, path)
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_run_that_was_asked_for_has_a_row_in_that_order(binary: Any) -> None:
    name = binary.ask({"strategy": "full", "optimizer.lr": "1e-5"})
    rows = _rows(binary.path)
    assert [row["run"] for row in rows] == [run["run"] for run in binary.asked]
    assert [row["status"] for row in rows][-3:] == ["diverged", "failed", "skipped"]
    assert (rows[-1]["run"], rows[-1]["reason"]) == (name, "not run")


def test_the_columns_that_scripts_rely_on_come_first(binary: Any, tmp_path: Path) -> None:
    rows = _written(_rows(binary.path), tmp_path / "r.csv")
    assert list(rows[0])[:8] == [
        "run", "status", "strategy", "optimizer.lr",
        "best_epoch", "val_accuracy", "test_accuracy", "seconds",
    ]  # fmt: skip
    assert [row["optimizer.lr"] for row in rows] == ["1e-3", "1e-4", "1e-3", "1e30", "1e-4"]


def test_accuracies_are_those_of_the_stored_predictions(binary: Any) -> None:
    for row in _rows(binary.path)[:3]:
        table = pd.read_parquet(binary.path / str(row["run"]) / PREDICTIONS)
        is_right = (table["score"] >= 0.5) == table["label"]
        for split in ("val", "test"):
            assert row[f"{split}_accuracy"] == is_right[table["split"] == split].mean()


def test_training_accuracy_is_that_of_the_best_epoch(binary: Any) -> None:
    row = _rows(binary.path)[0]
    epochs = pd.read_csv(binary.path / str(row["run"]) / "metrics.csv")
    assert row["best_epoch"] == 3
    assert row["train_accuracy"] == epochs["train_accuracy"].iloc[2]


@pytest.mark.parametrize("row", [3, 4])
def test_a_run_without_a_result_has_no_figures_but_a_reason(binary: Any, row: int) -> None:
    found = _rows(binary.path)[row]
    known = {key for key in FIGURES if found[key] is not None}
    assert known == {"seconds", "trainable_parameters", "reason"}


def test_a_pruned_run_has_no_figures_beside_those_of_whole_runs(pruned: Any) -> None:
    row = _rows(pruned.path)[1]
    assert (row["status"], row["reason"]) == ("pruned", "at epoch 2: it is among the worse half")
    known = {key for key in FIGURES if row[key] is not None}
    assert known == {"seconds", "trainable_parameters", "reason"}


def test_a_completed_run_whose_files_are_damaged_is_a_failed_row(binary: Any) -> None:
    (binary.path / "strategy=head_only,optimizer.lr=1e-3" / PREDICTIONS).write_bytes(b"PAR1")
    row = _rows(binary.path)[0]
    assert row["status"] == "failed"
    assert "damaged" in str(row["reason"])
    assert row["val_accuracy"] is None


def test_a_damaged_run_json_costs_one_row(binary: Any) -> None:
    (binary.path / "strategy=head_only,optimizer.lr=1e-3" / RUN).write_text("{")
    assert [row["status"] for row in _rows(binary.path)][:3] == ["failed", "completed", "completed"]


def test_a_run_json_that_lacks_what_all_have_costs_one_row(binary: Any) -> None:
    path = binary.path / "strategy=head_only,optimizer.lr=1e-3" / RUN
    known = read_json(path) or {}
    for damaged in ({}, {k: v for k, v in known.items() if k != "metric"}, {**known, "format": []}):
        write_json(path, damaged)
        assert [row["status"] for row in _rows(binary.path)][:2] == ["failed", "completed"]


@pytest.mark.parametrize(("old", "new"), [("val_accuracy", "val_accurac"), ("3,0", "3,x")])
def test_damaged_epochs_cost_one_row(binary: Any, old: str, new: str) -> None:
    """Of a run that ended otherwise, its curves."""
    for place in (0, 3):
        path = binary.path / binary.asked[place]["run"] / EPOCHS
        path.write_text(path.read_text().replace(old, new).replace("\n2,", "\n2,x"))
    rows = write_report(binary.path).rows
    assert [row["status"] for row in rows][:4] == ["failed", "completed", "completed", "diverged"]
    assert "damaged" in str(rows[0]["reason"])


def test_a_damaged_sweep_json_costs_the_choices(binary: Any) -> None:
    text = (binary.path / SWEEP).read_text()
    text = text.replace('"choices"', '"chaices"', 1).replace('"run"', '"rum"', 2)
    (binary.path / SWEEP).write_text(text.replace('"rum"', '"run"', 1))
    rows = _rows(binary.path)
    assert len(rows) == 5 and rows[0]["strategy"] is None


def test_a_record_of_a_newer_version_is_a_failed_row_that_says_so(binary: Any) -> None:
    path = binary.path / "strategy=head_only,optimizer.lr=1e-3" / RUN
    write_json(path, {**(read_json(path) or {}), "format": 99})
    assert "newer version" in str(_rows(binary.path)[0]["reason"])


def test_a_score_that_is_not_defined_is_empty(maker: Any, tmp_path: Path) -> None:
    made = maker(tmp_path / "s")
    made.labels[:] = 0
    made.run({"seed": "0"})
    (row,) = _written(_rows(made.path), tmp_path / "r.csv")
    assert (row["val_auroc"], row["val_balanced_accuracy"]) == ("", "")
    assert "nan" not in ",".join(row.values()).lower()


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+1", "-x", "@SUM(A1)", " =1", "\t=1"])
def test_text_that_looks_like_a_formula_is_made_harmless(text: str, tmp_path: Path) -> None:
    (row,) = _written([{"run": "a", "reason": text}], tmp_path / "r.csv")
    assert row["reason"] == f"'{text.strip()}"


@pytest.mark.parametrize("text", ["-1", "+1e-3", "1e-4", "a=b", "fine_tune"])
def test_numbers_and_plain_text_stay_as_typed(text: str, tmp_path: Path) -> None:
    (row,) = _written([{"run": "a", "x": text}], tmp_path / "r.csv")
    assert row["x"] == text


def test_a_text_of_several_lines_is_one_cell_on_one_line(tmp_path: Path) -> None:
    write_csv([{"run": "a", "reason": 'one, "two"\n=three'}], tmp_path / "r.csv")
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 2


def test_no_rows_leave_a_header(tmp_path: Path) -> None:
    write_csv([], tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text() == "run,status\n"
