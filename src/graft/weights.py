"""Weight files: find out what is in them without running anything from them.

A `.pth` file is a pickle, and a pickle is a program. It is only ever read by torch's
`weights_only` unpickler, which knows tensors and plain containers and nothing else; there is no
second try. Sizes are checked against what the file really holds before memory is taken for them.
"""

import hashlib
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graft.errors import WeightsError

if TYPE_CHECKING:
    import torch

# Under one of these a training script's checkpoint keeps the network's tensors.
CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")
# What wraps a network puts before its keys: data-parallel training, torch.compile, Lightning.
_WRAPPERS = re.compile(r"^((module|_orig_mod|model)\.)+")
# torch.hub's habit: a published file's name ends in the first digits of its SHA-256.
_PROMISE = re.compile(r"-([0-9a-f]{8})\.\w+$")
_DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])")
_CONNECT_TIMEOUT_S = 10.0
_SHOWN = 5


@dataclass(frozen=True)
class WeightsSource:
    """Where a network's weights came from; `str()` is one line for the log.

    Attributes:
        kind: "imagenet", "file", or "none" for random weights.
        name: the file, or for random weights a description.
        digest: BLAKE2b of the file, 16 hexadecimal digits; None for random weights.
        is_verified: the file's content is the published one, by the digest in its name.
        had_head: the file brought a head, which was replaced.
        missing, unexpected, misshapen: what did not match, all of it in the head (anywhere else it
            is an error): the network's keys that the file lacks, the file's that the network
            lacks, and keys of another shape, in words.
        note: what else was done, such as interpolated positions.
    """

    kind: Literal["imagenet", "file", "none"]
    name: str
    digest: str | None = None
    is_verified: bool = False
    had_head: bool = False
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        if self.kind == "none":
            return self.name
        known = "verified" if self.is_verified else "not verified: no digest is known for it"
        head = "head replaced" if self.had_head else "new head"
        note = f", {self.note}" if self.note else ""
        return f"{self.name} (BLAKE2b {self.digest}, {known}; {head}{note})"


# --- files ----------------------------------------------------------------------------------


def read(path: Path, *, expected: str = "") -> "dict[str, torch.Tensor]":
    """The tensors of a `.pth`, `.pt` or `.safetensors` file, on the CPU, as they are stored.

    A training script's checkpoint is opened at `state_dict`, `model_state_dict` or `model`. What
    wrappers put before each key (`module.`, `_orig_mod.`, `model.`) is taken off.

    Args:
        path: the file.
        expected: the size that it should have, in words, for the message.

    Raises:
        WeightsError: it is missing, not a file, damaged, holds anything but tensors and plain
            values, or claims more than it has. Nothing in it is executed, whatever the environment
            says (TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD included).
    """
    size = _size(path, expected)
    found = f"{size:,} bytes" + (f", expected {expected}" if expected else "")
    try:
        if path.suffix == ".safetensors":
            content: Any = _read_safetensors(path)
        else:
            content = _read_torch(path, size)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path, str(error), found)) from error
    except WeightsError:
        raise
    except Exception as error:  # a damaged file can raise anything
        reason = re.split(r"\.\s|\n", str(error).strip())[0][:160].rstrip(".")
        raise WeightsError(
            f"{path} cannot be read as weights ({found}): {reason or type(error).__name__}. "
            f"It is damaged, cut short or of another format; get it again."
        ) from error
    return {_WRAPPERS.sub("", key): t for key, t in _tensors(content, path).items()}


def digest(path: Path) -> str:
    """BLAKE2b of a file, 16 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def verify(path: Path, *, expected: str = "") -> bool:
    """Whether a file's content is the published one, by the digest that its name carries.

    Returns:
        True if its name ends in the first 8 digits of its SHA-256, as published files' do; False if
        its name promises nothing (eight digits that read as a date are a date).

    Raises:
        WeightsError: the name promises another content.
    """
    promise = _PROMISE.search(path.name)
    if promise is None or _DATE.fullmatch(promise[1]):
        return False
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(promise[1]):
        size = f"{path.stat().st_size:,} bytes" + (f", expected {expected}" if expected else "")
        raise WeightsError(
            f"{path} is not the published file ({size}): its name promises a SHA-256 that begins "
            f"with {promise[1]}, its content has {found[:8]}. Get it again, or rename it if it is "
            f"your own."
        )
    return True


def fetch(url: str, path: Path, *, expected: str) -> None:
    """Download a published file, whole and verified, or not at all.

    Raises:
        WeightsError: it cannot be had; says from where, and where to put it by hand.
    """
    from torch.hub import download_url_to_file

    promise = _PROMISE.search(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(_CONNECT_TIMEOUT_S):
            download_url_to_file(url, str(path), promise[1] if promise else None, progress=False)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"model.weights=imagenet needs {path.name} ({expected}), which is not in {path.parent} "
            f"and cannot be downloaded from {url} ({error}). Put it into that folder, or use "
            f"model.weights=/path/to/file.pth or model.weights=none."
        ) from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torch's downloader sets none, so that a silent host would hold us for minutes."""
    import socket

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _size(path: Path, expected: str) -> int:
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise WeightsError(f"{path} {what}: expected a .pth, .pt or .safetensors file.")
    if not (size := path.stat().st_size):
        wanted = f" (expected {expected})" if expected else ""
        raise WeightsError(f"{path} is empty: 0 bytes{wanted}. Get it again.")
    return size


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)  # checks its header against the file's size itself


