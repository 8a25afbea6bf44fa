"""A sweep that is killed at random, again and again, and in the end is as if nothing had been.

Real processes, a real trunk cache and a real MLflow database. A seeded schedule kills workers, the
driver and everything at once, stops the driver in order, and flips bytes of the cache; the same
command goes on until the sweep is complete. The seed of a failing schedule is in the test's name.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file

from graft.record import CHECKPOINT, EPOCHS, RUN, read_json, read_run, read_runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

EPOCHS_ASKED = 10
COMMAND = (
    "-m", "strategy=head_only,fine_tune", "optimizer.lr=1e-2,3e-3,1e-3,3e-4", "sweep.name=chaos",
    "model=mobilenet_v3_small", "model.weights=none", "image_size=64", "batch_size=4",
    f"epochs={EPOCHS_ASKED}", "device=cpu", "dataset=csv", "dataset.target=Male",
    "hydra.launcher.cpu_slots=2", "hydra.launcher.max_retries=20",
)  # fmt: skip
# R7: no process of a sweep lives so long after its driver.
GONE_S = 10.0
# The command takes about so long to its first epoch, and to train what there is.
STARTING_S, TRAINING_S = 6.0, 8.0
BLOWS = ("worker", "worker", "worker", "driver", "driver", "everything", "interrupt")


class Home:
    """A folder in which the same command is typed, and the processes that it starts."""

    def __init__(self, path: Path, pictures: Path) -> None:
        self.path, self.sweep = path, path / "outputs" / "chaos"
        self._data = (f"dataset.csv={pictures / 'labels.csv'}", f"dataset.images={pictures}")
        self.token = f"CHAOS_{os.getpid()}_{random.randrange(10**9)}"
        self.environment = {**os.environ, "GRAFT_CACHE": str(path / "cache"), self.token: "1"}

    def start(self, *more: str) -> "subprocess.Popen[bytes]":
        log = (self.path / "driver.log").open("ab")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", "graft", *COMMAND, *self._data, *more], cwd=self.path,
                env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def processes(self, said: str = "") -> list[int]:
        """All that the command has started and that still lives; `said`: with these words."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                is_ours = self.token.encode() in (folder / "environ").read_bytes()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                is_alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            except (OSError, UnicodeDecodeError):
                continue
            if is_ours and is_alive and said in command:
                found.append(int(folder.name))
        return found

    def wait_until_gone(self) -> None:
        deadline = time.monotonic() + GONE_S
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]

    def log(self) -> str:
        return (self.path / "driver.log").read_text(errors="replace")


@dataclass
class Story:
    """What was done to a sweep, and what was seen of it."""

    random: random.Random
    blows: list[str] = field(default_factory=list)
    finished: dict[str, int] = field(default_factory=dict)
    progress: dict[str, int] = field(default_factory=dict)


def run_to_the_end(home: Home, story: Story, num_blows: int) -> None:
    """Start the command until it comes to its end; deal it so many blows on the way."""
    while True:
        process = home.start()
        for blow in _blows(story, num_blows):
            if _is_over(process, home, story) is not None:
                break
            story.blows.append(blow)
            if _strike(home, process, blow, story):
                break
        code = process.wait(300)
        home.wait_until_gone()
        _check_progress(home, story)
        _flip(home, story)
        if code == 0:
            return
        assert len(story.blows) > 0 and code in (1, 130, -9), home.log()[-5000:]


def _blows(story: Story, num_blows: int) -> Iterator[str]:
    while len(story.blows) < num_blows:
        yield story.random.choice(BLOWS)


def _is_over(process: "subprocess.Popen[bytes]", home: Home, story: Story) -> int | None:
    """Let some time pass: at the start of the command, or while it trains."""
    if story.random.random() < 0.25:
        return _wait(process, story.random.uniform(0.2, STARTING_S))
    while _wait(process, 0.1) is None:
        if any('"running"' in path.read_text() for path in home.sweep.glob(f"*/{RUN}")):
            return _wait(process, story.random.uniform(0.0, TRAINING_S))
    return process.returncode


