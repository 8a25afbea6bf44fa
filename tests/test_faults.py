"""Faults that a sweep meets while it runs, and what they cost. Real processes.

A callback of Hydra's, from a YAML file of the user's own, breaks jobs from the inside: it is the
only way in that the command leaves open.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from graft.record import EPOCHS, LOG, RUN, read_json, read_run

TINY = (
    "model=mobilenet_v3_small", "model.weights=none", "image_size=32", "batch_size=16",
    "device=cpu", "dataset=csv", "dataset.target=Male", "strategy=fine_tune",
)  # fmt: skip

BREAKER = '''
import os, signal, time
from pathlib import Path

from hydra.experimental.callback import Callback


class Breaker(Callback):
    """Breaks the jobs of some seeds at the end of their third epoch."""

    def on_job_start(self, config, **kwargs):
        import torch
        from graft.fit import checkpoint
        from graft.fit.learner import Learner

        checkpoint.EVERY_S = checkpoint.REST = 0.0
        if hasattr(Learner, "whole_end_epoch"):
            return
        Learner.whole_end_epoch = Learner.end_epoch

        def end_epoch(self, *args):
            if len(self.history) == 2:
                broken(self.config.seed, torch)
            return self.whole_end_epoch(*args)

        Learner.end_epoch = end_epoch


def broken(seed, torch):
    if seed == 1 and is_first("raised"):
        raise ValueError("once")
    if seed == 2:
        starts = Path(os.environ["BREAKER"], "always")
        with starts.open("a") as stream:
            stream.write("start\\n")
        raise ValueError("always")
    if seed == 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if seed == 4 and is_first("hung"):
        time.sleep(1000)
    if seed == 5:
        os.kill(os.getpid(), signal.SIGSEGV)
    if seed == 6:
        os._exit(0)


def is_first(name):
    try:
        Path(os.environ["BREAKER"], name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
'''


class Home:
    """A folder in which a user types commands, with callbacks of the user's own."""

    def __init__(self, path: Path, pictures: Path) -> None:
        self.path, self.sweep = path, path / "outputs" / "s"
        own = path / "own"
        (own / "hydra" / "callbacks").mkdir(parents=True)
        (own / "breaker.py").write_text(BREAKER)
        (own / "hydra" / "callbacks" / "breaker.yaml").write_text(
            "breaker:\n  _target_: breaker.Breaker\n"
        )
        self._data = (f"dataset.csv={pictures / 'labels.csv'}", f"dataset.images={pictures}")
        self._own = ("--config-dir", str(own))
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(own), os.environ.get("PYTHONPATH", "")]),
            "BREAKER": str(path),
        }

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "graft", *self._own, "-m", *TINY, "sweep.name=s", *self._data,
             *arguments],
            cwd=self.path, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, **options,
        )  # fmt: skip

    def graft(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        with self.start(*arguments, **options) as process:
            out, error = process.communicate(timeout=400)
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)


@pytest.fixture
def home(tiny_pictures: Path, tmp_path: Path) -> Home:
    return Home(tmp_path, tiny_pictures)


# --- jobs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(
    tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Home, "subprocess.CompletedProcess[str]"]:
    """A sweep over seeds, most of which go wrong in a way of their own."""
    home = Home(tmp_path_factory.mktemp("broken"), tiny_pictures)
    done = home.graft(
        "seed=0,1,2,3,4,5,6", "optimizer.lr=1e-3", "epochs=5", "hydra.launcher.cpu_slots=2",
        "hydra.launcher.max_retries=2", "hydra.launcher.timeout_s=8", "hydra/callbacks=breaker",
    )  # fmt: skip
    return home, done


