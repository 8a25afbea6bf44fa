"""Rows of activations in the memory of the device that trains on them."""

import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from graft import machine

# Of a GPU's free memory, what activations may take: the rest is for the trunk, then the tails.
GPU_SHARE = 0.5
# Rows that were stored pass through pinned memory, so many bytes at a time of each thread: one
# thread alone read 5 GB a second, less than the bus takes (docs/decisions/0019).
STAGE_BYTES, READERS = 1 << 24, 8


class Held:
    """Room for the rows of some views; on a GPU a batch is picked there.

    Attributes:
        rows: uint8 [rows of all views, row_bytes], on the device.
        first: where each view's rows begin.
    """

    def __init__(self, sizes: Mapping[str, int], row_bytes: int, device: torch.device) -> None:
        self._sizes = dict(sizes)
        self.first: dict[str, int] = {}
        num_rows = 0
        for view, size in sizes.items():
            self.first[view] = num_rows
            num_rows += size
        self.rows = torch.empty((num_rows, row_bytes), dtype=torch.uint8, device=device)

    @classmethod
    def fitting(
        cls, sizes: Mapping[str, int], row_bytes: int, device: torch.device
    ) -> "Held | None":
        """On a GPU that has room for them; else None.

        Args:
            sizes: view -> how many rows.
        """
        if not is_held(device):
            return None
        if sum(sizes.values()) * row_bytes > GPU_SHARE * machine.free_gpu_bytes(device):
            return None
        try:
            return cls(sizes, row_bytes, device)
        except torch.OutOfMemoryError:  # another process has taken it meanwhile, or it is in pieces
            return None

    def of(self, view: str) -> torch.Tensor:
        """uint8 [its rows, row_bytes], to be written to."""
        first = self.first[view]
        return self.rows[first : first + self._sizes[view]]


def is_held(device: torch.device) -> bool:
    """Whether a device has memory of its own: a CPU reads the store where it lies."""
    return device.type == "cuda"


def copy(rows: NDArray[np.uint8], to: torch.Tensor) -> None:
    """Rows [N, row_bytes] to a device: while one part is read into pinned memory others travel."""
    if to.device.type != "cuda":
        np.copyto(to.numpy(), rows)
        return
    step = min(max(1, STAGE_BYTES // rows.shape[1]), max(1, len(rows)))
    starts = range(0, len(rows), step)
    count = min(READERS, len(starts))
    with ThreadPoolExecutor(count, "read") as pool:
        parts = [starts[number::count] for number in range(count)]
        # An error comes out of here.
        list(pool.map(functools.partial(_copy_parts, rows, to, step), parts))


def _copy_parts(rows: NDArray[np.uint8], to: torch.Tensor, step: int, starts: range) -> None:
    """Those that begin at `starts`, two at a time."""
    stages = [
        (
            torch.empty((step, rows.shape[1]), dtype=torch.uint8, pin_memory=True),
            torch.cuda.Event(),  # type: ignore[no-untyped-call]
        )
        for _ in range(min(2, len(starts)))
    ]
    for number, at in enumerate(starts):
        stage, has_left = stages[number % 2]
        has_left.synchronize()
        count = min(step, len(rows) - at)
        np.copyto(stage.numpy()[:count], rows[at : at + count])
        to[at : at + count].copy_(stage[:count], non_blocking=True)
        has_left.record(torch.cuda.current_stream(to.device))
