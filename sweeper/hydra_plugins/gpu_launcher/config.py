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
    # Dotted path of the application's function that a worker calls next, with the composed
    # configuration of the first job, while `prepare` is at work: not of jobs that come one by one.
    get_ready: str | None = None
    # Positions among the visible GPUs, or identifiers as CUDA_VISIBLE_DEVICES takes them.
    # Not set: all that are visible.
    gpus: list[Any] | None = None
    # How many slots share a GPU.
    per_gpu: int = 1
    # How many slots without a GPU, instead. Not set: one, where no GPU is visible.
    cpu_slots: int | None = None
    # A worker that gives no sign of life for so long is ended.
    timeout_s: float | None = None


@dataclass
class SlotsRayConf(SlotsInlineConf):
    """Actors on a Ray cluster that stay for the next job, one a slot."""

    _target_: str = "hydra_plugins.gpu_launcher.launcher.SlotsRayLauncher"
    # As for `slots`.
    warm_up: str | None = None
    timeout_s: float | None = None
    # host:port, ray://host:port, or auto. Not set: a cluster on this machine, for one launch.
    address: str | None = None
    # What a slot holds; half a GPU puts two slots on one. Not set: 1 where the cluster has GPUs.
    num_gpus: float | None = None
    num_cpus: float = 1.0
    # How many at most. Not set: as many as fit on the cluster.
    slots: int | None = None
    # Ray's, for the slots.
    runtime_env: Any = None
    # Further arguments of `ray.init`, for a cluster of the launcher's own.
    init: Any = None


_NODES = {"slots_inline": SlotsInlineConf, "slots": SlotsConf, "slots_ray": SlotsRayConf}

for name, node in _NODES.items():
    ConfigStore.instance().store(
        group="hydra/launcher", name=name, node=node, provider="gpu_launcher"
    )
