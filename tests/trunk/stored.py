"""Entries to put into the store, and what one process of its own begins with."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graft.trunk.store import Store
from graft.trunk.store.entry import BLOCK_ROWS, Entry
from graft.trunk.store.filler import Filler

ROWS, ROW_BYTES = 3 * BLOCK_ROWS + 5, 64
BYTES = ROWS * ROW_BYTES
ABOUT = {"network": "resnet18", "shape": [4, 4], "é": 0.1}
HEADER, DATA = "header.json", "data.bin"
is_root = os.geteuid() == 0


def made(key: str = "a", num_rows: int = ROWS) -> NDArray[np.uint8]:
    seed = sum(key.encode())
    return np.random.default_rng(seed).integers(0, 256, (num_rows, ROW_BYTES), dtype=np.uint8)


def write_missing(filler: Filler, rows: NDArray[np.uint8], count: int = 1000) -> None:
    for start, stop in filler.missing()[:count]:
        filler.write(start, rows[start:stop])


def fill(store: Store, key: str = "a", num_rows: int = ROWS) -> Entry:
    with store.fill(key, ABOUT, num_rows, ROW_BYTES) as filler:
        write_missing(filler, made(key, num_rows))
        return filler.finish()


def half_fill(store: Store, key: str = "a", count: int = 2) -> None:
    with store.fill(key, ABOUT, ROWS, ROW_BYTES) as filler:
        write_missing(filler, made(key), count)


def names(store: Store) -> set[str]:
    return {path.name for path in store.folder.iterdir()} - {".lock"}


def flip(path: Path, bit: int) -> None:
    with path.open("rb+") as stream:
        stream.seek(bit // 8)
        byte = stream.read(1)[0]
        stream.seek(bit // 8)
        stream.write(bytes([byte ^ (1 << bit % 8)]))


def is_found(store: Store, key: str = "a") -> bool:
    found = store.find(key)
    if found is not None:
        found.close()
    return found is not None


# What a process of its own begins with: the functions above, for one folder.
SCRIPT = """
import os, sys, time
import numpy as np
from pathlib import Path
from graft.trunk.store import Store
folder, num_rows, row_bytes = Path(sys.argv[1]), {rows}, {row_bytes}
store = Store(folder)
def made(key):
    random = np.random.default_rng(sum(key.encode()))
    return random.integers(0, 256, (num_rows, row_bytes), dtype=np.uint8)
def say(text):
    print(text, flush=True)
"""


@contextmanager
def process(store: Store, code: str) -> Iterator["subprocess.Popen[str]"]:
    script = SCRIPT.format(rows=ROWS, row_bytes=ROW_BYTES) + code
    command = [sys.executable, "-c", script, str(store.folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def line(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()
