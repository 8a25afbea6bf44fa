from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from graft.record import REPORT, RESULTS
from graft.report import intervals
from graft.report.__main__ import main, print_table, write_report


def test_a_sweep_gets_its_table_its_rows_and_its_page(
    binary: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(binary.path)]) == 0
    shown = capsys.readouterr().out
    assert str(binary.path / REPORT) in shown
    assert (binary.path / REPORT).stat().st_size > 10_000
    assert (binary.path / RESULTS).read_text().startswith("run,status,strategy,optimizer.lr,")


def test_runs_stand_as_asked_with_the_winner_marked(
    binary: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    print_table(write_report(binary.path))
    shown = capsys.readouterr().out
    lines = [line.strip() for line in shown.splitlines() if "1 min 15 s" in line]
    assert [line.split()[-1] for line in lines] == ["completed"] * 3 + ["diverged", "failed"]
    assert [line.startswith("* fine_tune") for line in (" ".join(n.split()) for n in lines)] == [
        False, False, True, False, False,
    ]  # fmt: skip
    assert "fine_tune, lr=1e30: diverged: train_loss became nan in epoch 3" in shown
    assert "fine_tune, lr=1e-3 wins on validation" in shown
    assert "  Against the runner-up, " in shown
    assert "\x1b" not in shown


def test_a_pruned_run_is_shown_as_one_that_ended_and_not_as_a_failure(
    pruned: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_table(write_report(pruned.path))
    shown = capsys.readouterr().out
    assert "head_only, lr=1e-4: pruned: at epoch 2: it is among the worse half" in shown
    assert "fine_tune, lr=1e-4 wins on validation" in shown
    assert "\x1b[2m" in shown and "\x1b[31m" not in shown  # dim; red


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_the_table_fits_the_terminal(
    binary: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(write_report(binary.path))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= width
    head = next(line for line in lines if "val acc" in line)
    assert "status" in head
    assert ("trained" in head) == (width >= 120)


def test_a_name_in_brackets_is_no_markup(
    maker: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = maker(tmp_path / "s")
    made.run({"strategy": "[red]x[/]"})
    print_table(write_report(made.path))
    assert "[red]x[/]" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["missing", "empty", "run"])
def test_a_folder_that_is_no_sweep_is_refused_in_one_line(
    binary: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    (tmp_path / "empty").mkdir()
    paths = {"run": binary.path / "strategy=head_only,optimizer.lr=1e-3"}
    path = paths.get(kind, tmp_path / kind)
    assert main([str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"graft-report: {path} ")
    assert len(said.splitlines()) == 1
    assert not (path / REPORT).exists()


def test_a_report_is_written_anew_and_leaves_nothing_else(binary: Any) -> None:
    write_report(binary.path)
    before = sorted(p.name for p in binary.path.iterdir())
    write_report(binary.path)
    assert sorted(p.name for p in binary.path.iterdir()) == before
    assert not [name for name in before if name.endswith(".part")]


def test_the_winner_is_compared_with_each_other_run_once(
    binary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Head, table of pairs and terminal all speak of the same comparisons."""
    made: list[tuple[int, ...]] = []
    interval = intervals.difference_interval

    def noted(*counts: int) -> tuple[float, float]:
        made.append(counts)
        return interval(*counts)

    monkeypatch.setattr(intervals, "difference_interval", noted)
    assert main([str(binary.path)]) == 0
    assert len(made) == 3  # three runs: two pairs on validation, one on test


def test_a_sweep_is_read_once(binary: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For rows, page and terminal together."""
    read: list[Path] = []
    parquet = pd.read_parquet

    def noted(path: Path) -> Any:
        read.append(path)
        return parquet(path)

    monkeypatch.setattr(pd, "read_parquet", noted)
    assert main([str(binary.path)]) == 0
    assert len(read) == len(set(read)) == 4  # predictions of three runs, examples of the winner
