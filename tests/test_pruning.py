"""A run whose judge finds it not worth going on with ends then, and changes nothing beside it."""

import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from graft import app, progress, train
from graft.config import Adam, RandomCrop, RunConfig
from graft.config import Sweep as SweepConfig
from graft.errors import Pruned, RunError
from graft.fit import checkpoint
from graft.record import CHECKPOINT, EPOCHS, LOG, PREDICTIONS, RESUME, Record, read_run
from graft.run import Judge, Member
from graft.strategies import FineTune, HeadOnly
from graft.sweep import Asked, Prepared
from graft.sweep.asked import finished
from graft.sweep.work import run_array
from hydra_plugins.study_sweeper import trial

WHY = "it is among the worse half"
RATES = (1e-2, 1e-3, 1e-4)


@dataclass
class Judgement:
    """A judge that remembers what it was told; `at`: the epochs that it objects to."""

    at: Sequence[int] = ()
    told: list[tuple[int, float]] = field(default_factory=list)

    def __call__(self, epoch: int, value: float) -> str | None:
        self.told.append((epoch, value))
        return WHY if epoch in self.at else None


def runs(base: RunConfig, *rates: float, sweep: str = "s") -> list[Asked]:
    base = replace(base, sweep=SweepConfig(name=sweep))
    return [
        Asked(f"lr={rate:g}", {"optimizer.lr": f"{rate:g}"}, replace(base, optimizer=Adam(lr=rate)))
        for rate in rates
    ]


def one(base: RunConfig, judge: Judge | None = None, *, sweep: str = "s") -> Any:
    """Train one run; what came of it."""
    (asked,) = runs(base, 1e-2, sweep=sweep)
    (outcome,) = run_array([asked], judges={asked.name: judge} if judge else {})
    return outcome


def record(base: RunConfig, rate: float = 1e-2, *, sweep: str = "s") -> Record:
    (asked,) = runs(base, rate, sweep=sweep)
    return read_run(asked.folder)


def told(run: Record, metric: str = "val_accuracy") -> list[tuple[int, float]]:
    """What a judge is to be told of a run."""
    return list(zip(run.epochs["epoch"], run.epochs[metric], strict=True))


def assert_same(run: Record, other: Record) -> None:
    """Equal curves, weights and predictions, bit for bit."""
    first, second = (
        pd.read_csv(each.path / EPOCHS, dtype=str).drop(columns="seconds") for each in (run, other)
    )
    pd.testing.assert_frame_equal(first, second)
    assert run.is_completed and run.info["best_epoch"] == other.info["best_epoch"]
    weights = [load_file(each.path / CHECKPOINT) for each in (run, other)]
    assert weights[0].keys() == weights[1].keys()
    assert [k for k in weights[0] if not torch.equal(weights[0][k], weights[1][k])] == []
    np.testing.assert_array_equal(run.predictions.scores, other.predictions.scores)


