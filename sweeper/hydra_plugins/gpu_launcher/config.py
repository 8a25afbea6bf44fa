"""The options of `hydra/launcher` that this plugin adds."""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore


@dataclass
class SlotsInlineConf:
    """One job after another, in this process: for one device, or for a debugger."""

    _target_: str = "hydra_plugins.gpu_launcher.launcher.SlotsInlineLauncher"
    # Dotted path of the application's function: it is given the composed configurations of all
    # jobs before the first one runs. What it raises ends the launch. What it returns: None, or for
    # each array of jobs that are to be run together, their positions.
    prepare: str | None = None
    # Dotted path of the application's function that runs an array: configurations of its jobs in,
    # for each its value or its exception out.
    together: str | None = None
    # Start nothing after the first job that failed.
    fail_fast: bool = False


@dataclass
class SlotsConf(SlotsInlineConf):
    """Worker processes that stay for the next job, one a slot, each with a device of its own."""

    _target_: str = "hydra_plugins.gpu_launcher.launcher.SlotsLauncher"
    # Positions among the visible GPUs, or identifiers as CUDA_VISIBLE_DEVICES takes them.
    # Not set: all that are visible.
    gpus: list[Any] | None = None
    # How many slots share a GPU.
    per_gpu: int = 1
    # How many slots without a GPU, instead. Not set: one, where no GPU is visible.
    cpu_slots: int | None = None
    # A worker that logs nothing for so long is ended.
    timeout_s: float | None = None


for name, node in {"slots_inline": SlotsInlineConf, "slots": SlotsConf}.items():
    ConfigStore.instance().store(
        group="hydra/launcher", name=name, node=node, provider="gpu_launcher"
    )
