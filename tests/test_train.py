"""One run, whole: repeatable, exact, frozen where it should be, honest about what went wrong."""

import json
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from graft import dataset as dataset_
from graft import machine, metrics, train
from graft.config import SGD, Adam, CrossEntropy, RandomCrop, RunConfig, from_dict
from graft.errors import CacheError, ConfigError, DataError, Diverged, GraftError, RunError
from graft.fit.learner import Learner
from graft.record import CHECKPOINT, EPOCHS, Record, read_run
from graft.strategies import FineTune, Full, HeadOnly, Strategy
from graft.train import Member


def _run(config: RunConfig, folder: Path) -> Record:
    resolved = train.resolve(config)
    return train.train(resolved, folder, train.load_dataset(resolved))


def test_the_same_run_twice_gives_the_same_bits(tiny_config: RunConfig, tmp_path: Path) -> None:
    first, second = (_run(tiny_config, tmp_path / name) for name in "ab")
    torch.randn(3)  # the global random state must not matter
    weights = [load_file(run.path / CHECKPOINT) for run in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    columns = [c for c in first.epochs.columns if c != "seconds"]
    assert first.epochs[columns].equals(second.epochs[columns])


TRAINING = """
import json, sys
from pathlib import Path
from graft import train
from graft.config import from_dict

config = train.resolve(from_dict(json.loads(sys.argv[1])))
assert train.train(config, Path(sys.argv[2]), train.load_dataset(config)).is_completed
print(*sorted({"pandas", "sklearn", "scipy", "mlflow", "matplotlib"} & set(sys.modules)))
"""


def test_training_imports_nothing_that_only_the_report_needs(
    tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    tiny_values["dataset"]["group"] = "person"  # without, scikit-learn makes the split
    asked = (json.dumps(tiny_values), str(tmp_path / "run"))
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, *asked], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_another_seed_gives_another_run(tiny_config: RunConfig, tmp_path: Path) -> None:
    first = _run(tiny_config, tmp_path / "a")
    second = _run(replace(tiny_config, seed=1), tmp_path / "b")
    assert first.epochs["train_loss"].tolist() != second.epochs["train_loss"].tolist()


@pytest.mark.parametrize("strategy", [HeadOnly(), FineTune(2), Full()], ids=repr)
def test_cut_and_uncut_training_give_the_same_numbers(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: Strategy
) -> None:
    config = replace(tiny_config, strategy=strategy)
    cut = _run(config, tmp_path / "cut")
    monkeypatch.setattr(train, "cut", lambda *_: None)
    whole = _run(config, tmp_path / "whole")
    columns = [c for c in cut.epochs.columns if c != "seconds"]
    np.testing.assert_allclose(
        cut.epochs[columns].to_numpy(), whole.epochs[columns].to_numpy(), rtol=0, atol=1e-6
    )


def test_what_is_frozen_does_not_change_statistics_included(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = train.resolve(replace(tiny_config, strategy=HeadOnly()))
    before = train.build_network(config, ("a", "b"), torch.device("cpu")).module.state_dict()
    after = load_file(_run(config, tmp_path / "run").path / CHECKPOINT)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and all(name.startswith("classifier") for name in changed)


@pytest.mark.slow
def test_the_best_epoch_is_kept_and_its_predictions_stored(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    done = _run(replace(tiny_config, epochs=4), tmp_path / "run")
    best = done.epochs.iloc[done.info["best_epoch"] - 1]
    assert best["val_accuracy"] == done.epochs["val_accuracy"].max()
    scores = metrics.scores(done.predictions.of("val"))
    assert scores["accuracy"] == pytest.approx(best["val_accuracy"])
    assert set(done.predictions.splits) == {"val", "test"}


def test_the_test_split_takes_no_part_in_training(tiny_config: RunConfig, tmp_path: Path) -> None:
    config = train.resolve(tiny_config)
    dataset = train.load_dataset(config)
    first = train.train(config, tmp_path / "a", dataset)
    labels = dataset.examples.labels.copy()
    labels[dataset.examples.test] = 1 - labels[dataset.examples.test]
    swapped = replace(dataset, examples=replace(dataset.examples, labels=labels))
    second = train.train(config, tmp_path / "b", swapped)
    columns = [c for c in first.epochs.columns if c != "seconds"]
    assert first.epochs[columns].equals(second.epochs[columns])
    assert first.info["best_epoch"] == second.info["best_epoch"]


def test_a_loss_that_is_no_number_ends_the_run_with_its_status(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, optimizer=Adam(lr=1e30))
    with pytest.raises(Diverged, match=r"optimizer\.lr=1e\+30"):
        _run(config, tmp_path / "run")
    done = read_run(tmp_path / "run")
    assert done.info["status"] == "diverged" and "loss became" in done.info["reason"]
    assert not done.is_completed


def test_what_another_run_left_in_its_folder_is_not_taken_for_its_own(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    """As with sweep.overwrite=true: it ends before it has an epoch of its own to write."""
    folder = _run(replace(tiny_config, epochs=1), tmp_path / "run").path
    (folder / "figures").mkdir()
    with pytest.raises(Diverged):
        _run(replace(tiny_config, optimizer=Adam(lr=1e30)), folder)
    left = {path.name for path in folder.iterdir()}
    assert left == {"run.json", "config.yaml", "environment.json", "train.log", ".lock"}


def test_a_metric_without_a_value_fails_the_run_and_says_why(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = train.resolve(replace(tiny_config, metric="val_auroc"))
    dataset = train.load_dataset(config)
    labels = dataset.examples.labels.copy()
    labels[dataset.examples.val] = 0
    one_class = replace(dataset, examples=replace(dataset.examples, labels=labels))
    with pytest.raises(RunError, match="metric=val_auroc has no value"):
        train.train(config, tmp_path / "run", one_class)
    assert read_run(tmp_path / "run").info["status"] == "failed"


def test_skipped_pictures_are_listed_in_the_record(
    tiny_values: dict[str, Any], tiny_pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_pictures, tmp_path / "data")
    tiny_values["dataset"] |= {
        "csv": str(tmp_path / "data/labels.csv"),
        "images": str(tmp_path / "data"),
        "on_bad_image": "skip",
    }
    config = train.resolve(from_dict(tiny_values))
    name = train.load_dataset(train.resolve(from_dict(tiny_values))).examples
    bad = name.ids[name.train[0]]
    (tmp_path / "data" / bad).write_bytes(b"not a picture")
    dataset_._load_dataset.cache_clear()
    done = train.train(config, tmp_path / "run", train.load_dataset(config))
    assert [one.partition(":")[0] for one in done.info["skipped"]] == [bad]
    assert sum(done.info["split"]["train"].values()) == 63


def test_early_stopping_ends_after_patience(tiny_config: RunConfig, tmp_path: Path) -> None:
    config = replace(tiny_config, epochs=30, patience=1, optimizer=Adam(lr=1e-12))
    done = _run(config, tmp_path / "run")
    assert len(done.epochs) < 30
    assert len(done.epochs) == done.info["best_epoch"] + 1


@pytest.mark.parametrize(
    "change",
    [
        {"augmentation": RandomCrop()},
        {"loss": CrossEntropy(class_weights="balanced", label_smoothing=0.1)},
        {"sampling": "balanced"},
        pytest.param({"precision": "bfloat16"}, marks=pytest.mark.slow),
        {"batch_size": 500},
        {"batch_size": 63},
        {"metric": "val_loss"},
    ],
    ids=str,
)
def test_every_choice_trains(
    tiny_config: RunConfig, tmp_path: Path, change: dict[str, object]
) -> None:
    done = _run(replace(tiny_config, epochs=1, **change), tmp_path / "run")  # type: ignore[arg-type]
    assert done.is_completed and len(done.epochs) == 1
    assert (
        (done.path / EPOCHS)
        .read_text()
        .startswith("epoch,train_loss,train_accuracy,val_loss,val_accuracy")
    )


def test_a_device_that_is_not_there_is_named(tiny_config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="device=cuda:9 is not there"):
        train.resolve(replace(tiny_config, device="cuda:9"))


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:"])
def test_a_word_that_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device={name}: expected auto, cpu, cuda"):
        machine.device(name)


def test_pytorch_is_asked_for_a_device_only_where_there_may_be_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not asked.append(True))
    monkeypatch.setattr(machine, "_may_have_gpu", lambda: False)
    assert machine.device("auto") == "cpu" and machine.device("cpu") == "cpu" and not asked
    monkeypatch.setattr(machine, "_may_have_gpu", lambda: True)
    assert machine.device("auto") == "cuda" and len(asked) == 1
    monkeypatch.undo()
    if torch.cuda.is_available():
        assert machine._may_have_gpu()


@pytest.mark.parametrize(
    ("vendors", "driver", "may"),
    [
        (("0x8086", "0x1af4"), False, False),
        (("0x8086", "0x10de"), False, True),
        (("0x1002",), False, True),
        ((), True, True),
        ((), False, False),
    ],
)
def test_a_gpu_is_guessed_from_its_driver_or_from_the_bus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendors: tuple[str, ...], driver: bool,
    may: bool,
) -> None:  # fmt: skip
    for number, vendor in enumerate(vendors):
        (tmp_path / "bus" / f"0000:00:{number:02x}.0").mkdir(parents=True)
        (tmp_path / "bus" / f"0000:00:{number:02x}.0" / "vendor").write_text(f"{vendor}\n")
    (tmp_path / "bus" / "without").mkdir(parents=True)
    if driver:
        (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(machine, "_BUS", tmp_path / "bus")
    monkeypatch.setattr(machine, "_DRIVERS", (str(tmp_path / "nvidiactl"),))
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "torch")
    found = machine._may_have_gpu()
    monkeypatch.undo()
    assert found is may


@pytest.mark.parametrize(
    ("precision", "said"), [("float16", "needs a GPU"), ("tf32", "needs an NVIDIA GPU")]
)
@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_a_precision_that_a_cpu_has_not_is_refused(
    tiny_config: RunConfig, precision: Any, said: str, device: str
) -> None:
    with pytest.raises(ConfigError, match=f"precision={precision} {said}"):
        train.resolve(replace(tiny_config, precision=precision, device=device))


@pytest.mark.parametrize("strategy", [HeadOnly(), FineTune()], ids=repr)
def test_nesterov_without_a_momentum_is_refused(tiny_config: RunConfig, strategy: Strategy) -> None:
    """PyTorch would refuse it when it trains; a stack of heads would not have noticed."""
    alone = replace(tiny_config, strategy=strategy, optimizer=SGD(momentum=0.0, nesterov=True))
    with pytest.raises(ConfigError, match=r"optimizer\.nesterov=true needs a momentum"):
        train.resolve(alone)


def test_many_classes_have_a_score_each(
    tiny_values: dict[str, Any], tiny_pictures: Path, tmp_path: Path
) -> None:
    lines = (tiny_pictures / "labels.csv").read_text().splitlines()
    rows = [f"{row.split(',')[0]},c{i % 4},x" for i, row in enumerate(lines[1:])]
    (tmp_path / "four.csv").write_text("\n".join(["filename,Male,person", *rows]))
    tiny_values["dataset"]["csv"] = str(tmp_path / "four.csv")
    done = _run(from_dict(tiny_values), tmp_path / "run")
    assert done.predictions.scores.shape == (16, 4)
    np.testing.assert_allclose(done.predictions.scores.sum(axis=1), 1, atol=1e-5)


# --- out of GPU memory ------------------------------------------------------------------------


def test_a_run_that_is_out_of_gpu_memory_says_of_what_and_leaves_the_others(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stub stands for the GPU; the tensors of what failed are free when the array has ended."""
    held: list[weakref.ref[torch.Tensor]] = []
    step = Learner.step

    def is_full(self: Learner, activations: tuple[torch.Tensor, ...], labels: torch.Tensor) -> None:
        if self.name != "large":
            return step(self, activations, labels)
        large = torch.zeros(1000)
        # The batch is held by who called: the loop, which goes on with other runs.
        held.extend([weakref.ref(large), weakref.ref(activations[0])])
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(Learner, "step", is_full)
    config = train.resolve(tiny_config)
    members = [Member(config, tmp_path / "large"), Member(config, tmp_path / "small")]
    large, small = train.train_array(members, train.load_dataset(config))
    assert isinstance(large, torch.OutOfMemoryError)
    assert isinstance(small, Record) and small.is_completed
    reason = read_run(tmp_path / "large").info["reason"]
    assert reason == (
        "out of GPU memory at batch_size=16, image_size=32. A smaller batch_size needs less."
    )
    assert held and [one() for one in held] == [None] * len(held)


@pytest.mark.parametrize(
    ("kind", "is_final"),
    [(Diverged, True), (ConfigError, True), (DataError, True), (RunError, False),
     (GraftError, False), (CacheError, False)],
)  # fmt: skip
def test_errors_that_would_only_repeat_are_final(kind: type[GraftError], is_final: bool) -> None:
    assert kind("said").is_final is is_final
