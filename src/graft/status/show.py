"""The state of a sweep for a terminal, and for a program."""

import math
from collections.abc import Mapping
from typing import Any

from graft.progress import counted
from graft.report.search import Search
from graft.status.state import RunState, SweepState

# Any other is a failure.
_STYLES = {
    "completed": "green", "pruned": "dim", "running": "bold", "waiting": "dim", "stopped": "yellow",
}  # fmt: skip


def summary(sweep: SweepState) -> str:
    """How many runs there are, and in which states."""
    counts = [(state, sweep.count(state)) for state in dict.fromkeys(r.state for r in sweep.runs)]
    said = ", ".join(f"{count} {state}" for state, count in counts)
    return f"{counted(len(sweep.runs), 'run')}: {said}" if said else "no runs"


def lines(sweep: SweepState) -> list[str]:
    """What there is to say below the table."""
    out = [f"{run.name}: {run.state}: {run.reason}" for run in sweep.runs if run.reason]
    out.append(summary(sweep))
    if sweep.search is not None:
        out.append(_searched(sweep.search))
    if sweep.driver:
        out.append(f"driven by {sweep.driver}")
    elif sweep.runs and not sweep.is_complete:
        out.append(f"nobody works on it; this goes on with it:\n  {sweep.command}")
    return out


def _searched(search: Search) -> str:
    """How far the search is, and what it has found."""
    num_done = sum(t.same_as is None and t.state in _ENDED for t in search.trials)
    of = f" of {search.num_asked}" if search.num_asked is not None else ""
    best = "".join(
        f"; best: trial {trial.number}, {', '.join(f'{v:.4g}' for v in trial.values or ())}"
        for trial in search.winners[:1]
    )
    why = f"; ended: {search.stopped}" if search.stopped else ""
    return f"search: {num_done}{of} trials{best}{why}"


# States of a trial for which nothing is done any more.
_ENDED = ("completed", "pruned", "failed")


def table(sweep: SweepState) -> Any:
    """A rich table, one row a run; columns that say nothing are left out."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from graft.report.words import shortened

    axes = list(dict.fromkeys(key for run in sweep.runs for key in run.choices))
    metrics = list(dict.fromkeys(run.metric for run in sweep.runs))
    heads = [*(axes or ["run"]), "state", "epoch", metrics[0] if len(metrics) == 1 else "best",
             "slot", "starts", "written"]  # fmt: skip
    short = {axis: shortened([run.choices.get(axis, "") for run in sweep.runs]) for axis in axes}
    rows = [_cells(run, short, len(metrics) == 1) for run in sweep.runs]
    used = [place for place in range(len(heads)) if any(row[place] for row in rows)]
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place in used:
        shown.add_column(Text(heads[place]), overflow="fold")
    for run, row in zip(sweep.runs, rows, strict=True):
        style = _STYLES.get(run.state, "red")
        shown.add_row(*(Text(row[place]) for place in used), style=style)
    return shown


def _cells(run: RunState, short: Mapping[str, Mapping[str, str]], is_one_metric: bool) -> list[str]:
    """`short`: of each axis, the values that are shown in another way."""
    best = "" if math.isnan(run.best) else f"{run.best:.4f}"
    chosen = [(axis, run.choices.get(axis, "")) for axis in short]
    return [
        *([short[axis].get(value, value) for axis, value in chosen] or [run.name]),
        run.state,
        f"{run.epoch}/{run.epochs}" if run.epochs else "",
        best if is_one_metric or not best else f"{run.metric} {best}",
        run.slot,
        str(run.attempts) if run.attempts > 1 else "",
        _ago(run.age_s),
    ]


def as_json(sweep: SweepState) -> dict[str, Any]:
    """The same for a program: plain values, None where there is none."""
    return {
        "sweep": str(sweep.path),
        "command": sweep.command,
        "driver": sweep.driver or None,
        "search": None if sweep.search is None else _searched(sweep.search),
        "runs": [
            {key: None if value != value else value for key, value in vars(run).items()}
            for run in sweep.runs
        ],
    }


def _ago(seconds: float) -> str:
    if math.isnan(seconds):
        return ""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
