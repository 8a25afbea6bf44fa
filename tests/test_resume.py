"""A run that was ended early goes on from an epoch, and is bit for bit the undisturbed run."""

import errno
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from graft import train
from graft.config import SGD, Adam, AdamW, Cosine, RandomCrop, RunConfig
from graft.errors import Diverged
from graft.fit import checkpoint
from graft.record import CHECKPOINT, EPOCHS, LOG, RESUME, RUN, Record, read_json
from graft.strategies import FineTune, Full, HeadOnly
from graft.train import Member, Outcome, train_array

EPOCHS_ASKED = 5


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every epoch, and rows as soon as there are any."""
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    monkeypatch.setattr(checkpoint, "REST", 0.0)
    monkeypatch.setattr(train, "WRITE_S", 0.0)


@pytest.fixture
def base(tiny_config: RunConfig) -> RunConfig:
    """A head that is stacked, with dropout."""
    model = replace(tiny_config.model, name="resnet18", dropout=0.3)
    return replace(tiny_config, model=model, strategy=HeadOnly(), epochs=EPOCHS_ASKED)


class Gone(Exception):
    """What ends a run early here."""


@dataclass
class Follower:
    """Told of rows; raises once it is told of an epoch."""

    ends_at: int = 1000
    rows: list[Mapping[str, float]] = field(default_factory=list)

    def epochs(self, rows: Sequence[Mapping[str, float]]) -> None:
        self.rows += rows
        if rows[-1]["epoch"] >= self.ends_at:
            raise Gone("the machine is gone")


def array(configs: Mapping[str, RunConfig], folder: Path, *followers: Follower) -> list[Outcome]:
    resolved = {name: train.resolve(config) for name, config in configs.items()}
    dataset = train.load_dataset(next(iter(resolved.values())))
    members = [
        Member(one, folder / name, followers=followers) for name, one in resolved.items()
    ]  # fmt: skip
    return train_array(members, dataset)


def ended_at(epoch: int, configs: Mapping[str, RunConfig], folder: Path) -> None:
    """Train until an epoch's rows are written, and its checkpoint is not."""
    outcomes = array(configs, folder, Follower(ends_at=epoch))
    assert all(isinstance(one, Gone) for one in outcomes)


def epochs_kept(run: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in (run / RESUME).glob("*.safetensors"))


def newest(run: Path) -> Path:
    return max((run / RESUME).glob("*.safetensors"))


def info(run: Path) -> dict[str, Any]:
    return read_json(run / RUN) or {}


def assert_same(one: Outcome, other: Outcome) -> None:
    """Equal curves, weights and predictions, bit for bit."""
    assert isinstance(one, Record) and isinstance(other, Record), (one, other)
    first, second = (
        pd.read_csv(run.path / EPOCHS, dtype=str).drop(columns="seconds") for run in (one, other)
    )
    pd.testing.assert_frame_equal(first, second)
    assert one.info["best_epoch"] == other.info["best_epoch"]
    weights = [load_file(run.path / CHECKPOINT) for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert [k for k in weights[0] if not torch.equal(weights[0][k], weights[1][k])] == []
    np.testing.assert_array_equal(one.predictions.scores, other.predictions.scores)


# --- every kind of run ------------------------------------------------------------------------

SLOW = pytest.mark.slow
MOBILE = {"name": "mobilenet_v3_small"}
KINDS: dict[str, dict[str, Any]] = {
    "stacked, adam": {},
    "stacked, adamw, cosine": {
        "optimizer": AdamW(lr=1e-2, weight_decay=0.1), "schedule": Cosine(warmup_epochs=1.5),
    },
    "stacked, nesterov": {"optimizer": SGD(lr=1e-2, nesterov=True), "metric": "val_loss"},
    "stacked, bfloat16": {"precision": "bfloat16"},
    "a block, adam": {"model": MOBILE, "strategy": FineTune()},
    "a block, momentum": {
        "model": MOBILE, "strategy": FineTune(2), "optimizer": SGD(lr=1e-2), "metric": "val_loss",
    },
    "a block, adamw, cosine, live": {
        "model": MOBILE, "strategy": FineTune(), "optimizer": AdamW(lr=1e-3),
        "schedule": Cosine(), "augmentation": RandomCrop(),
    },
    "a residual block": {"strategy": FineTune(), "optimizer": SGD(lr=1e-2, momentum=0.0)},
    "everything": {"model": MOBILE, "strategy": Full()},
}  # fmt: skip

SELDOM = (
    "stacked, nesterov", "stacked, bfloat16", "a block, adam", "a block, momentum",
    "a residual block", "everything",
)  # fmt: skip


def changed(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    model = replace(config.model, **changes.get("model", {}))
    return replace(config, **{**changes, "model": model})


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[SLOW] if kind in SELDOM else []) for kind in KINDS]
)
def test_a_run_that_goes_on_is_the_undisturbed_run(
    base: RunConfig, tmp_path: Path, kind: str
) -> None:
    runs = {"run": changed(base, KINDS[kind])}
    (whole,) = array(runs, tmp_path / "whole")
    ended_at(4, runs, tmp_path)
    assert epochs_kept(tmp_path / "run") == [2, 3]
    (resumed,) = array(runs, tmp_path)
    assert info(tmp_path / "run")["resumed_after"] == [3]
    assert_same(whole, resumed)


