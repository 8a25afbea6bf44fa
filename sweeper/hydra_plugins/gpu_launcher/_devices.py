"""The devices of this machine, and what a process on one of them sees. Without Hydra."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


def by_default(per_gpu: int = 1) -> list[Slot]:
    """The slots where no device is asked for: of every visible GPU, or one without any."""
    visible = visible_gpus()
    return on_gpus(visible, per_gpu) if visible else on_processors(1)


def on_gpus(gpus: Sequence[str], per_gpu: int) -> list[Slot]:
    """Slots of GPUs, given as CUDA_VISIBLE_DEVICES takes them; so many share one."""
    threads = _threads(len(gpus) * per_gpu)
    return [
        Slot(
            f"gpu {gpu}" if per_gpu == 1 else f"gpu {gpu}/{share}",
            {"CUDA_VISIBLE_DEVICES": gpu, **threads},
        )
        for share in range(per_gpu)
        for gpu in gpus
    ]


def on_processors(count: int) -> list[Slot]:
    threads = _threads(count)
    # Nobody's GPU: a job that finds one would share it with the others.
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    return [Slot(f"cpu {i}", {**hidden, **threads}) for i in range(count)]


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


def _threads(num_slots: int) -> dict[str, str]:
    """The processors, shared out; a number that the user has set stays."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"OMP_NUM_THREADS": str(max(1, (cores or 1) // num_slots))}
