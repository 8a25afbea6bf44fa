"""The end of a command where something is in its way: another process, a damaged record, a full
disk, nobody who reads what it prints, somebody who does not want to wait for it."""

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from omegaconf import OmegaConf
from tests.home import Home

from graft import app
from graft.config import RunConfig
from graft.identity import run_identity
from graft.lock import Lock
from graft.record import EPOCHS, LOCK, RUN, SWEEP, Record, RunFolder, write_json
from graft.settings import resolve
from graft.sweep import Asked, Driver, folder_of, prepare
from graft.sweep import driver as driver_module


class Tracking:
    """MLflow, of which only the end matters here."""

    def __init__(self) -> None:
        self.finished: list[str] | None = None

    def finish(self, records: Sequence[Record], report: Path, results: Path) -> None:
        self.finished = [one.name for one in records]

    def ui_lines(self) -> list[str]:
        return ["a line to copy"]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Of two runs: one has failed, the other was killed."""
    folder = tmp_path / "s"
    for name, status in (("seed=0", "failed"), ("seed=1", "running")):
        RunFolder(folder / name).write_run({"status": status, "choices": {"seed": name[-1]}})
    runs = [{"run": f"seed={seed}", "choices": {"seed": f"{seed}"}} for seed in (0, 1)]
    write_json(folder / SWEEP, {"runs": runs})
    return folder


def driven(sweep: Path) -> tuple[Driver, Tracking]:
    driver, tracking = Driver(sweep), Tracking()
    driver._tracking = cast(Any, tracking)
    return driver, tracking


def python(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60,
    )  # fmt: skip


# --- another process --------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "expected"), [(130, 130), (0, 2)])
def test_a_sweep_that_another_process_drives_is_left_to_it(
    sweep: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
    expected: int,
) -> None:
    """Stopped while it was checked; or a search that has no trial left to begin."""
    asked = {"output_dir": str(sweep.parent), "sweep": {"name": "s", "dry_run": False}}
    monkeypatch.setattr(app, "_multirun", OmegaConf.create(asked))
    began = time.monotonic()
    with Lock(sweep / LOCK):
        assert app._end(code) == expected
    assert time.monotonic() - began < driver_module.WAIT_S  # nobody has waited for it
    assert f"{sweep} is being worked on by process {os.getpid()}" in capsys.readouterr().err
    assert not (sweep / "results.csv").exists()


def test_a_sweep_that_is_stopped_while_it_begins_can_be_ended(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(driver_module, "_write_down", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare([Asked("run", {}, tiny_config)], command="graft")
    Driver(folder_of(tiny_config), is_alone=False, wait_s=0.0)


# --- records ----------------------------------------------------------------------------------


def test_a_damaged_record_does_not_keep_mlflow_from_its_end(
    sweep: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (sweep / "seed=0" / RUN).write_text('{"status": "compl')
    driver, tracking = driven(sweep)
    assert not driver.finish()
    assert tracking.finished == ["seed=1"]
    assert "seed=0 holds no run" in caplog.text
    assert "run.json is missing or damaged" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("epochs", [None, "", "epoch,val_accuracy\n1,0.5\n", "epoch\n1\n2\n"])
def test_a_completed_run_whose_metrics_are_damaged_is_trained_anew(
    tiny_config: RunConfig, epochs: str | None
) -> None:
    asked = Asked("run", {}, resolve(tiny_config))
    identity = run_identity(asked.config)
    info = {"status": "completed", "identity": identity, "metric": "val_accuracy", "best_epoch": 2}
    RunFolder(asked.folder).write_run(info)
    if epochs is not None:
        (asked.folder / EPOCHS).write_text(epochs)
    driver = Driver(folder_of(asked.config))
    prepared = driver.begin([asked], [], "graft")
    driver.leave()
    assert prepared.arrays == [[0]] and not prepared.done
    assert not (asked.folder / RUN).exists()  # who trains it would else take it as it is


# --- what cannot be written, or be read -------------------------------------------------------


def test_a_full_disk_costs_the_report_and_nothing_else(
    sweep: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    driver, tracking = driven(sweep)
    monkeypatch.setattr(tempfile, "mkstemp", full)
    assert not driver.finish()
    assert "The report cannot be written: No space left on device." in caplog.text
    out = capsys.readouterr().out
    assert "failed" in out and "running" in out and "report:" not in out
    assert tracking.finished == ["seed=0", "seed=1"]


@pytest.mark.parametrize("is_pipe", [True, False])
def test_that_nobody_reads_the_table_costs_nothing_else(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, is_pipe: bool
) -> None:
    if is_pipe:
        theirs, ours = os.pipe()
        os.close(theirs)
    else:
        ours = os.open("/dev/full", os.O_WRONLY)
    stream = os.fdopen(ours, "w", buffering=1)
    driver, tracking = driven(sweep)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        assert not driver.finish()
    with contextlib.suppress(OSError):
        stream.close()
    assert tracking.finished == ["seed=0", "seed=1"]
    assert (sweep / "report.html").is_file()


@pytest.mark.parametrize(
    ("rate", "more", "code"),
    [("-1", (), 2), pytest.param("1e-3", ("sweep.dry_run=true",), 0, marks=pytest.mark.slow)],
)
def test_what_does_not_begin_leaves_no_password_in_the_folder_of_a_sweep(
    tiny_pictures: Path, tmp_path: Path, rate: str, more: Sequence[str], code: int
) -> None:
    home = Home(tmp_path, tiny_pictures, "batch_size=4")
    write_json(home.outputs / "s" / SWEEP, {"runs": []})
    home.graft(f"optimizer.lr=1e-2,{rate}", "sweep.name=s", "strategy=head_only",
               "tracking.uri=postgresql://user:s3cret@host/db", *more, code=code)  # fmt: skip
    assert [path.name for path in (home.outputs / "s").iterdir()] == [SWEEP]


# --- signals ----------------------------------------------------------------------------------

HUNG_UP = """
import signal, sys, time
from graft import app

def train():
    signal.raise_signal(signal.SIGHUP)
    time.sleep(0.1)

signal.signal(signal.SIGHUP, getattr(signal, sys.argv.pop()))
app._hydra_main = train
sys.exit(app.main())
"""


@pytest.mark.parametrize(("before", "code"), [("SIG_DFL", 129), ("SIG_IGN", 0)])
def test_a_terminal_that_hangs_up_ends_what_was_started_without_nohup(
    before: str, code: int
) -> None:
    assert python(HUNG_UP, before).returncode == code


STOPPED_AGAIN = """
import atexit, signal, sys, time
from graft import __main__, app

class Driver:
    def finish(self, is_interrupted):
        signal.raise_signal(getattr(signal, sys.argv.pop()))
        time.sleep(30)

def train():
    app._driver = Driver()

app._hydra_main = train
atexit.register(print, "figures are drawn")
__main__.run()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_who_stops_the_end_waits_for_nothing_more(name: str, code: int) -> None:
    done = python(STOPPED_AGAIN, name)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_an_end_that_fails_is_told_and_keeps_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def finish(self, is_interrupted: bool) -> bool:
            raise ZeroDivisionError

    monkeypatch.setattr(app, "_driver", Broken())
    assert [app._end(code) for code in (0, 1, 130)] == [1, 1, 130]
    assert "please report it" in caplog.text
