"""What a driver makes of its own runs, of those of other drivers in its folder, and of one that is
not allowed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from graft import app, train
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
    places = ("", ".tracking", "figures", f"{done.folder.name}/figures")
    parts = [done.folder.parent / place / ".x.part" for place in places]
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


@pytest.mark.parametrize("setting", ["model.dropout=1.0", "model.mean=[1]"])
def test_a_job_that_is_not_allowed_is_a_failed_run_of_its_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """One of a search, say, of which only its first jobs can end the command."""
    driver = Driver(tmp_path / "s")
    monkeypatch.setattr(app, "_driver", driver)
    with initialize_config_dir(app.conf_dir(), version_base="1.3"):
        asked = [setting, "sweep.axes=[seed]", "seed=3"]
        job = compose("config", asked, return_hydra_config=True)
    app.ended(job, ConfigError(f"{setting}: expected another"), 0)
    assert not driver.finish()
    (row,) = pd.read_csv(tmp_path / "s" / "results.csv").to_dict("records")
    assert (row["run"], row["seed"], row["status"]) == ("seed=3", 3, "failed")
    assert row["reason"] == f"{setting}: expected another"
