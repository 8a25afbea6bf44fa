"""Curves, confusion matrices, ROC: drawn for the page (SVG that follows its theme) or as PNG.

The one place that imports matplotlib. Colours in an SVG are names of the page's own (CSS
variables), so that the same figure is right in light and in dark.
"""

import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graft.metrics import class_scores, confusion, one_against_rest, roc_points
from graft.record import Predictions, Record, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Shapes tell lines apart without colour; page.html.j2 draws the same ones in its legend.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MAX_LINES = len(MARKERS)
# Up to this many classes each cell says its count and share; up to the second, its count.
SAID, COUNTED = 10, 25


@dataclass(frozen=True)
class Colours:
    """Of the paper: what `ink` and the others are in a PNG, and stand for in an SVG."""

    ink: str
    muted: str
    grid: str
    accent: str
    on_accent: str
    lines: tuple[str, ...]


# Okabe and Ito's colours, which most colour-blind readers can tell apart, without the yellow.
PAPER = Colours(
    "#1b1f24", "#5b6570", "#d8dee4", "#0072b2", "#ffffff",
    ("#0072b2", "#d55e00", "#009e73", "#b5488a", "#c98500", "#2a9fd6", "#6a5acd", "#59636e"),
)  # fmt: skip
# Placeholders, each replaced by a variable of the page.
THEMED = Colours(
    "#010001", "#010002", "#010003", "#010004", "#010005",
    tuple(f"#0100{16 + i:02x}" for i in range(MAX_LINES)),
)  # fmt: skip
_VARIABLES = {
    THEMED.ink: "var(--ink)", THEMED.muted: "var(--muted)", THEMED.grid: "var(--line)",
    THEMED.accent: "var(--accent)", THEMED.on_accent: "var(--on-accent)",
    **{colour: f"var(--s{i})" for i, colour in enumerate(THEMED.lines)},
}  # fmt: skip


# --- for the page ---------------------------------------------------------------------------


def curves(records: Sequence[Record], styles: Mapping[str, int]) -> dict[str, str]:
    """SVGs of the "loss" and the "accuracy" of runs, by epoch.

    Args:
        records: runs with at least one epoch.
        styles: name of a run -> its line, 0 to `MAX_LINES` - 1; the others are grey.
    """
    return {
        what: _svg(functools.partial(_curves_figure, records, what, styles))
        for what in ("loss", "accuracy")
    }


def confusion_matrix(predictions: Predictions) -> str:
    """SVG of the counts and, by shade, of the share of each label's examples."""
    return _svg(functools.partial(_confusion_figure, predictions))


def roc(predictions: Predictions) -> str | None:
    """SVG of the ROC curve, or of one a class against the rest; None where none is defined."""
    if not np.isfinite(one_against_rest(predictions)).any():
        return None
    return _svg(functools.partial(_roc_figure, predictions))


# --- for a run's folder ---------------------------------------------------------------------


def run_figures(record: Record, folder: Path) -> None:
    """PNGs of a completed run: loss, accuracy, confusion (of test), and roc where it is defined.

    Raises:
        RecordError: the record lacks what is drawn.
    """
    test = record.predictions.of("test")
    shown = test if len(test.labels) else record.predictions.of("val")
    with _style(PAPER):
        for what in ("loss", "accuracy"):
            _png(_curves_figure([record], what, {record.name: 0}, PAPER), folder / f"{what}.png")
        _png(_confusion_figure(shown, PAPER), folder / "confusion.png")
        if np.isfinite(one_against_rest(shown)).any():
            _png(_roc_figure(shown, PAPER), folder / "roc.png")


# --- drawing --------------------------------------------------------------------------------


def _curves_figure(
    records: Sequence[Record], what: str, styles: Mapping[str, int], colours: Colours
) -> "Figure":
    figure, axes = _figure(4.6, 3.3, is_fixed=colours is PAPER)
    grey = [record for record in records if record.name not in styles]
    for record in [*grey, *(r for r in records if r.name in styles)]:
        _line(axes, record, what, styles.get(record.name), colours)
    _epochs(axes, max(len(record.epochs) for record in records))
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


