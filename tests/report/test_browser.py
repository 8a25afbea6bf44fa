"""What only a browser can say of the page."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graft.record import REPORT, SEARCH
from graft.report.__main__ import write_report

CHROMIUM = Path("/usr/bin/chromium")
OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium package"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=list(OPTIONS))
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_narrow_screen_and_asks_for_nothing(
    browser: Any, digits: Any, scheme: str
) -> None:
    write_report(digits.path)
    page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme=scheme)
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto((digits.path / REPORT).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert said == []
    luminance = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance == "rgb(14, 17, 22)") == (scheme == "dark")
    page.close()


def test_the_page_is_readable_in_a_sandboxed_frame(browser: Any, binary: Any) -> None:
    """As MLflow shows it."""
    write_report(binary.path)
    page = browser.new_page()
    page.goto("about:blank")
    text = (binary.path / REPORT).read_text(encoding="utf-8")
    page.evaluate(
        "text => { const f = document.createElement('iframe'); f.sandbox = 'allow-scripts';"
        " f.srcdoc = text; document.body.append(f); }",
        text,
    )
    frame = page.frame_locator("iframe")
    assert "wins on validation" in frame.locator(".answer .lead").inner_text()
    page.close()


@pytest.mark.parametrize("width", [400, 1200])
def test_what_a_search_learned_is_seen(browser: Any, binary: Any, width: int) -> None:
    (binary.path / SEARCH).write_text(json.dumps(_search(binary.asked[2]["run"])))
    write_report(binary.path)
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto((binary.path / REPORT).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    section = page.locator("#search")
    assert "5 trials: 4 completed, 1 failed." in section.inner_text()
    drawn = section.locator("svg")
    assert drawn.count() == 3
    for i in range(drawn.count()):
        box = drawn.nth(i).bounding_box()
        assert box["width"] > 250 and box["height"] > 150
    fills = "[...document.querySelectorAll('#search use')].map(mark => getComputedStyle(mark).fill)"
    assert len({fill for fill in page.evaluate(fills) if fill.startswith("color(srgb")}) == 4
    section.locator("pre.copy code").click()
    assert page.evaluate("getSelection().toString()") == "graft strategy=fine_tune"
    section.get_by_role("link", name="in All runs").click()
    assert page.evaluate("document.querySelector(':target').dataset.run") == binary.asked[2]["run"]
    page.close()


def _search(run: str) -> dict[str, Any]:
    trials = [
        {
            "number": i, "state": "completed" if i else "failed", "steps": {"1": 0.4, "2": 0.5},
            "params": {"optimizer.lr": 10**-i}, "values": [0.5 + i / 10] if i else None,
            "reason": None, "seconds": None, "same_as": None, "folder": run if i == 4 else None,
        }
        for i in range(5)
    ]  # fmt: skip
    return {
        "format": 1, "study_name": "search", "storage": "sqlite:////study.db", "pruner": None,
        "sampler": "TPESampler", "n_trials": 5, "stopped": None, "trials": trials, "best": [4],
        "objectives": [{"name": "val_accuracy", "direction": "maximize"}],
        "params": {"optimizer.lr": {"kind": "float", "log": True, "low": 1e-5, "high": 0.1}},
        "importances": None, "best_command": "graft strategy=fine_tune", "best_experiment": None,
    }  # fmt: skip
