"""The command as a user meets it when things do not go straight: planned only, stopped, killed,
started twice, asked again with other settings."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.home import Home

from graft import machine, train
from graft.__main__ import _will_sweep as will_sweep
from graft.config import RunConfig
from graft.record import (
    EPOCHS,
    LOG,
    RUN,
    SWEEP,
    Record,
    RunFolder,
    read_json,
    read_run,
    write_json,
)
from graft.report import page
from graft.report.drawing import Drawing
from graft.status.__main__ import main as graft_sweep
from graft.sweep import Driver, follow
from graft.sweep import driver as driver_module
from graft.sweep.follow import Follower
from graft.tracking import Off


@pytest.fixture
def home(tiny_pictures: Path, tmp_path: Path) -> Home:
    return Home(tmp_path, tiny_pictures, "batch_size=4")


@contextlib.contextmanager
def training(home: Home, name: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """The command while it trains; it would take minutes."""
    process = home.start(f"sweep.name={name}", "epochs=3000", "strategy=fine_tune", *arguments)
    try:
        runs = home.outputs / name
        wait_for(lambda: any(runs.glob("*/metrics.csv")) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(is_so: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def workers_of(pid: int) -> list[int]:
    """Processes in which the launcher with this id runs jobs."""
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "_worker"], capture_output=True)
    return [int(word) for word in found.stdout.split()]


# --- planned only -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dry_run_says_what_would_be_done_and_does_nothing(home: Home) -> None:
    done = home.run(
        "strategy=head_only,fine_tune", "optimizer.lr=1e-2,1e-3", "sweep.name=s", "epochs=7",
        "hydra.launcher.cpu_slots=2", "sweep.dry_run=true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 runs, 0 of them finished already" in done.stdout
    assert "4 to train, in 2 arrays, on 2 slots (cpu 0, cpu 1)" in done.stdout
    assert "strategy=fine_tune,optimizer.lr=0.01" in done.stdout
    assert "2 views" in done.stdout and "to be stored" in done.stdout
    assert "7 epochs, about" in done.stdout and "in all" in done.stdout
    assert not home.outputs.exists()


@pytest.mark.slow
def test_a_dry_run_of_a_bad_request_is_refused_like_the_request(home: Home) -> None:
    done = home.run("optimizer.lr=1e-2,-1", "sweep.name=s", "sweep.dry_run=true")
    assert done.returncode == 2 and "optimizer.lr" in done.stderr
    assert not home.outputs.exists()


# --- stopped, started twice ---------------------------------------------------------------------


def test_a_sweep_that_is_worked_on_is_seen_refused_and_stopped_in_order(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = home.outputs / "s"
    with training(home, "s", "optimizer.lr=1e-3,1e-4") as process:
        assert graft_sweep(["status", "--json", str(sweep)]) == 0
        seen = json.loads(capsys.readouterr().out)
        assert str(process.pid) in seen["driver"]
        assert [run["state"] for run in seen["runs"]] == ["running", "running"]
        assert seen["runs"][0]["epoch"] > 0 and seen["runs"][0]["slot"] == "cpu 0"

        second = home.run("sweep.name=s", "epochs=3000", "optimizer.lr=1e-3,1e-4",
                            "strategy=fine_tune")  # fmt: skip
        assert second.returncode == 2
        assert f"is being worked on by process {process.pid} on" in second.stderr
        assert "Traceback" not in second.stderr

        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Stopping: jobs have 10 s to end in order." in error
    assert "stopped: the same command goes on with what is not finished." in out
    assert workers_of(process.pid) == []
    statuses = pd.read_csv(sweep / "results.csv").set_index("run")["status"]
    assert set(statuses) == {"skipped"}
    assert graft_sweep(["status", str(sweep)]) == 0
    said = capsys.readouterr().out
    assert "nobody works on it; this goes on with it:" in said and "skipped" in said


@pytest.mark.slow
def test_what_was_stopped_goes_on_from_its_last_epoch(home: Home) -> None:
    run = home.outputs / "s" / "optimizer.lr=0.001"
    with training(home, "s", "optimizer.lr=1e-3,1e-4") as process:
        wait_for(lambda: any(run.glob("resume/epoch-*")))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143
    with training(home, "s", "optimizer.lr=1e-3,1e-4"):
        wait_for(lambda: bool((read_json(run / RUN) or {}).get("resumed_after")))
        info = read_json(run / RUN)
        assert info is not None and info["attempts"] == 2
        (reached,) = info["resumed_after"]
        wait_for(lambda: len((run / "metrics.csv").read_text().splitlines()) > reached + 2)
    epochs = pd.read_csv(run / "metrics.csv")["epoch"].tolist()
    assert epochs == list(range(1, len(epochs) + 1)) and len(epochs) > reached


# --- killed -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_is_killed_says_so_and_another_takes_its_slot(home: Home) -> None:
    with training(
        home, "s", "optimizer.lr=1e-3", "seed=0,1", "hydra.launcher.max_retries=0"
    ) as process:
        first = next(path.parent for path in home.outputs.glob("s/*/metrics.csv"))
        (worker,) = workers_of(process.pid)
        os.kill(worker, signal.SIGKILL)
        killed = time.monotonic()
        wait_for(lambda: str((read_json(first / RUN) or {}).get("status")) != "running")
        assert time.monotonic() - killed < 2.0 + 1.0
        wait_for(lambda: len(list(home.outputs.glob("s/*/metrics.csv"))) == 2)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    found = read_run(first)
    assert found.info["status"] == "failed"
    assert "killed by signal 9" in found.info["reason"] and "memory" in found.info["reason"]
    (line,) = [one for one in error.splitlines() if "failed:" in one]
    assert "seed=0" in line and "killed by signal 9" in line
    assert f"Log: {os.path.relpath(first / LOG, home.path)}" in error
    table = pd.read_csv(home.outputs / "s" / "results.csv").set_index("run")
    assert "killed by signal 9" in table.loc[first.name, "reason"]


# --- asked again --------------------------------------------------------------------------------


@pytest.mark.slow
def test_other_settings_are_refused_with_the_difference_unless_they_may_replace(home: Home) -> None:
    asked = ("optimizer.lr=1e-2,1e-3", "sweep.name=s", "hydra/launcher=graft_inline")
    assert home.run(*asked, "epochs=1").returncode == 0
    refused = home.run(*asked, "epochs=2")
    assert refused.returncode == 2
    assert "epochs was 1, now 2" in refused.stderr and "sweep.overwrite=true" in refused.stderr
    replaced = home.run(*asked, "epochs=2", "sweep.overwrite=true")
    assert replaced.returncode == 0, replaced.stderr
    for path in home.outputs.glob("s/*/metrics.csv"):
        assert len(pd.read_csv(path)) == 2


@pytest.mark.slow
def test_a_damaged_list_of_runs_is_made_anew_from_their_folders(home: Home) -> None:
    asked = ("optimizer.lr=1e-2,1e-3", "sweep.name=s", "epochs=1", "hydra/launcher=graft_inline")
    assert home.run(*asked).returncode == 0
    path = home.outputs / "s" / "sweep.json"
    before = {run["run"] for run in (read_json(path) or {})["runs"]}
    path.write_bytes(path.read_bytes()[:40])
    again = home.run(*asked)
    assert again.returncode == 0, again.stderr
    assert "sweep.json is damaged: made anew from the folders of its 2 runs" in again.stderr
    assert "All 2 runs are finished already" in again.stderr
    assert {run["run"] for run in (read_json(path) or {})["runs"]} == before


DRIVER = """
import sys
from graft import app

