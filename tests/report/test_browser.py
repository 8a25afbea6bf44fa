"""What only a browser can say of the page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graft.record import REPORT
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
