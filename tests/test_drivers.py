"""Drivers beside each other in one folder: single runs at once, jobs of a launcher of others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from graft import train
from graft.config import RunConfig
from graft.errors import ConfigError
from graft.lock import Lock
from graft.record import LOCK, RunFolder
from graft.sweep import Asked, Driver
from graft.sweep import driver as driver_module

Beside = Callable[[int], tuple[Driver, Asked]]


@pytest.fixture
def beside(tiny_config: RunConfig) -> Beside:
    """Makes a driver of a single run, with this seed: `beside(seed)`."""

    def make(seed: int) -> tuple[Driver, Asked]:
        config = train.resolve(replace(tiny_config, seed=seed, epochs=1))
        one = Asked(f"seed={seed}", {"seed": str(seed)}, config)
        driver = Driver(one.folder.parent, is_alone=False)
        driver.begin([one], [], "graft")
        return driver, one

    return make


def test_the_first_of_two_drivers_to_end_answers_for_its_own_run_and_leaves_the_other_alone(
    beside: Beside,
) -> None:
    (first, done), (second, running) = beside(0), beside(1)
    train.train(done.config, done.folder, train.load_dataset(done.config))
    RunFolder(running.folder).write_run({"status": "running"})
    parts = [done.folder.parent / place / ".x.part" for place in ("", ".tracking")]
    for part in parts:
        part.parent.mkdir(exist_ok=True)
        part.touch()  # what the other is writing now
    with Lock(running.folder / LOCK):
        assert first.finish()
        assert all(part.exists() for part in parts)
        table = pd.read_csv(done.folder.parent / "results.csv")
        assert table["status"].tolist() == ["completed", "running"]
    assert not second.finish(is_interrupted=True)
    assert not any(part.exists() for part in parts)


def test_a_list_of_runs_that_another_keeps_writing_is_said(
    beside: Beside, tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "FILES_S", 0.2)
    folder = Path(tiny_config.output_dir) / tiny_config.sweep.name
    folder.mkdir()
    with (
        Lock(folder / ".lock.files"),
        pytest.raises(ConfigError, match=r"sweep\.json is being written by process \d+ on"),
    ):
        beside(0)
