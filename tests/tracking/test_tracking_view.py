"""The prepared view, in the browser: its format is MLflow's own and may change with a version."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graft.tracking import view

CHROMIUM = Path("/usr/bin/chromium")
OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture
def page() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=list(OPTIONS))
        yield browser.new_page(viewport={"width": 1800, "height": 1400})
        browser.close()


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium package")
def test_the_printed_lines_lead_to_the_four_runs_with_rates_and_accuracies(
    lab: Any, page: Any, server: Any
) -> None:
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)  # of a busy machine
    page.set_default_timeout(60_000)
    lab.train_all()
    server.command, link = (s.replace("5000", str(server.port)) for s in lab.opened[0].ui_lines())
    server.start()
    page.goto(link.replace("=CHART", "=TABLE"))
    for name, best in zip(lab.titles, ("0.7", "0.65", "0.9", "0.8"), strict=True):
        row = page.get_by_role("row").filter(has_text=name)
        index = row.first.get_attribute("row-index")
        cells = page.locator(f'[row-index="{index}"]')
        strategy, rate = name.split()[1], name.split("lr=")[1]
        deadline = time.monotonic() + 60  # cells are drawn one after the other
        while not {strategy, rate, best} <= (values := words_of(cells)):
            assert time.monotonic() < deadline, values
            time.sleep(0.1)
    first = page.locator('[row-index="0"]').filter(has_text="lr=")
    expect(first.first).to_contain_text("02 fine_tune lr=0.001")  # best by validation

    page.goto("about:blank")
    page.goto(link)
    expect(page.get_by_text("Parallel Coordinates")).to_be_visible()
    for chart in ("best/val_accuracy", "val/accuracy", "test/accuracy", "val/loss"):
        expect(page.get_by_text(chart, exact=True).first).to_be_visible()
    for name in lab.titles:
        expect(page.get_by_text(name, exact=True).first).to_be_visible()


def words_of(cells: Any) -> set[str]:
    return set(" ".join(cells.all_inner_texts()).split())


def test_a_view_fits_into_a_tag_however_many_axes_there_are() -> None:
    axes = [f"optimizer.some_setting_{i}" for i in range(20)]
    text = view.text("demo-123456", "demo", axes, "val_accuracy")
    assert len(text) < 20_000
    state = json.loads(json.loads(text)["state"])
    assert state["compareRunCharts"][0]["selectedParams"] == axes


@pytest.mark.parametrize(
    ("metric", "ascending"), [("val_loss", True), ("val_accuracy", False), ("val_f1", False)]
)
def test_the_best_run_comes_first(metric: str, ascending: bool) -> None:
    state = json.loads(json.loads(view.text("demo-1", "demo", ["a"], metric))["state"])
    assert (state["orderByKey"], state["orderByAsc"]) == (f"metrics.`best/{metric}`", ascending)
