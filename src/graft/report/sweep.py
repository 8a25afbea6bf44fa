"""What a sweep's folder holds, with whatever cannot be read turned into a failed run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.config import METRICS
from graft.errors import RecordError
from graft.record import RUN, SWEEP, Record, read_json, read_run

if TYPE_CHECKING:
    import pandas as pd

# Of each epoch, in training and validation.
CURVES = ("loss", "accuracy")
_MOST_ALONE = 3


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder.

    Attributes:
        asked: {"run": folder name, "choices": {key: value as typed}}, in the order asked.
        records: those that there are, in the same order. What a record says is completed can be
            read; if it cannot, it is a failed run here, with the reason.
    """

    path: Path
    name: str
    command: str
    asked: tuple[Mapping[str, Any], ...]
    records: tuple[Record, ...]

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The keys that tell the runs apart, in the order in which they first appear.

        A run that stands alone is told by all it chose, unless that would be a long list.
        """
        chosen = [run["choices"] for run in self.asked]
        keys = tuple(dict.fromkeys(key for one in chosen for key in one))
        if len(chosen) == 1:
            return keys if len(keys) <= _MOST_ALONE else ()
        return tuple(k for k in keys if len({one.get(k) for one in chosen}) > 1)


def load(path: Path) -> Sweep:
    """Read a sweep's folder.

    Raises:
        RecordError: it is none.
    """
    known = read_json(path / SWEEP)
    found = {file.parent.name: _readable(file.parent) for file in sorted(path.glob(f"*/{RUN}"))}
    if known is None and not found:
        raise RecordError(_no_sweep(path))
    known = known or {}
    asked = {
        run["run"]: {"run": run["run"], "choices": run.get("choices", {})}
        for run in known.get("runs", [])
        if "run" in run  # else sweep.json is damaged
    }
    for name, record in found.items():
        asked.setdefault(name, {"run": name, "choices": record.info.get("choices", {})})
    records = tuple(found[name] for name in asked if name in found)
    name = known.get("name") or path.resolve().name
    return Sweep(path, name, known.get("command", ""), tuple(asked.values()), records)


def has_curves(epochs: "pd.DataFrame") -> bool:
    """Whether there are epochs, with the figures that all runs have."""
    columns = ["epoch", *(f"{part}_{what}" for part in ("train", "val") for what in CURVES)]
    return len(epochs) > 0 and all(
        column in epochs and epochs[column].dtype.kind in "if" for column in columns
    )


def completed(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.is_completed]


def _readable(path: Path) -> Record:
    """The record in a folder; a failed one, with the reason, where it is damaged."""
    try:
        record = read_run(path)
    except RecordError as error:
        return Record(path, {"status": "failed", "reason": str(error), "choices": {}})
    if not record.is_completed:
        return record
    try:
        best = int(record.info["best_epoch"])
        is_whole = (
            has_curves(record.epochs)
            and len(record.epochs) >= best >= 1
            and len(record.predictions.labels) > 0
            and record.info["metric"] in METRICS
        )
        reason = "its files do not fit together"
    except (RecordError, OSError, ValueError, LookupError, TypeError) as error:
        is_whole, reason = False, " ".join(str(error).split())[:200]
    if is_whole:
        return record
    said = f"finished, but its record is damaged: {reason}"
    return Record(path, {**record.info, "status": "failed", "reason": said})


def _no_sweep(path: Path) -> str:
    if not path.exists():
        return f"{path} is not there. Give the folder of a sweep, such as outputs/demo."
    if (path / RUN).is_file():
        return f"{path} is the folder of one run. Give the sweep's, which is {path.parent}."
    return (
        f"{path} holds no sweep: there is no {SWEEP} and no folder with a {RUN} in it. "
        "Give the folder of a sweep, such as outputs/demo."
    )
