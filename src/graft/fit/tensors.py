"""A file of tensors in the safetensors format, written to a stream.

safetensors' own writer takes no stream, and says what was wrong with the disk in words alone.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, BinaryIO

import torch

_TYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

Tensors = Mapping[str, torch.Tensor]


def write(stream: BinaryIO, tensors: Tensors, metadata: Mapping[str, str]) -> str:
    """Write a whole file, flushed to the disk; its digest, as `graft.weights.digest` has it.

    Raises:
        OSError: it cannot be written.
    """
    # Wide numbers first, so that each stands at a multiple of its size.
    tensors = dict(sorted(tensors.items(), key=lambda one: -one[1].element_size()))
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors.values()]
    ends = list(accumulate(sizes))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for (name, tensor), size, end in zip(tensors.items(), sizes, ends, strict=True):
        offsets = [end - size, end]
        shape = list(tensor.shape)
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.blake2b(digest_size=8)
    for piece in _pieces(text, tensors):
        digest.update(piece)
        stream.write(piece)
    stream.flush()
    os.fsync(stream.fileno())
    return digest.hexdigest()


def _pieces(header: bytes, tensors: Tensors) -> Iterator[Any]:
    yield len(header).to_bytes(8, "little")
    yield header
    for tensor in tensors.values():
        if tensor.numel():
            yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