sys.argv = ["graft", "-m", *sys.argv[1:]]
code = app.main()
print("driver:", code, [name for name in ("torch", "torchvision") if name in sys.modules])
"""


@pytest.mark.parametrize("device", ["auto", pytest.param("cpu", marks=pytest.mark.slow)])
def test_a_driver_needs_no_pytorch_from_the_check_to_the_report(
    home: Home, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decision 0017. With weights: the package's, which are checked."""
    monkeypatch.delitem(sys.modules, "torch")
    if device == "auto" and machine._may_have_gpu():
        pytest.skip("PyTorch is asked whether this machine's GPU can be used")
    asked = (
        "model=efficientnet_lite0", "model.weights=imagenet", f"device={device}", "epochs=1",
        "strategy=head_only,fine_tune", "sweep.name=s",
    )  # fmt: skip
    done = home.run(*asked, program=("-c", DRIVER))
    assert "driver: 0 []" in done.stdout, done.stdout + done.stderr
    assert (home.outputs / "s" / "report.html").is_file()


@pytest.mark.parametrize(
    ("typed", "will"),
    [
        ("-m optimizer.lr=1e-3,1e-4", True),
        ("optimizer.lr=1e-3,1e-4 --multirun", True),
        ("optimizer.lr=1e-3", False),
        ("-m --cfg job", False),
        ("-m --help", False),
        ("-m optimizer.lr=1,2 hydra/launcher=graft_inline", False),
        ("-m optimizer.lr=1,2 hydra.launcher.cpu_slots=2", False),
        ("-m optimizer.lr=1,2 +hydra.launcher.gpus=[1]", False),
        ("-m optimizer.lr=1,2 sweep.dry_run=true", False),
    ],
)
def test_a_worker_is_started_ahead_where_the_command_leaves_no_doubt(
    typed: str, will: bool
) -> None:
    assert will_sweep(typed.split()) is will


