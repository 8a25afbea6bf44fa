"""Real processes: one that is killed loses nothing but time, and no two train the same run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from graft import train
from graft.config import from_dict
from graft.record import CHECKPOINT, EPOCHS, LOCK, LOG, RESUME, RUN, Record, read_json, read_run
from graft.train import Member, train_array

pytestmark = pytest.mark.slow  # a process imports PyTorch for seconds

# Trains the runs that a file names, with a checkpoint after every epoch.
DRIVER = """
import json, logging, resource, sys
from pathlib import Path
from graft import train
from graft.config import from_dict
from graft.fit import checkpoint

asked = json.loads(Path(sys.argv[1]).read_text())
logging.basicConfig(level="INFO")
checkpoint.EVERY_S = checkpoint.REST = train.WRITE_S = 0.0
train.LOCK_S = asked["lock_s"]
if asked["largest_file"]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (asked["largest_file"],) * 2)
configs = {name: train.resolve(from_dict(values)) for name, values in asked["runs"].items()}
dataset = train.load_dataset(next(iter(configs.values())))
members = [train.Member(one, Path(asked["folder"]) / name) for name, one in configs.items()]
for outcome in train.train_array(members, dataset):
    print(outcome if isinstance(outcome, Exception) else "completed", flush=True)
"""


@pytest.fixture
def values(tiny_values: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a run of a block with batch norm, a head with dropout, and many epochs."""
    return {
        **tiny_values,
        "optimizer": {"_target_": "graft.config.AdamW", "lr": 1e-3},
        "schedule": {"_target_": "graft.config.Cosine"},
        "epochs": 30,
    }


def start(
    runs: dict[str, Any], folder: Path, *, lock_s: float = 15.0, largest_file: int = 0
) -> subprocess.Popen[str]:
    asked = {
        "runs": runs, "folder": str(folder), "lock_s": lock_s, "largest_file": largest_file
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "asked.json").write_text(json.dumps(asked))
    command = [sys.executable, "-c", DRIVER, str(folder / "asked.json")]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def checkpoints(run: Path) -> set[Path]:
    return set((run / RESUME).glob("*.safetensors"))


def has_begun(run: Path, process: subprocess.Popen[str], before: set[Path]) -> None:
    """Wait for a checkpoint that was not there before."""
    until = time.monotonic() + 120
    while not checkpoints(run) - before and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)


def killed(runs: dict[str, Any], folder: Path, after_s: float) -> None:
    run = folder / next(iter(runs))
    before = checkpoints(run)
    process = start(runs, folder)
    has_begun(run, process, before)
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def here(runs: dict[str, Any], folder: Path) -> list[train.Outcome]:
    configs = {name: train.resolve(from_dict(values)) for name, values in runs.items()}
    dataset = train.load_dataset(next(iter(configs.values())))
    return train_array([Member(one, folder / name) for name, one in configs.items()], dataset)


def assert_same(one: train.Outcome, other: train.Outcome) -> None:
    """Equal curves, weights and predictions, bit for bit."""
    assert isinstance(one, Record) and isinstance(other, Record), (one, other)
    first, second = (
        pd.read_csv(run.path / EPOCHS, dtype=str).drop(columns="seconds") for run in (one, other)
    )
    pd.testing.assert_frame_equal(first, second)
    weights = [load_file(run.path / CHECKPOINT) for run in (one, other)]
    assert [k for k in weights[0] if not torch.equal(weights[0][k], weights[1][k])] == []
    np.testing.assert_array_equal(one.predictions.scores, other.predictions.scores)


# --- killed -----------------------------------------------------------------------------------


def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_same_bits(
    values: dict[str, Any], tmp_path: Path
) -> None:
    runs, kills = {"run": values}, 4
    (whole,) = here(runs, tmp_path / "whole")
    moments = random.Random(0)
    for _ in range(kills):
        killed(runs, tmp_path, moments.uniform(0, 0.3))
    (resumed,) = here(runs, tmp_path)
    assert_same(whole, resumed)
    assert isinstance(resumed, Record)
    assert resumed.info["attempts"] == kills + 1
    assert len(resumed.info["resumed_after"]) == kills
    assert not (tmp_path / "run" / RESUME).exists()


def test_an_array_that_is_killed_goes_on_from_wherever_each_of_its_runs_is(
    values: dict[str, Any], tmp_path: Path
) -> None:
    values |= {
        "model": {"name": "resnet18", "weights": "none", "dropout": 0.3},
        "strategy": {"_target_": "graft.strategies.HeadOnly"},
        "epochs": 300,
    }
    runs = {f"{lr:g}": {**values, "optimizer": {"_target_": "graft.config.SGD", "lr": lr}}
            for lr in (1e-2, 1e-3, 1e-4)}  # fmt: skip
    whole = here(runs, tmp_path / "whole")
    moments = random.Random(7)
    for _ in range(4):
        killed(runs, tmp_path, moments.uniform(0, 0.7))
    for one, other in zip(whole, here(runs, tmp_path), strict=True):
        assert_same(one, other)


# --- two at once ------------------------------------------------------------------------------


def test_two_processes_train_a_run_once(values: dict[str, Any], tmp_path: Path) -> None:
    runs = {"run": values}
    both = [start(runs, tmp_path, lock_s=60.0) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [out for out, _ in said] == ["completed\n"] * 2, said
    done = read_run(tmp_path / "run")
    assert done.info["attempts"] == 1
    assert (tmp_path / "run" / LOG).read_text().count("epoch 1/30") == 1


def test_a_run_that_another_process_trains_is_left_to_it(
    values: dict[str, Any], tmp_path: Path
) -> None:
    runs = {"run": {**values, "epochs": 100_000}}
    process = start(runs, tmp_path)
    has_begun(tmp_path / "run", process, set())
    log = (tmp_path / "run" / LOG).read_bytes()
    second = start({**runs, "other": {**values, "epochs": 1}}, tmp_path, lock_s=0.3)
    out, _ = second.communicate(timeout=120)
    held = f"This run is being trained by process {process.pid} on "
    assert out.startswith(held) and out.endswith("completed\n")
    assert (read_json(tmp_path / "run" / RUN) or {})["status"] == "running"
    assert (tmp_path / "run" / LOG).read_bytes().startswith(log)
    process.send_signal(signal.SIGSTOP)  # dead to the world, and still it has the lock
    out, _ = start(runs, tmp_path, lock_s=0.3).communicate(timeout=120)
    assert out.startswith(held)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "run" / LOCK).exists()
    (done,) = here({"run": {**values, "epochs": 1}}, tmp_path)  # what it left is in nobody's way
    assert isinstance(done, Record) and done.is_completed


# --- a disk that is full for checkpoints ------------------------------------------------------


def test_a_disk_that_is_full_for_checkpoints_only_costs_a_warning(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """A limit on the size of a file stands for it: weights fit, weights and moments do not."""
    values |= {"strategy": {"_target_": "graft.strategies.Full"}, "epochs": 3}
    (whole,) = here({"run": values}, tmp_path / "whole")
    process = start({"run": values}, tmp_path, largest_file=10_000_000)
    out, log = process.communicate(timeout=120)
    assert out == "completed\n" and log.count("No checkpoint can be written") == 1
    assert_same(whole, read_run(tmp_path / "run"))
