"""What a sweep finds in its folder before its first run: of other weights, or of no data at all."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torchvision.models import mobilenet_v3_small

from graft import app, train
from graft import composed as of_sweep
from graft.config import RunConfig, Sweep
from graft.errors import ConfigError
from graft.sweep import Driver
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
