"""`report.html`: one file that needs nothing else. All that it says is handed over here."""

import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from graft.record import Record
from graft.report import closer, comparison, figures, overview, search_words, words
from graft.report.chart import Chart
from graft.report.intervals import CLEAR, Estimate
from graft.report.ranking import Compared
from graft.report.search import Search
from graft.report.sweep import Sweep, completed

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = "page.html.j2"


@dataclass(frozen=True)
class Searched:
    """A search and its charts; where it cannot be read, the reason."""

    search: Search | None = None
    charts: tuple[Chart, ...] = ()
    problem: str = ""


def page(compared: Compared, searched: Searched | None = None) -> str:
    """The page of a sweep, whatever became of its runs.

    Args:
        searched: what a search learned; None where the sweep was none.
    """
    context = _context(compared) | {"searched": _search(compared.sweep, searched)}
    return _template().render(**context)


@functools.cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number, "signed": words.signed, "count": words.count,
        "seconds": words.seconds, "p_value": words.p_value, "verdict": words.verdict,
        "difference": words.difference, "bounds": words.bounds, "breakable": _breakable,
    }  # fmt: skip
    return environment.get_template(TEMPLATE)


def warm_up() -> None:
    """What a first page takes longer for, and nothing of any sweep is needed for."""
    figures.warm_up()
    importlib.import_module("scipy.special")  # of a comparison, see intervals.py
    _template()


def _context(compared: Compared) -> dict[str, Any]:
    sweep, rows, ranking = compared.sweep, compared.rows, compared.ranking
    order = ranking.order
    drawn = comparison.with_epochs(sweep.records)
    styles = comparison.chosen_styles(drawn, order)
    names = words.Labels(sweep)
    lines = comparison.lines(sweep, rows, order, styles)
    metric = order[0].info["metric"] if order else None
    return {
        "sweep": sweep,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "tally": words.tally(sweep),
        "answer": words.answer(sweep, ranking),
        "details": details(compared),
        "problem": ranking.problem,
        "clear": CLEAR,
        "facts": overview.facts(sweep.records),
        "parts": overview.parts(_shown(order, sweep.records)) if sweep.records else [],
        "num_splits": overview.num_splits(sweep.records),
        "notes": overview.noticed(sweep.records, "notes"),
        "skipped": overview.noticed(sweep.records, "skipped"),
        "lines": lines,
        "anchors": {line.row["run"]: f"run-{i}" for i, line in enumerate(lines, start=1)},
        "scale": _scale(lines),
        "metric": metric,
        "curves": figures.curves(drawn, styles) if drawn else None,
        "names": names,
        "legend": [(style, names.named(name)) for name, style in styles.items()],
        "num_grey": len(drawn) - len(styles),
        "grid": comparison.grid(sweep, rows, order[0].name if order else None),
        "seeds": _seeds(compared),
        "against": ranking.on_val,
        "runner_up": ranking.runner_up,
        "on_test": ranking.on_test,
        "winner": _winner(order[0], names.of(order[0])) if order else None,
        "environment": overview.environment(_shown(order, sweep.records)) if sweep.records else [],
        "num_environments": overview.num_environments(sweep.records),
        "is_emoji": overview.is_emoji(sweep.records),
    }


def _seeds(compared: Compared) -> list[comparison.Choice]:
    order = compared.ranking.order
    metric = order[0].info["metric"] if order else None
    return comparison.over_seeds(compared.sweep, compared.rows, metric)


def details(compared: Compared) -> list[str]:
    """The sentences below the answer: how sure it is, and what it leaves open."""
    found, order = words.details(compared.sweep, compared.ranking), compared.ranking.order
    seeds = _seeds(compared)
    best = comparison.best_choice(seeds) if order else None
    if best is not None:
        metric, by = order[0].info["metric"], best.selected_by
        said = (
            f"By the mean over seeds the best choice is {best.label}: "
            f"{'validation accuracy' if metric == 'val_accuracy' else metric} "
            f"{by.mean:.3f} ({by.low:.3f} to {by.high:.3f}, {by.count} seeds)."
        )
        for second in seeds:
            if second.behind is not None:
                said += (
                    f" Seed for seed it differs from {second.label} by "
                    f"{words.difference(second.behind)}, and is better with {second.num_beaten} of "
                    f"{second.behind.count}."
                )
                break
        found.insert(0, said)
    total = len(order[0].predictions.of("test").labels) if order else 0
    num_groups = overview.groups(order[0], "test") if order else None
    if num_groups and num_groups < total:
        found.append(
            f"The {total:,} test examples come from {num_groups:,} groups. Intervals and p take "
            "examples as independent: where those of a group are alike, they promise too much."
        )
    return found


def _search(sweep: Sweep, searched: Searched | None) -> dict[str, Any] | None:
    if searched is None:
        return None
    found = searched.search
    if found is None:
        return {"problem": searched.problem}
    experiment = sweep.path / (found.experiment or "")
    return {
        "problem": "",
        "tally": search_words.tally(found),
        "facts": search_words.facts(found),
        "objectives": found.objectives,
        "table": search_words.table(found),
        "caution": search_words.caution(found),
        "tie": search_words.tie(found),
        "command": found.command,
        "experiment": experiment if experiment.is_file() else found.experiment,
        "failed": [trial for trial in found.of("failed") if trial.reason],
        "charts": searched.charts,
    }


def _breakable(text: str) -> Markup:
    """A key that may be broken after its dots and underscores."""
    safe = str(escape(text))
    return Markup(safe.replace(".", ".<wbr>").replace("_", "_<wbr>"))


def _shown(order: Sequence[Record], records: Sequence[Record]) -> Record:
    """The run whose data and environment the page describes."""
    return [*order, *completed(records), *records][0]


def _winner(record: Record, label: str) -> dict[str, Any]:
    """The winner on test; on validation where it has no test examples."""
    split = "test" if len(record.predictions.of("test").labels) else "val"
    shown = record.predictions.of(split)
    majority, share = words.majority(shown)
    cuts = closer.slices(record, shown)
    return {
        "label": label,
        "run": record.name,
        "split": words.SPLITS[split],
        "total": len(shown.labels),
        "num_wrong": int((shown.predicted != shown.labels).sum()),
        "num_groups": overview.groups(record, split),
        "majority": majority,
        "majority_share": share.value,
        "num_classes": len(shown.classes),
        "confusion": figures.confusion_matrix(shown),
        "roc": figures.roc(shown),
        "max_lines": figures.MAX_LINES,
        "classes": closer.class_rows(shown),
        "slices": cuts[: closer.MAX_SLICES],
        "num_slices": len(cuts),
        "mistakes": closer.mistakes(record, shown),
        "scale": _scale_of([found for cut in cuts for _, found in cut.rows]),
    }


def _scale(lines: Sequence[comparison.Line]) -> tuple[float, float]:
    return _scale_of([e for line in lines for e in (line.val, line.test) if e is not None])


def _scale_of(found: Sequence[Estimate]) -> tuple[float, float]:
    """Ends of the axis on which intervals are drawn: twentieths around all of them."""
    low = min((one.low for one in found), default=0.0)
    high = max((one.high for one in found), default=1.0)
    return int(low * 20) / 20, -int(-high * 20 // 1) / 20
