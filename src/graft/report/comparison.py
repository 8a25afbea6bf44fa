"""The runs beside each other: ranks, pairs, two axes as a grid, seeds together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from graft.config import METRICS
from graft.errors import RecordError
from graft.record import Record
from graft.report.figures import MAX_LINES
from graft.report.intervals import Estimate, Repeated, Spread, accuracy, repeated, spread
from graft.report.sweep import Sweep, completed, has_curves
from graft.report.words import NOTHING, Labels

Row = Mapping[str, object]


@dataclass(frozen=True)
class Line:
    """One run in the table.

    Attributes:
        rank: 1 for the winner; None where there is no ranking, or the run did not complete.
        style: its line in the curves, or None for grey ones.
        row: its row of results.csv.
        epochs: how many it trained.
    """

    label: str
    rank: int | None
    style: int | None
    row: Row
    val: Estimate | None = None
    test: Estimate | None = None
    epochs: int | None = None


def lines(
    sweep: Sweep, rows: Sequence[Row], order: Sequence[Record], styles: Mapping[str, int]
) -> list[Line]:
    """Every run that was asked for: ranked ones first, those that did not complete last.

    Args:
        rows: of results.csv.
        order: the completed runs, best first, or empty where they cannot be ranked.
    """
    names = Labels(sweep)
    done = {record.name: record for record in completed(sweep.records)}
    ranks = {record.name: rank for rank, record in enumerate(order, start=1)}
    found = []
    for row in rows:
        name = str(row["run"])
        line = Line(names.named(name), ranks.get(name), styles.get(name), row)
        found.append(_measured(line, done[name]) if name in done else line)
    return sorted(found, key=lambda line: (line.val is None, line.rank or 0))


def chosen_styles(records: Sequence[Record], order: Sequence[Record]) -> dict[str, int]:
    """Which runs have a line of their own in the curves: all, or the best few, as asked."""
    best = list(dict.fromkeys(record.name for record in [*order, *records]))[:MAX_LINES]
    shown = [record.name for record in records if record.name in best]
    return {name: style for style, name in enumerate(shown)}


def with_epochs(records: Sequence[Record]) -> list[Record]:
    """The runs that have curves."""
    return [record for record in records if _has_epochs(record)]


@dataclass(frozen=True)
class Cell:
    """Mean validation accuracy of the runs in a cell; `shade`: 0 for the lowest, 1 the highest."""

    value: float | None
    shade: float
    is_winner: bool
    note: str


@dataclass(frozen=True)
class Grid:
    """Two axes: `cells[i][j]` belongs to the i-th value of `down`, the j-th of `across`."""

    down: str
    across: str
    down_values: tuple[str, ...]
    across_values: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]


def grid(sweep: Sweep, rows: Sequence[Row], winner: str | None) -> Grid | None:
    """The sweep as a table of its two axes, seeds averaged; None where it does not fill one."""
    axes = [axis for axis in sweep.axes if axis != "seed"]
    if len(axes) != 2:
        return None
    down, across = axes
    chosen = [tuple(_value(row[axis]) for axis in axes) for row in rows]
    values = {axis: _in_order([one[i] for one in chosen]) for i, axis in enumerate(axes)}
    members: dict[tuple[str, ...], list[Row]] = {
        (i, j): [] for i in values[down] for j in values[across]
    }
    for one, row in zip(chosen, rows, strict=True):
        members[one].append(row)
    if sum(map(bool, members.values())) * 2 <= len(members):
        return None
    means = [m for m in map(_mean, members.values()) if m is not None]
    # A span of at least 0.1, so that noise is not painted as contrast.
    top = max(means, default=1.0)
    span = max(top - min(means, default=0.0), 0.1)
    cells = tuple(
        tuple(_cell(members[i, j], top, span, winner) for j in values[across]) for i in values[down]
    )
    return Grid(down, across, tuple(values[down]), tuple(values[across]), cells)


@dataclass(frozen=True)
class Choice:
    """What several seeds of one choice gave.

    Attributes:
        selected_by: the metric that selects.
        by_seed: the same, of each seed that completed.
        missing: how many seeds did not complete.
        behind: the best choice minus this one, in that metric, seed for seed; None for the best
            itself, and where they have fewer than two seeds in common.
        num_beaten: of those seeds, with how many the best choice was better.
    """

    label: str
    selected_by: Spread
    by_seed: Mapping[str, float]
    val: Spread
    test: Spread | None
    missing: int
    behind: Repeated | None = None
    num_beaten: int = 0


def over_seeds(sweep: Sweep, rows: Sequence[Row], metric: str | None) -> list[Choice]:
    """The seeds of each choice together, best mean first; nothing without several seeds.

    Args:
        metric: a column of `rows`, which selects; None: nothing does, and no choice is the best.
    """
    if "seed" not in sweep.axes:
        return []
    names, members = Labels(sweep), dict[str, list[Row]]()
    for row in rows:
        choices = {a: str(row[a]) for a in sweep.axes if a != "seed" and row[a] is not None}
        members.setdefault(names.choice(choices) or "all runs", []).append(row)
    if max(map(len, members.values()), default=0) < 2:
        return []
    by = metric or "val_accuracy"
    made = [_choice(label, of_label, by) for label, of_label in members.items()]
    sign = -1 if METRICS[by] == "max" else 1
    found = sorted((c for c in made if c is not None), key=lambda c: sign * c.selected_by.mean)
    best = best_choice(found) if metric else None
    return [one if best in (None, one) else _behind(one, best, sign) for one in found]


def best_choice(choices: Sequence[Choice]) -> Choice | None:
    """The best of those with the most seeds: fewer may have been lucky. None without another."""
    most = max((choice.val.count for choice in choices), default=0)
    found = [choice for choice in choices if choice.val.count == most]
    return found[0] if most > 1 and len(found) > 1 else None


# --- inside ---------------------------------------------------------------------------------


def _measured(line: Line, record: Record) -> Line:
    val, test = (accuracy(record.predictions.of(split)) for split in ("val", "test"))
    return replace(line, val=val, test=test, epochs=len(record.epochs))


def _has_epochs(record: Record) -> bool:
    try:
        return has_curves(record.epochs)
    except (RecordError, OSError, ValueError):
        return False


def _figures(rows: Sequence[Row], key: str) -> list[float]:
    return [float(value) for row in rows if isinstance(value := row.get(key), (int, float))]


def _value(value: object) -> str:
    return NOTHING if value is None else str(value)


def _mean(rows: Sequence[Row]) -> float | None:
    values = _figures(rows, "val_accuracy")
    return sum(values) / len(values) if values else None


def _cell(rows: Sequence[Row], top: float, span: float, winner: str | None) -> Cell:
    mean = _mean(rows)
    if mean is None:
        return Cell(None, 0.0, False, str(rows[0]["status"]) if rows else "not asked for")
    count = len(_figures(rows, "val_accuracy"))
    note = f"mean of {count}" if count > 1 else ""
    is_winner = any(row["run"] == winner for row in rows)
    return Cell(mean, max(0.0, 1 - (top - mean) / span), is_winner, note)


def _choice(label: str, rows: Sequence[Row], metric: str) -> Choice | None:
    val, test = (_figures(rows, key) for key in ("val_accuracy", "test_accuracy"))
    by_seed = {
        str(row["seed"]): float(value)
        for row in rows
        if isinstance(value := row.get(metric), (int, float))
    }
    if not by_seed or not val:
        return None
    return Choice(
        label, spread([*by_seed.values()]), by_seed, spread(val), spread(test) if test else None,
        len(rows) - len(val),
    )  # fmt: skip


def _behind(one: Choice, best: Choice, sign: int) -> Choice:
    """A seed stands for the same batches and the same head to begin with: it makes a pair."""
    found = [v - one.by_seed[seed] for seed, v in best.by_seed.items() if seed in one.by_seed]
    if len(found) < 2:
        return one
    num_beaten = sum(sign * difference < 0 for difference in found)
    return replace(one, behind=repeated(found), num_beaten=num_beaten)


def _in_order(values: Sequence[str]) -> list[str]:
    """Distinct values: numbers by size, else as asked."""
    found = list(dict.fromkeys(values))
    try:
        return sorted(found, key=float)
    except ValueError:
        return found
