"""A run's configuration with nothing left open, and what runs must agree in to share work.

Known without PyTorch, which takes longer to import than all else that a sweep's driver does.
"""

from dataclasses import replace
from typing import Any

from graft import machine
from graft.catalog import find
from graft.config import SGD, RunConfig, to_dict
from graft.errors import ConfigError
from graft.identity import digest


def resolve(config: RunConfig) -> RunConfig:
    """The configuration with nothing left open: image size, mean and deviation, device.

    Raises:
        ConfigError: no such model or device, a precision that the device has not, or settings that
            do not go together.
    """
    backbone = find(config.model.name)
    model = replace(
        config.model,
        mean=config.model.mean or backbone.mean,
        std=config.model.std or backbone.std,
    )
    for key, values in (("mean", model.mean), ("std", model.std)):
        if values is None or len(values) != 3 or (key == "std" and min(values) <= 0):
            raise ConfigError(
                f"model.{key}={list(values or ())}: expected three numbers, one a channel"
                f"{', each above 0' if key == 'std' else ''}."
            )
    own = config.optimizer
    if isinstance(own, SGD) and own.nesterov and not own.momentum:
        raise ConfigError(
            "optimizer.nesterov=true needs a momentum: give optimizer.momentum=0.9, or leave "
            "optimizer.nesterov=false."
        )
    device = machine.device(config.device)
    if config.precision == "float16" and device.startswith("cpu"):
        raise ConfigError("precision=float16 needs a GPU. Use float32, or bfloat16, on a CPU.")
    if config.precision == "tf32" and not machine.has_tf32(device):
        raise ConfigError(
            "precision=tf32 needs an NVIDIA GPU of the Ampere generation or later. Use float32."
        )
    size = config.image_size or config.dataset.own_image_size or backbone.input_size
    return replace(config, model=model, image_size=size, device=device)


def trunk_settings(config: RunConfig) -> dict[str, Any]:
    """What two runs must agree in to be fed from the same pictures through the same weights."""
    values = to_dict(config)
    names = ("dataset", "image_size", "augmentation", "precision", "activations", "device", "cache")
    model = {k: v for k, v in values["model"].items() if k not in ("dropout", "head_seed")}
    return {**{name: values[name] for name in names}, "model": model}


def trunk_key(config: RunConfig) -> str:
    """Equal for runs that are fed from the same pictures through the same trunk."""
    return digest([trunk_settings(config), to_dict(config)["strategy"]])


def array_key(config: RunConfig) -> str:
    """Equal for runs that one array can hold: on the same batches, through the same trunk.

    They may differ in optimizer, schedule, loss, epochs, patience, metric, dropout, and in the
    first values of the head.
    """
    # Where a head has no dropout, one that is asked for is one module more: another tail.
    is_added = config.model.dropout is not None and not find(config.model.name).dropout
    same = [config.sampling, config.seed, config.batch_size, is_added]
    return digest([trunk_key(config), *same])
