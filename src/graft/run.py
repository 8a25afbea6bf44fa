"""One run of an array: what is asked of it, and its folder, log, time and end."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from graft import machine, record, weights
from graft.config import RunConfig, to_dict
from graft.dataset import LoadedDataset
from graft.errors import Diverged, GraftError
from graft.identity import run_identity
from graft.record import CHECKPOINT, Record, RunFolder, read_run
from graft.runlog import RunLog


class Follower(Protocol):
    """Told of rows of metrics, one an epoch: what tracking gives."""

    def epochs(self, rows: Sequence[Mapping[str, float]]) -> None: ...


@dataclass(frozen=True)
class Member:
    """One run of an array.

    Attributes:
        config: resolved.
        folder: the run's own; what an earlier, unfinished attempt left there is replaced.
        choices: what this run chose on each axis of its sweep, for the record.
        followers: told of each epoch.
    """

    config: RunConfig
    folder: Path
    choices: Mapping[str, str] = field(default_factory=dict)
    followers: Sequence[Follower] = ()


# How a run ended: its record, or what ended it; the record then says so too.
Outcome = Record | Exception


class Run:
    """One member while it is trained: its folder, its log, its time, its end.

    Attributes:
        info: what its run.json will say.
        outcome: None until it has ended.
    """

    def __init__(
        self,
        member: Member,
        dataset: LoadedDataset,
        ended: Callable[[Member, Outcome], None],
        stack: ExitStack,
    ) -> None:
        self.member, self.config, self.name = member, member.config, member.folder.name
        self.outcome: Outcome | None = None
        self.seconds: dict[str, float] = {}
        self._ended = ended
        self.writer = RunFolder(member.folder)
        self.log = stack.enter_context(RunLog(member.folder / record.LOG))
        self.info = _first_info(self.config, dataset, member.choices)
        self.writer.write_config(to_dict(self.config))
        self.writer.write_environment(machine.environment(self.config.device))
        self.writer.write_run(self.info)

    def spent(self, what: str, seconds: float) -> None:
        """What runs spend together is shared out evenly among them before it comes here."""
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    def complete(self, best_epoch: int) -> None:
        self.info["checkpoint_digest"] = weights.digest(self.writer.path / CHECKPOINT)
        self.info |= {"status": "completed", "best_epoch": best_epoch}
        self._end()
        self.outcome = read_run(self.writer.path)
        self._ended(self.member, self.outcome)

    def fail(self, error: Exception) -> None:
        # Diverged is the one failure that a user can read off the numbers: it has its own word.
        status = "diverged" if isinstance(error, Diverged) else "failed"
        self.info |= {"status": status, "reason": _reason(error, self.config)}
        with suppress(OSError):  # most likely what it failed of; the caller is told all the same
            self._end()
        self.outcome = error
        self._ended(self.member, error)

    def _end(self) -> None:
        spent = {what: round(seconds, 2) for what, seconds in self.seconds.items()}
        self.info["timings_s"] = {**spent, "total": round(sum(self.seconds.values()), 2)}
        self.writer.write_run(self.info)


def _first_info(
    config: RunConfig, dataset: LoadedDataset, choices: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "status": "running",
        "reason": None,
        "identity": run_identity(config),
        "choices": dict(choices),
        "classes": list(dataset.examples.classes),
        "metric": config.metric,
        "best_epoch": None,
        "parameters": None,
        "weights": None,
        "trunk": None,
        "split": dataset.examples.shares(),
        "data_digest": dataset.digest,
        "notes": list(dataset.notes),
        "skipped": list(dataset.skipped),
        "timings_s": {},
    }


def _reason(error: Exception, config: RunConfig) -> str:
    """One line on why a run failed."""
    text = " ".join(str(error).split())
    if isinstance(error, GraftError):
        return text
    if isinstance(error, torch.OutOfMemoryError):
        peak = torch.cuda.max_memory_allocated(config.device) / 2**30
        return (
            f"out of GPU memory at batch_size={config.batch_size}, image_size={config.image_size} "
            f"(peak {peak:.1f} GiB). A smaller batch_size needs less."
        )
    return f"{type(error).__name__}: {text}"[:500]
