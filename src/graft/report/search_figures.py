"""What a search learned, drawn."""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.report.canvas import Colours, epoch_axis, plain
from graft.report.chart import (
    Chart,
    Margins,
    Points,
    best_look,
    draw_legend,
    draw_points,
    number_axis,
    value_axis,
)
from graft.report.search import Parameter, Search, Trial, best_so_far

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PREFIX = "search_"
# More than these are left out, which the caption says.
MAX_OBJECTIVES, MAX_PAIRS, MAX_PARAMETERS, MAX_CURVES, MAX_BARS = 3, 3, 9, 80, 12
# Of the height, for marks without a value.
_STRIP = 0.12


def charts(search: Search) -> list[Chart]:
    """Those that the trials give something to draw for, in the order in which they are read."""
    found = [_fronts(search), _histories(search), _curves(search), _importances(search)]
    found += [_slices(search, i) for i in range(min(len(search.objectives), MAX_OBJECTIVES))]
    return [chart for chart in found if chart is not None and chart.panels]


def write(drawn: Sequence[Chart], folder: Path) -> None:
    """PNGs of charts, in place of those of an earlier report."""
    names = [f"{PREFIX}{chart.name}.png" for chart in drawn]
    for old in folder.glob(f"{PREFIX}*.png"):
        if old.name not in names:
            old.unlink()
    for chart, name in zip(drawn, names, strict=True):
        chart.write(folder / name)


# --- objective by objective -----------------------------------------------------------------


def _fronts(search: Search) -> Chart | None:
    pairs = list(itertools.combinations(range(len(search.objectives)), 2))
    if not pairs or not search.measured:
        return None
    caption = "No trial lies beyond the line." if len(pairs) == 1 else ""
    caption += " Numbers are those of the trials, where there is room."
    if len(pairs) > MAX_PAIRS:
        caption += f" {MAX_PAIRS} of {len(pairs)} pairs of objectives."
    names = " and ".join(one.name for one in search.objectives)
    return Chart(
        "front", "The front",
        f"{names} of {len(search.measured)} completed trials, {len(search.winners)} of them on "
        "the front; these stand in the table of this section.",
        "stars: trials that no other beats in every objective", caption.strip(),
        tuple(functools.partial(_front, search, *pair) for pair in pairs[:MAX_PAIRS]),
    )  # fmt: skip


def _front(search: Search, across: int, up: int, axes: "Axes", colours: Colours) -> None:
    points = [(_value(t, across), _value(t, up)) for t in search.measured]
    draw_points(axes, points, "completed", _dot(colours, len(search.measured)))
    front = sorted((_value(t, across), _value(t, up), t.number) for t in search.winners)
    if len(search.objectives) == 2:
        step = "steps-pre" if search.objectives[across].is_maximized else "steps-post"
        axes.plot([x for x, _, _ in front], [y for _, y, _ in front], drawstyle=step,
                  color=colours.lines[1], linewidth=1.3, zorder=5)  # fmt: skip
    draw_points(axes, [(x, y) for x, y, _ in front], "front", best_look(colours))
    for i, values in zip((across, up), zip(*points, strict=True), strict=True):
        aim = search.objectives[i]
        name = f"{plain(aim.name, 16)}, {aim.direction}"
        value_axis(axes, values, name, is_up=i == up)
    _numbers(axes, front)
    draw_legend(axes)


def _numbers(axes: "Axes", front: Sequence[tuple[float, float, int]]) -> None:
    """Numbers of trials, but for those that would cover another."""
    stars = [axes.transData.transform((x, y)) * 72 / axes.figure.dpi for x, y, _ in front]
    taken: list[Any] = []
    for i, (x, y, number) in enumerate(front):
        place = stars[i] + (13, 9)
        others = [*taken, *stars[:i], *stars[i + 1 :]]
        if all(abs(place - other)[0] > 13 or abs(place - other)[1] > 9 for other in others):
            axes.annotate(str(number), (x, y), (6, 5), textcoords="offset points", fontsize=7.5)
            taken.append(place)


# --- value by trial -------------------------------------------------------------------------


