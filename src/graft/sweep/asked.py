"""A run that was asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from graft.config import RunConfig


@dataclass(frozen=True)
class Asked:
    """One run that was asked for: its folder's name, its choices as typed, its configuration."""

    name: str
    choices: Mapping[str, str]
    config: RunConfig

    @property
    def folder(self) -> Path:
        return folder_of(self.config) / self.name

    @property
    def title(self) -> str:
        """What it chose, in short: "fine_tune lr=1e-3"."""
        return " ".join(
            value if key == "strategy" else f"{key.split('.')[-1]}={value}"
            for key, value in self.choices.items()
        )


def folder_of(config: RunConfig) -> Path:
    """Of the sweep."""
    return Path(config.output_dir).absolute() / config.sweep.name
