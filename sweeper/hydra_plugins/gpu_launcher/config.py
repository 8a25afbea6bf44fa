"""The options of `hydra/launcher` that this plugin adds."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore


@dataclass
class SlotsInlineConf:
    """One job after another, in this process: for one device, or for a debugger."""

    _target_: str = "hydra_plugins.gpu_launcher.launcher.SlotsLauncher"
    # Dotted path of the application's function: it is given the composed configurations of all
    # jobs before the first one runs. What it raises ends the launch. What it returns: None, or for
    # each array of jobs that are to be run together, their positions.
    prepare: str | None = None
    # Dotted path of the application's function that runs an array: configurations of its jobs in,
    # for each its value or its exception out.
    together: str | None = None
    # Start nothing after the first job that failed.
    fail_fast: bool = False


ConfigStore.instance().store(
    group="hydra/launcher", name="slots_inline", node=SlotsInlineConf, provider="gpu_launcher"
)