def _epochs(axes: "Axes", last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    margin = max(0.3, (last - 1) * 0.03)
    axes.set_xlim(1 - margin, max(last, 1) + margin)


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
    figure, axes = _figure(side, side, is_fixed=False)
    _cells(axes, shares, colours)
    names = [_plain(name, 16) for name in predictions.classes]
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
    from matplotlib.patches import Rectangle

    num_classes = len(shares)
    for row, column in np.argwhere(shares > 0):
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, linewidth=0, facecolor=colours.accent,
                      alpha=float(round(0.06 + 0.94 * shares[row, column], 3)))
        )  # fmt: skip
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
                  color=colours.on_accent if share > 0.5 else colours.ink)  # fmt: skip


def _roc_figure(predictions: Predictions, colours: Colours) -> "Figure":
    figure, axes = _figure(4.2, 3.9, is_fixed=colours is PAPER)
    areas, values = one_against_rest(predictions), class_scores(predictions)
    classes = [1] if len(predictions.classes) == 2 else list(range(len(predictions.classes)))
    shown = [c for c in classes if np.isfinite(areas[c])]
    # Of many classes, those that the scores tell apart least.
    shown = sorted(sorted(shown, key=lambda c: float(areas[c]))[:MAX_LINES])
    axes.plot([0, 1], [0, 1], color=colours.muted, linewidth=0.8, dashes=(1, 2))
    for style, c in enumerate(shown):
        wrong, right = roc_points(values[:, c], predictions.labels == c)
        name = f"{_plain(predictions.classes[c], 16)}: {areas[c]:.3f}"
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


# --- canvas ---------------------------------------------------------------------------------


def _figure(width: float, height: float, *, is_fixed: bool) -> "tuple[Figure, Axes]":
    """A figure whose margins fit its labels: found by drawing it once more, or fixed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=None if is_fixed else "constrained")
    axes = figure.add_subplot()
    if is_fixed:
        figure.subplots_adjust(left=0.66 / width, right=1 - 0.12 / width, top=1 - 0.25 / height,
                               bottom=0.5 / height)  # fmt: skip
    return figure, axes


@contextmanager
def _style(colours: Colours) -> Iterator[None]:
    import matplotlib

    settings: dict[Any, Any] = {
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9,
        # Names of classes are text, whatever signs are in them.
        "text.parse_math": False, "axes.unicode_minus": True,
        "axes.edgecolor": colours.muted, "axes.labelcolor": colours.ink, "axes.linewidth": 0.7,
        "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none",
        "axes.grid": True, "axes.axisbelow": True, "grid.color": colours.grid,
        "grid.linewidth": 0.6, "text.color": colours.ink, "legend.fontsize": 8,
        "legend.title_fontsize": 8, "xtick.color": colours.muted, "ytick.color": colours.muted,
        "xtick.labelcolor": colours.ink, "ytick.labelcolor": colours.ink, "svg.fonttype": "none",
        "svg.hashsalt": "graft", "path.simplify": True,
    }  # fmt: skip
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box in a PNG, and by the browser in an SVG.
        warnings.filterwarnings("ignore", message="(?s).*Glyph.*missing", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*not applied", category=UserWarning)
        yield


def _svg(draw: Callable[[Colours], "Figure"]) -> str:
    """A figure as an SVG element that takes its width and its colours from the page."""
    out = io.StringIO()
    with _style(THEMED):
        draw(THEMED).savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    # Names of groups that nothing refers to would occur once a figure.
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text


def _png(figure: "Figure", path: Path) -> None:
    """By the canvas itself: `savefig` would draw the figure once more, to find its size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(130)
    figure.set_facecolor("white")
    canvas, light = FigureCanvasAgg(figure), {"compress_level": 3}
    write_whole(path, lambda part: canvas.print_png(part, pil_kwargs=light))  # type: ignore[no-untyped-call]


def _plain(text: str, length: int) -> str:
    """A name on one short line, without control characters."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    if len(line) <= length:
        return line
    # The end often tells names apart that begin alike.
    half = length // 2
    return f"{line[: length - half - 1]}\N{HORIZONTAL ELLIPSIS}{line[-half:]}"
