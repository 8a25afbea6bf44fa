"""A picture's activations as a row of bytes: what the store keeps, and how tensors come back.

Feature maps are kept with their channels last, the memory order in which convolutions work, and
come back in it. A tail must see the same strides whether its activations were stored or not, or its
kernels might round differently: `same_layout` gives those of a fresh trunk the stored ones' layout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

Stored = Literal["float32", "bfloat16"]
_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16, torch.float16)}


class NotRows(Exception):
    """Why activations cannot be stored: they are not one row of numbers for each picture."""


@dataclass(frozen=True)
class RowFormat:
    """What is in a row: of each tensor the shape for one picture, the type that the trunk gives
    and the type that is kept."""

    shapes: tuple[tuple[int, ...], ...]
    given: tuple[str, ...]
    kept: tuple[str, ...]

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor], stored: Stored, num_pictures: int) -> "RowFormat":
        """The format for what a trunk made of a batch of so many pictures.

        Raises:
            NotRows: a tensor has other numbers in it than floats, or no row for each picture.
        """
        given = []
        for tensor in tensors:
            name = str(tensor.dtype).removeprefix("torch.")
            if name not in _DTYPES or not tensor.ndim or len(tensor) != num_pictures:
                raise NotRows(f"a tensor of {name} {tuple(tensor.shape)} crosses")
            given.append(name)
        kept = tuple(stored if name == "float32" else name for name in given)
        return cls(tuple(tuple(t.shape[1:]) for t in tensors), tuple(given), kept)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each tensor in a row."""
        return tuple(
            torch.Size(shape).numel() * _DTYPES[name].itemsize
            for shape, name in zip(self.shapes, self.kept, strict=True)
        )

    @property
    def row_bytes(self) -> int:
        return sum(self.sizes)

    def pack(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Tensors [B, ...] as uint8 [B, row_bytes], on their device."""
        parts = [
            _flat(tensor).to(_DTYPES[name]).view(torch.uint8)
            for tensor, name in zip(tensors, self.kept, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def unpack(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """uint8 [B, row_bytes] as the tensors that were packed, laid out as `same_layout` does."""
        out = []
        parts = torch.split(rows, list(self.sizes), dim=1)
        for part, shape, kept, given in zip(parts, self.shapes, self.kept, self.given, strict=True):
            flat = part.contiguous().view(_DTYPES[kept]).to(_DTYPES[given])
            out.append(_shaped(flat, shape))
        return tuple(out)

    def to_dict(self) -> dict[str, Any]:
        return {"shapes": [list(s) for s in self.shapes], "given": list(self.given),
                "kept": list(self.kept)}  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RowFormat":
        shapes = tuple(tuple(int(n) for n in shape) for shape in values["shapes"])
        return cls(shapes, tuple(values["given"]), tuple(values["kept"]))


def same_layout(tensors: Sequence[torch.Tensor], stored: Stored) -> tuple[torch.Tensor, ...]:
    """A trunk's tensors [B, ...] as they would come back from the store."""
    out = []
    for tensor in tensors:
        flat = _flat(tensor)
        if stored == "bfloat16" and tensor.dtype == torch.float32:
            flat = flat.to(torch.bfloat16).float()
        out.append(_shaped(flat, tuple(tensor.shape[1:])))
    return tuple(out)


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """[B, ...] as [B, numbers], channels last; a view where the memory is in this order, dense."""
    ordered = tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor
    return ordered.reshape(len(tensor), -1).contiguous()


def _shaped(flat: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if len(shape) == 3:
        channels, height, width = shape
        return flat.view(len(flat), height, width, channels).permute(0, 3, 1, 2)
    return flat.view(len(flat), *shape)
