"""The command `graft-report`: table, results.csv and report.html of a sweep's folder."""

import argparse
import os
import sys
import textwrap
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graft.errors import BadRequest, RecordError
from graft.record import FIGURES, REPORT, RESULTS, write_whole
from graft.report import search, search_figures, words
from graft.report.page import Searched, details, page
from graft.report.ranking import Compared, compared
from graft.report.results import write_csv

# Columns after the choices, and which of them a narrow terminal does without first.
_COLUMNS = {
    "val_accuracy": "val acc", "test_accuracy": "test acc", "train_accuracy": "train acc",
    "best_epoch": "epoch", "trainable_parameters": "trained", "seconds": "time",
    "status": "status",
}  # fmt: skip
_DROPPED_FIRST = ("trainable_parameters", "seconds", "train_accuracy", "best_epoch")
# Of a run that ended as it should; any other is a failure.
_STYLES = {"completed": "", "pruned": "dim"}
# So many are worth a line each.
_MOST_PRUNED = 3
# How wide a table is that no terminal limits.
_WIDTH = 120


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with a message where there is no sweep."""
    parser = argparse.ArgumentParser(
        prog="graft-report",
        description="Compare the runs of a sweep: a table here, results.csv and report.html there.",
    )
    parser.add_argument("sweep", type=Path, help="the sweep's folder, such as outputs/demo")
    parser.add_argument("--open", action="store_true", help="open report.html in a browser")
    asked = parser.parse_args(argv)
    try:
        found = write_report(asked.sweep)
    except BadRequest as error:
        print(f"graft-report: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        said = f"{asked.sweep} cannot be read, or not be written: {error.strerror or error}."
        print(f"graft-report: {said}", file=sys.stderr)
        return 2
    print_table(found)
    print(f"report:    {asked.sweep / REPORT}")
    print(f"results:   {asked.sweep / RESULTS}")
    if found.ranking.order:
        print(f"winner:    {found.ranking.order[0].path}")
    if asked.open:
        webbrowser.open((asked.sweep / REPORT).absolute().as_uri())
    return 0


def write_report(sweep: Path) -> Compared:
    """Write results.csv and report.html into a sweep's folder; of a search, its figures too.

    Returns:
        What they were written from.

    Raises:
        RecordError: the folder holds no sweep.
    """
    found = compared(sweep)
    write_csv(found.rows, sweep / RESULTS)
    searched = _searched(sweep)
    if searched is not None and searched.search is not None:
        search_figures.write(searched.charts, sweep / FIGURES)
    text = page(found, searched).encode("utf-8", errors="replace")
    write_whole(sweep / REPORT, lambda part: part.write_bytes(text))
    return found


def _searched(sweep: Path) -> Searched | None:
    try:
        found = search.read(sweep)
    except RecordError as error:
        return Searched(problem=str(error))
    return None if found is None else Searched(found, tuple(search_figures.charts(found)))


def print_table(compared: Compared) -> None:
    """The runs, as asked, in the terminal; then why some did not complete, and who wins."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=_WIDTH)
    sweep, rows = compared.sweep, compared.rows
    answer, names = words.answer(sweep, compared.ranking), words.Labels(sweep)
    shown = [_shortened(row, sweep.axes, names) for row in rows]
    console.print(_table(shown, sweep.axes, answer.run, console.width))
    num_pruned = sum(row["status"] == "pruned" for row in rows)
    if num_pruned > _MOST_PRUNED:
        console.print(
            Text(f"{num_pruned} runs were pruned; why: {sweep.path / RESULTS}", style="dim")
        )
    for row in rows:
        is_told = row["status"] != "pruned" or num_pruned <= _MOST_PRUNED
        if row["status"] != "completed" and is_told:
            said = f"{names.named(str(row['run']))}: {row['status']}: {row['reason'] or ''}"
            console.print(Text(said.rstrip(": "), style=_STYLES.get(str(row["status"]), "red")))
    console.print(Text(str(answer)))
    for detail in details(compared):
        lines = textwrap.fill(detail, console.width, initial_indent="  ", subsequent_indent="  ")
        console.print(Text(lines, style="dim"))


def _shortened(
    row: Mapping[str, object], axes: Sequence[str], names: words.Labels
) -> dict[str, object]:
    short = {axis: names.value(axis, str(row[axis])) for axis in axes if row.get(axis) is not None}
    return {**row, **short}


def _table(
    rows: Sequence[Mapping[str, object]],
    axes: Sequence[str],
    won: str,
    width: int,
) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    heads, lines = _cells(rows, axes, won, width)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in heads:
        is_number = head in _COLUMNS.values() and head != "status"
        table.add_column(Text(head), justify="right" if is_number else "left", overflow="fold")
    for row, cells in zip(rows, lines, strict=True):
        style = "bold green" if cells[0] else _STYLES.get(str(row["status"]), "red")
        table.add_row(*map(Text, cells), style=style)
    return table


def _cells(
    rows: Sequence[Mapping[str, object]],
    axes: Sequence[str],
    won: str,
    width: int,
) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of the table, with as many columns as fit."""
    keys = [*(axes or ["run"]), *_COLUMNS]
    marks = ["*" if row["run"] == won else "" for row in rows]
    for dropped in ("", *_DROPPED_FIRST):
        keys = [key for key in keys if key != dropped]
        heads = ["", *(_COLUMNS.get(key, key) for key in keys)]
        lines = [
            [mark, *(_shown(key, row.get(key)) for key in keys)]
            for mark, row in zip(marks, rows, strict=True)
        ]
        columns = zip(heads, *lines, strict=True)
        if sum(max(map(len, column)) + 3 for column in columns) <= width:
            break
    return heads, lines


def _shown(key: str, value: object) -> str:
    if isinstance(value, float) and key.endswith("accuracy"):
        return words.number(value, 4)
    if isinstance(value, (int, float)) and key == "seconds":
        return words.seconds(value)
    if isinstance(value, int):
        return words.count(value)
    return "" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
