"""Which files this process has open. What it has open besides may be closed at any time."""

import contextlib
import os
from pathlib import Path

import pytest

FOLDER = Path("/proc/self/fd")
needs_proc = pytest.mark.skipif(not FOLDER.is_dir(), reason="Linux says what is open")


def num_open(folder: Path) -> int:
    """Files below it that this process has open."""
    count = 0
    for one in FOLDER.iterdir():
        with contextlib.suppress(FileNotFoundError):  # what lists them is in the list
            count += os.readlink(one).startswith(str(folder))
    return count
