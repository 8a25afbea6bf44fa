"""Figures are drawn in another process, and are there when they are wanted."""

import logging
import os
import signal
from typing import Any

import pytest

from graft.record import read_runs
from graft.report.drawing import FOLDER, Drawing

NAMES = ["accuracy.png", "confusion.png", "loss.png", "roc.png"]


def found(record: Any) -> list[str]:
    return sorted(path.name for path in (record.path / FOLDER).glob("*"))


def test_every_run_has_its_figures_before_it_is_told(binary: Any) -> None:
    records = [record for record in read_runs(binary.path) if record.is_completed]
    drawing, told = Drawing(), dict[str, list[str]]()
    for one in records:
        drawing.add(one, lambda one=one: told.__setitem__(one.name, found(one)))  # type: ignore[misc]
    drawing.finish()
    assert told == {one.name: NAMES for one in records}


def test_a_process_that_is_killed_costs_no_figure(binary: Any) -> None:
    first, second = [record for record in read_runs(binary.path) if record.is_completed][:2]
    drawing = Drawing()
    drawing.add(first, lambda: None)
    drawing._waiting.join()
    assert drawing._own is not None
    os.kill(drawing._own.pid, signal.SIGKILL)
    drawing.add(second, lambda: None)
    drawing._waiting.join()
    assert [found(first), found(second)] == [NAMES, NAMES]


def test_what_cannot_be_drawn_is_said_once(binary: Any, caplog: pytest.LogCaptureFixture) -> None:
    records = [record for record in read_runs(binary.path) if record.is_completed][:2]
    told: list[str] = []
    drawing = Drawing()
    with caplog.at_level(logging.WARNING):
        for one in records:
            (one.path / "predictions.parquet").write_bytes(b"damaged")
            drawing.add(one, lambda one=one: told.append(one.name))  # type: ignore[misc]
        drawing.finish()
    assert sorted(told) == sorted(one.name for one in records)
    assert [record.getMessage()[:20] for record in caplog.records] == ["The figures of a run"]