def test_some_runs_failed_and_the_exit_code_and_the_table_say_so(broken: Any) -> None:
    home, done = broken
    assert done.returncode == 1, done.stderr
    table = pd.read_csv(home.sweep / "results.csv").set_index("seed")
    completed = {0: True, 1: True, 2: False, 3: False, 4: True, 5: False, 6: False}
    assert (table["status"] == "completed").to_dict() == completed
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_run_that_raised_once_goes_on_and_is_as_if_it_had_not(broken: Any, home: Home) -> None:
    broke, _ = broken
    found = read_run(broke.sweep / "seed=1")
    assert found.info["attempts"] == 2 and found.info["resumed_after"] == [2]
    whole = home.graft("seed=0,1", "optimizer.lr=1e-3", "epochs=5", "hydra.launcher.cpu_slots=2",
                       "tracking=off")  # fmt: skip
    assert whole.returncode == 0, whole.stderr
    for seed in (0, 1):
        ours, theirs = (
            pd.read_csv(one.sweep / f"seed={seed}" / EPOCHS).drop(columns="seconds")
            for one in (broke, home)
        )
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_a_run_that_always_raises_is_started_as_often_as_allowed(broken: Any) -> None:
    home, done = broken
    assert (home.path / "always").read_text().count("start") == 3
    folder = home.sweep / "seed=2"
    info = read_run(folder).info
    assert info["status"] == "failed" and info["reason"] == "ValueError: always"
    assert info["attempts"] == 3 and info["resumed_after"] == [2, 2]
    said = [line for line in done.stderr.splitlines() if "seed=2" in line and " failed" in line]
    assert ["tried again (1 of 2)" in said[0], "tried again (2 of 2)" in said[1]] == [True, True]
    assert "tried again" not in said[2] and "ValueError: always" in said[2]
    assert (folder / LOG).read_text().count("ValueError: always") >= 3
    assert os.path.relpath(folder / LOG, home.path) in done.stderr


def test_a_gpu_without_memory_is_named_with_the_batch_size(broken: Any) -> None:
    home, _ = broken
    reason = read_run(home.sweep / "seed=3").info["reason"]
    assert "out of GPU memory at batch_size=16, image_size=32" in reason


def test_a_run_that_hung_was_ended_and_has_gone_on(broken: Any) -> None:
    home, done = broken
    info = read_run(home.sweep / "seed=4").info
    assert info["status"] == "completed" and info["attempts"] == 2
    assert "seed=4" in done.stderr and "gave no sign of life for 8 s" in done.stderr


@pytest.mark.parametrize(("seed", "why"), [(5, "SIGSEGV"), (6, "exit code 0, without a result")])
def test_a_run_whose_process_ended_says_how(broken: Any, seed: int, why: str) -> None:
    home, _ = broken
    info = read_run(home.sweep / f"seed={seed}").info
    assert info["status"] == "failed" and why in info["reason"], info["reason"]
    table = pd.read_csv(home.sweep / "results.csv").set_index("seed")
    assert why in table.loc[seed, "reason"]


def test_mlflow_has_a_run_for_each_with_its_true_end_and_no_point_twice(broken: Any) -> None:
    home, _ = broken
    from graft.tracking.client import Store

    store = Store(f"sqlite:///{home.path / 'outputs' / 'mlflow.db'}")
    experiment = store.experiment("graft", home.path, "")
    runs = store.find(experiment, {"role": "run"})
    assert len(runs) == 7
    ended = {run.tags["folder"]: run.status for run in runs if "folder" in run.tags}
    assert ended["seed=1"] == ended["seed=4"] == "FINISHED"
    assert {ended[f"seed={seed}"] for seed in (2, 3, 5, 6)} == {"FAILED"}
    for run in runs:
        steps = list(store.steps(run.id, "val/loss"))
        assert len(steps) == len(set(steps))


def test_a_first_run_whose_process_ended_is_told_like_any_other(home: Home) -> None:
    """Hydra raises what ended the first run that failed."""
    done = home.graft("seed=6,0", "optimizer.lr=1e-3", "epochs=3", "tracking=off",
                      "hydra.launcher.max_retries=0", "hydra/callbacks=breaker")  # fmt: skip
    assert done.returncode == 1 and "exit code 0, without a result" in done.stderr
    assert "Traceback" not in done.stderr and "did not expect" not in done.stderr
    assert "completed" in done.stdout


