"""What a person sees of a launch: counts that add up, the time left, a table on a terminal."""

import contextlib
import io
import logging
import math
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hydra_plugins.gpu_launcher import _view
from hydra_plugins.gpu_launcher._array import Array
from hydra_plugins.gpu_launcher._job import Job
from hydra_plugins.gpu_launcher._view import LiveView, View, span, view

ROOT = Path(__file__).resolve().parents[2]


def array(*nums: int, label: str = "a={}") -> Array:
    return [Job(num, label.format(num), ()) for num in nums]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What is logged, one after the other."""
    caplog.set_level(logging.INFO, logger=_view.__name__)
    yield caplog.messages


def begun(lines: pytest.LogCaptureFixture) -> list[str]:
    return [message.split(":")[0] for message in lines.messages]


# --- counts -----------------------------------------------------------------------------------


def test_what_begins_is_counted_among_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shown = View(num_jobs=8, num_slots=2)
    shown.skip(2)
    shown.begins(array(2, 3), "gpu 0")
    shown.begins(array(4), "gpu 1")
    shown.ends(array(4), num_ended=1, num_failed=0)
    shown.begins(array(5), "")
    assert begun(caplog) == ["3-4 of 8 on gpu 0", "5 of 8 on gpu 1", "6 of 8"]
    assert caplog.messages[0].endswith("jobs 2, 3 together: a=2 | a=3")


def test_no_count_exceeds_the_whole_after_retries_and_halves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    shown = View(num_jobs=4, num_slots=1)
    shown.begins(array(0, 1, 2, 3), "")
    shown.ends(array(0, 1, 2, 3), num_ended=0, num_failed=0)  # its process died
    shown.begins(array(0, 1), "")
    shown.ends(array(0, 1), num_ended=1, num_failed=0)  # job 1 is retried
    shown.begins(array(2, 3), "")
    shown.ends(array(2, 3), num_ended=2, num_failed=1)
    shown.begins(array(1), "")
    shown.ends(array(1), num_ended=1, num_failed=1)
    assert begun(caplog) == ["1-4 of 4", "1-2 of 4", "2-3 of 4", "4 of 4"]
    assert (shown.num_done, shown.num_failed, shown.running) == (4, 2, {})


# --- how far ----------------------------------------------------------------------------------


def test_what_a_job_tells_is_its_own_or_that_of_all_in_its_process() -> None:
    shown = View(num_jobs=3, num_slots=2)
    running = array(0, 1)
    shown.begins(running, "gpu 0")
    shown.begins(array(2), "gpu 1")
    shown.told(None, 0.25, "reads", running)
    shown.told(1, 0.5, "loss\n 0.1", running)
    shown.told(2, 1.0, "not of this array", running)
    found = [(one.share, one.text) for one in shown.running.values()]
    assert found == [(0.25, "reads"), (0.5, "loss 0.1"), (0.0, "")]


@pytest.mark.parametrize(("told", "kept"), [(-1.0, 0.0), (7.0, 1.0), (math.nan, 0.0)])
def test_a_share_that_makes_no_sense_is_none(told: float, kept: float) -> None:
    shown = View(num_jobs=1, num_slots=1)
    shown.begins(array(0), "")
    shown.told(0, told, "", array(0))
    assert shown.running[0].share == kept


def test_the_time_left_is_what_the_rest_takes_at_this_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    shown = View(num_jobs=6, num_slots=2)
    now = 1000.0  # was planned for so long
    with shown:
        shown.skip(2)
        assert shown.left_s() is None
        shown.begins(array(2), "")
        shown.begins(array(3), "")
        now += 10
        shown.told(2, 0.01, "", array(2))
        assert shown.left_s() is None  # too little to say
        shown.told(3, 0.5, "", array(3))
        shown.ends(array(2), num_ended=1, num_failed=1)
        left_s = shown.left_s()
    assert left_s == pytest.approx(10 / 1.5 * 2.5)


def test_nothing_to_do_is_no_time_left() -> None:
    shown = View(num_jobs=2, num_slots=1)
    shown.skip(2)
    assert shown.left_s() is None


@pytest.mark.parametrize(("seconds", "words"), [(40, "40 s"), (720, "12 min"), (12600, "3.5 h")])
def test_a_time_in_words(seconds: float, words: str) -> None:
    assert span(seconds) == words


# --- lines of jobs ----------------------------------------------------------------------------


def test_lines_of_several_slots_have_their_slot_in_front(capsys: Any) -> None:
    View(2, num_slots=2).said("one", "gpu 0", is_error=False)
    View(2, num_slots=1).said("two", "gpu 0", is_error=True)
    found = capsys.readouterr()
    assert (found.out, found.err) == ("[gpu 0] one\n", "two\n")


def test_a_letter_that_our_terminal_lacks_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = io.BytesIO()
    with io.TextIOWrapper(kept, encoding="latin-1") as out:
        monkeypatch.setattr(sys, "stdout", out)
        View(1, 1).said("é \ufffd 漢", "", is_error=False)
        assert kept.getvalue() == b"\xe9 \\ufffd \\u6f22\n"


def test_that_nobody_listens_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    out = os.fdopen(writing, "w", buffering=1)
    monkeypatch.setattr(sys, "stdout", out)
    View(1, 1).said("words", "", is_error=False)
    with pytest.raises(OSError):
        out.close()


# --- the table --------------------------------------------------------------------------------


def table(shown: LiveView, *, width: int = 80, height: int = 24) -> list[str]:
    shown._console = console = Console(
        file=io.StringIO(), width=width, height=height, record=True, force_terminal=True
    )
    console.print(shown._table())
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_table_has_a_line_for_each_job_and_one_for_all() -> None:
    shown = LiveView(num_jobs=9, num_slots=2)
    shown.begins(array(0, 1), "gpu 0")
    shown.begins(array(2), "gpu 1")
    shown.ends(array(2), num_ended=1, num_failed=1)
    shown.told(1, 0.5, "loss 0.25", array(0, 1))
    first, second, last = table(shown)
    assert first.startswith("gpu 0 a=0 ")
    assert second.startswith("gpu 0 a=1 ") and second.endswith("loss 0.25")
    assert last.startswith("1 of 9 done, 1 failed, 2 running, 6 waiting, about ")


def test_what_looks_like_markup_is_shown_as_it_is() -> None:
    shown = LiveView(num_jobs=1, num_slots=1)
    shown.begins(array(0, label="x=[red]漢é[/] {}"), "[bold]0")
    shown.told(0, 0.1, "[/] :smile:", array(0))
    line, _ = table(shown)
    assert line.startswith("[bold]0 x=[red]漢é[/] 0 ") and line.endswith("[/] :smile:")


@pytest.mark.parametrize("height", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("width", [20, 80])
def test_the_table_fits_on_the_terminal(width: int, height: int) -> None:
    shown = LiveView(num_jobs=50, num_slots=20)
    for num in range(20):
        shown.begins(array(num, label="some.long.key=with,a,long,value " * 3 + "{}"), f"gpu {num}")
        shown.told(num, 0.5, "epoch 3, loss 0.25, accuracy 0.9 " * 3, array(num))
    lines = table(shown, width=width, height=height)
    assert len(lines) < max(height, 3)
    assert width < 80 or len(lines) < 3 or lines[0].startswith("gpu 0 some.long")
    assert lines[-1].startswith("0 of 50 done")
    assert len(lines) < 3 or lines[-2].startswith("and ")


def test_a_launch_of_which_all_is_done_can_be_shown() -> None:
    shown = LiveView(num_jobs=2, num_slots=1)
    shown.skip(2)
    assert table(shown) == ["2 of 2 done, 0 running"]


@pytest.mark.slow
def test_the_documented_example_does_what_is_said_of_it(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "launcher.md").read_text()
    (tmp_path / "epochs.py").write_text(text.split("```python\n")[3].split("```")[0])
    command = next(line.split() for line in text.splitlines() if line.startswith("    python epoc"))
    done = subprocess.run(
        [sys.executable, *command[1:]], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "2 of 2" in done.stdout
    assert "failed" not in done.stdout


# --- on a terminal ----------------------------------------------------------------------------

APP = """
import logging, sys, time, hydra
from hydra_plugins.gpu_launcher import progress

