import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from graft.metrics import confusion
from graft.record import Predictions, read_runs
from graft.report import figures
from graft.report.canvas import PAPER


def _predictions(classes: tuple[str, ...], size: int = 60) -> Predictions:
    random = np.random.default_rng(0)
    labels = np.arange(size) % len(classes)
    values = random.dirichlet(np.ones(len(classes)), size).astype(np.float32)
    names = np.full(size, "test", dtype=object)
    return Predictions(names, names, labels, values, classes)


@pytest.mark.parametrize("num_classes", [3, 10, 20, 100])
def test_a_confusion_matrix_is_drawn_for_any_number_of_classes(num_classes: int) -> None:
    svg = figures.confusion_matrix(_predictions(tuple(f"c{i}" for i in range(num_classes)), 200))
    root = ElementTree.fromstring(svg)
    texts = ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("}text")]
    assert "c0" in texts
    assert len([t for t in texts if t.startswith("c")]) <= 2 * 25


def test_the_cells_of_many_classes_are_one_artist() -> None:
    """Each by itself they took a hundred classes eight times as long."""
    one = _predictions(tuple(f"c{i}" for i in range(100)), 200)
    (axes,) = figures._confusion_figure(one, PAPER).axes
    (cells,) = axes.collections
    assert len(cells.get_paths()) == np.count_nonzero(confusion(one))
    assert not axes.patches


def test_counts_can_be_read_on_every_shade() -> None:
    """At least 3 to 1, as for large text."""
    for share in np.linspace(0.01, 1, 100):
        alpha = 0.06 + 0.94 * share
        paper = 1 - alpha * (1 - np.array(to_rgb(PAPER.accent)))
        ink = to_rgb(figures._ink_on(float(share), PAPER))
        dark, light = sorted(_luminance(colour) for colour in (paper, ink))
        assert (light + 0.05) / (dark + 0.05) >= 3, share


def _luminance(colour: Any) -> float:
    """WCAG 2's relative luminance."""
    parts = np.asarray(colour)
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_names_are_drawn_as_they_are_and_on_one_line() -> None:
    svg = figures.confusion_matrix(_predictions(("$\\frac{a}", "<b>&", "\n日本", "_hidden")))
    texts = "".join(ElementTree.fromstring(svg).itertext())
    for name in ("$\\frac{a}", "<b>&", "日本", "_hidden"):
        assert name in texts


def test_curves_take_their_colours_from_the_page(binary: Any) -> None:
    records = read_runs(binary.path)
    svgs = figures.curves(records, {r.name: i for i, r in enumerate(records)})
    for svg in svgs.values():
        assert "var(--s0)" in svg and "var(--ink)" in svg
        assert "#0100" not in svg
        assert " width=" not in svg.partition(">")[0]


def test_a_run_that_diverged_does_not_flatten_the_others(maker: Any, tmp_path: Path) -> None:
    made = maker(tmp_path / "s")
    made.run({"seed": "0"})
    path = made.run({"seed": "1"}, status="diverged", epochs=2)
    table = (path / "metrics.csv").read_text().splitlines()
    (path / "metrics.csv").write_text("\n".join([*table[:2], "2,9e20,0.5,9e20,0.5,1,1"]) + "\n")
    svg = figures.curves(read_runs(made.path), {"seed=0": 0, "seed=1": 1})["loss"]
    ticks = [t for t in ElementTree.fromstring(svg).itertext() if t.strip()]
    assert not [t for t in ticks if "e+" in t or "1e" in t or "20" in t]


def test_roc_is_absent_where_a_class_is() -> None:
    one = _predictions(("a", "b", "c"))
    assert figures.roc(one) is not None
    none = Predictions(one.ids, one.splits, np.zeros_like(one.labels), one.scores, one.classes)
    assert figures.roc(none) is None


def test_the_same_figure_is_the_same_text() -> None:
    one = _predictions(("a", "b", "c"))
    assert figures.roc(one) == figures.roc(one)


def test_a_run_has_pictures_of_its_figures(digits: Any, tmp_path: Path) -> None:
    figures.run_figures(read_runs(digits.path)[0], tmp_path / "figures")
    found = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert found == ["accuracy.png", "confusion.png", "loss.png", "roc.png"]
    for name in found:
        with Image.open(tmp_path / "figures" / name) as picture:
            assert picture.width > 400
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20
