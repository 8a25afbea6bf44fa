"""The options of `hydra/launcher` that this plugin adds."""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore


@dataclass
class SlotsInlineConf:
    """One job after another, in this process: for one device, or for a debugger."""

    _target_: str = "hydra_plugins.gpu_launcher.launcher.SlotsInlineLauncher"
    # Dotted path of the application's function: it is given the composed configurations of all
    # jobs before the first one runs. What it raises ends the launch. What it returns: None, a Plan
    # (see plan.py), or for each array of jobs that are to be run together, their positions.
    prepare: str | None = None
    # Dotted path of the application's function that runs an array in place of its main function:
    # configurations of its jobs in, for each its value or its exception out.
    together: str | None = None
    # Dotted path of the application's function that hears of each failure, in this process: the
    # job's configuration, the exception, and which retry comes next (0: none).
    ended: str | None = None
    # How often a job that failed is run again.
    max_retries: int = 0
    # Start nothing after the first job that failed for good.
    fail_fast: bool = False


@dataclass
class SlotsConf(SlotsInlineConf):
    """Worker processes that stay for the next job, one a slot, each with a device of its own."""

    _target_: str = "hydra_plugins.gpu_launcher.launcher.SlotsLauncher"
    # Dotted path of the application's function that a worker calls first: what it imports is there
    # when the first job comes.
    warm_up: str | None = None
    # Positions among the visible GPUs, or identifiers as CUDA_VISIBLE_DEVICES takes them.
    # Not set: all that are visible.
    gpus: list[Any] | None = None
    # How many slots share a GPU.
    per_gpu: int = 1
    # How many slots without a GPU, instead. Not set: one, where no GPU is visible.
    cpu_slots: int | None = None
    # A worker that gives no sign of life for so long is ended.
    timeout_s: float | None = None


for name, node in {"slots_inline": SlotsInlineConf, "slots": SlotsConf}.items():
    ConfigStore.instance().store(
        group="hydra/launcher", name=name, node=node, provider="gpu_launcher"
    )
