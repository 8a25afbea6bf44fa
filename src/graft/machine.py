"""What a run finds and sets on its machine: device, memory, determinism, cache folder, versions."""

import ctypes
import functools
import logging
import os
import platform
import re
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft import _cuda
from graft.config import RunConfig
from graft.errors import ConfigError

if TYPE_CHECKING:
    import torch

log = logging.getLogger("graft")


def cache_dir(output_dir: str | Path = "outputs") -> Path:
    """Where what can be made again is kept: $GRAFT_CACHE, ~/.cache/graft, or the output folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    wanted = Path(os.environ.get("GRAFT_CACHE") or Path(home) / "graft").absolute()
    beside = Path(output_dir).absolute() / ".cache"
    for folder in (wanted, beside):
        why = "it may not be written to"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if os.access(folder, os.W_OK):
                return folder
        except OSError as error:
            why = str(error.strerror)
        if folder == wanted:
            _say_once(f"The cache folder {wanted} cannot be used ({why}): {beside} is.")
    raise ConfigError(f"output_dir={output_dir} cannot be written.")


@functools.cache
def _say_once(text: str) -> None:
    """Each array of a sweep asks anew."""
    log.warning("%s", text)


def device(name: str) -> str:
    """A device that is there, in PyTorch's words: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: no such device.
    """
    if name == "cpu" or (name == "auto" and not _may_have_gpu()):
        return "cpu"
    seen = _cuda.devices()
    if name == "auto" and seen is not None:
        return "cuda" if seen else "cpu"
    wanted = re.fullmatch(r"cuda(?::(0|[1-9][0-9]*))?", name)
    if wanted and seen and int(wanted[1] or 0) < len(seen):
        return name
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name}: expected auto, cpu, cuda, cuda:1 or mps.") from None
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if (found.index or 0) >= there.get(found.type, 0):
        counts = ", ".join(f"{kind}: {count}" for kind, count in there.items() if count)
        raise ConfigError(f"device={name} is not there. There are {counts}. Use device=auto.")
    return str(found)


def wake(device: str) -> None:
    """Let a GPU do something of each kind, so that its libraries are loaded; nothing on a CPU."""
    if not device.startswith("cuda"):
        return
    import torch

    _set_up_cublas()
    picture = torch.zeros(1, 3, 8, 8, device=device)
    torch.nn.functional.conv2d(picture, picture)
    torch.mm(picture[0, 0], picture[0, 0])
    torch.cuda.synchronize(device)


def _may_have_gpu() -> bool:
    """Whether PyTorch, which takes two seconds to import, has to be asked."""
    if "torch" in sys.modules or sys.platform != "linux":
        return True
    if any(Path(sign).exists() for sign in _DRIVERS):
        return True
    # Without X a node of NVIDIA's may only be made when somebody first asks for the GPU: then the
    # bus tells.
    return any(_read(vendor).strip() in _VENDORS for vendor in _BUS.glob("*/vendor"))


# Of NVIDIA, or of AMD; in a guest of Windows; of a board.
_DRIVERS = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/kfd", "/dev/dxg", "/dev/nvhost-gpu")
_BUS = Path("/sys/bus/pci/devices")
_VENDORS = ("0x10de", "0x1002")  # NVIDIA, AMD


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def has_tf32(device: str) -> bool:
    """Whether it multiplies float32 numbers in TensorFloat-32: 10 bits of precision, not 23."""
    if not device.startswith("cuda"):
        return False
    seen = _cuda.devices()
    if seen is not None:
        return seen[int(device.partition(":")[2] or 0)] >= (8, 0)
    import torch

    return torch.cuda.get_device_capability(device) >= (8, 0)


def available_bytes() -> int:
    """Memory that could be used now without swapping, a container's limit respected."""
    names = ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES")
    pages = next(os.sysconf(name) for name in names if name in os.sysconf_names)
    found = pages * os.sysconf("SC_PAGE_SIZE")
    # Free pages leave out those that hold cached files, which Linux gives back when asked.
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            found = int(line.split()[1]) * 1024
    limit = _read(CGROUP / "memory.max").strip()
    if limit.isdigit():  # else "max", or no such group
        used = _number(_read(CGROUP / "memory.current"))
        # Cached files that nobody uses, which are given back when asked for.
        cached = re.search(r"^inactive_file (\d+)$", _read(CGROUP / "memory.stat"), re.MULTILINE)
        used -= int(cached[1]) if cached else 0
        found = min(found, max(0, int(limit) - max(0, used)))
    return found


