"""Optimizer and schedule, from the configuration."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from graft.config import SGD, Adam, AdamW, Constant, Cosine


def optimizer(
    config: Adam | AdamW | SGD, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """torch's own, in its fused form: one pass over weights and state instead of many.

    On the 103 M parameters of VGG's classifier a fused Adam step takes an eighth of the time of
    the default one on a CPU.
    """
    trained = list(parameters)
    device = trained[0].device
    # A step that is recorded (see recorded.py) reads its rate from the device.
    is_on_gpu = device.type == "cuda"
    lr = torch.tensor(config.lr, device=device) if is_on_gpu else config.lr
    if isinstance(config, SGD):
        return _light(torch.optim.SGD)(
            trained,
            lr=lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
            fused=True,
        )
    kind = _light(torch.optim.Adam if isinstance(config, Adam) else torch.optim.AdamW)
    return kind(trained, lr=lr, weight_decay=config.weight_decay, fused=True, capturable=is_on_gpu)


def set_rate(of: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the steps that come."""
    for group in of.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def moments(
    of: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, torch.Tensor]:
    """What an optimizer keeps of each parameter, "<parameter>/<its own word>": its very tensors."""
    return {
        f"{name}/{word}": tensor
        for name, parameter in parameters.items()
        for word, tensor in of.state.get(parameter, {}).items()
        if isinstance(tensor, torch.Tensor)
    }


def set_moments(
    of: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    values: Mapping[str, torch.Tensor],
) -> None:
    """Let an optimizer that has not stepped yet go on with what `moments` of another gave."""
    for key, value in values.items():
        name, _, word = key.rpartition("/")
        parameter = parameters[name]
        # Fused steps go through parameter and state in the order of memory, so the two must be
        # laid out alike; on the disk a channels-last tensor is in its logical order.
        own = torch.empty_like(parameter if value.shape == parameter.shape else value,
                               device=parameter.device, requires_grad=False)  # fmt: skip
        of.state[parameter][word] = own.copy_(value)


@functools.cache
def _light(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """The same optimizer without PyTorch's compiler.

    Its methods import the compiler when they are first called, only to tell it to leave them alone.
    That takes over a second, and nothing here is compiled. Each of them is a wrapper around what
    does the work.
    """
    bare: dict[str, Any] = {
        name: inspect.unwrap(method)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if hasattr(method, "__wrapped__")
    }
    bare["step"] = torch.no_grad()(bare.get("step", kind.step))
    return type(kind.__name__, (kind,), bare)


def factor(config: Constant | Cosine, epochs: int) -> Callable[[float], float]:
    """The share of the learning rate at a time, counted in epochs from 0 (fractions allowed)."""
    warmup = config.warmup_epochs

    def at(epoch: float) -> float:
        if epoch < warmup:
            return epoch / warmup
        if isinstance(config, Constant):
            return 1.0
        done = min((epoch - warmup) / max(epochs - warmup, 1e-9), 1.0)
        wave = (1 + math.cos(math.pi * done)) / 2
        return config.final_fraction + (1 - config.final_fraction) * wave

    return at
