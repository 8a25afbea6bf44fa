"""GPUs as NVIDIA's driver sees them, for who has not imported PyTorch.

The process that plans a sweep needs PyTorch for nothing but to learn whether there is a GPU, and
PyTorch takes two seconds and more to be imported. So the driver is asked itself, with what PyTorch
would ask of it, where it is certain that this PyTorch could use what it finds.
"""

import ctypes
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path

LIBRARY = "libcuda.so.1"
# Of the driver's interface (cuda.h).
_NO_DEVICE = 100
_MAJOR, _MINOR = 75, 76


@cache
def devices() -> tuple[tuple[int, int], ...] | None:
    """The compute capability of each GPU that this process may use; None: ask PyTorch.

    As for PyTorch, CUDA_VISIBLE_DEVICES is what it is when this is first asked.
    """
    wanted = _cuda_of_torch()
    if "torch" in sys.modules or wanted is None:
        return None
    try:
        driver = ctypes.CDLL(LIBRARY)
        return _found(driver, wanted)
    except (OSError, AttributeError):  # there is no such library, or another
        return None


def _found(driver: ctypes.CDLL, wanted: int) -> tuple[tuple[int, int], ...] | None:
    status = driver.cuInit(0)
    if status == _NO_DEVICE:
        return ()
    version, count = ctypes.c_int(), ctypes.c_int()
    if status or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    if version.value // 1000 < wanted:  # too old for this PyTorch, which says so better
        return None
    if driver.cuDeviceGetCount(ctypes.byref(count)):
        return None
    return tuple(
        (_attribute(driver, _MAJOR, number), _attribute(driver, _MINOR, number))
        for number in range(count.value)
    )


def _attribute(driver: ctypes.CDLL, which: int, number: int) -> int:
    device, value = ctypes.c_int(), ctypes.c_int()
    if driver.cuDeviceGet(ctypes.byref(device), number) or driver.cuDeviceGetAttribute(
        ctypes.byref(value), which, device
    ):
        raise OSError("the driver does not answer")
    return value.value


def _cuda_of_torch() -> int | None:
    """The major version of CUDA that the installed PyTorch is built for; None: for none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=\n]*= *['\"](\d+)\.", text, flags=re.MULTILINE)
    return int(found[1]) if found else None
