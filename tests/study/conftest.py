"""What every test of the search needs: Hydra and logging as they were, and a small application."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.types import HydraContext, RunMode
from hydra.version import _UNSPECIFIED_, VersionBase
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial

CONFIG = """
defaults: [group: one, _self_]
x: 0
y: 0
name: plain
seed: 0
nested: {{lr: 0.1, sizes: [1]}}
where: here
hydra:
  sweep: {{dir: {out}}}
"""


@pytest.fixture
def _fresh_hydra() -> Iterator[None]:
    """Hydra keeps global state; without this, one test's version_base changes the next test.

    Every test that composes has it: it comes with `conf`. For tables of cases it would be slow.
    """
    Plugins.instance()  # finds the plugins, whose options are part of the state
    state = Singleton.get_state()
    VersionBase.instance().version_base = _UNSPECIFIED_
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    verbosity = optuna.logging.get_verbosity()
    yield
    GlobalHydra.instance().clear()
    Singleton.set_state(state)
    root.handlers[:], root.level = handlers, level
    optuna.logging.set_verbosity(verbosity)


@dataclass(frozen=True)
class Found:
    """What a search has left in its folder."""

    folder: Path

    @cached_property
    def study(self) -> optuna.Study:
        storage = f"sqlite:///{self.folder / 'study.db'}"
        return optuna.load_study(study_name=None, storage=storage)

    @property
    def proposed(self) -> list[FrozenTrial]:
        """All trials; also of points that had been evaluated before, which were not run again."""
        return self.study.get_trials(deepcopy=False)

    @property
    def trials(self) -> list[FrozenTrial]:
        return [trial for trial in self.proposed if "same_as" not in trial.user_attrs]

    @property
    def points(self) -> list[dict[str, Any]]:
        return [dict(trial.params) for trial in self.trials]

    @property
    def states(self) -> list[str]:
        return [trial.state.name.lower() for trial in self.trials]

    @property
    def search(self) -> Any:
        return json.loads((self.folder / "search.json").read_text())

    @property
    def results(self) -> Any:
        return OmegaConf.to_container(OmegaConf.load(self.folder / "optimization_results.yaml"))


Search = Callable[..., Found]


@pytest.fixture
def conf(_fresh_hydra: None, tmp_path: Path) -> Path:
    """The folder of a small application's configuration: `config`, and `group` with `name`."""
    folder = tmp_path / "conf"
    (folder / "group").mkdir(parents=True)
    for name in ("one", "two"):
        (folder / "group" / f"{name}.yaml").write_text(f"name: {name}\n")
    (folder / "group" / "deep.yaml").write_text("name: deep\ndepth: 1\n")
    (folder / "config.yaml").write_text(CONFIG.format(out=tmp_path / "out"))
    return folder


@pytest.fixture
def search(conf: Path, tmp_path: Path) -> Search:
    """Searches with a function: `search(task, ["x=1,2"], "n_trials=3", ...)`.

    Settings without a `/` or `hydra` are of `hydra.sweeper`.
    """

    def run(
        task: Callable[[Any], Any],
        arguments: Sequence[str],
        *settings: str,
        launcher: str = "slots_inline",
        folder: str = "out",
    ) -> Found:
        own = [
            one if "hydra" in one.partition("=")[0] else f"hydra.sweeper.{one}" for one in settings
        ]
        overrides = [
            "hydra.mode=MULTIRUN",
            "hydra/sweeper=search",
            f"hydra/launcher={launcher}",
            f"hydra.sweep.dir={tmp_path / folder}",
            *own,
        ]
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(conf), job_name="app", version_base="1.3"):
            app = GlobalHydra.instance().hydra
            assert app is not None
            config = app.compose_config("config", overrides, RunMode.MULTIRUN)
            context = HydraContext(app.config_loader, Callbacks(config))
            sweeper = Plugins.instance().instantiate_sweeper(
                hydra_context=context, task_function=task, config=config
            )
            sweeper.sweep(list(arguments))
        return Found(tmp_path / folder)

    return run
