"""Slots: the places in which arrays of jobs run, each with a device of its own, as options ask."""

from collections.abc import Sequence

from hydra.errors import HydraException

from hydra_plugins.gpu_launcher._devices import (
    Slot,
    by_default,
    on_gpus,
    on_processors,
    visible_gpus,
)


def slots(gpus: Sequence[int | str] | None, per_gpu: int, cpu_slots: int | None) -> list[Slot]:
    """The slots that the options ask for.

    Args:
        gpus: positions among the visible GPUs, or identifiers as CUDA_VISIBLE_DEVICES takes them.
            None: all visible ones, and where there is none, processors.
        per_gpu: how many slots share a GPU.
        cpu_slots: how many slots without a GPU, instead of any with one; None: one, where no GPU is
            visible.

    Raises:
        HydraException: an option asks for what is not there, or for nothing.
    """
    if per_gpu < 1:
        raise HydraException(f"hydra.launcher.per_gpu={per_gpu}: at least one job runs on a GPU.")
    if cpu_slots is not None:
        if gpus:
            raise HydraException("Give hydra.launcher.gpus or hydra.launcher.cpu_slots, not both.")
        if cpu_slots < 1:
            raise HydraException(f"hydra.launcher.cpu_slots={cpu_slots}: at least one is needed.")
        return on_processors(cpu_slots)
    if gpus is None:
        return by_default(per_gpu)
    return on_gpus(_chosen(gpus, visible_gpus()), per_gpu)


def _chosen(gpus: Sequence[int | str], visible: Sequence[str]) -> list[str]:
    """The devices asked for; where none can be seen, what is asked for is believed."""
    if not gpus:
        raise HydraException("hydra.launcher.gpus=[]: name one, or leave it out.")
    found = _looked_up(gpus, visible) if visible else [str(gpu) for gpu in gpus]
    twice = sorted({gpu for gpu in found if found.count(gpu) > 1})
    if twice:
        raise HydraException(
            f"hydra.launcher.gpus names {', '.join(twice)} twice. For several jobs on one GPU, use "
            "hydra.launcher.per_gpu."
        )
    return found


def _looked_up(gpus: Sequence[int | str], visible: Sequence[str]) -> list[str]:
    found = []
    for gpu in gpus:
        if isinstance(gpu, int) and 0 <= gpu < len(visible):
            found.append(visible[gpu])
        elif isinstance(gpu, str) and gpu in visible:
            found.append(gpu)
        else:
            raise HydraException(
                f"hydra.launcher.gpus: {gpu} is not there. Visible: {', '.join(visible)}, counted "
                "from 0."
            )
    return found
