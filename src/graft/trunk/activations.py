"""Stored activations, read: a batch's rows, in the views that the epoch draws."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from graft.trunk.fill import Rows
from graft.trunk.held import Held, copy
from graft.trunk.rows import RowFormat
from graft.trunk.run import Tensors


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
        kept: where they are there already.
    """

    def __init__(
        self,
        format: RowFormat,
        views: Mapping[str, View],
        device: torch.device,
        kept: Held | None = None,
    ) -> None:
        self._format, self._views, self._device = format, dict(views), device
        self._held = kept or self._on_device()

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
        # Begins where PyTorch's own tensors may: what multiplies it is told nothing of the store.
        empty = torch.empty((len(examples), self._format.row_bytes), dtype=torch.uint8)
        out: NDArray[np.uint8] = empty.numpy()
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
        every, views = np.concatenate(list(examples)), np.concatenate(list(which))
        where = np.empty(len(every), dtype=np.int64)
        for number in np.unique(views):
            view, chosen = names[number], views == number
            where[chosen] = self._held.first[view] + self._views[view].position[every[chosen]]
        places = torch.from_numpy(where).to(self._device)
        for part in torch.split(places, [len(own) for own in examples]):
            yield self._format.unpack(self._held.rows.index_select(0, part))

    def _on_device(self) -> Held | None:
        sizes = {name: len(view.rows.rows()) for name, view in self._views.items()}
        found = Held.fitting(sizes, self._format.row_bytes, self._device)
        if found is not None:
            for name, view in self._views.items():
                copy(view.rows.rows(), found.of(name))
        return found
