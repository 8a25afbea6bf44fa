"""`graft -m hydra/sweeper=search ...` as a user meets it: planned, pruned, stopped, continued."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.home import Home

ALWAYS = (
    "batch_size=4", "hydra/sweeper=search", "hydra.sweeper.sampler.seed=0", "sweep.name=s",
    "hydra.launcher.cpu_slots=1",
)  # fmt: skip
RATES = "optimizer.lr=tag(log,interval(1e-4,1e-1))"
# Prunes as soon as it may: three trials are enough to show it.
HASTY = (
    "hydra.sweeper.pruner.n_startup_trials=1", "hydra.sweeper.pruner.n_warmup_steps=0",
    "hydra.sweeper.together=1",
)  # fmt: skip


class Search(Home):
    def __init__(self, path: Path, pictures: Path) -> None:
        super().__init__(path, pictures, *ALWAYS)
        self.sweep = self.outputs / "s"

    def said(self, *arguments: str, code: int = 0) -> str:
        done = self.graft(*arguments, code=code)
        return done.stdout + done.stderr

    @property
    def search(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.sweep / "search.json").read_text())
        return found

    @property
    def table(self) -> list[dict[str, str]]:
        with (self.sweep / "results.csv").open(newline="") as stream:
            return list(csv.DictReader(stream))


@pytest.fixture
def home(tiny_pictures: Path, tmp_path: Path) -> Search:
    return Search(tmp_path, tiny_pictures)


def test_a_search_prunes_goes_on_to_its_total_and_shows_what_it_learned(home: Search) -> None:
    asked = (RATES, "batch_size=16", "epochs=3", "metric=val_loss", *HASTY)
    out = home.said(*asked, "hydra.sweeper.n_trials=5")
    first = home.search
    assert [trial["number"] for trial in first["trials"]] == list(range(5))
    assert {trial["state"] for trial in first["trials"]} == {"completed", "pruned"}
    assert first["objectives"] == [{"name": "val_loss", "direction": "minimize"}]
    assert "The search has ended: its 5 trials are done" in out

    out = home.said(*asked, "hydra.sweeper.n_trials=7")
    assert "5 of 7 trials are there already" in out
    found = home.search
    assert found["trials"][:5] == first["trials"]
    assert len(found["trials"]) == len(home.table) == 7

    by_folder = {trial["folder"]: trial for trial in found["trials"]}
    for row in home.table:
        trial = by_folder[row["run"]]
        assert row["status"] == trial["state"]
        assert float(row["optimizer.lr"]) == trial["params"]["optimizer.lr"]
        losses = pd.read_csv(home.sweep / row["run"] / "metrics.csv")["val_loss"]
        assert list(trial["steps"].values()) == pytest.approx(list(losses))
        if trial["state"] == "completed":
            assert trial["values"][0] == pytest.approx(min(losses))
        else:
            info = json.loads((home.sweep / row["run"] / "run.json").read_text())
            epoch = max(map(int, trial["steps"]))
            assert info["reason"].startswith(f"at epoch {epoch}: ") and "median" in info["reason"]
    assert "What the search learned" in (home.sweep / "report.html").read_text()
    assert (home.sweep / "experiment" / "best.yaml").is_file()


@pytest.mark.slow
def test_the_best_point_can_be_run_again_by_its_file(home: Search) -> None:
    home.graft(RATES, "strategy=head_only,fine_tune", "epochs=1", "hydra.sweeper.n_trials=2")
    best = home.search["trials"][home.search["best"][0]]["params"]
    code = """
import sys
from hydra import compose, initialize_config_dir
import graft.app
with initialize_config_dir(graft.app.conf_dir(), version_base="1.3"):
    best = [f"hydra.searchpath=[file://{sys.argv[1]}]", "experiment=best"]
    made = compose("config", overrides=best)
