"""Curves, confusion matrices, ROC: drawn for the page (SVG that follows its theme) or as PNG."""

import functools
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.collector import importing
from graft.metrics import class_scores, confusion, one_against_rest, roc_points
from graft.record import Predictions, Record
from graft.report.canvas import (
    MARKERS,
    PAPER,
    Colours,
    epoch_axis,
    figure_of,
    plain,
    png,
    styled,
    svg,
)
from graft.report.sweep import CURVES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LINES = len(MARKERS)
# Up to this many classes each cell says its count and share; up to the second, its count.
SAID, COUNTED = 10, 25
# The last to be drawn of a run: where it is, the others are.
LAST = "confusion.png"


def warm_up() -> None:
    """Import what draws, and what reads records: that takes over a second."""
    with importing():
        for name in (
            "pandas",
            *(f"pyarrow.{part}" for part in ("parquet", "dataset")),
            "matplotlib.figure",
            *(f"matplotlib.backends.backend_{kind}" for kind in ("agg", "svg")),
        ):
            importlib.import_module(name)


# --- for the page ---------------------------------------------------------------------------


def curves(records: Sequence[Record], styles: Mapping[str, int]) -> dict[str, str]:
    """SVGs of the "loss" and the "accuracy" of runs, by epoch.

    Args:
        records: runs with at least one epoch.
        styles: name of a run -> its line, 0 to `MAX_LINES` - 1; the others are grey.
    """
    return {what: svg(functools.partial(_curves_figure, records, what, styles)) for what in CURVES}


def confusion_matrix(predictions: Predictions) -> str:
    """SVG of the counts and, by shade, of the share of each label's examples."""
    return svg(functools.partial(_confusion_figure, predictions))


def roc(predictions: Predictions) -> str | None:
    """SVG of the ROC curve, or of one a class against the rest; None where none is defined."""
    if not np.isfinite(one_against_rest(predictions)).any():
        return None
    return svg(functools.partial(_roc_figure, predictions))


# --- for a run's folder ---------------------------------------------------------------------


def run_figures(record: Record, folder: Path) -> None:
    """PNGs of a completed run: loss, accuracy, confusion (of test), and roc where it is defined.

    Raises:
        RecordError: the record lacks what is drawn.
    """
    test = record.predictions.of("test")
    shown = test if len(test.labels) else record.predictions.of("val")
    with styled(PAPER):
        for what in CURVES:
            png(_curves_figure([record], what, {record.name: 0}, PAPER), folder / f"{what}.png")
        if np.isfinite(one_against_rest(shown)).any():
            png(_roc_figure(shown, PAPER), folder / "roc.png")
        png(_confusion_figure(shown, PAPER), folder / LAST)


# --- drawing --------------------------------------------------------------------------------


def _curves_figure(
    records: Sequence[Record], what: str, styles: Mapping[str, int], colours: Colours
) -> "Figure":
    figure, axes = figure_of(4.6, 3.3, is_fixed=colours is PAPER)
    grey = [record for record in records if record.name not in styles]
    for record in [*grey, *(r for r in records if r.name in styles)]:
        _line(axes, record, what, styles.get(record.name), colours)
    epoch_axis(axes, max(len(record.epochs) for record in records))
    _values(axes, records, what)
    if colours is PAPER:  # the page says it beside the figure
        axes.set_title("solid: validation, dashed: training", fontsize=8, loc="left")
    return figure


def _line(axes: "Axes", record: Record, what: str, style: int | None, colours: Colours) -> None:
    """Training dashed, validation solid, a large mark at the best epoch, a cross where it broke."""
    table = record.epochs
    epochs, val = table["epoch"], table[f"val_{what}"]
    if style is None:
        axes.plot(epochs, val, color=colours.muted, alpha=0.2, linewidth=0.8, zorder=1)
        return
    colour, marker = colours.lines[style], MARKERS[style]
    look: dict[str, Any] = {
        "color": colour, "marker": marker, "markeredgewidth": 0, "zorder": 3,
        "markevery": max(1, len(table) // 8),
    }  # fmt: skip
    axes.plot(epochs, table[f"train_{what}"], **look, linewidth=1, markersize=2.5, dashes=(4, 2))
    axes.plot(epochs, val, **look, linewidth=1.6, markersize=3.5)
    best = record.info.get("best_epoch") if record.is_completed else None
    at = int(best or len(table)) - 1
    axes.plot(
        epochs.iloc[at], val.iloc[at], linestyle="none", zorder=4, color=colour,
        marker=marker if best else "x", markersize=9 if best else 8,
        markeredgecolor=colours.ink if best else colour, markeredgewidth=1.1 if best else 2,
    )  # fmt: skip


def _values(axes: "Axes", records: Sequence[Record], what: str) -> None:
    """Limits that the completed runs fill: a run that diverged must not flatten the others."""
    done = [r for r in records if r.is_completed] or list(records)
    columns = [f"{part}_{what}" for part in ("train", "val")]
    found = np.concatenate([r.epochs[c].to_numpy(float) for r in done for c in columns])
    found = found[np.isfinite(found)]
    low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)
    label = what
    if what == "loss" and low > 0 and high / low > 30:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.set_ylim(low / 1.2, high * 1.2)
        label = "loss (logarithmic)"
    else:
        margin = max((high - low) * 0.06, 0.005)
        axes.set_ylim(low - margin, high + margin)
    axes.set_ylabel(label)