@pytest.mark.parametrize(("launcher", "count"), [("graft", 1), ("graft_inline", 0)])
def test_the_worker_that_is_started_ahead_is_the_only_one(
    home: Home, launcher: str, count: int
) -> None:
    more = [] if launcher == "graft" else [f"hydra/launcher={launcher}"]
    process = home.start("sweep.name=s", "optimizer.lr=1e-2,1e-3", "epochs=2", *more)
    seen: dict[int, bool] = {}  # whether the sweep's folder was there
    environments = set()
    while process.poll() is None:
        for pid in workers_of(process.pid):
            seen.setdefault(pid, (home.outputs / "s").exists())
            with contextlib.suppress(OSError):
                environments.update(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
        time.sleep(0.02)
    assert process.returncode == 0, process.communicate()
    process.communicate()
    assert list(seen.values()) == [False] * count
    # Threads that begin before anybody asks glibc for one arena would have their own.
    assert not count or b"MALLOC_ARENA_MAX=1" in environments


def test_a_wrong_word_ends_the_worker_that_was_started_ahead(home: Home) -> None:
    process = home.start("optimizer.lrr=1e-2,1e-3", "tracking=off")
    seen: set[int] = set()
    while process.poll() is None:
        seen.update(workers_of(process.pid))
        time.sleep(0.02)
    _, error = process.communicate()
    assert process.returncode == 2 and "Did you mean optimizer.lr?" in error
    assert not home.outputs.exists()
    assert seen and not any(Path(f"/proc/{pid}").exists() for pid in seen)


@pytest.mark.slow
def test_with_a_launcher_of_others_each_job_sees_to_itself_and_the_report_is_there(
    home: Home,
) -> None:
    done = home.run(
        "optimizer.lr=1e-2,1e-3", "sweep.name=s", "epochs=1", "hydra/launcher=basic",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (home.outputs / "s" / "report.html").is_file()
    table = pd.read_csv(home.outputs / "s" / "results.csv")
    assert table["status"].tolist() == ["completed", "completed"]


@pytest.mark.slow
def test_submitits_launcher_runs_the_same_jobs_and_the_report_is_there(home: Home) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    asked = ("optimizer.lr=1e-2,1e-3", "sweep.name=s", "epochs=1")
    done = home.run(*asked, "hydra/launcher=submitit_local")
    assert done.returncode == 0, done.stderr
    assert (home.outputs / "s" / "report.html").is_file()
    table = pd.read_csv(home.outputs / "s" / "results.csv")
    assert table["status"].tolist() == ["completed", "completed"]
    again = home.run(*asked)
    assert "All 2 runs are finished already" in again.stderr


def test_a_damaged_record_of_a_run_does_not_keep_a_sweep_from_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "seed=0"
    run.mkdir()
    follower = Follower(tmp_path, Off())
    (run / RUN).write_text('{"status": "compl')
    follower.stop()
    assert graft_sweep(["status", str(tmp_path)]) == 0
    assert "1 run: 1 waiting" in capsys.readouterr().out


def test_the_last_figures_are_drawn_in_the_background(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    """While the report is written."""
    config = train.resolve(tiny_config)
    follower = Follower(tmp_path, Off())
    train.train(config, tmp_path / "run", train.load_dataset(config))
    follower.look_last()
    wait_for(lambda: (tmp_path / "run" / "figures" / "roc.png").is_file())
    follower.stop()
    assert len(list((tmp_path / "run" / "figures").iterdir())) == 4


def test_the_driver_looks_a_last_time_before_it_writes_the_report(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the last figures are drawn beside it."""
    monkeypatch.setattr(follow, "EVERY_S", 600)  # nobody looks before
    config = train.resolve(tiny_config)
    driver = Driver(tmp_path / "s")
    driver.follow(config)
    train.train(config, tmp_path / "s" / "run", train.load_dataset(config))
    told: list[str] = []
    add, write = Drawing.add, driver_module.write_report

    def noted_add(self: Drawing, record: Record, *others: Any) -> None:
        told.append(record.name)
        add(self, record, *others)

    def noted_write(folder: Path) -> Any:
        told.append("report")
        return write(folder)

    monkeypatch.setattr(Drawing, "add", noted_add)
    monkeypatch.setattr(driver_module, "write_report", noted_write)
    assert driver.finish()
    assert told == ["run", "report"]


def test_a_last_look_that_fails_is_taken_again(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report comes first; figures that cannot be asked for must not cost it."""
    config = train.resolve(tiny_config)
    follower = Follower(tmp_path, Off())
    train.train(config, tmp_path / "run", train.load_dataset(config))
    with monkeypatch.context() as patched:
        patched.setattr(Drawing, "add", lambda *args: 1 / 0)
        follower.look_last()
        with pytest.raises(ZeroDivisionError):
            follower.stop()
    follower.stop()
    assert (tmp_path / "run" / "figures" / "roc.png").is_file()


def test_who_was_killed_over_figures_has_them_drawn_by_the_next(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = train.resolve(tiny_config)
    train.train(config, tmp_path / "run", train.load_dataset(config))
    figures = tmp_path / "run" / "figures"
    figures.mkdir()
    (figures / "loss.png").touch()
    Follower(tmp_path, Off()).stop()
    names = {path.name for path in figures.iterdir()}
    assert names == {"loss.png", "accuracy.png", "roc.png", "confusion.png"}


@pytest.mark.parametrize("trains_here", [True, False])
def test_what_the_end_imports_is_imported_once_runs_train_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trains_here: bool
) -> None:
    called: list[str] = []
    monkeypatch.setattr(follow, "EVERY_S", 0.01)
    monkeypatch.setattr(page, "warm_up", lambda: called.append("page"))
    monkeypatch.setattr(Drawing, "warm_up", lambda self, aside: called.append("drawing"))
    if not trains_here:
        monkeypatch.delitem(sys.modules, "graft.train")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / EPOCHS).write_text("epoch\n1\n")  # of an earlier start
    follower = Follower(tmp_path, Off())
    time.sleep(0.1)
    assert not called  # nothing is trained yet
    for name in ("run0", "run1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / EPOCHS).write_text("epoch\n1\n")
        wait_for(lambda: "drawing" in called)
        time.sleep(0.1)
    follower.stop()
    assert called == (["drawing"] if trains_here else ["page", "drawing"])


@pytest.mark.parametrize("others", ["completed", "pruned"])
def test_a_pruned_run_is_shown_and_is_not_one_to_go_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], others: str
) -> None:
    folder = RunFolder(tmp_path / "lr=1")
    folder.write_run({"status": "pruned", "reason": "at epoch 2: worse", "metric": "val_accuracy"})
    folder.write_epochs([{"epoch": n, "val_accuracy": 0.25 * n} for n in (1, 2)])
    RunFolder(tmp_path / "lr=2").write_run({"status": others, "metric": "val_accuracy"})
    runs = [{"run": name, "choices": {}} for name in ("lr=1", "lr=2")]
    write_json(tmp_path / SWEEP, {"command": "graft -m", "runs": runs})
    assert graft_sweep(["status", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "lr=1: pruned: at epoch 2: worse" in shown and "0.5000" in shown
    assert ("nobody works on it" in shown) is (others == "pruned")
    assert graft_sweep(["status", "--json", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["state"] == "pruned"