@pytest.fixture
def base(tiny_config: RunConfig) -> RunConfig:
    return replace(tiny_config, strategy=HeadOnly(), epochs=4)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every epoch."""
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    monkeypatch.setattr(checkpoint, "REST", 0.0)


# How an array is trained: as one stack, each run by itself, on batches that they share.
WAYS = {
    "stacked": {"strategy": HeadOnly()},
    "tails": {"strategy": FineTune()},
    "live tails": {"strategy": FineTune(), "augmentation": RandomCrop()},
}


# --- a run that is pruned ---------------------------------------------------------------------


@pytest.mark.parametrize("way", ["stacked", "tails"])
def test_a_run_ends_after_the_epoch_that_its_judge_objects_to(base: RunConfig, way: str) -> None:
    config = replace(base, **WAYS[way])
    pruned = one(config, Judgement(at=[2]))
    assert isinstance(pruned, Pruned) and pruned.is_final
    found = record(config)
    assert (pruned.epoch, pruned.value) == told(found)[-1] and pruned.epoch == 2
    assert str(pruned) == f"pruned at epoch 2: {WHY}"
    assert (found.info["status"], found.info["reason"]) == ("pruned", f"at epoch 2: {WHY}")
    assert found.info["best_epoch"] is None and found.info["timings_s"]["total"] > 0
    assert found.epochs["epoch"].tolist() == [1, 2]
    assert not (found.path / PREDICTIONS).exists() and not (found.path / CHECKPOINT).exists()


def test_its_epochs_are_those_of_the_undisturbed_run(base: RunConfig) -> None:
    assert isinstance(one(base, Judgement(at=[3])), Pruned)
    assert isinstance(one(base, sweep="whole"), float)
    pruned, whole = (record(base, sweep=name).epochs for name in ("s", "whole"))
    pd.testing.assert_frame_equal(
        pruned.drop(columns="seconds"), whole.drop(columns="seconds").iloc[:3]
    )


def test_its_log_and_the_screen_say_so_without_alarm(
    base: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="graft")
    shown: list[tuple[str | None, float, str]] = []
    with progress.by(lambda *said: shown.append(said), is_live=False):
        one(base, Judgement(at=[2]))
    text = (record(base).path / LOG).read_text()
    assert text.count("  epoch 2/4  train loss") == 1 and "  epoch 3/4" not in text
    assert text.count(f"lr=0.01: pruned at epoch 2: {WHY}") == 1
    assert caplog.messages.count(f"  lr=0.01: pruned at epoch 2: {WHY}") == 1
    assert {one.levelname for one in caplog.records} == {"INFO"}
    assert shown[-1] == ("lr=0.01", 1.0, "pruned")


def test_asked_for_again_without_a_judge_it_is_the_undisturbed_run(
    base: RunConfig, often: None
) -> None:
    one(base, Judgement(at=[3]))
    (asked,) = runs(base, 1e-2)
    assert finished(asked) is None and not (asked.folder / RESUME).exists()
    one(base, sweep="whole")
    one(base)
    again = record(base)
    assert_same(again, record(base, sweep="whole"))
    assert again.info["attempts"] == 2 and again.info["resumed_after"] == []
    assert again.info["reason"] is None


def test_what_ended_it_travels_to_another_process() -> None:
    pruned = pickle.loads(pickle.dumps(Pruned(3, 0.5, "worse\nthan others")))
    assert (pruned.epoch, pruned.value, pruned.why) == (3, 0.5, "worse than others")
    assert str(pruned) == "pruned at epoch 3: worse than others"


# --- what a judge is told ---------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
def test_a_judge_hears_of_each_epoch_once_and_of_the_metric_that_selects(
    base: RunConfig, metric: str
) -> None:
    config = replace(base, metric=metric)
    judge = Judgement()
    assert isinstance(one(config, judge), float)
    assert [epoch for epoch, _ in judge.told] == [1, 2, 3, 4]
    assert judge.told == told(record(config), metric)


def test_what_it_says_of_the_last_epoch_is_ignored(base: RunConfig) -> None:
    still = replace(base, epochs=6, patience=2)
    judges = [Judgement(at=[4]), Judgement(at=[3, 4])]
    asked = [*runs(base, 1e-2), *runs(still, 1e-12)]  # with nothing learned, patience ends it
    outcomes = run_array(asked, judges={a.name: j for a, j in zip(asked, judges, strict=True)})
    assert all(isinstance(one, float) for one in outcomes)
    assert [len(record(base, rate).epochs) for rate in (1e-2, 1e-12)] == [4, 3]
    assert [len(judge.told) for judge in judges] == [4, 3]


def test_nothing_is_said_of_a_metric_without_a_value(base: RunConfig, tmp_path: Path) -> None:
    config = train.resolve(replace(base, metric="val_auroc"))
    dataset = train.load_dataset(config)
    labels = dataset.examples.labels.copy()
    labels[dataset.examples.val] = 0
    one_class = replace(dataset, examples=replace(dataset.examples, labels=labels))
    judge = Judgement(at=[1, 2, 3, 4])
    (outcome,) = train.train_array([Member(config, tmp_path / "run", judge=judge)], one_class)
    assert judge.told == []
    assert isinstance(outcome, RunError) and "has no value" in str(outcome)


# --- in company -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way", ["stacked", *(pytest.param(w, marks=pytest.mark.slow) for w in ("tails", "live tails"))]
)
@pytest.mark.parametrize("place", [0, 1])
def test_the_runs_beside_it_are_what_they_are_without_it(
    base: RunConfig, way: str, place: int
) -> None:
    config = replace(base, **WAYS[way], epochs=3)
    asked = runs(config, *RATES)
    judges: dict[str, Judge] = {run.name: Judgement() for run in asked}
    judges[asked[place].name] = Judgement(at=[1])
    outcomes = run_array(asked, judges=judges)
    assert [isinstance(each, Pruned) for each in outcomes] == [i == place for i in range(3)]
    others = [rate for i, rate in enumerate(RATES) if i != place]
    run_array(runs(config, *others, sweep="others"))
    for rate in others:
        assert_same(record(config, rate), record(config, rate, sweep="others"))


@pytest.mark.parametrize("way", ["stacked", "tails"])
def test_an_array_whose_runs_are_all_pruned_is_over(base: RunConfig, way: str) -> None:
    config = replace(base, **WAYS[way], epochs=1000)
    asked = runs(config, 1e-2, 1e-3)
    judges = {run.name: Judgement(at=[place]) for place, run in enumerate(asked, start=1)}
    outcomes = run_array(asked, judges=judges)
    assert [each.epoch for each in outcomes if isinstance(each, Pruned)] == [1, 2]
    assert [len(record(config, rate).epochs) for rate in (1e-2, 1e-3)] == [1, 2]


def test_a_judge_that_raises_fails_its_own_run_alone(base: RunConfig) -> None:
    def broken(epoch: int, value: float) -> str | None:
        raise OSError("the study is gone")

    bad, good = run_array(runs(base, 1e-2, 1e-3), judges={"lr=0.01": broken})
    assert isinstance(bad, RunError) and not isinstance(bad, Pruned) and not bad.is_final
    assert record(base).info["reason"] == "OSError: the study is gone"
    assert isinstance(good, float)


# --- after a new start ------------------------------------------------------------------------


class Gone(Exception):
    """What ends a run early here."""


class Follower:
    """Ends the runs that it follows after their third epoch."""

    def epochs(self, rows: Sequence[Mapping[str, float]]) -> None:
        if rows[-1]["epoch"] >= 3:
            raise Gone("the machine is gone")


def gone_after_two(base: RunConfig, *rates: float) -> None:
    """Leave runs that go on after their second epoch."""
    asked = [replace(run, config=train.resolve(run.config)) for run in runs(base, *rates)]
    members = [Member(run.config, run.folder, followers=[Follower()]) for run in asked]
    outcomes = train.train_array(members, train.load_dataset(asked[0].config))
    assert all(isinstance(one, Gone) for one in outcomes)


def test_a_run_that_goes_on_tells_its_judge_of_the_epochs_before_first(
    base: RunConfig, often: None
) -> None:
    gone_after_two(base, 1e-2)
    judge = Judgement()
    assert isinstance(one(base, judge), float)
    assert record(base).info["resumed_after"] == [2]
    assert [epoch for epoch, _ in judge.told] == [1, 2, 3, 4]
    assert judge.told == told(record(base))


def test_a_run_may_be_pruned_before_it_goes_on(base: RunConfig, often: None) -> None:
    gone_after_two(base, 1e-2)
    judge = Judgement(at=[2])
    pruned = one(base, judge)
    assert isinstance(pruned, Pruned) and pruned.epoch == 2
    found = record(base)
    assert [epoch for epoch, _ in judge.told] == [1, 2] == found.epochs["epoch"].tolist()
    assert found.info["status"] == "pruned" and not (found.path / RESUME).exists()
    assert (found.path / LOG).read_text().count("  epoch 3/4") == 1  # of the first start


def test_of_the_epochs_before_the_last_one_counts(base: RunConfig, often: None) -> None:
    """It went on behind the others: nobody objected then."""
    gone_after_two(base, 1e-2)
    assert isinstance(one(base, Judgement(at=[1])), float)


def test_a_run_that_is_done_already_has_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last epoch may have been objected to, and its driver have died before it could answer."""
    jobs, completed = [OmegaConf.create({"name": name}) for name in "abc"], []

    class Trial:
        def __init__(self, job: Any) -> None:
            self.job = job

        def has_completed(self) -> None:
            completed.append(self.job.name)

    monkeypatch.setattr(app, "_begin", lambda jobs, is_alone: Prepared([[0]], {1: 0.5, 2: 0.5}))
    monkeypatch.setattr(trial, "is_of_search", lambda job: True)
    monkeypatch.setattr(trial, "handle", lambda job: None if job.name == "c" else Trial(job))
    assert app.prepare(jobs).done == {1: 0.5, 2: 0.5}
    assert completed == ["b"]


@pytest.mark.parametrize("way", ["stacked", pytest.param("live tails", marks=pytest.mark.slow)])
def test_a_run_that_is_pruned_before_it_goes_on_leaves_the_others(
    base: RunConfig, often: None, way: str
) -> None:
    config = replace(base, **WAYS[way])
    run_array(runs(config, *RATES[:2], sweep="whole"))
    gone_after_two(config, *RATES)
    outcomes = run_array(runs(config, *RATES), judges={"lr=0.0001": Judgement(at=[2])})
    assert [type(each) for each in outcomes] == [float, float, Pruned]
    for rate in RATES[:2]:
        assert_same(record(config, rate), record(config, rate, sweep="whole"))
    assert record(config, RATES[2]).epochs["epoch"].tolist() == [1, 2]