def _histories(search: Search) -> Chart | None:
    if not search.measured:
        return None
    count = min(len(search.objectives), MAX_OBJECTIVES)
    caption = "Line: the best so far."
    without = [state for state in ("pruned", "failed") if search.of(state)]
    if without:
        which = " and ".join(without).capitalize()
        caption += f" {which} trials have no final value: they stand at the bottom."
    if len(search.objectives) > count:
        caption += f" The first {count} of {len(search.objectives)} objectives."
    names = ", ".join(one.name for one in search.objectives[:count])
    return Chart(
        "history", "Trial by trial",
        f"{names} of {len(search.measured)} completed trials by number, with the best so far; the "
        "best ones stand in the table of this section.",
        "", caption, tuple(functools.partial(_history, search, i) for i in range(count)),
    )  # fmt: skip


def _history(search: Search, objective: int, axes: "Axes", colours: Colours) -> None:
    values = [_value(trial, objective) for trial in search.measured]
    value_axis(axes, values, search.objectives[objective].name)
    is_new = [trial.same_as is None for trial in search.measured]
    points = [(float(t.number), v) for t, v in zip(search.measured, values, strict=True)]
    draw_points(
        axes,
        list(itertools.compress(points, is_new)),
        "completed",
        _dot(colours, len(search.measured)),
    )
    again = [point for point, new in zip(points, is_new, strict=True) if not new]
    ring = {"marker": "o", "markersize": 5, "markerfacecolor": "none",
            "markeredgecolor": colours.accent, "markeredgewidth": 0.9}  # fmt: skip
    draw_points(axes, again, "repeated", ring)
    found = best_so_far(search, objective)
    found.append((search.trials[-1].number, found[-1][1]))
    axes.plot(*zip(*found, strict=True), drawstyle="steps-post", color=colours.ink, linewidth=1.2,
              zorder=5)  # fmt: skip
    best = [(float(t.number), _value(t, objective)) for t in search.winners]
    draw_points(axes, best, "best" if len(search.objectives) == 1 else "front", best_look(colours))
    _strip(search, axes, colours)
    number_axis(axes, search.trials[0].number, search.trials[-1].number, is_whole=True, nbins=8)
    axes.set_xlabel("trial")
    draw_legend(axes)


def _strip(search: Search, axes: "Axes", colours: Colours) -> None:
    """Trials without a final value, below all values."""
    cut, failed = ([float(t.number) for t in search.of(s)] for s in ("pruned", "failed"))
    if not cut and not failed:
        return
    low, high = axes.transData.transform([(0, end) for end in axes.get_ylim()])[:, 1]
    below = low - (high - low) * _STRIP / (1 - _STRIP)
    axes.set_ylim(bottom=float(axes.transData.inverted().transform((0, below))[1]))
    look: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "markersize": 4.5}
    place = _STRIP / 2
    draw_points(axes, [(x, place) for x in cut], "pruned", {
        **look, "marker": "v", "markerfacecolor": "none", "markeredgecolor": colours.muted,
        "markeredgewidth": 0.9})  # fmt: skip
    draw_points(axes, [(x, place) for x in failed], "failed", {
        **look, "marker": "x", "color": colours.lines[3], "markeredgewidth": 1.4})  # fmt: skip


# --- value by epoch -------------------------------------------------------------------------


def _curves(search: Search) -> Chart | None:
    trials = [trial for trial in search.trials if trial.steps]
    if all(len(trial.steps) < 2 for trial in trials):
        return None
    drawn = _some(search, trials)
    caption = "What each trial reported as it went."
    if len(drawn) < len(trials):
        caption += (
            f" {len(drawn)} of {len(trials):,} trials: the best, and others evenly by number."
        )
    return Chart(
        "curves", "Epoch by epoch",
        f"{search.objectives[0].name} by epoch of {len(drawn)} trials; pruned ones end early.",
        "", caption, (functools.partial(_curves_panel, search, drawn),),
    )  # fmt: skip


