"""Each job composed once: Hydra's own sweeper composes all of them to see whether they can be, and
throws them away; a launcher then composes them again. Ours takes what the sweeper made."""

import copy
from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.types import HydraContext
from omegaconf import DictConfig


def compose_once(context: HydraContext) -> None:
    """Let what is composed through `context` be kept until it is asked for again."""
    if not isinstance(context.config_loader, _Kept):
        context.config_loader = _Kept(context.config_loader)  # type: ignore[assignment]


class _Kept:
    """A config loader that keeps the job configurations that it made, each for one more call."""

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._made: dict[tuple[str, ...], tuple[DictConfig, DictConfig]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __reduce__(self) -> Any:
        """In another process: the plain loader."""
        return copy.copy, (self._loader,)

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: Sequence[str]
    ) -> DictConfig:
        """See `ConfigLoader`; a copy of each result is kept for the next who asks."""
        key = tuple(sweep_overrides)
        master, made = self._made.pop(key, (None, None))
        if made is not None and master is master_config:
            return made
        made = self._loader.load_sweep_config(master_config, list(sweep_overrides))
        self._made[key] = (master_config, copy.deepcopy(made))
        return made
