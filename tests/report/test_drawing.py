"""Figures are drawn in another process, and are there when they are wanted."""

import filecmp
import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from graft.aside import Aside
from graft.record import FIGURES, read_runs
from graft.report import figures
from graft.report.drawing import Drawing, _Given

NAMES = ["accuracy.png", "confusion.png", "loss.png", "roc.png"]


def found(record: Any) -> list[str]:
    return sorted(path.name for path in (record.path / FIGURES).glob("*"))


def test_every_run_has_its_figures_before_it_is_told(binary: Any) -> None:
    records = [record for record in read_runs(binary.path) if record.is_completed]
    drawing, told = Drawing(), dict[str, list[str]]()
    for one in records:
        drawing.add(one, lambda one=one: told.__setitem__(one.name, found(one)))  # type: ignore[misc]
    drawing.finish()
    assert told == {one.name: NAMES for one in records}


def test_a_process_that_is_killed_costs_no_figure(binary: Any) -> None:
    first, second = [record for record in read_runs(binary.path) if record.is_completed][:2]
    drawing = Drawing()
    drawing.add(first, lambda: None)
    drawing._waiting.join()
    assert drawing._own is not None
    os.kill(drawing._own.pid, signal.SIGKILL)
    drawing.add(second, lambda: None)
    drawing._waiting.join()
    assert [found(first), found(second)] == [NAMES, NAMES]


def test_what_cannot_be_drawn_is_said_once(binary: Any, caplog: pytest.LogCaptureFixture) -> None:
    records = [record for record in read_runs(binary.path) if record.is_completed][:2]
    told: list[str] = []
    drawing = Drawing()
    with caplog.at_level(logging.WARNING):
        for one in records:
            (one.path / "predictions.parquet").write_bytes(b"damaged")
            drawing.add(one, lambda one=one: told.append(one.name))  # type: ignore[misc]
        drawing.finish()
    assert sorted(told) == sorted(one.name for one in records)
    assert [record.getMessage()[:20] for record in caplog.records] == ["The figures of a run"]


def test_what_fails_after_a_figure_keeps_nobody_waiting(binary: Any) -> None:
    """The folder may be gone when the run is told to be ended."""
    drawing, ended = Drawing(), []
    drawing.warm_up(None)
    drawing._put(_Given(None, lambda: 1 / 0, None))
    drawing._put(_Given(None, lambda: ended.append(True), None))
    waiting = threading.Thread(target=drawing._waiting.join, daemon=True)
    waiting.start()
    waiting.join(60)
    assert ended and not waiting.is_alive()


def test_figures_for_a_folder_and_for_the_page_may_be_drawn_at_once(
    binary: Any, tmp_path: Path
) -> None:
    """matplotlib's settings are of the whole process: one's colours must not be the other's."""
    record = read_runs(binary.path)[0]
    styles = {record.name: 0}
    before = dict(matplotlib.rcParams)
    figures.run_figures(record, tmp_path / "alone")
    alone = figures.curves([record], styles)

    def pngs(number: int) -> bool:
        folder = tmp_path / str(number)
        figures.run_figures(record, folder)
        names = [path.name for path in folder.iterdir()]
        return not filecmp.cmpfiles(tmp_path / "alone", folder, names, shallow=False)[1]

    with ThreadPoolExecutor(2) as pool:
        drawn = pool.map(pngs, range(8))
        assert all(figures.curves([record], styles) == alone for _ in range(8))
        assert all(drawn)
    assert dict(matplotlib.rcParams) == before


def test_a_first_import_of_what_draws_says_nothing(tmp_path: Path) -> None:
    """On a new machine matplotlib looks for fonts, and would say so among the epochs."""
    code = (
        "import logging; logging.basicConfig(level=logging.INFO);"
        "from graft.report import page; page.warm_up()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MPLCONFIGDIR": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert list(tmp_path.glob("fontlist-*.json"))
    assert done.stdout + done.stderr == ""


PAGE = """
import sys
from pathlib import Path
from graft.report import page
from graft.report.__main__ import write_report
page.warm_up()
before = set(sys.modules)
write_report(Path(sys.argv[1]))
print(*sorted(set(sys.modules) - before))
"""


def test_a_report_imports_no_library_that_was_not_imported_in_advance(binary: Any) -> None:
    """In the last second of a sweep everybody waits for it."""
    done = subprocess.run(
        [sys.executable, "-c", PAGE, str(binary.path)], capture_output=True, text=True, check=True
    )
    large = {"matplotlib", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "jinja2", "optuna"}
    found = {name for name in done.stdout.split() if name.partition(".")[0] in large}
    # What the first file of a kind takes: a millisecond each.
    assert found <= {
        "pandas.core.arrays.arrow.extension_types", "pyarrow.pandas_compat",
        "pyarrow.vendored.version",
    }  # fmt: skip


@pytest.mark.parametrize("has_process", [True, False])
def test_what_draws_may_be_imported_in_advance(binary: Any, has_process: bool) -> None:
    """In the process that is there, or else in one for figures."""
    record = read_runs(binary.path)[0]
    aside = Aside() if has_process else None
    drawing = Drawing()
    drawing.warm_up(aside)
    drawing._waiting.join()
    process = aside or drawing._own
    assert process is not None and (drawing._own is None) is has_process
    drawing.add(record, lambda: None, aside)
    drawing.finish()
    assert found(record) == NAMES
    process.end()
