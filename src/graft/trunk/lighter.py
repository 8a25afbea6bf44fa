"""A tail's graph, changed where PyTorch's own gradient takes a detour; every number stays the same.

Two detours were found by profiling a fine-tuned block of EfficientNet-Lite0 on a CPU
(docs/performance.md):

- The gradient of a mean over height and width is laid out channels first, whatever its input was.
  Behind it, the gradients of activation and batch norm of a channels-last network took three to
  ten times as long.
- An activation such as ReLU6 that works in place keeps a copy of what it overwrites, for its
  gradient; one that does not keeps what is there anyway.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node
from torch.nn import functional as F

_Call = tuple[Callable[..., torch.Tensor], dict[str, Any]]


def lighten(module: nn.Module, graph: Graph) -> None:
    """Change `graph`, the tail of `module`, whose own modules stay what they are."""
    for node in graph.nodes:
        part = _part(module, node)
        function = _out_of_place(part) if getattr(part, "inplace", False) else None
        if function is not None and _is_alone(module, node):
            node.op, (node.target, node.kwargs) = "call_function", function
        elif (found := _mean(node, part)) is not None:
            node.op, node.target = "call_function", mean
            node.args, node.kwargs = (node.args[0], *found), {}


def _part(module: nn.Module, node: Node) -> nn.Module | None:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_alone(module: nn.Module, node: Node) -> bool:
    """Whether nothing else sees what a node overwrites: who does must see it overwritten."""
    (given,) = node.all_input_nodes
    part = _part(module, given)
    has_made_it = part is not None and any(True for _ in part.parameters(recurse=False))
    return has_made_it and len(given.users) == 1


def _out_of_place(part: nn.Module | None) -> _Call | None:
    """An activation whose gradient needs its input. ReLU's needs its output, and costs nothing."""
    if isinstance(part, nn.Hardtanh):  # ReLU6 is one
        return F.hardtanh, {"min_val": part.min_val, "max_val": part.max_val}
    kinds = {nn.Hardswish: F.hardswish, nn.SiLU: F.silu}
    found = next((function for kind, function in kinds.items() if isinstance(part, kind)), None)
    return None if found is None else (found, {})


def mean(x: torch.Tensor, dims: tuple[int, int], keepdim: bool) -> torch.Tensor:
    """Over height and width of [B, C, H, W]: the gradient has the memory order of `x`.

    `dims` are those of the mean that this one replaces; where `x` is no batch of pictures, they may
    be others.
    """
    if x.ndim != 4:
        return x.mean(dims, keepdim)
    out: torch.Tensor = _Mean.apply(x, keepdim)
    return out


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, keepdim: bool) -> torch.Tensor:
        ctx.shape = x.shape
        ctx.is_last = x.is_contiguous(memory_format=torch.channels_last)
        return F.adaptive_avg_pool2d(x, 1) if keepdim else x.mean((2, 3))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        b, c, h, w = ctx.shape
        share = grads[0].reshape(b, c) / (h * w)
        if ctx.is_last:
            return share[:, None, None, :].expand(b, h, w, c).contiguous().permute(0, 3, 1, 2), None
        return share[:, :, None, None].expand(b, c, h, w), None


def _mean(node: Node, part: nn.Module | None) -> tuple[tuple[int, int], bool] | None:
    """Axes and `keepdim` of a node that is a mean over height and width; None of any other."""
    pooled = ((-2, -1), True)
    if isinstance(part, nn.AdaptiveAvgPool2d):
        return pooled if part.output_size in _ONE else None
    if node.op == "call_function" and node.target is F.adaptive_avg_pool2d:
        size = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
        return pooled if size in _ONE else None
    is_mean = (node.op == "call_method" and node.target == "mean") or (
        node.op == "call_function" and node.target is torch.mean
    )
    if not is_mean or set(node.kwargs) - {"dim", "keepdim"}:
        return None
    given: dict[str, Any] = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | node.kwargs
    dims, keepdim = given.get("dim"), given.get("keepdim", False)
    if not isinstance(dims, (tuple, list)) or not isinstance(keepdim, bool):
        return None
    return ((dims[0], dims[1]), keepdim) if set(dims) in ({2, 3}, {-2, -1}) else None


_ONE = (1, (1, 1), [1, 1])
