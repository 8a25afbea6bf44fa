"""What a sweep finds in its folder before its first run: of other weights, or of no data at all."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torchvision.models import mobilenet_v3_small

from graft import app, train
from graft import composed as of_sweep
from graft.config import RunConfig, Sweep, from_dict, to_dict
from graft.errors import ConfigError
from graft.record import PLAN, write_json
from graft.strategies import HeadOnly
from graft.sweep import Driver, check, work
from graft.sweep.asked import Asked, finished
from graft.sweep.check import checked

SMOOTHING = "loss.label_smoothing"


def composed(*overrides: str) -> DictConfig:
    """A configuration as Hydra has it."""
    with initialize_config_dir(app.conf_dir(), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


def _asked(config: RunConfig) -> Asked:
    return Asked("run", {}, train.resolve(config))


def test_a_weights_file_that_was_written_anew_is_another_run(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    path = tmp_path / "my.pth"
    network = mobilenet_v3_small()
    torch.save(network.state_dict(), path)
    config = replace(tiny_config, model=replace(tiny_config.model, weights=str(path)), epochs=1)
    asked = _asked(config)
    train.train(asked.config, asked.folder, train.load_dataset(asked.config))
    assert finished(asked) is not None and checked([asked])[1] == []

    torch.nn.init.ones_(network.features[0][0].weight)
    torch.save(network.state_dict(), path)
    with pytest.raises(ConfigError, match=r"with other weights: model\.weights=.*my\.pth has"):
        checked([asked])
    allowed = _asked(replace(config, sweep=Sweep(overwrite=True)))
    assert [one.name for one in checked([allowed])[1]] == ["run"]


def test_a_run_that_ended_before_it_had_read_the_data_is_asked_for_again(
    tiny_config: RunConfig,
) -> None:
    asked = _asked(tiny_config)
    Driver(asked.folder.parent).failed(asked, "failed", "killed by signal 9", is_final=True)
    assert finished(asked) is None and checked([asked])[1] == []


@pytest.mark.parametrize(
    ("metric", "objectives", "said"),
    [
        ("val_loss", (), "metric=val_loss cannot choose"),
        ("val_accuracy", ("seconds", "val_loss"), "sweep.objectives=[seconds,val_loss] cannot"),
        ("val_accuracy", (), None),
        ("val_loss", ("val_accuracy",), None),
    ],
)
def test_losses_of_different_kinds_choose_nothing(
    tiny_config: RunConfig, metric: str, objectives: tuple[str, ...], said: str | None
) -> None:
    sweep = Sweep(axes=("loss.label_smoothing", "optimizer.lr"), objectives=objectives)
    asked = _asked(replace(tiny_config, metric=metric, sweep=sweep))
    if said is None:
        checked([asked])
        return
    with pytest.raises(ConfigError) as caught:
        checked([asked])
    assert said in str(caught.value) and "loss.label_smoothing:" in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "objectives", "said"),
    [
        ("val_auroc", (), "metric=val_auroc has no value here: no validation picture is of 1."),
        ("val_loss", ("seconds", "val_f1"), "sweep.objectives=val_f1 has no value here"),
        ("val_accuracy", ("seconds", "val_loss"), None),
    ],
)
def test_what_no_validation_picture_can_give_chooses_nothing(
    tiny_values: dict[str, Any], tiny_pictures: Path, tmp_path: Path, metric: str,
    objectives: tuple[str, ...], said: str | None,
) -> None:  # fmt: skip
    """The table says where its pictures belong; else each class is in each part."""
    parts = {4: "val", 6: "val", 8: "test", 9: "test"}
    lines = (tiny_pictures / "labels.csv").read_text().splitlines()
    rows = [f"{line},{parts.get(i, 'train')}" for i, line in enumerate(lines[1:])]
    (tmp_path / "parts.csv").write_text("\n".join([f"{lines[0]},part", *rows]))
    tiny_values["dataset"] |= {"csv": str(tmp_path / "parts.csv"), "split": "part"}
    config = from_dict({**tiny_values, "metric": metric})
    asked = _asked(replace(config, sweep=Sweep(objectives=objectives)))
    if said is None:
        checked([asked])
        return
    with pytest.raises(ConfigError) as caught:
        checked([asked])
    assert said in str(caught.value)


def test_the_runs_of_a_large_sweep_are_told_apart_in_no_time() -> None:
    many = [Asked(f"optimizer.lr={i},seed=0", {}, None) for i in range(20_000)]  # type: ignore[arg-type]
    began = time.process_time()
    assert check._twice([*many, many[3]]) == [
        "The run optimizer.lr=3,seed=0 was asked for twice. Name each value once."
    ]
    assert time.process_time() - began < 2.0


def test_what_an_earlier_start_planned_for_a_device_that_is_not_here_is_left_out(
    tiny_config: RunConfig,
) -> None:
    """A sweep may move to another machine and go on."""
    own = _asked(tiny_config)
    elsewhere = to_dict(replace(own.config, device="cuda:7", strategy=HeadOnly()))
    here = to_dict(replace(own.config, strategy=HeadOnly()))
    write_json(own.folder.parent / PLAN, {"trunks": {"a": elsewhere, "b": here}})
    assert [one.strategy for one in work._beside(own)] == [HeadOnly()]


PARAMS, CUSTOM = "hydra.sweeper.params=", "hydra.sweeper.custom_search_space=own.more"


@pytest.mark.parametrize(
    ("typed", "setting", "job", "differing"),
    [
        ("", "hydra.mode=RUN", "loss=weighted", []),
        ("", PARAMS + "{loss: weighted, seed: '0,1'}", "loss=weighted seed=0", ["seed"]),
        ("", PARAMS + "{loss: {label_smoothing: '0,0.1'}}", f"{SMOOTHING}=0", [SMOOTHING]),
        ("", PARAMS + "{loss.label_smoothing: [0, 0.1]}", f"{SMOOTHING}=0", [SMOOTHING]),
        (f"{SMOOTHING}=0", PARAMS + "{loss.label_smoothing: '0,1'}", f"{SMOOTHING}=0", []),
        ("loss=weighted", CUSTOM, "loss=weighted seed=0", ["seed"]),
        ("seed=0", CUSTOM, f"seed=0 {SMOOTHING}=0", [SMOOTHING]),
    ],
)
def test_what_differs_may_stand_in_a_file_or_be_suggested(
    typed: str, setting: str, job: str, differing: list[str]
) -> None:
    always = ["hydra.mode=MULTIRUN", "hydra/sweeper=search", setting]
    jobs = [composed(*always, *job.split())]
    assert of_sweep.differing(jobs, composed(*always, *typed.split())) == differing
