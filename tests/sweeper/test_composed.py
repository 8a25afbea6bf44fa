"""Each job is composed once for sweeper and launcher together."""

from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals
from hydra.types import HydraContext, RunMode

from hydra_plugins.gpu_launcher._composed import compose_once


def test_what_the_sweeper_composed_the_launcher_takes(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\n")
    setup_globals()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
        context = HydraContext(config_loader=loader, callbacks=None)  # type: ignore[arg-type]
        compose_once(context)
        compose_once(context)  # a second launcher of the same sweep
        made: list[list[str]] = []
        real = loader.load_sweep_config
        loader.load_sweep_config = lambda m, o: (made.append(o), real(m, o))[1]  # type: ignore[method-assign, assignment]
        first = context.config_loader.load_sweep_config(master, ["a=2"])
        assert context.config_loader.load_sweep_config(master, ["a=3"]).a == 3
        again = context.config_loader.load_sweep_config(master, ["a=2"])
        assert made == [["a=2"], ["a=3"]]
        assert again == first and again is not first
        assert context.config_loader.load_sweep_config(master, ["a=2"]) == first
        assert made == [["a=2"], ["a=3"], ["a=2"]]
        other = loader.load_configuration("config", [], RunMode.MULTIRUN)
        assert context.config_loader.load_sweep_config(other, ["a=2"]).a == 2
        assert len(made) == 4
        assert context.config_loader.list_groups("") == loader.list_groups("")