@pytest.mark.slow
def test_a_run_that_is_ended_after_every_epoch_is_the_undisturbed_run(
    base: RunConfig, tmp_path: Path
) -> None:
    runs = {"run": base}
    (whole,) = array(runs, tmp_path / "whole")
    for epoch in (2, 3, 4, 5):
        ended_at(epoch, runs, tmp_path)
    (resumed,) = array(runs, tmp_path)
    assert_same(whole, resumed)
    assert info(tmp_path / "run")["attempts"] == 5
    assert info(tmp_path / "run")["resumed_after"] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"model": MOBILE, "strategy": FineTune()}, marks=SLOW)], ids=str
)
def test_patience_and_the_best_epoch_go_on(
    base: RunConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """At this rate nothing changes: the first epoch is the best, and patience ends the run."""
    still = replace(changed(base, changes), epochs=20, patience=4, optimizer=Adam(lr=1e-12))
    (whole,) = array({"run": still}, tmp_path / "whole")
    ended_at(4, {"run": still}, tmp_path)
    assert any(name.startswith("best/") for name in load_file(newest(tmp_path / "run")))
    (resumed,) = array({"run": still}, tmp_path)
    assert_same(whole, resumed)
    assert isinstance(resumed, Record) and len(resumed.epochs) == resumed.info["best_epoch"] + 4


# --- arrays -----------------------------------------------------------------------------------


def three(base: RunConfig) -> dict[str, RunConfig]:
    """Two of them draw the same dropout, which a stack draws once for both."""
    return {
        "a": base,
        "b": replace(base, optimizer=Adam(lr=1e-3)),
        "c": replace(base, optimizer=AdamW(lr=1e-2), schedule=Cosine()),
    }


LIVE = {"model": MOBILE, "strategy": FineTune(), "augmentation": RandomCrop()}


@pytest.mark.parametrize("changes", [{}, pytest.param(LIVE, marks=SLOW)], ids=str)
@pytest.mark.parametrize(
    "splits", ["b ac", *(pytest.param(s, marks=SLOW) for s in ("abc", "a b c"))]
)
def test_an_array_may_go_on_in_other_company(
    base: RunConfig, tmp_path: Path, splits: str, changes: dict[str, Any]
) -> None:
    runs = three(changed(base, changes))
    whole = dict(zip(runs, array(runs, tmp_path / "whole"), strict=True))
    ended_at(3, runs, tmp_path)
    for names in splits.split():
        resumed = array({name: runs[name] for name in names}, tmp_path)
        for name, one in zip(names, resumed, strict=True):
            assert info(tmp_path / name)["resumed_after"]
            assert_same(whole[name], one)


@pytest.mark.parametrize("changes", [{}, pytest.param(LIVE, marks=SLOW)], ids=str)
def test_members_of_an_array_may_go_on_behind_different_epochs(
    base: RunConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    runs = three(changed(base, changes))
    whole = array(runs, tmp_path / "whole")
    ended_at(4, {"b": runs["b"]}, tmp_path)
    ended_at(3, {"c": runs["c"]}, tmp_path)
    resumed = array({**runs, "d": replace(runs["a"], epochs=2)}, tmp_path)
    for one, other in zip(whole, resumed, strict=False):
        assert_same(one, other)
    assert [info(tmp_path / name)["resumed_after"] for name in "abcd"] == [[], [3], [2], []]


@pytest.mark.slow
def test_a_run_that_was_done_before_the_others_goes_on_to_its_test(
    base: RunConfig, tmp_path: Path
) -> None:
    runs = {"short": replace(base, epochs=2), "long": base}
    whole = array(runs, tmp_path / "whole")
    ended_at(4, runs, tmp_path)
    assert (epochs_kept(tmp_path / "short"), epochs_kept(tmp_path / "long")) == ([1], [2, 3])
    for one, other in zip(whole, array(runs, tmp_path), strict=True):
        assert_same(one, other)


# --- what is told -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_record_counts_starts_and_adds_up_time(base: RunConfig, tmp_path: Path) -> None:
    runs = {"run": changed(base, {"model": MOBILE, "strategy": FineTune()})}
    ended_at(5, runs, tmp_path)
    before = info(tmp_path / "run")
    assert before["status"] == "failed" and before["attempts"] == 1
    array(runs, tmp_path)
    after = info(tmp_path / "run")
    assert after["status"] == "completed" and after["attempts"] == 2
    assert after["timings_s"]["fit"] > 0.7 * before["timings_s"]["fit"]
    assert after["timings_s"]["prepare"] > before["timings_s"]["prepare"]


@pytest.mark.slow
def test_the_log_and_the_screen_say_where_runs_go_on(
    base: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="graft")
    runs = three(base)
    ended_at(3, runs, tmp_path)
    array(runs, tmp_path)
    said = [message for message in caplog.messages if " on after epoch" in message]
    assert said == ["  3 runs go on after epoch 2 of 5"]
    for name in runs:
        text = (tmp_path / name / LOG).read_text()
        assert text.count("goes on after epoch 2 of 5") == 1
        assert [text.count(f"epoch {n}/5  train loss") for n in range(1, 6)] == [1, 1, 2, 1, 1]


def test_every_epoch_is_written_once_and_a_follower_is_told_of_all(
    base: RunConfig, tmp_path: Path
) -> None:
    ended_at(3, {"run": base}, tmp_path)
    follower = Follower()
    (run,) = array({"run": base}, tmp_path, follower)
    assert isinstance(run, Record)
    assert run.epochs["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert follower.rows == run.epochs.to_dict("records")


# --- what is kept, and how long ---------------------------------------------------------------


def test_a_completed_run_keeps_none_nor_one_that_diverged(base: RunConfig, tmp_path: Path) -> None:
    growing = SGD(lr=1e5, momentum=0.0, weight_decay=10.0)  # a million times in every step
    runs = {"good": base, "bad": replace(base, optimizer=growing)}
    good, bad = array(runs, tmp_path)
    assert isinstance(good, Record) and isinstance(bad, Diverged) and "epoch 2" in str(bad)
    assert not (tmp_path / "good" / RESUME).exists() and not (tmp_path / "bad" / RESUME).exists()


@pytest.mark.slow
def test_what_a_kill_left_in_a_finished_run_is_in_nobodys_way(
    base: RunConfig, tmp_path: Path
) -> None:
    ended_at(4, {"run": base}, tmp_path)
    shutil.copytree(tmp_path / "run" / RESUME, tmp_path / "left")
    (tmp_path / "run" / ".model.safetensors.x.part").write_text("half a file")
    (done,) = array({"run": base}, tmp_path)
    assert not list((tmp_path / "run").glob(".*.part"))
    shutil.copytree(tmp_path / "left", tmp_path / "run" / RESUME)
    (again,) = array({"run": base}, tmp_path)
    assert_same(done, again)
    assert not (tmp_path / "run" / RESUME).exists()


def test_no_checkpoint_is_made_while_none_is_due(
    base: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_S", 1000.0)
    ended_at(4, {"run": base}, tmp_path)
    assert not (tmp_path / "run" / RESUME).exists()


# --- what cannot be used ----------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("both", [False, True], ids=["newest", "both"])
@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_checkpoint_is_left_out_with_a_warning(
    base: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any, both: bool
) -> None:
    (whole,) = array({"run": base}, tmp_path / "whole")
    ended_at(4, {"run": base}, tmp_path)
    damaged = sorted((tmp_path / "run" / RESUME).glob("*.safetensors"))[0 if both else 1 :]
    for path in damaged:
        damage(path)
    (resumed,) = array({"run": base}, tmp_path)
    assert_same(whole, resumed)
    assert info(tmp_path / "run")["resumed_after"] == ([] if both else [2])
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [sum(str(path) in one for one in warnings) for path in damaged] == [1] * len(damaged)
    assert len(warnings) == len(damaged)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"optimizer": Adam(lr=1e-3)}, {"seed": 1}, {"epochs": 6}, {"model": {"dropout": 0.4}}],
    ids=str,
)
def test_a_checkpoint_of_other_settings_is_left_out(
    base: RunConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    other = changed(base, changes)
    (whole,) = array({"run": other}, tmp_path / "whole")
    ended_at(4, {"run": base}, tmp_path)
    (run,) = array({"run": other}, tmp_path)
    assert_same(whole, run)
    assert info(tmp_path / "run")["attempts"] == 1


@pytest.mark.slow
def test_a_checkpoint_of_other_data_or_of_another_version_is_left_out(
    base: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train.resolve(base)
    dataset = train.load_dataset(config)
    ended_at(4, {"run": base}, tmp_path)
    members = [Member(config, tmp_path / "run", followers=[Follower(ends_at=1)])]
    train_array(members, replace(dataset, digest="another"))
    assert info(tmp_path / "run")["resumed_after"] == []
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    train_array(members, dataset)
    assert info(tmp_path / "run")["resumed_after"] == []


def test_what_is_left_out_is_removed_by_the_next_checkpoint(
    base: RunConfig, tmp_path: Path
) -> None:
    ended_at(5, {"run": base}, tmp_path)
    ended_at(2, {"run": replace(base, seed=1)}, tmp_path)
    assert epochs_kept(tmp_path / "run") == [1]


# --- a disk that takes no checkpoints ---------------------------------------------------------


@pytest.mark.slow
def test_where_no_checkpoint_can_be_written_a_run_goes_on_with_one_warning(
    base: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (whole,) = array({"run": base}, tmp_path / "whole")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RESUME).write_text("a file where the folder should be")
    (run,) = array({"run": base}, tmp_path)
    assert_same(whole, run)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1 and str(tmp_path / "run" / RESUME) in warnings[0]


@pytest.mark.slow
def test_a_full_disk_keeps_no_half_checkpoint(
    base: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended_at(3, {"run": base}, tmp_path)

    def full(stream: Any, *args: Any) -> str:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write", full)
        ended_at(5, {"run": base}, tmp_path)
    assert epochs_kept(tmp_path / "run") == [1, 2]
    assert len(list((tmp_path / "run" / RESUME).iterdir())) == 2
    (resumed,) = array({"run": base}, tmp_path)
    assert_same(array({"run": base}, tmp_path / "whole")[0], resumed)
