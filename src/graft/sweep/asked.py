"""A run that was asked for, and what it came to."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from graft.config import RunConfig
from graft.errors import RecordError
from graft.identity import run_identity
from graft.record import Record, read_run

# What a run came to, as a sweeper takes it: the metric that selects, or what a search looks for.
Value = float | list[float]


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


def finished(asked: Asked) -> Record | None:
    """The record of a run that has been trained, with these settings, to its end.

    None, too, where it is damaged: that run is trained anew.
    """
    try:
        found = read_run(asked.folder)
        if not found.is_completed or found.info["identity"] != run_identity(asked.config):
            return None
        value(asked, found)
    except (RecordError, LookupError, TypeError, ValueError):
        return None
    return found


def value(asked: Asked, done: Record) -> Value:
    """The metric that selects, at the best epoch, or what `sweep.objectives` names, one or more."""
    names = asked.config.sweep.objectives or (str(done.info["metric"]),)
    values = [_objective(done, name) for name in names]
    return values if len(values) > 1 else values[0]


def _objective(done: Record, name: str) -> float:
    # As it is, to be maximised or minimised: minus a loss would hide what it is.
    if name == "seconds":
        return float(done.info["timings_s"]["total"])
    if name == "trainable_parameters":
        return float(done.info["parameters"]["trainable"])
    row = done.epochs.iloc[int(done.info["best_epoch"]) - 1]
    if name not in row and done.info["metric"] in row:
        return math.nan  # not defined on this validation set
    return float(row[name])
