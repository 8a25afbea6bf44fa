"""Where a sweep stands, read from its folder alone: while it runs, or after it was stopped."""

import csv
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from graft.config import METRICS
from graft.errors import RecordError
from graft.lock import held_by
from graft.record import EPOCHS, LOCK, RUN, SWEEP, Record, is_complete, read_json, read_run
from graft.report import search
from graft.report.search import Search


@dataclass(frozen=True)
class RunState:
    """Where one run stands.

    Attributes:
        choices: key -> value as typed.
        state: "waiting" before its start, "running", "stopped" where its process is gone, else how
            it ended, as in its record.
        epoch, epochs: done so far, and asked for; 0 where nobody knows.
        best: of the metric that selects, so far; NaN where there is none.
        attempts: how often it was started.
        age_s: seconds since it last wrote something.
    """

    name: str
    choices: Mapping[str, str]
    state: str
    metric: str = "val_accuracy"
    epoch: int = 0
    epochs: int = 0
    best: float = math.nan
    slot: str = ""
    attempts: int = 0
    age_s: float = math.nan
    reason: str = ""


@dataclass(frozen=True)
class SweepState:
    """Where a sweep stands.

    Attributes:
        driver: in words who drives it now; empty: nobody.
        search: the search that asks for its runs, if one does.
    """

    path: Path
    command: str
    driver: str
    runs: tuple[RunState, ...]
    search: Search | None = None

    def count(self, *states: str) -> int:
        return sum(run.state in states for run in self.runs)

    @property
    def is_complete(self) -> bool:
        """Whether it has all that it will get."""
        is_over = self.search is None or self.search.stopped is not None
        return is_over and is_complete([run.state for run in self.runs])


def sweep_state(folder: Path) -> SweepState:
    """Read where a sweep stands.

    Raises:
        RecordError: the folder holds no sweep.
    """
    known = read_json(folder / SWEEP)
    if known is None and not list(folder.glob(f"*/{RUN}")):
        there = ", ".join(sorted(path.parent.name for path in folder.glob(f"*/{SWEEP}")))
        if not folder.is_dir():
            raise RecordError(
                f"{folder} is not there. Give the folder of a sweep, such as outputs/demo; "
                "`graft-sweep list` names them."
            )
        hint = f" It has sweeps inside: {there}." if there else ""
        raise RecordError(f"{folder} holds no sweep: {SWEEP} is missing.{hint}")
    known = known or {}
    asked = {run["run"]: run.get("choices", {}) for run in known.get("runs", []) if "run" in run}
    for path in sorted(folder.glob(f"*/{RUN}")):
        asked.setdefault(path.parent.name, {})
    runs = tuple(_run_state(folder / name, choices) for name, choices in asked.items())
    return SweepState(
        folder, known.get("command", ""), held_by(folder / LOCK), runs, _search(folder)
    )


def _search(folder: Path) -> Search | None:
    try:
        return search.read(folder)
    except RecordError:  # the report says so
        return None


def _run_state(folder: Path, choices: Mapping[str, str]) -> RunState:
    try:
        found = read_run(folder)
    except RecordError:
        return RunState(folder.name, choices, "waiting")
    info, rows = found.info, _rows(folder)
    state = str(info["status"])
    if state == "running" and not held_by(folder / LOCK):
        state = "stopped"
    metric = str(info.get("metric") or "val_accuracy")
    return RunState(
        folder.name, choices or info.get("choices", {}), state, metric, len(rows), _epochs(found),
        _best(rows, metric), str(info.get("slot") or ""), int(info.get("attempts") or 1),
        _age_s(folder), str(info.get("reason") or ""),
    )  # fmt: skip


def _rows(folder: Path) -> list[dict[str, str]]:
    try:
        with (folder / EPOCHS).open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error):  # damaged: the report says so
        return []


def _epochs(found: Record) -> int:
    try:
        return int(found.config["epochs"])
    except (RecordError, KeyError, TypeError, ValueError):
        return 0


def _best(rows: Sequence[Mapping[str, str]], metric: str) -> float:
    values = []
    for row in rows:
        with suppress(KeyError, TypeError, ValueError):  # an empty cell, or a damaged one
            values.append(float(row[metric]))
    if not values:
        return math.nan
    return max(values) if METRICS.get(metric) == "max" else min(values)


def _age_s(folder: Path) -> float:
    written = []
    for path in folder.iterdir():
        with suppress(OSError):  # what is being written has a name of its own, for a moment
            if path.is_file():
                written.append(path.stat().st_mtime)
    return max(0.0, time.time() - max(written)) if written else math.nan
