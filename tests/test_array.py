"""Runs trained as an array: each is bit for bit the run that it is alone, and ends for itself."""

import gc
import json
import logging
import re
import threading
import time
import traceback
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from graft import groups, lanes, machine, networks, train
from graft.config import (
    SGD,
    Adam,
    AdamW,
    Cache,
    Cosine,
    CrossEntropy,
    Dihedral,
    NoAugmentation,
    RandomCrop,
    RunConfig,
    Sweep,
    Tracking,
)
from graft.errors import Diverged, RunError, WeightsError
from graft.fit import checkpoint
from graft.fit.learner import Learner
from graft.network import Network
from graft.record import CHECKPOINT, EPOCHS, LOG, RUN, Record, RunFolder
from graft.run import Run
from graft.strategies import FineTune, Full, HeadOnly, Strategy
from graft.train import Member, Outcome, array_key, train_array


def array(configs: Mapping[str, RunConfig], folder: Path, **options: Any) -> list[Outcome]:
    """Train these runs together, each in a folder of its name."""
    resolved = {name: train.resolve(config) for name, config in configs.items()}
    assert len({array_key(config) for config in resolved.values()}) == 1
    dataset = train.load_dataset(next(iter(resolved.values())))
    members = [Member(config, folder / name) for name, config in resolved.items()]
    return train_array(members, dataset, **options)


def alone(config: RunConfig, folder: Path) -> Record:
    resolved = train.resolve(config)
    return train.train(resolved, folder, train.load_dataset(resolved))


def assert_same(one: Outcome, other: Outcome) -> None:
    """Equal metrics, weights and predictions, bit for bit."""
    assert isinstance(one, Record) and isinstance(other, Record)
    first, second = (
        pd.read_csv(run.path / EPOCHS, dtype=str).drop(columns="seconds") for run in (one, other)
    )
    pd.testing.assert_frame_equal(first, second)
    assert one.info["best_epoch"] == other.info["best_epoch"]
    weights = [load_file(run.path / CHECKPOINT) for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert [k for k in weights[0] if not torch.equal(weights[0][k], weights[1][k])] == []
    np.testing.assert_array_equal(one.predictions.scores, other.predictions.scores)


def info(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / RUN).read_text())
    assert isinstance(found, dict)
    return found


def rates(config: RunConfig, *values: float) -> dict[str, RunConfig]:
    return {f"lr={lr:g}": replace(config, optimizer=Adam(lr=lr)) for lr in values}


# --- company changes nothing ------------------------------------------------------------------

SHARED: dict[str, dict[str, Any]] = {
    "stored trunk, one stack": {"strategy": HeadOnly()},
    "stored trunk, in lanes": {"strategy": FineTune()},
    "live trunk, side by side": {"strategy": FineTune(), "augmentation": RandomCrop()},
    "live trunk, one stack": {"strategy": HeadOnly(), "augmentation": RandomCrop()},
    "no cache, side by side": {"strategy": FineTune(2), "cache": Cache(enabled=False)},
    "no trunk": {"strategy": Full()},
}
SLOW = list(SHARED)[3:]
# How an array is trained: as one, each run by itself, on batches that they share.
WAYS = pytest.mark.parametrize("shared", list(SHARED.values())[:3], ids=list(SHARED)[:3])


