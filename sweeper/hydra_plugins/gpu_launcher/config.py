"""The options of `hydra/launcher` that this plugin adds."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore


@dataclass
class SlotsInlineConf:
    """One job after another, in this process: for one device, or for a debugger."""

    _target_: str = "hydra_plugins.gpu_launcher.launcher.SlotsLauncher"
    # Dotted path of the application's function: it is given the composed configurations of all
    # jobs before the first one runs. What it raises ends the launch.
    prepare: str | None = None
    # Stop after the first job that fails; the jobs that are left over are not started.
    fail_fast: bool = False


ConfigStore.instance().store(
    group="hydra/launcher", name="slots_inline", node=SlotsInlineConf, provider="gpu_launcher"
)