CGROUP = Path("/sys/fs/cgroup")


def _number(text: str) -> int:
    return int(text) if text.strip().isdigit() else 0


def free_bytes(device: "torch.device") -> int:
    """What tensors on a device may still take."""
    return free_gpu_bytes(device) if device.type == "cuda" else available_bytes()


def free_gpu_bytes(device: "torch.device") -> int:
    """What tensors may still take of a GPU: PyTorch's blocks that nothing is in count as free."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@functools.cache
def keep_memory() -> None:
    """Let glibc keep large freed blocks instead of handing them back to the kernel each time.

    A network frees and asks for the same activations in every batch; each return costs a page
    fault for every 4 KB. All threads share them: what glibc keeps for each thread apart was half as
    much again at the peak (docs/decisions/0016). Of threads that are there already it stays apart,
    so call this before any are started. Workers of the command have MALLOC_ARENA_MAX.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        trim, top_pad, mmap, arenas = -1, -2, -3, -8
        options = ((mmap, 1 << 30), (trim, (1 << 31) - 1), (top_pad, 1 << 28), (arenas, 1))
        for option, value in options:
            mallopt(option, value)


def return_memory() -> None:
    """Give the kernel back what `keep_memory` kept of work that is over: another kind comes next.

    Takes milliseconds, and what is needed again one page fault for every 4 KB.
    """
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def return_gpu_memory(error: BaseException) -> None:
    """After an error that was out of it: let go of what its frames hold, and of what is kept."""
    forget_frames(error)
    import torch

    torch.cuda.empty_cache()


def forget_frames(error: BaseException) -> None:
    """Let go of what the frames of an error hold; its lines can still be printed."""
    traceback.clear_frames(error.__traceback__)
    # Where it was caught, its trace begins; those who called hold the batch, and are held by it.
    frame = error.__traceback__.tb_frame if error.__traceback__ else None
    while frame is not None:
        with suppress(RuntimeError):  # still running, as all are from here on
            frame.clear()
        frame = frame.f_back


def peak_in_words(device: str) -> str:
    """The most GPU memory that was ever in use, as " (peak 3.1 GiB)"; empty without a GPU."""
    import torch

    if not (device.startswith("cuda") and torch.cuda.is_available()):
        return ""
    return f" (peak {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB)"


def _of_glibc(name: str) -> Any:
    """A function of glibc's; None where another library is in its place."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def prepare_process(config: RunConfig) -> None:
    """One seed, one result: deterministic kernels, and no hidden loss of precision."""
    import torch

    keep_memory()
    _allow_open_files()
    # To be told a number, even its own, changes how MKL shares work out; every lane is told.
    torch.set_num_threads(torch.get_num_threads())
    _set_up_cublas()
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # Its gradients differ from run to run (a ViT trained whole, on an H200). Without it float32
    # takes plain products of matrices, in the same time, and bfloat16 takes FlashAttention.
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    # Who calls us may have asked for less, in one of two ways, of a processor too: all is ours to
    # say, as what is stored goes by our words for it.
    cpu: Any = torch.backends.mkldnn
    kinds: tuple[Any, ...] = (
        torch.backends, torch.backends.cudnn, cpu, cpu.matmul, cpu.conv, cpu.rnn,
    )  # fmt: skip
    for kind in kinds:
        kind.fp32_precision = "none"
    # PyTorch's own default is TF32 in convolutions: 10 bits of precision under the name float32.
    torch.backends.cudnn.allow_tf32 = config.precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = config.precision == "tf32"


def _allow_open_files() -> None:
    """Each run of an array holds its lock, and a process is often allowed 1,024 open files."""
    with suppress(ImportError, OSError, ValueError):  # no Unix; not as many
        import resource

        allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = max(allowed, min(most, 1 << 16))
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _set_up_cublas() -> None:
    """Deterministic products of matrices. PyTorch reads this once, when it first makes one."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@functools.cache
def environment(device: str) -> dict[str, Any]:
    """Versions, device, machine and git commit: what a number may depend on. Found once."""
    from importlib.metadata import version

    import torch

    names = ("graft-sweeps", "torch", "torchvision", "numpy", "pillow", "hydra-core", "mlflow")
    is_cuda = device.startswith("cuda")
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if is_cuda else device,
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of the working directory, with a + where files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