print(made.optimizer.lr, made.strategy._target_.rpartition(".")[2], made.epochs)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(home.sweep)], capture_output=True, text=True
    )
    lr, strategy, epochs = done.stdout.split()
    assert float(lr) == best["optimizer.lr"] and epochs == "1"
    assert strategy == {"head_only": "HeadOnly", "fine_tune": "FineTune"}[best["strategy"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizer.lr=interval(3,1)"], "the interval is empty: 3 is above 1"),
        (["optimizer.lr=tag(log,interval(0,1))"], "begins above 0"),
        (["optimizer.rate=interval(0.1,1)"], "optimizer.rate"),
        (["optimizer.lr=interval(-1,-0.5)"], "optimizer.lr"),
        ([RATES, "model.dropout=0,0.2,1.0", "sweep.dry_run=true"], "model.dropout=1.0: expected"),
        ([RATES, "strategy=fine_tune", "strategy.depth=range(1,99)"], "strategy.depth=98"),
        ([RATES, "hydra.sweeper.n_trials=0"], "n_trials=0"),
        ([RATES, "sweep.objectives=[val_acc]"], "sweep.objectives"),
        (["epochs=1"], "nothing to search"),
        ([RATES, "metric=val_accuracy,val_loss"], "cannot be searched"),
        (
            [RATES, "hydra.sweeper.params={metric: val_loss}"],
            "the search is to maximize val_accuracy, this trial would be to minimize val_loss",
        ),
        (
            [RATES, "metric=val_loss", "hydra.sweeper.params={loss.label_smoothing: '0.0,0.1'}"],
            "metric=val_loss cannot choose between runs that differ in loss.label_smoothing",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused_and_leaves_nothing(
    home: Search, arguments: list[str], words: str
) -> None:
    assert words in home.said(*arguments, code=2)
    assert not (home.path / "outputs").exists()


def test_a_dry_run_shows_the_search_and_does_nothing(home: Search) -> None:
    out = home.said(RATES, "strategy=head_only,fine_tune", "sweep.dry_run=true")
    assert "FloatDistribution(high=0.1, log=True, low=0.0001" in out
    assert "maximize val_accuracy; at most 20 trials" in out and "not begun" in out
    assert not (home.path / "outputs").exists()


@pytest.mark.slow
def test_a_space_in_sections_names_its_runs(home: Search) -> None:
    home.graft("hydra.sweeper.params={optimizer: {lr: 'interval(1e-3,1e-2)'}}", "epochs=1",
               "hydra.sweeper.n_trials=2")  # fmt: skip
    assert all(row["run"].startswith("optimizer.lr=0.0") for row in home.table)
    assert len({row["run"] for row in home.table}) == 2


@pytest.mark.slow
def test_a_depth_is_searched_only_where_there_is_one(home: Search) -> None:
    home.graft(
        "strategy=head_only,fine_tune", "strategy.depth=range(1,4)", "optimizer.lr=1e-3",
        "hydra.sweeper.conditions={strategy.depth: {strategy: fine_tune}}", "epochs=1",
        "hydra.sweeper.n_trials=9",
    )  # fmt: skip
    points = [trial["params"] for trial in home.search["trials"] if trial["same_as"] is None]
    assert sorted(map(str, points)) == sorted(
        map(str, [{"strategy": "head_only"},
                  *({"strategy": "fine_tune", "strategy.depth": d} for d in (1, 2, 3))])
    )  # fmt: skip
    assert home.search["stopped"] == "all 4 points of the space have been evaluated"
    assert len(home.table) == 4


@pytest.mark.slow
def test_a_point_is_judged_by_the_mean_over_seeds(home: Search) -> None:
    home.graft(RATES, "epochs=2", "hydra.sweeper.replicates=3", "hydra.sweeper.n_trials=3",
               "hydra/sweeper/pruner=none")  # fmt: skip
    rows = home.table
    assert len(rows) == 9
    for trial in home.search["trials"]:
        own = [r for r in rows if float(r["optimizer.lr"]) == trial["params"]["optimizer.lr"]]
        assert sorted(row["seed"] for row in own) == ["0", "1", "2"]
        mean = sum(float(row["val_accuracy"]) for row in own) / 3
        assert trial["values"][0] == pytest.approx(mean)


@pytest.mark.slow
def test_several_objectives_have_a_front(home: Search) -> None:
    home.graft(
        RATES, "strategy=head_only,fine_tune", "epochs=1", "hydra.sweeper.n_trials=6",
        "sweep.objectives=[val_accuracy,trainable_parameters]",
    )  # fmt: skip
    found = home.search
    directions = [one["direction"] for one in found["objectives"]]
    assert directions == ["maximize", "minimize"] and found["best"]
    sizes = {t["params"]["strategy"]: t["values"][1] for t in found["trials"]}
    assert sizes["head_only"] < sizes["fine_tune"]
    assert "The front" in (home.sweep / "report.html").read_text()


def test_a_single_objective_is_one_value_and_is_not_pruned_by_the_metric(home: Search) -> None:
    home.graft(RATES, "epochs=1", "metric=val_loss", "hydra.sweeper.n_trials=1",
               "sweep.objectives=[trainable_parameters]")  # fmt: skip
    found = home.search
    assert found["objectives"] == [{"name": "trainable_parameters", "direction": "minimize"}]
    (trial,) = found["trials"]
    assert trial["values"][0] > 1 and trial["steps"] == {}


@pytest.mark.slow
def test_rates_that_diverge_fail_and_the_others_are_compared(home: Search) -> None:
    home.graft(
        "optimizer=sgd", "optimizer.lr=1e-2,1e30", "strategy=full", "epochs=2", code=1,
    )  # fmt: skip
    by_rate = {t["params"]["optimizer.lr"]: t for t in home.search["trials"]}
    assert by_rate[1e30]["state"] == "failed" and "diverged" in by_rate[1e30]["reason"]
    assert by_rate[1e-2]["state"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_search_killed_again_and_again_has_the_trials_asked_for(home: Search, seed: int) -> None:
    """kill -9 of the driver at random moments: none lost, none doubled."""
    rng = random.Random(seed)
    asked = (RATES, "strategy=head_only,fine_tune", "epochs=3", "hydra.launcher.cpu_slots=2",
             "hydra.sweeper.n_trials=8", *HASTY)  # fmt: skip
    for _ in range(6):
        process = home.start(*asked)
        time.sleep(rng.uniform(2.0, 9.0))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    home.graft(*asked)
    found = home.search["trials"]
    assert [trial["number"] for trial in found] == list(range(8))
    assert {trial["state"] for trial in found} <= {"completed", "pruned"}
    assert len({trial["folder"] for trial in found}) == len(home.table) == 8