def _wait(process: "subprocess.Popen[bytes]", seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _strike(home: Home, process: "subprocess.Popen[bytes]", blow: str, story: Story) -> bool:
    """Whether the driver is over now, or soon."""
    if blow == "worker":
        workers = home.processes("gpu_launcher._worker")
        if workers:
            _kill(story.random.choice(workers))
        return False
    if blow == "everything":
        for pid in [process.pid, *home.processes()]:
            _kill(pid)
    elif blow == "driver":
        _kill(process.pid)
    else:
        process.send_signal(signal.SIGINT)
    return True


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _check_progress(home: Home, story: Story) -> None:
    """What was finished is untouched, and nobody has fewer epochs than before."""
    for path in home.sweep.glob(f"*/{RUN}"):
        info = read_json(path)
        assert info is not None, path
        name = path.parent.name
        written = path.stat().st_mtime_ns
        assert story.finished.get(name, written) == written, f"{name} was trained again"
        if info["status"] == "completed":
            story.finished[name] = written
        stored = list((path.parent / "resume").glob("epoch-*.safetensors"))
        epochs = [int(re.findall(r"epoch-(\d+)", one.name)[0]) for one in stored]
        if info["status"] != "completed":
            reached = max(epochs, default=0)
            assert reached >= story.progress.get(name, 0), f"{name} went back"
            story.progress[name] = reached


def _flip(home: Home, story: Story) -> None:
    """One bit of the trunk cache."""
    files = sorted(path for path in (home.path / "cache").rglob("data.bin") if path.stat().st_size)
    if not files:
        return
    path = story.random.choice(files)
    with path.open("rb+") as stream:
        place = story.random.randrange(path.stat().st_size)
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 1 << story.random.randrange(8)]))


def results(sweep: Path) -> dict[str, Any]:
    """All numbers of a sweep, so that == compares bit for bit."""
    found = {}
    for run in read_runs(sweep):
        assert run.is_completed, run.info
        metrics = pd.read_csv(run.path / EPOCHS, dtype=str)
        weights = load_file(run.path / CHECKPOINT)
        found[run.name] = {
            "metrics": metrics.drop(columns="seconds").to_dict("records"),
            "best": run.info["best_epoch"],
            "weights": {key: tensor.numpy().tobytes() for key, tensor in weights.items()},
            "scores": run.predictions.scores.tobytes(),
        }
    return found


def check_mlflow(home: Home) -> None:
    """One run a job, each epoch's value once, and nobody is left running."""
    code = """
import collections, json, sys
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
(experiment,) = [e for e in client.search_experiments() if e.name == "graft"]
runs = client.search_runs([experiment.experiment_id], max_results=1000)
print(json.dumps([
    {"role": run.data.tags.get("role"), "status": run.info.status, "name": run.info.run_name,
     "steps": sorted(m.step for m in client.get_metric_history(run.info.run_id, "val/loss"))}
    for run in runs]))
"""
    uri = f"sqlite:///{home.path / 'outputs' / 'mlflow.db'}"
    done = subprocess.run(
        [sys.executable, "-c", code, uri], capture_output=True, text=True, check=True
    )
    runs = json.loads(done.stdout.splitlines()[-1])
    (parent,) = [run for run in runs if run["role"] == "sweep"]
    children = [run for run in runs if run["role"] == "run"]
    assert parent["status"] == "FINISHED"
    assert len(children) == 8 and {run["status"] for run in children} == {"FINISHED"}
    assert len({run["name"] for run in children}) == 8
    for run in children:
        assert run["steps"] == list(range(1, EPOCHS_ASKED + 1)), run
    assert "RUNNING" not in {run["status"] for run in runs}


def check_left_behind(home: Home) -> None:
    """The table has every run; no temporary file, no checkpoint of a finished run."""
    table = pd.read_csv(home.sweep / "results.csv")
    assert len(table) == 8 and set(table["status"]) == {"completed"}
    left = [p for p in home.sweep.rglob("*") if p.name.endswith(".part") or p.name == "resume"]
    assert not left


@pytest.fixture(scope="module")
def undisturbed(tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = Home(tmp_path_factory.mktemp("undisturbed"), tiny_pictures)
    process = home.start("tracking=off")
    assert process.wait(300) == 0, home.log()[-5000:]
    home.wait_until_gone()
    check_left_behind(home)
    return results(home.sweep)


def tell_a_story(
    seed: int, num_blows: int, pictures: Path, folder: Path, undisturbed: dict[str, Any]
) -> None:
    home = Home(folder, pictures)
    story = Story(random.Random(seed))
    try:
        run_to_the_end(home, story, num_blows)
    finally:
        for pid in home.processes():
            _kill(pid)
    assert len(story.blows) >= num_blows / 2, story.blows
    assert results(home.sweep) == undisturbed, story.blows
    check_mlflow(home)
    check_left_behind(home)
    assert all(read_run(home.sweep / name).is_completed for name in story.finished)


def test_a_sweep_that_is_killed_again_and_again_is_as_if_nothing_had_been(
    undisturbed: dict[str, Any], tiny_pictures: Path, tmp_path: Path
) -> None:
    tell_a_story(7, 3, tiny_pictures, tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 112))
def test_many_blows(
    seed: int, undisturbed: dict[str, Any], tiny_pictures: Path, tmp_path: Path
) -> None:
    tell_a_story(seed, 10, tiny_pictures, tmp_path, undisturbed)