def _confusion_figure(predictions: Predictions, colours: Colours) -> "Figure":
    counts = confusion(predictions)
    num_classes = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side, size = (4.2, 9) if num_classes <= SAID else (5.2, 6.5)
    figure, axes = figure_of(side, side, is_fixed=False)
    _cells(axes, shares, colours)
    names = [plain(name, 16) for name in predictions.classes]
    ticks = list(range(0, num_classes, -(-num_classes // COUNTED)))
    # Points that a name takes, against those of a cell.
    is_wide = max(map(len, names)) * 0.62 * size > 0.7 * side * 72 / len(ticks)
    shown = [names[i] for i in ticks]
    axes.set_xticks(ticks, shown, rotation=90 if is_wide else 0, fontsize=size)
    axes.set_yticks(ticks, shown, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    if num_classes <= COUNTED:
        _counts(axes, counts, shares, colours)
    return figure


def _cells(axes: "Axes", shares: Any, colours: Colours) -> None:
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba

    num_classes = len(shares)
    rows, columns = np.nonzero(shares > 0)
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    squares = np.stack([columns, rows], axis=1)[:, None] + corners
    looks = [
        to_rgba(colours.accent, float(round(0.06 + 0.94 * share, 3)))
        for share in shares[rows, columns]
    ]
    # One artist: a hundred classes have thousands of cells, and each would be laid out by itself.
    axes.add_collection(PolyCollection(squares, facecolors=looks, linewidth=0), autolim=False)
    if num_classes <= COUNTED:
        for edge in np.arange(0.5, num_classes - 1):
            axes.axhline(edge, color=colours.grid, linewidth=0.6)
            axes.axvline(edge, color=colours.grid, linewidth=0.6)
    axes.set_xlim(-0.5, num_classes - 0.5)
    axes.set_ylim(num_classes - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(True)


def _counts(axes: "Axes", counts: Any, shares: Any, colours: Colours) -> None:
    num_classes = len(counts)
    size = 11 if num_classes <= 4 else 6.5 if num_classes <= SAID else 5.5
    for (row, column), value in np.ndenumerate(counts):
        if not value and num_classes > 4:
            continue
        share = shares[row, column]
        text = f"{value:,}\n{share:.0%}" if num_classes <= SAID else f"{value:,}"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, linespacing=1.3,
                  color=_ink_on(share, colours))  # fmt: skip


def _ink_on(share: float, colours: Colours) -> str:
    """What is read on a cell: three to one at least, on paper and in the dark theme of the page."""
    return colours.on_accent if share > 0.7 else colours.ink


def _roc_figure(predictions: Predictions, colours: Colours) -> "Figure":
    figure, axes = figure_of(4.2, 3.9, is_fixed=colours is PAPER)
    areas, values = one_against_rest(predictions), class_scores(predictions)
    classes = [1] if len(predictions.classes) == 2 else list(range(len(predictions.classes)))
    shown = [c for c in classes if np.isfinite(areas[c])]
    # Of many classes, those that the scores tell apart least.
    shown = sorted(sorted(shown, key=lambda c: float(areas[c]))[:MAX_LINES])
    axes.plot([0, 1], [0, 1], color=colours.muted, linewidth=0.8, dashes=(1, 2))
    for style, c in enumerate(shown):
        wrong, right = roc_points(values[:, c], predictions.labels == c)
        name = f"{plain(predictions.classes[c], 16)}: {areas[c]:.3f}"
        axes.plot(wrong, right, color=colours.lines[style], marker=MARKERS[style], markersize=4,
                  markevery=max(1, len(wrong) // 6), linewidth=1.6, label=f" {name}")  # fmt: skip
    if len(predictions.classes) == 2:
        counts = confusion(predictions)
        at = counts[:, 1] / counts.sum(axis=1)
        axes.plot(*at, marker="o", markersize=9, markerfacecolor="none", linestyle="none",
                  markeredgecolor=colours.ink, label=" decision at 0.5")  # fmt: skip
    axes.legend(loc="lower right", title="area under the curve", alignment="left", frameon=False)
    axes.set_xlabel("share of the others called so")
    axes.set_ylabel("share of the class found")
    axes.set_aspect("equal")
    return figure