@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    assert progress.is_live()
    for step in range(4):
        progress.tell(None, step / 4, f"step {step}")
        time.sleep(0.5)  # the table is drawn four times a second
    print("printed", cfg.x)
    logging.getLogger("app").warning("logged %s", cfg.x)
    print("complained", cfg.x, file=sys.stderr)

main()
"""


def on_a_terminal(tmp_path: Path, **streams: Any) -> tuple[str, str]:
    """(what a terminal of 80 x 10 was sent, what else was printed) of a sweep of two jobs."""
    (tmp_path / "app.py").write_text(APP)
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    settings = ["hydra.launcher.cpu_slots=1", "+x=[red],1"]
    started = subprocess.Popen(
        [sys.executable, "app.py", "-m", "hydra/launcher=slots", *settings],
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "10"},
        **{"stdin": theirs, "stdout": theirs, "stderr": theirs, **streams},
    )
    os.close(theirs)
    seen = b""
    with started:
        while started.poll() is None or not seen.endswith(b"\0"):
            try:
                chunk = os.read(ours, 1 << 16)
            except BlockingIOError:
                time.sleep(0.02)
                continue
            except OSError:  # the terminal was closed on the other side
                break
            seen += chunk
        printed = started.stdout.read().decode() if started.stdout else ""
    os.close(ours)
    return seen.decode(), printed


@pytest.mark.slow
def test_on_a_terminal_lines_stay_and_the_table_goes(tmp_path: Path) -> None:
    seen, _ = on_a_terminal(tmp_path)
    for words in ("step 2", "0 of 2 done, 1 running, 1 waiting", "1 of 2 done"):
        assert words in seen
    for x in ("['red']", "1"):
        for verb in ("printed", "logged", "complained"):
            assert f"{verb} {x}" in seen
    assert "Traceback" not in seen
    assert seen.rfind("\x1b[?25h") > seen.rfind("\x1b[?25l")  # the cursor is back


@pytest.mark.slow
def test_what_goes_to_a_file_still_does_when_errors_go_to_a_terminal(tmp_path: Path) -> None:
    seen, printed = on_a_terminal(tmp_path, stdout=subprocess.PIPE)
    assert "1 of 2 done" in seen and "complained 1" in seen
    assert "printed 1\n" in printed and "logged 1\n" in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_without_a_terminal_there_are_lines(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: term == "dumb", raising=False)
    assert type(view(1, 1, is_apart=True)) is View


def test_a_terminal_that_is_gone_does_not_hide_what_ended_the_launch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    terminal = os.fdopen(theirs, "w", buffering=1)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal)
        with pytest.raises(KeyboardInterrupt), LiveView(1, 1) as shown:
            shown._live.refresh()
            os.close(ours)
            with contextlib.suppress(OSError):
                print("a line that is lost", file=sys.stderr)
            raise KeyboardInterrupt
        assert sys.stderr is terminal
    with contextlib.suppress(OSError):
        terminal.close()
