"""Names of sweeps and runs, made from what was typed: the same choice, the same name."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

# A folder's name is limited to 255 bytes; below that, it should still be read in a listing.
MAX_LENGTH = 120

# `hydra`, and what is no part of a run's identity (`identity.NOT_RESULT`).
_BOOKKEEPING = (
    "hydra", "sweep", "tracking", "cache", "output_dir", "device", "cuda_graphs", "workers",
)  # fmt: skip


def is_bookkeeping(key: str) -> bool:
    """Whether a key says where or how fast, not what: it names nothing."""
    return key.lstrip("+~").split("/")[0].split(".")[0] in _BOOKKEEPING


def sweep_name(swept: Sequence[str], fixed: Mapping[str, str]) -> str:
    """The default name of a sweep: its experiment or axes, and a digest of what it keeps fixed.

    The values along the axes are left out: a sweep with one more learning rate is the same sweep.
    """
    settings = {key: value for key, value in fixed.items() if not is_bookkeeping(key)}
    words = [settings.pop("experiment", "")] + [key.split(".")[-1] for key in swept]
    name = "_".join(clean(word) for word in words if word) or "sweep"
    if settings:
        name += f"_{_digest(sorted(settings.items()))}"
    return shorten(name)


def run_name(values: Mapping[str, Any]) -> str:
    """The folder of a run: `strategy=head_only,optimizer.lr=0.001`.

    Args:
        values: what the run chose on each axis; numbers as numbers, so that 1e-3 is 0.001.
    """
    raw = ",".join(f"{key}={_shown(value)}" for key, value in values.items()) or "defaults"
    name = clean(raw)
    # Cleaning may make two values look alike: the digest keeps them apart.
    return shorten(name if name == raw else f"{name}-{_digest(raw)}")


# Options of a group that are not called what their class is.
_OPTIONS = {"AdamW": "adamw", "RandomCrop": "crop", "NoAugmentation": "none"}


def option(target: str) -> str:
    """A part as it is chosen on the command line, by its `_target_`.

    `graft.strategies.FineTune` -> `fine_tune`, `graft.config.EmojiDataset` -> `emoji`.
    """
    name = target.rpartition(".")[2].removesuffix("Dataset")
    return _OPTIONS.get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def clean(text: str) -> str:
    """`text` with letters, digits and `=,.+-_@` only: safe in any path, shell or URL."""
    return re.sub(r"[^\w=,.+@-]", "_", text, flags=re.ASCII).lstrip(".-") or "_"


def shorten(name: str) -> str:
    if len(name) <= MAX_LENGTH:
        return name
    return f"{name[: MAX_LENGTH - 9]}-{_digest(name)}"


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _digest(value: Any) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=3).hexdigest()
