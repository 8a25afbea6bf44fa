"""What every test of a plugin needs: Hydra and logging as they were, and a small application."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, RunMode
from hydra.version import _UNSPECIFIED_, VersionBase

Launch = Callable[..., Sequence[JobReturn]]


@pytest.fixture(autouse=True)
def _fresh_hydra() -> Iterator[None]:
    """Hydra keeps global state; without this, one test's version_base changes the next test."""
    Plugins.instance()  # finds the plugins, whose options are part of the state
    state = Singleton.get_state()
    # `graft.app`, once imported, has set 1.3 for the whole process; Hydra's suite sets none.
    VersionBase.instance().version_base = _UNSPECIFIED_
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    GlobalHydra.instance().clear()
    Singleton.set_state(state)
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Runs jobs of a small application: `launch(task, [["a=1"], ["a=2"]], "key=value", ...)`.

    The application has the keys `a` and `group`. Job 7 has the folder `tmp_path / "out" / "7"`.
    """
    conf = tmp_path / "conf"
    (conf / "group").mkdir(parents=True)
    (conf / "group" / "one.yaml").write_text("name: one\n")
    (conf / "config.yaml").write_text(
        f"defaults: [group: one, _self_]\na: 10\nhydra: {{sweep: {{dir: {tmp_path / 'out'}}}}}\n"
    )

    def run(
        task: Callable[[Any], Any],
        jobs: Sequence[Sequence[str]],
        *settings: str,
        launcher: str = "slots_inline",
        first: int = 0,
    ) -> Sequence[JobReturn]:
        with initialize_config_dir(str(conf), job_name="app", version_base="1.3"):
            app = GlobalHydra.instance().hydra
            assert app is not None
            overrides = [f"hydra/launcher={launcher}", *settings]
            config = app.compose_config("config", overrides, RunMode.MULTIRUN)
            context = HydraContext(app.config_loader, Callbacks(config))
            chosen = Plugins.instance().instantiate_launcher(context, task, config)
            return chosen.launch(jobs, first)

    return run


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """This process is connected to a cluster of four processors and four GPUs, as declared."""
    from hydra_plugins.gpu_launcher._ray_cluster import Demand, connect

    close = connect(Demand(init={"num_cpus": 4, "num_gpus": 4}))
    yield
    close()
