"""The table of `graft-sweep status`; the command itself is in test_sweep_command.py."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from graft.errors import RecordError
from graft.record import EPOCHS, RUN, SWEEP, RunFolder
from graft.status.__main__ import main
from graft.status.show import table
from graft.status.state import RunState, SweepState, sweep_state


def shown(*runs: RunState) -> list[list[str]]:
    """The words of each row, on a terminal of 80 columns."""
    stream = io.StringIO()
    sweep = SweepState(Path("s"), "graft -m", "", runs)
    Console(file=stream, width=80).print(table(sweep))
    return [line.split() for line in stream.getvalue().splitlines() if line.strip("─ ")]


def test_numbers_that_nobody_typed_are_shown_short_and_apart() -> None:
    head, *rows = shown(
        RunState("a", {"optimizer.lr": "0.007114273128501234"}, "completed"),
        RunState("b", {"optimizer.lr": "0.007114391287500001"}, "completed"),
        RunState("c", {"optimizer.lr": "1e-3"}, "completed"),
    )
    assert head[:2] == ["optimizer.lr", "state"]
    assert [row[0] for row in rows] == ["0.0071143", "0.0071144", "1e-3"]


def test_a_run_that_lacks_an_axis_has_an_empty_place() -> None:
    _, *rows = shown(
        RunState("a", {"strategy": "head_only"}, "completed"),
        RunState("b", {"strategy": "fine_tune", "strategy.depth": "2"}, "running"),
    )
    assert rows == [["head_only", "completed"], ["fine_tune", "2", "running"]]


def test_runs_without_axes_are_named() -> None:
    _, row = shown(RunState("run", {}, "running", epoch=3, epochs=10, best=0.5))
    assert row == ["run", "running", "3/10", "0.5000"]


def test_a_folder_that_is_not_there_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"is not there.*graft-sweep list"):
        sweep_state(tmp_path / "demo")


def test_damaged_metrics_cost_only_what_they_say(tmp_path: Path) -> None:
    """The page says that a run is damaged; where a sweep stands can be told all the same."""
    for name, text in {"a": b"\xff\xfe", "b": b"epoch,val_accuracy\n1,0.5\n2,0.9x\n3\n"}.items():
        RunFolder(tmp_path / name).write_run({"status": "completed", "metric": "val_accuracy"})
        (tmp_path / name / EPOCHS).write_bytes(text)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / RUN).write_text("{}")
    runs = sweep_state(tmp_path).runs
    assert [(run.state, run.epoch) for run in runs] == [
        ("completed", 0), ("completed", 3), ("waiting", 0),
    ]  # fmt: skip
    assert runs[1].best == 0.5


def test_a_damaged_sweep_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {"a": "{", "b": '{"runs": [{"run": "x", "choices": {}}]}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / SWEEP).write_text(text)
    assert main(["list", str(tmp_path)]) == 0
    damaged, other = capsys.readouterr().out.splitlines()
    assert damaged.endswith("a: sweep.json is damaged, and there are no runs")
    assert other.endswith("b: 1 run: 1 waiting")