@pytest.mark.slow
def test_a_diverged_run_is_not_tried_again(home: Home) -> None:
    done = home.graft("optimizer.lr=1e30,1e-3", "epochs=2", "tracking=off",
                      "hydra/launcher=graft_inline", "hydra.launcher.max_retries=1")  # fmt: skip
    assert done.returncode == 1
    info = read_run(home.sweep / "optimizer.lr=1e+30").info
    assert info["status"] == "diverged" and info["attempts"] == 1
    assert "tried again" not in done.stderr and "diverged" in done.stderr
    table = pd.read_csv(home.sweep / "results.csv")
    assert sorted(table["status"]) == ["completed", "diverged"]


# --- driver -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_two_commands_in_the_same_moment_one_works_and_one_is_refused(home: Home) -> None:
    asked = ("optimizer.lr=1e-2,1e-3", "epochs=1", "tracking=off")
    both = [home.start(*asked) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in both]
    codes = [process.returncode for process in both]
    if codes == [0, 0]:  # one was so late that the other had finished
        assert any("finished already" in error for error in errors)
    else:
        assert sorted(codes) == [0, 2], errors
        assert "is being worked on by process" in errors[codes.index(2)]
    table = pd.read_csv(home.sweep / "results.csv")
    assert table["status"].tolist() == ["completed", "completed"]
    assert all((read_json(path) or {})["attempts"] == 1 for path in home.sweep.glob(f"*/{RUN}"))


# --- disk -------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(home: Home) -> Iterator[Path]:
    """The output folder on a disk of 12 MB."""
    folder = home.path / "outputs"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only the superuser may make a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_fails_the_runs_that_cannot_save_and_the_rest_goes_on_later(
    home: Home, small_disk: Path
) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 4_000_000)  # one checkpoint of 6 MB fits beside it
    asked = ("optimizer.lr=1e-2,1e-3", "epochs=1", "tracking=off")
    done = home.graft(*asked, "hydra.launcher.max_retries=0")
    assert done.returncode == 1, done.stderr
    table = pd.read_csv(home.sweep / "results.csv").set_index("status")
    assert sorted(table.index) == ["completed", "failed"]  # whichever was there first
    assert "No space left" in table.loc["failed", "reason"]
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    again = home.graft(*asked)
    assert again.returncode == 0, again.stderr
    assert "1 of 2 runs are finished already" in again.stderr


def test_a_file_in_the_place_of_the_output_folder_is_refused(home: Home) -> None:
    (home.path / "outputs").write_text("not a folder")
    done = home.graft("optimizer.lr=1e-2,1e-3", "epochs=1", "tracking=off")
    assert done.returncode == 2 and "outputs" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_folder_that_is_deleted_under_a_run_costs_that_run(home: Home) -> None:
    import shutil

    process = home.start("seed=0,1", "optimizer.lr=1e-3", "epochs=60", "tracking=off",
                         "hydra.launcher.max_retries=0")  # fmt: skip
    folder = home.sweep / "seed=0"
    while not (folder / EPOCHS).exists():
        assert process.poll() is None
        time.sleep(0.05)
    shutil.rmtree(folder)
    _, error = process.communicate(timeout=300)
    assert process.returncode in (0, 1), error
    table = pd.read_csv(home.sweep / "results.csv").set_index("seed")
    assert table.loc[1, "status"] == "completed"
    assert table.loc[0, "status"] in ("failed", "completed")


@pytest.mark.slow
def test_few_open_files_end_in_a_sentence_and_not_in_a_hang(home: Home) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    done = home.graft("optimizer.lr=1e-2,1e-3", "epochs=1", "tracking=off", preexec_fn=limit)
    assert done.returncode in (0, 1, 2)
    if done.returncode:
        assert "open files" in done.stderr
