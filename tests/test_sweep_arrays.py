"""The command, as a user types it: a sweep is trained array by array, and goes on where it was."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file
from tests.home import Done, Home

from graft.record import CHECKPOINT, EPOCHS, LOG, RUN, read_run, read_runs

STRATEGIES = "strategy=head_only,fine_tune"
SWEEP = ("epochs=2", "batch_size=16", "sweep.name=s", "hydra/launcher=graft_inline")


class Sweep(Home):
    def __init__(self, path: Path, pictures: Path) -> None:
        super().__init__(path, pictures, *SWEEP)
        self.sweep = self.outputs / "s"

    def name(self, strategy: str, rate: float) -> str:
        return f"strategy={strategy},optimizer.lr={rate}"


def new_home(
    factory: pytest.TempPathFactory, pictures: Path, name: str, *arguments: str
) -> tuple[Sweep, Done]:
    home = Sweep(factory.mktemp(name), pictures)
    return home, home.graft(*arguments)


RATES = "optimizer.lr=1e-2,1e-3"


@pytest.fixture(scope="module")
def swept(tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Done]:
    return new_home(tmp_path_factory, tiny_pictures, "swept", STRATEGIES, RATES)


@pytest.fixture(scope="module")
def extended(swept: tuple[Sweep, Done]) -> tuple[Sweep, Done, dict[Path, int]]:
    """The same sweep with a third rate, and when each file was written before."""
    home, _ = swept
    before = {path: path.stat().st_mtime_ns for path in home.sweep.glob("*/*")}
    return home, home.graft(STRATEGIES, f"{RATES},1e-4"), before


def result(folder: Path) -> dict[str, Any]:
    """All numbers of a run, so that == compares bit for bit."""
    run = read_run(folder)
    assert run.is_completed, run.info
    metrics = pd.read_csv(folder / EPOCHS, dtype=str)
    predictions = run.predictions
    return {
        "metrics": metrics.drop(columns="seconds").to_dict("records"),
        "best": run.info["best_epoch"],
        "weights": {k: t.numpy().tobytes() for k, t in load_file(folder / CHECKPOINT).items()},
        "predictions": list(zip(predictions.ids, predictions.scores.tolist(), strict=True)),
    }


def results(sweep: Path) -> dict[str, dict[str, Any]]:
    return {run.name: result(run.path) for run in read_runs(sweep)}


# --- arrays -----------------------------------------------------------------------------------


def test_a_sweep_says_how_many_arrays_its_runs_make(swept: tuple[Sweep, Done]) -> None:
    home, done = swept
    assert "4 runs in 2 arrays" in done.stderr
    assert "runs 1, 2 of 4, one array:" in done.stderr
    assert "runs 3, 4 of 4, one array:" in done.stderr
    assert len(read_runs(home.sweep)) == 4 and all(
        run.is_completed for run in read_runs(home.sweep)
    )


def test_each_runs_log_tells_its_own_epochs_alone(swept: tuple[Sweep, Done]) -> None:
    home, _ = swept
    for run in read_runs(home.sweep):
        lines = (run.path / LOG).read_text().splitlines()
        told = [line.partition("train loss ")[2].split()[0] for line in lines if "  epoch " in line]
        assert told == [f"{loss:.3f}" for loss in run.epochs["train_loss"]], run.name


def test_what_is_frozen_is_computed_in_one_pass_for_both_arrays(swept: tuple[Sweep, Done]) -> None:
    _, done = swept
    told = [line for line in done.stderr.splitlines() if "trunk: up to" in line]
    assert ["built" in line for line in told] == [True, False]
    assert ["reused" in line for line in told] == [False, True]


@pytest.mark.slow
def test_a_third_rate_trains_the_new_runs_alone_and_computes_nothing_again(
    extended: tuple[Sweep, Done, dict[Path, int]],
) -> None:
    home, done, _ = extended
    assert "4 of 6 runs are finished already." in done.stderr
    assert "2 runs in 2 arrays" in done.stderr
    told = [line for line in done.stderr.splitlines() if "trunk: up to" in line]
    assert len(told) == 2 and all("reused" in line for line in told)
    assert len(results(home.sweep)) == 6
    table = pd.read_csv(home.sweep / "results.csv")
    assert len(table) == 6 and (table["status"] == "completed").all()


@pytest.mark.slow
def test_a_third_rate_leaves_the_files_of_finished_runs_as_they_are(
    extended: tuple[Sweep, Done, dict[Path, int]],
) -> None:
    home, _, before = extended
    assert {path.name for path in before} >= {RUN, EPOCHS, CHECKPOINT, "predictions.parquet"}
    # Each job of a sweep has its logging set up by Hydra, finished or not.
    kept = {path: time for path, time in before.items() if path.name != LOG}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for run in read_runs(home.sweep):
        assert (run.path / LOG).read_text().count("  epoch ") == 2, run.name


# --- the same sweep in other ways -------------------------------------------------------------


@pytest.mark.slow
def test_one_job_after_the_other_gives_the_same_numbers_and_so_do_runs_added_later(
    extended: tuple[Sweep, Done, dict[Path, int]], tiny_pictures: Path, tmp_path: Path
) -> None:
    home = Sweep(tmp_path, tiny_pictures)
    home.graft(STRATEGIES, f"{RATES},1e-4", "hydra/launcher=basic")
    found = results(home.sweep)
    assert len(found) == 6 and found == results(extended[0].sweep)


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_as_if_nothing_had_happened(
    extended: tuple[Sweep, Done, dict[Path, int]], tiny_pictures: Path, tmp_path: Path
) -> None:
    home = Sweep(tmp_path, tiny_pictures)
    arguments = (STRATEGIES, f"{RATES},1e-4")
    kill_at(home.start(*arguments), "  epoch 1/2")  # of the first array
    kill_at(home.start(*arguments), f"{home.name('fine_tune', 0.01)}: best epoch")
    statuses = {run.name: run.info["status"] for run in read_runs(home.sweep)}
    finished = [name for name, status in statuses.items() if status == "completed"]
    # By the time it is killed another may be finished, but not all.
    assert 4 <= len(finished) < 6 and set(statuses.values()) == {"completed", "running"}
    before = {
        path: path.stat().st_mtime_ns
        for name in finished
        for path in (home.sweep / name).iterdir()
        if path.name != LOG
    }
    done = home.graft(*arguments)
    assert f"{len(finished)} of 6 runs are finished already." in done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    found = results(home.sweep)
    assert len(found) == 6 and found == results(extended[0].sweep)
    table = pd.read_csv(home.sweep / "results.csv")
    assert (table["status"] == "completed").all()


def kill_at(process: "subprocess.Popen[str]", words: str) -> None:
    """kill -9 as soon as the command has said this."""
    assert process.stderr is not None
    with process:
        said = []
        for line in process.stderr:
            said.append(line)
            if words in line:
                break
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL, "".join(said)
