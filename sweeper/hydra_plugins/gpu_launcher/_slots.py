"""Slots: the places in which arrays of jobs run, each with a device of its own."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hydra.errors import HydraException

# A driver that hangs must not hang the launch.
_ASK_S = 10.0


@dataclass(frozen=True)
class Slot:
    """A place for one worker process.

    Attributes:
        name: for messages: "gpu 0", "gpu 0/1" where several share it, "cpu 0".
        environment: what its worker sees instead of ours.
    """

    name: str
    environment: Mapping[str, str]


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
        return _on_processors(cpu_slots)
    visible = visible_gpus()
    chosen = visible if gpus is None else _chosen(gpus, visible)
    if not chosen:
        return _on_processors(1)
    threads = _threads(len(chosen) * per_gpu)
    return [
        Slot(
            f"gpu {gpu}" if per_gpu == 1 else f"gpu {gpu}/{share}",
            {"CUDA_VISIBLE_DEVICES": gpu, **threads},
        )
        for share in range(per_gpu)
        for gpu in chosen
    ]


def visible_gpus() -> list[str]:
    """Identifiers of the GPUs that this process may use, without importing anything large."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        names = [name.strip() for name in allowed.split(",")]
        # CUDA stops at the first one that it does not know; -1 is how all are hidden.
        until = next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))
        return names[:until]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _chosen(gpus: Sequence[int | str], visible: Sequence[str]) -> list[str]:
    """The devices asked for; where none can be seen, what is asked for is believed."""
    if not gpus:
        raise HydraException("hydra.launcher.gpus=[]: name one, or leave it out.")
    twice = sorted({str(gpu) for gpu in gpus if list(gpus).count(gpu) > 1})
    if twice:
        raise HydraException(
            f"hydra.launcher.gpus names {', '.join(twice)} twice. For several jobs on one GPU, use "
            "hydra.launcher.per_gpu."
        )
    if not visible:
        return [str(gpu) for gpu in gpus]
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


def _on_processors(count: int) -> list[Slot]:
    threads = _threads(count)
    # Nobody's GPU: a job that finds one would share it with the others.
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    return [Slot(f"cpu {i}", {**hidden, **threads}) for i in range(count)]


def _threads(num_slots: int) -> dict[str, str]:
    """The processors, shared out; a number that the user has set stays."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"OMP_NUM_THREADS": str(max(1, (cores or 1) // num_slots))}