def _read_torch(path: Path, size: int) -> Any:
    import zipfile

    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        # torch.save never compresses: what would grow on reading was not written by it.
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or (
            sum(e.file_size for e in entries) > size
        ):
            raise WeightsError(f"{path} is a zip archive that torch.save did not write; refused.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a TorchScript archive warns, then is refused
        return torch.load(path, map_location="cpu", weights_only=True)


def _refusal(path: Path, message: str, found: str) -> str:
    if name := re.search(r"GLOBAL ([\w.]+)", message):
        return (
            f"{path} is refused: it holds more than tensors and would run {name[1]}. "
            f"Save the tensors alone: torch.save(model.state_dict(), ...)."
        )
    return f"{path} is not a weights file, or is damaged ({found}). Get it again."


def _tensors(content: Any, path: Path) -> "dict[str, torch.Tensor]":
    import torch

    for key in CHECKPOINT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds no named tensors. Save model.state_dict().")
    odd = [key for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise WeightsError(
            f"{path} holds no named tensors: {odd[0]!r} is of type "
            f"{type(content[odd[0]]).__name__}. Save model.state_dict(), alone or under "
            f"one of {', '.join(CHECKPOINT_KEYS)}."
        )
    return {str(key): _checked(str(key), value, path) for key, value in content.items()}


def _checked(key: str, tensor: "torch.Tensor", path: Path) -> "torch.Tensor":
    """The tensor, if it is a plain one whose every element is there: strides can pretend."""
    import torch

    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not is_plain or tensor.is_quantized:
        raise WeightsError(f"{path}: {key} is not a plain tensor. Save model.state_dict().")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise WeightsError(f"{path}: {key} claims {_shape(tensor)} elements, more than it holds.")
    return tensor.detach()


# --- against a network ----------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """A file's tensors against a network's: what can be used, and the difference."""

    usable: "dict[str, torch.Tensor]"
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    def __str__(self) -> str:
        """Missing, unexpected and misshapen keys as a diff: counts, and the first of each."""
        parts = (
            (f"{len(self.missing)} missing", "-", self.missing),
            (f"{len(self.unexpected)} unexpected", "+", self.unexpected),
            (f"{len(self.misshapen)} of another shape", "~", self.misshapen),
        )
        lines = [", ".join(words for words, _, keys in parts if keys)]
        for _, sign, keys in parts:
            lines += [f"  {sign} {key}" for key in keys[:_SHOWN]]
            if len(keys) > _SHOWN:
                lines.append(f"  {sign} ... and {len(keys) - _SHOWN} more")
        return "\n".join(lines)


def match(network: "Mapping[str, torch.Tensor]", file: "Mapping[str, torch.Tensor]") -> Match:
    """Compare the keys, shapes and kinds of two state dicts.

    The number of batches that a batch norm has seen is not needed, and older files lack it.
    """
    both = network.keys() & file.keys()
    odd = {k for k in both if _kind(network[k]) != _kind(file[k])}
    return Match(
        usable={k: file[k] for k in file if k in both - odd},
        missing=tuple(
            k for k in network if k not in both and not k.endswith("num_batches_tracked")
        ),
        unexpected=tuple(k for k in file if k not in both),
        misshapen=tuple(
            f"{k}: {_shape(file[k])} in the file, {_shape(network[k])} in the network"
            for k in network
            if k in odd
        ),
    )


def as_float32(
    tensors: "Mapping[str, torch.Tensor]", path: Path, *, copy: bool = True
) -> "dict[str, torch.Tensor]":
    """Copies of the tensors, of any floating type, as float32.

    Args:
        copy: False: the same tensors, where they are float32 already.

    Raises:
        WeightsError: a value is NaN or infinite.
    """
    import torch

    out: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            out[key] = tensor.clone() if copy else tensor
            continue
        out[key] = tensor.to(torch.float32, copy=copy).contiguous()
        # Both are NaN if any value is. `isfinite` of each would take as much memory again.
        if tensor.numel() and not all(map(torch.isfinite, torch.aminmax(out[key]))):
            raise WeightsError(f"{path}: {key} holds NaN or infinite values. Use another file.")
    return out


def is_under(key: str, prefixes: Sequence[str]) -> bool:
    """Whether a state dict's key is one of these modules or parameters, or inside one."""
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _kind(tensor: "torch.Tensor") -> tuple[tuple[int, ...], bool]:
    return tuple(tensor.shape), tensor.is_floating_point()


def _shape(tensor: "torch.Tensor") -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return ("x".join(map(str, tensor.shape)) or "1") + kind
