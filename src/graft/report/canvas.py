"""What figures are drawn on: colours, style, a figure as SVG for the page or as PNG for a folder.

The one place that draws with matplotlib's canvases. Colours in an SVG are names of the page's own
(CSS variables), so that the same figure is right in light and in dark.
"""

import io
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.record import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# On its first import for a user it says that it has looked for fonts: in the middle of our log.
logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)

# Shapes tell lines apart without colour; page.html.j2 draws the same ones in its legend.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Steps from the first of an order, pale, to the last, which is the accent.
SHADES = (0.22, 0.35, 0.48, 0.61, 0.74, 0.87, 1.0)


@dataclass(frozen=True)
class Colours:
    """Of the paper: what `ink` and the others are in a PNG, and stand for in an SVG."""

    ink: str
    muted: str
    grid: str
    accent: str
    on_accent: str
    lines: tuple[str, ...]
    shades: tuple[str, ...]


def _on_white(share: float) -> str:
    """The accent, diluted."""
    parts = (255 + share * (part - 255) for part in (0x00, 0x72, 0xB2))
    return "#" + "".join(f"{round(part):02x}" for part in parts)


# Okabe and Ito's colours, which most colour-blind readers can tell apart, without the yellow.
PAPER = Colours(
    "#1b1f24", "#5b6570", "#d8dee4", "#0072b2", "#ffffff",
    ("#0072b2", "#d55e00", "#009e73", "#b5488a", "#c98500", "#2a9fd6", "#6a5acd", "#59636e"),
    tuple(map(_on_white, SHADES)),
)  # fmt: skip
# Placeholders, each replaced by a variable of the page.
THEMED = Colours(
    "#010001", "#010002", "#010003", "#010004", "#010005",
    tuple(f"#0100{16 + i:02x}" for i in range(len(MARKERS))),
    tuple(f"#0100{32 + i:02x}" for i in range(len(SHADES))),
)  # fmt: skip
_VARIABLES = {
    THEMED.ink: "var(--ink)", THEMED.muted: "var(--muted)", THEMED.grid: "var(--line)",
    THEMED.accent: "var(--accent)", THEMED.on_accent: "var(--on-accent)",
    **{colour: f"var(--s{i})" for i, colour in enumerate(THEMED.lines)},
    **{colour: f"color-mix(in srgb, var(--accent) {share:.0%}, var(--paper))"
       for colour, share in zip(THEMED.shades, SHADES, strict=True)},
}  # fmt: skip


def figure_of(width: float, height: float, *, is_fixed: bool) -> "tuple[Figure, Axes]":
    """A figure whose margins fit its labels: found by drawing it once more, or fixed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=None if is_fixed else "constrained")
    axes = figure.add_subplot()
    if is_fixed:
        figure.subplots_adjust(left=0.66 / width, right=1 - 0.12 / width, top=1 - 0.25 / height,
                               bottom=0.5 / height)  # fmt: skip
    return figure, axes


def epoch_axis(axes: "Axes", last: int) -> None:
    """Epochs 1 to `last`."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    margin = max(0.3, (last - 1) * 0.03)
    axes.set_xlim(1 - margin, max(last, 1) + margin)


# matplotlib's settings, and the filters of warnings, are those of the whole process.
_STYLING = threading.RLock()


@contextmanager
def styled(colours: Colours) -> Iterator[None]:
    """What is drawn in here has this look; by one thread at a time."""
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
    with _STYLING, matplotlib.rc_context(settings), warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box in a PNG, and by the browser in an SVG.
        warnings.filterwarnings("ignore", message="(?s).*Glyph.*missing", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*not applied", category=UserWarning)
        yield


def svg(draw: Callable[[Colours], "Figure"]) -> str:
    """A figure as an SVG element that takes its width and its colours from the page."""
    out = io.StringIO()
    with styled(THEMED):
        draw(THEMED).savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    # Names of groups that nothing refers to would occur once a figure.
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text)
    text = _MARKS.sub(_shared_look, text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text


# Marks that look the same, but for translucent ones, which would become one pane.
_MARKS = re.compile(
    r'<g( clip-path="[^"]*")?>\s*<use [^>]*? style="((?!opacity|[^"]* opacity)[^"]*)"/>'
    r'(?:\s*<use [^>]*? style="\2"/>)+\s*</g>'
)


def _shared_look(group: re.Match[str]) -> str:
    """A group of marks that says once how they look: of a thousand marks, a third of the text."""
    look = f' style="{group[2]}"'
    marks = group[0].replace(look, "").replace("<g", f"<g{look}", 1)
    marks = re.sub(r' ([xy]="-?\d+\.\d\d)\d+"', r' \1"', marks)
    return re.sub(r">\s+<", "><", marks)


def png(figure: "Figure", path: Path) -> None:
    """By the canvas itself: `savefig` would draw the figure once more, to find its size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(130)
    figure.set_facecolor("white")
    canvas, light = FigureCanvasAgg(figure), {"compress_level": 3}
    write_whole(path, lambda part: canvas.print_png(part, pil_kwargs=light))  # type: ignore[no-untyped-call]


def plain(text: str, length: int) -> str:
    """A name on one short line, without control characters."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    if len(line) <= length:
        return line
    # The end often tells names apart that begin alike.
    half = length // 2
    return f"{line[: length - half - 1]}\N{HORIZONTAL ELLIPSIS}{line[-half:]}"
