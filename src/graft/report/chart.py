"""A chart: one panel or several, each an SVG for the page, and all of them one PNG."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from graft.report.canvas import PAPER, Colours, plain, png, styled, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panel = Callable[["Axes", Colours], None]
Points = Sequence[tuple[float, float]]

_COLUMNS = 3
# Of the PNG, for what the page says beside it; in inches.
_HEAD, _NARROWEST = 0.3, 4.6


class Margins(NamedTuple):
    """Around the axes of a panel, in inches: finding them by drawing would take twice the time."""

    left: float = 0.75
    right: float = 0.15
    top: float = 0.32
    bottom: float = 0.5


MARGINS = Margins()


@dataclass(frozen=True)
class Chart:
    """One subject.

    Attributes:
        name: of its file.
        alt: what a reader hears who does not see it.
        key: what its marks mean, in a few words.
        caption: what else is to be known.
        panels: each draws itself.
        size: of a panel, in inches.
    """

    name: str
    title: str
    alt: str
    key: str
    caption: str
    panels: tuple[Panel, ...]
    size: tuple[float, float] = (4.6, 3.3)
    margins: Margins = MARGINS

    def svgs(self) -> list[str]:
        return [svg(functools.partial(self._figure, [panel], 1, 0)) for panel in self.panels]

    def write(self, path: Path) -> None:
        columns = min(len(self.panels), _COLUMNS)
        with styled(PAPER):
            figure = self._figure(self.panels, columns, _HEAD, PAPER)
            title = ": ".join(text for text in (self.title, self.key) if text)
            figure.suptitle(plain(title, 110), fontsize=8, x=0.01, ha="left")
            png(figure, path)

    def _figure(
        self, panels: Sequence[Panel], columns: int, head: float, colours: Colours
    ) -> "Figure":
        from matplotlib.figure import Figure

        width, height = self.size
        rows, margins = math.ceil(len(panels) / columns), self.margins
        across = max(columns * width, _NARROWEST if head else 0)
        up = rows * height + head
        figure = Figure(figsize=(across, up))
        for place, panel in enumerate(panels):
            row, column = divmod(place, columns)
            left, bottom = column * width + margins.left, (rows - 1 - row) * height + margins.bottom
            wide, high = width - margins.left - margins.right, height - margins.top - margins.bottom
            axes = figure.add_axes((left / across, bottom / up, wide / across, high / up))
            panel(axes, colours)
        return figure


# --- marks ----------------------------------------------------------------------------------


def draw_points(axes: "Axes", points: Points, label: str, look: dict[str, Any]) -> None:
    """Marks without a line; nothing, in the legend too, where there are none."""
    if points:
        across, up = zip(*points, strict=True)
        axes.plot(across, up, label=label, linestyle="none", **look)


def best_look(colours: Colours) -> dict[str, Any]:
    return {
        "marker": "*", "markersize": 11, "markerfacecolor": colours.lines[1],
        "markeredgecolor": colours.ink, "markeredgewidth": 0.8, "zorder": 6,
    }  # fmt: skip


def draw_legend(axes: "Axes") -> None:
    """Above the axes, where no point is."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=6, frameon=False,
                    fontsize=7.5, borderaxespad=0, borderpad=0.2, handlelength=1.3,
                    handletextpad=0.4, columnspacing=1)  # fmt: skip


# --- axes -----------------------------------------------------------------------------------


def value_axis(axes: "Axes", values: Sequence[float], name: str, *, is_up: bool = True) -> None:
    """An axis around values: logarithmic where they span more than it would show well."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    is_log = low > 0 and high / low > 30
    number_axis(axes, low, high, is_log=is_log, is_up=is_up, nbins=6)
    label = plain(name, 36)
    label += " (logarithmic)" if is_log and len(label) <= 20 else ""
    (axes.set_ylabel if is_up else axes.set_xlabel)(label)


def number_axis(
    axes: "Axes",
    low: float,
    high: float,
    *,
    is_log: bool = False,
    is_whole: bool = False,
    is_up: bool = False,
    nbins: int = 6,
) -> None:
    """An axis from `low` to `high` and a little more, with ticks at round numbers."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    axis, set_limits = (axes.yaxis, axes.set_ylim) if is_up else (axes.xaxis, axes.set_xlim)
    if is_log:
        (axes.set_yscale if is_up else axes.set_xscale)("log")
        axis.set_minor_locator(NullLocator())
        margin = max(high / low, 1.5) ** 0.06
        set_limits(low / margin, high * margin)
        ticks = _log_ticks(low / margin, high * margin)
    else:
        margin = (high - low) * 0.07 or abs(high) * 0.05 or 0.05
        margin = max(margin, 0.4) if is_whole else margin
        set_limits(low - margin, high + margin)
        locator = MaxNLocator(nbins=nbins, integer=is_whole, min_n_ticks=1)
        found = locator.tick_values(low - margin, high + margin)
        ticks = [float(tick) for tick in found if low - margin <= tick <= high + margin]
    axis.set_ticks(ticks, tick_texts(ticks, is_log=is_log))


def tick_texts(ticks: Sequence[float], *, is_log: bool = False) -> list[str]:
    """Short ones, with as many decimals as they need."""
    largest = max(map(abs, ticks), default=0.0)
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=largest)
    if is_log or largest >= 1e5 or 0 < step < 1e-4:
        return [_short(tick) for tick in ticks]
    places = next((d for d in range(6) if abs(step * 10**d - round(step * 10**d)) < 1e-6), 6)
    return [f"{tick:.{places}f}".replace("-", "\N{MINUS SIGN}") for tick in ticks]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; of a short range also 2 and 5 times those."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    ticks = [step * 10.0**power for power in powers for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return ticks[:: math.ceil(len(ticks) / 6)] if ticks else [low, high]


def _short(value: float) -> str:
    """ "1e-4", not "0.0001" or "1e-04"."""
    text = f"{value:.3g}" if value == 0 or abs(value) >= 0.001 else f"{value:.2e}"
    if "e" not in text:
        return text
    mantissa, _, power = text.partition("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(power)}".replace("-", "\N{MINUS SIGN}")
