"""Stored activations, read: a batch's rows, in the views that the epoch draws."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from graft import machine
from graft.trunk.fill import Rows
from graft.trunk.rows import RowFormat
from graft.trunk.run import Tensors

# Of a GPU's free memory, what activations may take: the rest is for the tails.
GPU_SHARE = 0.5
# On their way there they pass through pinned memory, so many bytes at a time.
STAGE_BYTES = 1 << 26


@dataclass(frozen=True)
class View:
    """One view's rows, and where each example's is: [N] positions in the rows, -1 for none."""

    rows: Rows
    position: NDArray[np.int64]


class Activations:
    """What a trunk made of the examples of a dataset.

    Args:
        format: of a row.
        views: by name.
        device: where the tails are. On a GPU all rows are held there if they fit.
    """

    def __init__(self, format: RowFormat, views: Mapping[str, View], device: torch.device) -> None:
        self._format, self._views, self._device = format, dict(views), device
        self._held = self._on_device() if device.type == "cuda" else None

    def batches(
        self,
        examples: Sequence[NDArray[np.int64]],
        names: Sequence[str],
        which: Sequence[NDArray[np.int64]],
    ) -> Iterator[Tensors]:
        """The activations of batches of examples, on the device, one after the other.

        Args:
            examples: [B] each, positions in the dataset's table.
            names: of views.
            which: [B] each, the view of each example, positions in `names`.
        """
        if self._held is not None and examples:
            yield from self._held_batches(examples, names, which)
            return
        for own, views in zip(examples, which, strict=True):
            rows = torch.from_numpy(self._read(own, names, views))
            if self._device.type == "cuda":
                rows = rows.pin_memory().to(self._device, non_blocking=True)
            yield self._format.unpack(rows)

    def close(self) -> None:
        for view in self._views.values():
            view.rows.close()

    def _read(
        self, examples: NDArray[np.int64], names: Sequence[str], which: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """uint8 [B, row_bytes]"""
        out = np.empty((len(examples), self._format.row_bytes), dtype=np.uint8)
        for number in np.unique(which):
            view, chosen = self._views[names[number]], which == number
            out[chosen] = view.rows.rows()[view.position[examples[chosen]]]
        return out

    def _held_batches(
        self,
        examples: Sequence[NDArray[np.int64]],
        names: Sequence[str],
        which: Sequence[NDArray[np.int64]],
    ) -> Iterator[Tensors]:
        """Where the rows are goes to the device once for all batches: a small copy for each would
        take as long as a small head's step."""
        assert self._held is not None
        rows, first = self._held
        every, views = np.concatenate(list(examples)), np.concatenate(list(which))
        where = np.empty(len(every), dtype=np.int64)
        for number in np.unique(views):
            view, chosen = names[number], views == number
            where[chosen] = first[view] + self._views[view].position[every[chosen]]
        places = torch.from_numpy(where).to(self._device)
        for part in torch.split(places, [len(own) for own in examples]):
            yield self._format.unpack(rows.index_select(0, part))

    def _on_device(self) -> tuple[torch.Tensor, dict[str, int]] | None:
        """All rows, uint8 [rows of all views, row_bytes], and where each view's begin; or None."""
        sizes = {name: len(view.rows.rows()) for name, view in self._views.items()}
        num_rows, row_bytes = sum(sizes.values()), self._format.row_bytes
        if num_rows * row_bytes > GPU_SHARE * machine.free_gpu_bytes(self._device):
            return None
        held = torch.empty((num_rows, row_bytes), dtype=torch.uint8, device=self._device)
        first, start = {}, 0
        for name, view in self._views.items():
            first[name] = start
            _copy(view.rows.rows(), held[start : start + sizes[name]])
            start += sizes[name]
        return held, first


def _copy(rows: NDArray[np.uint8], held: torch.Tensor) -> None:
    """Rows [N, row_bytes] to a GPU: one part is read into pinned memory while another travels."""
    step = max(1, STAGE_BYTES // rows.shape[1])
    stages = [
        (
            torch.empty((step, rows.shape[1]), dtype=torch.uint8, pin_memory=True),
            torch.cuda.Event(),  # type: ignore[no-untyped-call]
        )
        for _ in range(2)
    ]
    for number, at in enumerate(range(0, len(rows), step)):
        stage, has_left = stages[number % 2]
        has_left.synchronize()
        count = min(step, len(rows) - at)
        np.copyto(stage.numpy()[:count], rows[at : at + count])
        held[at : at + count].copy_(stage[:count], non_blocking=True)
        has_left.record(torch.cuda.current_stream(held.device))