@pytest.mark.parametrize(
    "shared",
    [pytest.param(shared, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
     for name, shared in SHARED.items()],
)  # fmt: skip
def test_each_run_of_an_array_is_the_run_alone(
    tiny_config: RunConfig, tmp_path: Path, shared: dict[str, Any]
) -> None:
    configs = rates(replace(tiny_config, **shared), 1e-2, 1e-3)
    outcomes = array(configs, tmp_path / "array")
    singles = [alone(config, tmp_path / "alone" / name) for name, config in configs.items()]
    for one, single in zip(outcomes, singles, strict=True):
        assert_same(one, single)
    losses = [single.epochs["train_loss"].tolist() for single in singles]
    assert losses[0] != losses[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", [HeadOnly(), pytest.param(FineTune(), marks=pytest.mark.slow)], ids=repr
)
def test_runs_that_differ_in_all_that_they_may_are_each_the_run_alone(
    tiny_config: RunConfig, tmp_path: Path, strategy: Strategy
) -> None:
    base = replace(tiny_config, strategy=strategy)
    configs = {
        "adam": base,
        "adamw": replace(base, optimizer=AdamW(weight_decay=0.1), schedule=Cosine(), epochs=3),
        "sgd": replace(base, optimizer=SGD(nesterov=True), metric="val_loss"),
        "head": replace(base, model=replace(base.model, head_seed=5, dropout=0.5)),
        "loss": replace(base, loss=CrossEntropy(class_weights="balanced", label_smoothing=0.1)),
    }
    outcomes = array(configs, tmp_path / "array")
    for (name, config), one in zip(configs.items(), outcomes, strict=True):
        assert_same(one, alone(config, tmp_path / "alone" / name))


@pytest.mark.slow
def test_runs_with_and_without_an_added_dropout_are_each_the_run_alone(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    """In a head that has none, a dropout is one module more."""
    model = replace(tiny_config.model, name="resnet18")
    base = replace(tiny_config, model=model, strategy=HeadOnly(), epochs=1)
    arrays: dict[str, dict[str, RunConfig]] = {}
    for dropout in (None, 0.3, 0.6):
        config = replace(base, model=replace(model, dropout=dropout))
        arrays.setdefault(array_key(config), {})[f"dropout={dropout}"] = config
    assert len(arrays) == 2
    for configs in arrays.values():
        outcomes = array(configs, tmp_path / "array")
        for (name, config), one in zip(configs.items(), outcomes, strict=True):
            assert_same(one, alone(config, tmp_path / "alone" / name))


# --- the network that was built last --------------------------------------------------------------


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The strategies of the runs for which a network was built."""
    seen: list[str] = []
    build = networks._built

    def noted(config: RunConfig, *args: Any) -> Any:
        seen.append(str(config.strategy))
        return build(config, *args)

    monkeypatch.setattr(networks, "_built", noted)
    monkeypatch.setattr(train, "_kept", networks.Kept())
    return seen


def test_the_next_array_begins_with_the_network_that_was_built_last(
    tiny_config: RunConfig, tmp_path: Path, built: list[str]
) -> None:
    strategies = [FineTune(1), HeadOnly(), Full(), FineTune(1)]
    configs = [replace(tiny_config, strategy=one) for one in strategies]
    together = [
        array(rates(config, 1e-2, 1e-3), tmp_path / str(i))[1] for i, config in enumerate(configs)
    ]
    assert built == [str(FineTune(1))]
    for i, config in enumerate(configs):
        train._kept = networks.Kept()
        own = replace(config, optimizer=replace(config.optimizer, lr=1e-3))
        assert_same(together[i], alone(own, tmp_path / f"alone{i}"))
    assert len(built) == 1 + len(configs)


def test_another_network_or_other_first_values_are_built(
    tiny_config: RunConfig, tmp_path: Path, built: list[str]
) -> None:
    others = [
        tiny_config,
        replace(tiny_config, seed=1),
        replace(tiny_config, model=replace(tiny_config.model, head_seed=5)),
        replace(tiny_config, image_size=48),
    ]
    for i, config in enumerate(others):
        alone(config, tmp_path / str(i))
    assert len(built) == 4


def test_a_network_that_cannot_be_built_costs_no_array_after_it(
    tiny_config: RunConfig, tmp_path: Path, built: list[str]
) -> None:
    alone(tiny_config, tmp_path / "first")
    wrong = replace(tiny_config, model=replace(tiny_config.model, weights="nowhere.pth"))
    with pytest.raises(WeightsError):
        train.train(wrong, tmp_path / "wrong", train.load_dataset(train.resolve(tiny_config)))
    assert_same(alone(tiny_config, tmp_path / "second"), alone(tiny_config, tmp_path / "third"))


def test_a_large_network_is_not_kept(
    tiny_config: RunConfig, tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = train.build_network(train.resolve(tiny_config), ("a", "b"), torch.device("cpu"))
    built.clear()
    size = networks.SHARE_KEPT * 4 * network.counts()["total"]
    for free, count in ((size - 1, 2), (size, 1)):
        built.clear()
        monkeypatch.setattr(machine, "free_bytes", lambda device, free=free: free)
        for i in range(2):
            alone(tiny_config, tmp_path / f"{free}{i}")
        assert len(built) == count


# --- lanes ------------------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Of each run, by its name, the threads that its steps were made in."""
    made: dict[str, list[int]] = {}
    step = Learner.step

    def noted(self: Learner, *args: Any) -> None:
        made.setdefault(self.name, []).append(threading.get_ident())
        step(self, *args)

    monkeypatch.setattr(Learner, "step", noted)
    monkeypatch.setattr(lanes, "count", lambda device: 2)  # on a machine of one core too
    return made


@pytest.mark.parametrize("shared", [{}, {"augmentation": RandomCrop()}], ids=["stored", "live"])
def test_runs_make_their_steps_in_two_lanes(
    tiny_config: RunConfig, tmp_path: Path, steps: dict[str, list[int]], shared: dict[str, Any]
) -> None:
    base = replace(tiny_config, strategy=FineTune(), **shared)
    assert all(isinstance(one, Record) for one in array(rates(base, 1e-2, 1e-3, 1e-4), tmp_path))
    first, second, third = (set(steps[f"lr={lr}"]) for lr in (0.01, 0.001, 0.0001))
    assert len(first) == len(second) == 1 and first != second
    # It shares batches with the others where the trunk is live; else it comes after them.
    assert third == (first if shared else {threading.get_ident()})


@pytest.mark.parametrize("bound", ["weights", "activations"])
def test_runs_that_hold_much_make_their_steps_one_after_the_other(
    tiny_config: RunConfig, tmp_path: Path, steps: dict[str, list[int]],
    monkeypatch: pytest.MonkeyPatch, bound: str,
) -> None:  # fmt: skip
    base = replace(tiny_config, strategy=FineTune(), epochs=1)
    network = train.build_network(train.resolve(base), ("a", "b"), torch.device("cpu"))
    held = 20 * network.counts()["trainable"]
    limit = held - 1 if bound == "weights" else held
    monkeypatch.setattr(groups, "MAX_BESIDE_BYTES", limit)
    array(rates(base, 1e-2, 1e-3), tmp_path)
    assert set().union(*steps.values()) == {threading.get_ident()}


def test_foretelling_what_a_step_keeps_leaves_nothing_of_it(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tail with operations that keep their own outputs. What is left would be left for ever;
    on a GPU a step could then not be recorded in a lane."""
    left: list[int] = []
    kept_bytes = groups._kept_bytes

    def looked(*args: Any) -> int:
        gc.collect()
        before = num_graphs()
        found = kept_bytes(*args)
        left.append(num_graphs() - before)
        return found

    def num_graphs() -> int:
        seen = [one for one in gc.get_objects() if type(one) is torch.Tensor]
        return sum(1 for one in seen if one.grad_fn is not None)

    monkeypatch.setattr(groups, "_kept_bytes", looked)
    monkeypatch.setattr(lanes, "count", lambda device: 2)
    base = replace(tiny_config, strategy=FineTune(), epochs=1)
    assert all(isinstance(one, Record) for one in array(rates(base, 1e-2, 1e-3), tmp_path))
    assert left == [0]


def test_what_a_step_keeps_is_foretold_from_a_few_pictures(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch: what autograd really saves in the first step, weights apart."""
    foretold: list[int] = []
    saved: dict[int, int] = {}
    kept_bytes, step = groups._kept_bytes, Learner.step

    def told(*args: Any) -> int:
        foretold.append(kept_bytes(*args))
        return foretold[-1]

    def counted(self: Learner, *args: Any) -> None:
        own = {p.data_ptr() for p in self.network.module.parameters()}
        found: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                found[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            step(self, *args)
        saved.setdefault(len(args[1]), sum(t.untyped_storage().nbytes() for t in found.values()))

    monkeypatch.setattr(groups, "_kept_bytes", told)
    monkeypatch.setattr(Learner, "step", counted)
    monkeypatch.setattr(lanes, "count", lambda device: 2)
    array(rates(replace(tiny_config, strategy=FineTune(2), epochs=1), 1e-2, 1e-3), tmp_path)
    assert len(foretold) == 1
    assert foretold[0] == pytest.approx(saved[tiny_config.batch_size], rel=0.25)


def test_a_run_that_fails_between_batches_leaves_its_lane_to_nobody_else(
    tiny_config: RunConfig, tmp_path: Path, steps: dict[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    summed_loss = Learner.summed_loss

    def breaks(self: Learner, *args: Any) -> torch.Tensor:
        if self.name == "lr=0.01" and self.steps == 1:
            raise MemoryError("no more")
        return summed_loss(self, *args)

    base = replace(tiny_config, strategy=FineTune(), augmentation=RandomCrop())
    configs = rates(base, 1e-2, 1e-3, 1e-4)
    expected = [alone(config, tmp_path / "alone" / name) for name, config in configs.items()]
    steps.clear()
    monkeypatch.setattr(Learner, "summed_loss", breaks)
    first, *others = array(configs, tmp_path)
    assert isinstance(first, MemoryError) and len(steps["lr=0.01"]) == 2
    for one, single in zip(others, expected[1:], strict=True):
        assert_same(one, single)


# --- how runs end -----------------------------------------------------------------------------


@pytest.mark.slow
@WAYS
def test_each_run_ends_when_it_should(
    tiny_config: RunConfig, tmp_path: Path, shared: dict[str, Any]
) -> None:
    base = replace(tiny_config, **shared)
    still = Adam(lr=1e-12)  # nothing improves
    configs = {
        "short": replace(base, epochs=1),
        "long": replace(base, epochs=4),
        "patient": replace(base, epochs=4, patience=1, optimizer=still),
    }
    runs = dict(zip(configs, array(configs, tmp_path), strict=True))
    assert all(isinstance(run, Record) and run.is_completed for run in runs.values())
    ends = {name: len(run.epochs) for name, run in runs.items() if isinstance(run, Record)}
    assert (ends["short"], ends["long"]) == (1, 4)
    assert ends["patient"] == info(tmp_path / "patient")["best_epoch"] + 1 < 4


@pytest.mark.slow
@WAYS
def test_a_run_that_diverges_ends_alone(
    tiny_config: RunConfig, tmp_path: Path, shared: dict[str, Any]
) -> None:
    configs = rates(replace(tiny_config, **shared), 1e30, 1e-3)
    ended: list[tuple[str, Outcome]] = []
    outcomes = array(
        configs, tmp_path, ended=lambda member, outcome: ended.append((member.folder.name, outcome))
    )
    diverged, other = outcomes
    assert isinstance(diverged, Diverged)
    record = info(tmp_path / "lr=1e+30")
    assert record["status"] == "diverged" and record["reason"] == str(diverged)
    assert_same(other, alone(configs["lr=0.001"], tmp_path / "alone"))
    assert ended == list(zip(configs, outcomes, strict=True))


def test_one_metric_without_a_value_fails_its_own_run(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = train.resolve(replace(tiny_config, strategy=HeadOnly()))
    dataset = train.load_dataset(config)
    labels = dataset.examples.labels.copy()
    labels[dataset.examples.val] = 0
    one_class = replace(dataset, examples=replace(dataset.examples, labels=labels))
    members = [
        Member(replace(config, metric="val_auroc"), tmp_path / "auroc"),
        Member(config, tmp_path / "accuracy"),
    ]
    auroc, accuracy = train_array(members, one_class)
    assert isinstance(auroc, RunError) and "metric=val_auroc has no value" in str(auroc)
    assert info(tmp_path / "auroc")["status"] == "failed"
    assert isinstance(accuracy, Record) and accuracy.is_completed


@pytest.mark.parametrize("stage", ["train.supply", "best.evaluate", "train._learner"])
def test_what_ends_all_that_they_share_fails_every_run_and_each_record_says_so(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise OSError("the disk\nis gone")

    monkeypatch.setattr(f"graft.{stage}", broken)
    ended: list[str] = []
    configs = rates(replace(tiny_config, strategy=HeadOnly()), 1e-2, 1e-3)
    outcomes = array(
        configs, tmp_path, ended=lambda member, outcome: ended.append(member.folder.name)
    )
    assert [str(one) for one in outcomes] == ["the disk\nis gone"] * 2
    assert ended == list(configs)
    for name in configs:
        record = info(tmp_path / name)
        assert record["status"] == "failed" and record["reason"] == "OSError: the disk is gone"


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_a_run_that_cannot_begin_fails_alone(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_lanes: int
) -> None:
    monkeypatch.setattr(lanes, "COUNT", num_lanes)
    learner = train._learner

    def second_fails(run: Any, *args: Any) -> Learner:
        if run.name == "lr=0.001":
            raise MemoryError("no more")
        return learner(run, *args)

    monkeypatch.setattr(train, "_learner", second_fails)
    configs = rates(replace(tiny_config, strategy=FineTune()), 1e-2, 1e-3, 1e-4)
    ended: list[str] = []
    first, second, third = array(
        configs, tmp_path, ended=lambda member, outcome: ended.append(member.folder.name)
    )
    for other, name in ((first, "lr=0.01"), (third, "lr=0.0001")):
        assert isinstance(other, Record) and info(tmp_path / name)["status"] == "completed"
    assert isinstance(second, MemoryError)
    assert info(tmp_path / "lr=0.001")["status"] == "failed"
    assert sorted(ended) == sorted(configs)


def _no_room(*args: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("what", ["write_epochs", "write_predictions", "write_run"])
def test_a_folder_that_can_no_longer_be_written_ends_its_run_alone(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    write = getattr(RunFolder, what)

    def fails(self: RunFolder, *args: Any) -> None:
        is_last = what != "write_run" or args[0]["status"] == "completed"
        if self.path.name == "lr=0.01" and is_last:
            _no_room()
        write(self, *args)

    configs = rates(replace(tiny_config, strategy=FineTune()), 1e-2, 1e-3)
    expected = alone(configs["lr=0.001"], tmp_path / "alone")
    monkeypatch.setattr(RunFolder, what, fails)
    first, second = array(configs, tmp_path)
    assert isinstance(first, OSError) and info(tmp_path / "lr=0.01")["status"] == "failed"
    assert "No space left" in info(tmp_path / "lr=0.01")["reason"]
    assert_same(second, expected)


def test_a_checkpoint_that_cannot_be_noted_ends_its_run_alone(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = Run.find_checkpoint

    def fails(self: Run, *args: Any) -> None:
        if self.name == "lr=0.01":
            _no_room()
        find(self, *args)

    monkeypatch.setattr(Run, "find_checkpoint", fails)
    first, second = array(rates(replace(tiny_config, epochs=1), 1e-2, 1e-3), tmp_path / "some")
    assert isinstance(first, OSError)
    assert isinstance(second, Record) and second.is_completed
    (only,) = array(rates(tiny_config, 1e-2), tmp_path / "none")
    assert isinstance(only, OSError)


@pytest.mark.parametrize("num_epochs", [0, 2])  # behind none; in the test
def test_a_run_whose_outputs_cannot_be_had_ends_alone(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_epochs: int
) -> None:
    logits = Learner.logits

    def fails(self: Learner, activations: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if self.name == "lr=0.01" and len(self.history) == num_epochs:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits(self, activations)

    configs = rates(replace(tiny_config, strategy=FineTune()), 1e-2, 1e-3)
    expected = alone(configs["lr=0.001"], tmp_path / "alone")
    monkeypatch.setattr(Learner, "logits", fails)
    first, second = array(configs, tmp_path)
    assert isinstance(first, torch.OutOfMemoryError)
    assert_same(second, expected)


def test_what_a_run_that_ended_held_is_free_while_others_go_on(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its step's graph at once, its optimizer by the end of the epoch, the others' with them."""
    step, held = Learner.step, dict[str, weakref.ref[Any]]()
    seen: list[tuple[bool, bool]] = []

    def fails(self: Learner, activations: tuple[torch.Tensor, ...], labels: torch.Tensor) -> None:
        if self.name == "lr=0.01" and self.steps == 1:
            large = torch.zeros(1000)
            held.update(graph=weakref.ref(large), optimizer=weakref.ref(self.optimizer))
            raise Diverged("too fast")
        if self.name == "lr=0.001" and held:
            held["other"] = weakref.ref(self)
            seen.append((held["graph"]() is None, held["optimizer"]() is None))
        step(self, activations, labels)

    monkeypatch.setattr(Learner, "step", fails)
    monkeypatch.setattr(lanes, "COUNT", 1)
    gc.disable()
    try:
        first, second = array(rates(tiny_config, 1e-2, 1e-3), tmp_path)
        assert held["other"]() is None  # while its neighbour's error is still at hand
    finally:
        gc.enable()
    assert isinstance(first, Diverged) and isinstance(second, Record)
    assert seen[0][0] and seen[-1] == (True, True)
    assert "too fast" in "".join(traceback.format_exception(first))


def test_a_checkpoint_that_cannot_be_read_back_at_once_is_that_of_the_best_epoch(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny_config, strategy=FineTune(), epochs=3)
    monkeypatch.setattr(Learner, "_is_best", lambda self, row: row["epoch"] == 1)
    expected = alone(config, tmp_path / "alone")
    restore, failed = Network.restore, list[Path]()

    def fails_once(self: Network, path: Path) -> None:
        if not failed:
            failed.append(path)
            raise WeightsError("cannot be read as weights: Cannot allocate memory")
        restore(self, path)

    monkeypatch.setattr(Network, "restore", fails_once)
    assert_same(alone(config, tmp_path / "again"), expected)
    assert failed


def test_an_output_that_is_infinite_is_a_run_that_diverged(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss may be finite: of three classes it looks at the right one alone."""
    logits = Learner.logits

    def overflows(self: Learner, activations: tuple[torch.Tensor, ...]) -> torch.Tensor:
        out = logits(self, activations)
        return torch.cat([out, torch.full_like(out, -torch.inf), torch.zeros_like(out)], dim=1)

    monkeypatch.setattr(Learner, "logits", overflows)
    monkeypatch.setattr(Learner, "loss", lambda self, logits, labels: logits[:, :1].square().mean())
    with pytest.raises(Diverged, match=r"an output on validation became infinite in epoch 1"):
        alone(replace(tiny_config, strategy=FineTune()), tmp_path / "run")


# --- what is told of each run -----------------------------------------------------------------


class Told:
    """A follower."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, float]] = []

    def epochs(self, rows: Sequence[Mapping[str, float]]) -> None:
        self.rows += rows


@pytest.mark.parametrize("write_s", [0.0, pytest.param(1000.0, marks=pytest.mark.slow)])
@WAYS
def test_a_follower_is_told_of_each_epoch_once_and_in_order(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    shared: dict[str, Any], write_s: float,
) -> None:  # fmt: skip
    monkeypatch.setattr(train, "WRITE_S", write_s)
    config = train.resolve(replace(tiny_config, **shared))
    told = {epochs: (Told(), Told()) for epochs in (3, 1)}
    members = [
        Member(replace(config, epochs=epochs), tmp_path / str(epochs), followers=followers)
        for epochs, followers in told.items()
    ]
    train_array(members, train.load_dataset(config))
    for epochs, followers in told.items():
        written = pd.read_csv(tmp_path / str(epochs) / EPOCHS).to_dict("records")
        for follower in followers:
            assert [row["epoch"] for row in follower.rows] == list(range(1, epochs + 1))
            assert follower.rows == written


def test_the_first_epoch_is_told_at_once_and_others_together(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "WRITE_S", 1000.0)
    monkeypatch.setattr(checkpoint, "EVERY_S", 1000.0)  # it has the rows written, too
    told: list[int] = []

    class Counts:
        def epochs(self, rows: Sequence[Mapping[str, float]]) -> None:
            told.append(len(rows))

    config = train.resolve(replace(tiny_config, epochs=4))
    train_array([Member(config, tmp_path, followers=[Counts()])], train.load_dataset(config))
    assert told == [1, 3]


@pytest.mark.slow
@WAYS
def test_each_run_has_its_own_epochs_in_its_log_and_nobody_elses(
    tiny_config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    shared: dict[str, Any],
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, logger="graft")
    configs = rates(replace(tiny_config, **shared), 1e-2, 1e-3, 1e-4)
    runs = array(configs, tmp_path)
    handlers = logging.getLogger("graft").handlers
    assert not [one for one in handlers if isinstance(one, logging.FileHandler)]
    for run in runs:
        assert isinstance(run, Record)
        text = (run.path / LOG).read_text()
        assert text.count("trunk: ") == 1  # what they share is in every log
        own = [line for line in text.splitlines() if " train loss " in line]
        found = [re.findall(r"epoch (\d)/2 .*train loss (\S+) .*val loss (\S+)", x) for x in own]
        expected = [
            [(f"{row.epoch}", f"{row.train_loss:.3f}", f"{row.val_loss:.3f}")]
            for row in run.epochs.itertuples()
        ]
        assert found == expected


@pytest.mark.slow
def test_the_times_of_the_runs_of_an_array_add_up_to_its_own(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    for strategy, epochs in ((HeadOnly(), 20), (FineTune(), 2)):
        base = replace(tiny_config, strategy=strategy, epochs=epochs)
        array(rates(replace(base, epochs=1), 1e-2), tmp_path / "what is done once a process")
        started = time.monotonic()
        runs = array(rates(base, 1e-2, 1e-3), tmp_path / repr(strategy))
        wall = time.monotonic() - started
        times = [run.info["timings_s"] for run in runs if isinstance(run, Record)]
        total = sum(one["total"] for one in times)
        assert 0.6 * wall < total < wall + 0.02
        for one in times:
            parts = [one[what] for what in ("prepare", "trunk", "fit", "test")]
            assert one["total"] == pytest.approx(sum(parts), abs=0.03)


# --- which runs are one array -----------------------------------------------------------------

MAY_DIFFER: dict[str, Any] = {
    "optimizer": SGD(),
    "optimizer.lr": Adam(lr=0.5),
    "optimizer.weight_decay": Adam(lr=1e-2, weight_decay=0.5),
    "schedule": Cosine(),
    "loss": CrossEntropy(label_smoothing=0.1),
    "epochs": 7,
    "patience": 3,
    "metric": "val_loss",
    "model.dropout": 0.5,
    "model.head_seed": 8,
    "workers": 1,
    "output_dir": "elsewhere",
    "sweep": Sweep(name="other", axes=("seed",)),
    "tracking": Tracking(uri="other"),
}
MAY_NOT_DIFFER: dict[str, Any] = {
    "strategy": HeadOnly(),
    "strategy.depth": FineTune(2),
    "seed": 1,
    "batch_size": 8,
    "sampling": "balanced",
    "augmentation": NoAugmentation(),
    "augmentation.min_area": RandomCrop(min_area=0.9),
    "image_size": 64,
    "precision": "bfloat16",
    "activations": "bfloat16",
    "dataset.target": "person",
    "dataset.split_seed": 1,
    "model.name": "resnet18",
    "model.weights": "imagenet",
    "model.mean": (0.1, 0.2, 0.3),
    "cache": Cache(enabled=False),
    "device": "cuda",
}


def changed(config: RunConfig, key: str, value: Any) -> RunConfig:
    group, _, name = key.partition(".")
    if group in ("model", "dataset") and name:
        value = replace(getattr(config, group), **{name: value})
    return replace(config, **{group: value})


@pytest.mark.parametrize("key", MAY_DIFFER)
def test_runs_that_differ_in_this_are_one_array(tiny_config: RunConfig, key: str) -> None:
    other = changed(tiny_config, key, MAY_DIFFER[key])
    assert other != tiny_config and array_key(other) == array_key(tiny_config)


@pytest.mark.parametrize("key", MAY_NOT_DIFFER)
def test_runs_that_differ_in_this_are_not(tiny_config: RunConfig, key: str) -> None:
    other = changed(tiny_config, key, MAY_NOT_DIFFER[key])
    assert other != tiny_config and array_key(other) != array_key(tiny_config)


def test_augmentations_and_their_settings_are_told_apart(tiny_config: RunConfig) -> None:
    looks = (NoAugmentation(), Dihedral(), RandomCrop(), RandomCrop(min_area=0.9))
    keys = {array_key(replace(tiny_config, augmentation=look)) for look in looks}
    assert len(keys) == len(looks)


# --- the head's seed --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18"])
def test_the_heads_seed_changes_its_first_values_and_no_others(
    tiny_config: RunConfig, name: str
) -> None:
    def state(head_seed: int | None) -> dict[str, torch.Tensor]:
        model = replace(tiny_config.model, name=name, head_seed=head_seed)
        config = train.resolve(replace(tiny_config, model=model))
        network = train.build_network(config, ("a", "b"), torch.device("cpu"))
        return dict(network.module.state_dict())

    first, own, other = state(None), state(tiny_config.seed), state(8)
    assert all(torch.equal(first[key], own[key]) for key in first)
    differing = {key.split(".")[0] for key in first if not torch.equal(first[key], other[key])}
    assert differing == {"classifier" if name.startswith("mobilenet") else "fc"}


def test_the_heads_seed_changes_no_batch(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[list[int]]] = {}
    summed_loss = Learner.summed_loss

    def noted(self: Learner, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.setdefault(self.name, []).append(labels.tolist())
        return summed_loss(self, logits, labels)

    monkeypatch.setattr(Learner, "summed_loss", noted)
    base = replace(tiny_config, strategy=HeadOnly())
    configs = {
        "none": base,
        "own": replace(base, model=replace(base.model, head_seed=base.seed)),
        "other": replace(base, model=replace(base.model, head_seed=8)),
    }
    none, own, other = array(configs, tmp_path)
    assert_same(none, own)
    assert isinstance(none, Record) and isinstance(other, Record)
    assert none.epochs["train_loss"].tolist() != other.epochs["train_loss"].tolist()
    assert seen["none"] == seen["own"] == seen["other"] and len(seen["none"]) == 8


def test_memory_is_counted_for_what_runs_do_not_share(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    """Twins share what is frozen; a run whose head begins otherwise has a network of its own."""
    counted: list[int] = []

    def noted(runs: Any, fed: Any, network: Any) -> int:
        counted.append(fitting(runs, fed, network))
        return counted[-1]

    fitting = groups._fitting
    base = replace(tiny_config, strategy=HeadOnly(), epochs=1, cache=Cache(enabled=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "_fitting", noted)
        patch.setattr(machine, "available_bytes", lambda: 2**34)
        twins = {f"{lr:g}": replace(base, optimizer=Adam(lr=lr)) for lr in (1e-2, 1e-3)}
        others = {f"{s}": replace(base, model=replace(base.model, head_seed=s)) for s in (1, 2)}
        for name, configs in (("twins", twins), ("others", others)):
            assert all(isinstance(one, Record) for one in array(configs, tmp_path / name))
    network = train.build_network(train.resolve(base), ("a", "b"), torch.device("cpu"))
    counts = network.counts()
    trained, frozen = counts["trainable"], counts["total"] - counts["trainable"]
    assert counted == [2**33 // (20 * trained), 2**33 // (20 * trained + 4 * frozen)]
