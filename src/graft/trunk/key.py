"""The name of stored activations: a digest of whatever determines their bytes.

A changed weight, picture, view, size, version or machine gives another name, so that what is stale
is never found; nobody has to throw it away in time.
"""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from graft.identity import digest
from graft.trunk.store.entry import FORMAT as STORE_FORMAT

# Raised when the same settings come to mean other bytes.
FORMAT = 2


def key(*, trunk: str, pictures: Sequence[str], view: str, settings: Mapping[str, Any]) -> str:
    """The entry's name, 16 hexadecimal digits.

    Args:
        trunk: from `digest_of`.
        pictures: [N] digests of the files, in the order of the rows.
        view: of each picture.
        settings: how files become the network's input, precision, and what is kept of it.
    """
    return digest(
        {
            "format": [FORMAT, STORE_FORMAT],
            "trunk": trunk,
            "pictures": list(pictures),
            "view": view,
            "settings": dict(settings),
        }
    )


def digest_of(part: GraphModule) -> str:
    """Digest of a part of a network: its operations, their settings, its weights."""
    found = hashlib.blake2b(digest_size=16)
    for node in part.graph.nodes:
        what = str(node.target)
        if node.op == "call_module":
            what += f"{part.get_submodule(what)} {_settings(part.get_submodule(what))}"
        elif node.op == "call_function":
            what = getattr(node.target, "__qualname__", what)
        found.update(f"{node.name} {node.op} {what} {node.args} {node.kwargs}\n".encode())
    for name, tensor in _tensors(part):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def machine(device: torch.device) -> dict[str, str]:
    """What rounding depends on besides the operations: library, processor, threads."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        kind = f"{processor} {torch.get_num_threads()}"
    return {"torch": torch.__version__, "device": f"{device.type} {kind}"}


def _settings(module: nn.Module) -> list[tuple[str, list[tuple[str, Any]]]]:
    """What a module and those in it are set to: not every one prints all of it."""
    plain = (bool, int, float, str, tuple, type(None))
    return [
        (name, sorted((k, v) for k, v in vars(one).items() if k[0] != "_" and type(v) in plain))
        for name, one in module.named_modules()
    ]


def _tensors(part: GraphModule) -> list[tuple[str, torch.Tensor]]:
    """Weights and statistics that the part's operations use, by name."""
    used = {str(n.target) for n in part.graph.nodes if n.op in ("call_module", "get_attr")}
    state = [*part.named_parameters(), *part.named_buffers()]
    return sorted(
        (
            (name, tensor)
            for name, tensor in state
            if any(name == place or name.startswith(f"{place}.") for place in used)
        ),
        key=lambda item: item[0],
    )