def _some(search: Search, trials: Sequence[Trial]) -> list[Trial]:
    """As many as can be told apart."""
    if len(trials) <= MAX_CURVES:
        return list(trials)
    best = {t.number for t in search.ordered(search.measured)[: MAX_CURVES // 4]}
    rest = [trial.number for trial in trials if trial.number not in best]
    places = np.linspace(0, len(rest) - 1, MAX_CURVES - len(best)).astype(int)
    kept = best | {rest[i] for i in places}
    return [trial for trial in trials if trial.number in kept]


def _curves_panel(search: Search, trials: Sequence[Trial], axes: "Axes", colours: Colours) -> None:
    cut = [trial for trial in trials if trial.state == "pruned"]
    best = [trial for trial in trials if trial.number in search.best]
    apart = {trial.number for trial in (*cut, *best)}
    others = [trial for trial in trials if trial.number not in apart]
    thin = {"linewidth": 0.9, "alpha": 0.5}
    _lines(axes, others, "others", {**thin, "color": colours.accent})
    _lines(axes, cut, "", {**thin, "color": colours.muted, "zorder": 3})
    ends = [(float(trial.steps[-1][0]), trial.steps[-1][1]) for trial in cut]
    draw_points(axes, ends, "pruned", {"marker": "v", "markersize": 5, "zorder": 3,
                "markerfacecolor": "none", "markeredgecolor": colours.muted})  # fmt: skip
    bold = {"linewidth": 2.2, "color": colours.lines[1], "zorder": 4}
    _lines(axes, best, "best" if len(search.objectives) == 1 else "front", bold)
    epoch_axis(axes, max(trial.steps[-1][0] for trial in trials))
    values = [value for trial in trials for _, value in trial.steps]
    value_axis(axes, values, search.objectives[0].name)
    draw_legend(axes)


def _lines(axes: "Axes", trials: Sequence[Trial], label: str, look: dict[str, Any]) -> None:
    """All as one line with gaps: one path, not a hundred."""
    if trials:
        parts = [[*trial.steps, (math.nan, math.nan)] for trial in trials]
        axes.plot(*zip(*itertools.chain(*parts), strict=True), label=label, **look)


# --- importance -----------------------------------------------------------------------------


def _importances(search: Search) -> Chart | None:
    pairs = zip(search.objectives[:MAX_OBJECTIVES], search.importances, strict=False)
    found = [(aim.name, _ranked(shares)) for aim, shares in pairs if len(shares) > 1]
    if not found:
        return None
    said = "; ".join(
        f"{name}: " + ", ".join(f"{key} {share:.2f}" for key, share in bars) for name, bars in found
    )
    most = max(map(len, search.importances))
    rest = f" The first {MAX_BARS} of {most}." if most > MAX_BARS else ""
    longest = max(len(plain(key, 26)) for _, bars in found for key, _ in bars)
    return Chart(
        "importance", "What mattered", f"Share of each parameter, {said}.", "",
        "How much each parameter matters, as Optuna estimates it from the completed trials; the "
        f"shares sum to 1. With few trials it is a rough guess.{rest}",
        tuple(functools.partial(_importance, name, bars) for name, bars in found),
        (4.6, 0.85 + 0.3 * min(most, MAX_BARS)), Margins(left=0.2 + 0.075 * longest, top=0.1),
    )  # fmt: skip


def _ranked(shares: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(shares.items(), key=lambda pair: -pair[1])[:MAX_BARS]


def _importance(
    name: str, bars: Sequence[tuple[str, float]], axes: "Axes", colours: Colours
) -> None:
    places = range(len(bars))
    shares = [share for _, share in bars]
    axes.barh(places, shares, height=0.62, color=colours.accent)
    axes.set_yticks(places, [plain(key, 26) for key, _ in bars])
    axes.invert_yaxis()
    for place, share in zip(places, shares, strict=True):
        axes.annotate(f"{share:.2f}", (share, place), (3, 0), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
    number_axis(axes, 0, max(*shares, 1e-3))
    axes.set_xlim(0, max(*shares, 1e-3) * 1.16)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel(f"importance for {plain(name, 24)}")


# --- value by parameter ---------------------------------------------------------------------


def _slices(search: Search, objective: int) -> Chart | None:
    aim, is_one = search.objectives[objective], len(search.objectives) == 1
    trials = [trial for trial in search.measured if trial.same_as is None]
    every = [one for one in _by_importance(search, objective) if _places(one, trials)]
    kept = every[:MAX_PARAMETERS]
    caption = "Completed trials only; the axes show all that was searched."
    some = [one.name for one in kept if len(_places(one, trials)) < len(trials)]
    if some:
        names = ", ".join(some[:3]) + (", ..." if len(some) > 3 else "")
        caption += f" Not every trial has {names}."
    if len(every) > len(kept):
        by = "that mattered most" if search.importances else "in the order of the search"
        caption += f" The {len(kept)} parameters of {len(every)} {by}."
    turned = max((len(n) for one in kept for n in _names(one) if _is_wide(one)), default=0)
    bottom = 0.5 + 0.065 * turned
    return Chart(
        f"slices_{objective + 1}" if objective else "slices",
        "Parameter by parameter" if is_one else f"{plain(aim.name, 32)}, parameter by parameter",
        f"{aim.name} of {len(trials)} completed trials against each of {len(kept)} parameters.",
        f"the stronger the colour, the later the trial; {'star: the best' if is_one else ''}"
        f"{'' if is_one else 'stars: the front'}",
        caption, tuple(functools.partial(_slice, search, objective, one) for one in kept),
        (3.3, 2.1 + bottom), Margins(top=0.12, bottom=bottom),
    )  # fmt: skip


def _by_importance(search: Search, objective: int) -> list[Parameter]:
    shares = search.importances[objective] if search.importances else {}
    return sorted(search.parameters, key=lambda one: -shares.get(one.name, 0.0))


def _places(parameter: Parameter, trials: Sequence[Trial]) -> list[tuple[Trial, float]]:
    """Where trials that have the parameter are on its axis; equal ones of a few beside each other.

    Beside by steps of the golden section: evenly, and the same in every report.
    """
    low, high = parameter.ends
    is_few = parameter.is_whole and not parameter.is_log and high - low <= 12
    spread = 0.6 if parameter.choices else 0.3 if is_few else 0.0
    return [
        (trial, place + spread * ((trial.number * 0.618034) % 1 - 0.5))
        for trial in trials
        if (place := parameter.place(trial)) is not None
    ]


def _slice(
    search: Search, objective: int, parameter: Parameter, axes: "Axes", colours: Colours
) -> None:
    trials = [trial for trial in search.measured if trial.same_as is None]
    points = [(t, x, _value(t, objective)) for t, x in _places(parameter, trials)]
    shade = np.linspace(0, len(colours.shades) - 1, len(points)).round()
    for place, colour in enumerate(colours.shades):
        members = np.flatnonzero(shade == place)
        draw_points(axes, [points[i][1:] for i in members], "", {
            "marker": "o", "markersize": _size(len(points)), "markerfacecolor": colour,
            "markeredgecolor": colours.accent, "markeredgewidth": 0.7, "zorder": 3})  # fmt: skip
    best: Points = [(x, y) for t, x, y in points if t.number in search.best]
    draw_points(axes, best, "best", best_look(colours))
    value_axis(axes, [y for _, _, y in points], search.objectives[objective].name)
    axes.set_xlabel(plain(parameter.name, 40))
    if parameter.choices:
        _choices(axes, parameter)
    else:
        places = [x for t, _, _ in points if (x := parameter.place(t)) is not None]
        low, high = min(parameter.ends[0], *places), max(parameter.ends[1], *places)
        number_axis(axes, low, high, is_log=parameter.is_log, is_whole=parameter.is_whole, nbins=5)


def _choices(axes: "Axes", parameter: Parameter) -> None:
    names = _names(parameter)
    every = math.ceil(len(names) / 16)
    axes.set_xticks(range(0, len(names), every), names[::every], fontsize=8,
                    rotation=90 if _is_wide(parameter) else 0)  # fmt: skip
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(False, axis="x")


def _names(parameter: Parameter) -> list[str]:
    return [plain(choice, 14) for choice in parameter.choices]


def _is_wide(parameter: Parameter) -> bool:
    """Whether names of choices need more room than lies between them."""
    names = _names(parameter)
    return max(map(len, names), default=0) * len(names) > 36


def _value(trial: Trial, objective: int) -> float:
    return (trial.values or ())[objective]


def _dot(colours: Colours, count: int) -> dict[str, Any]:
    return {
        "marker": "o", "markersize": _size(count), "color": colours.accent, "alpha": 0.7,
        "markeredgewidth": 0, "zorder": 4,
    }  # fmt: skip


def _size(count: int) -> float:
    return 5 if count <= 150 else 3.5
