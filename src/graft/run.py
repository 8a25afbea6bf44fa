"""One run of an array: what is asked of it, and its folder, log, time and end."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from graft import machine, record
from graft.config import RunConfig, to_dict
from graft.dataset import LoadedDataset
from graft.errors import Diverged, GraftError, Pruned, RecordError, RunError
from graft.fit.checkpoint import Checkpoints, Found, State
from graft.fit.learner import Judge
from graft.identity import run_identity
from graft.lock import Lock, Locked
from graft.record import Record, RunFolder, read_json, read_run
from graft.runlog import RunLog


class Follower(Protocol):
    """Told of rows of metrics, one an epoch: what tracking gives."""

    def epochs(self, rows: Sequence[Mapping[str, float]]) -> None: ...


@dataclass(frozen=True)
class Member:
    """One run of an array.

    Attributes:
        config: resolved.
        folder: the run's own; it goes on with what an earlier, unfinished attempt left there, or
            replaces it.
        choices: what this run chose on each axis of its sweep, for the record.
        followers: told of each epoch.
        slot: where it is trained, for the record, such as "gpu 0".
        judge: told of each epoch once it is over, those before a new start included, and asked
            whether to go on; what it says of the last epoch is ignored. Where it raises, this run
            fails.
    """

    config: RunConfig
    folder: Path
    choices: Mapping[str, str] = field(default_factory=dict)
    followers: Sequence[Follower] = ()
    slot: str = ""
    judge: Judge | None = None


# How a run ended: its record, or what ended it; the record then says so too.
Outcome = Record | Exception


def start(
    member: Member,
    dataset: LoadedDataset,
    ended: Callable[[Member, Outcome], None],
    stack: ExitStack,
    until: float,
) -> "Run | Record":
    """Have a run to oneself: no two processes train the same one at once.

    Args:
        ended: as `train_array` takes it.
        stack: what lets go of it in the end.
        until: as time.monotonic() has it: how long to wait for another process, which may be dying.

    Returns:
        The run; or its record, if that other process has completed it meanwhile.

    Raises:
        RunError: another process still trains it.
        OSError: its folder cannot be written.
    """
    folder = RunFolder(member.folder)
    lock = Lock(folder.path / record.LOCK)
    try:
        has_waited = lock.acquire(until - time.monotonic())
    except Locked as other:
        raise RunError(f"This run is being trained by {other}: it is left to that.") from None
    stack.enter_context(lock)
    done = _completed(member, dataset) if has_waited else None
    if done is not None:
        lock.release()
        return done
    return Run(member, dataset, ended, stack, lock)


class Run:
    """One member while it is trained: its folder, its log, its time, its checkpoints, its end.

    Attributes:
        info: what its run.json will say.
        found: the checkpoint that it goes on with.
        outcome: None until it has ended.
    """

    def __init__(
        self,
        member: Member,
        dataset: LoadedDataset,
        ended: Callable[[Member, Outcome], None],
        stack: ExitStack,
        lock: Lock,
    ) -> None:
        self.member, self.config, self.name = member, member.config, member.folder.name
        self.outcome: Outcome | None = None
        self.found: Found | None = None
        self.seconds: dict[str, float] = {}
        self._ended, self._lock = ended, lock
        self.writer = RunFolder(member.folder)
        self.writer.remove_parts()
        self.log = stack.enter_context(RunLog(member.folder / record.LOG))
        self.info = _first_info(member, dataset)
        earlier = read_json(member.folder / record.RUN) or {}
        if _is_same(earlier, self.info):
            self.info |= _counted(earlier)
        else:
            self.writer.remove_results()
        self.writer.write_config(to_dict(self.config))
        self.writer.write_environment(machine.environment(self.config.device))
        self.writer.write_run(self.info)

    def spent(self, what: str, seconds: float) -> None:
        """What runs spend together is shared out evenly among them before it comes here."""
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    # --- from one start to the next -------------------------------------------------------

    @property
    def epochs_done(self) -> int:
        """By earlier starts."""
        return self.found.epoch if self.found else 0

    def find_checkpoint(self, of: Mapping[str, Any], trained: Mapping[str, torch.Size]) -> None:
        """See whether it can go on with what an earlier start has left.

        Args:
            of: what must be equal for that, besides settings and data.
            trained: shapes of what training changes, by name.
        """
        own = {"identity": self.info["identity"], "data": self.info["data_digest"]}
        self._checkpoints = Checkpoints(self.writer.path / record.RESUME, {**own, **of})
        self.found = self._checkpoints.newest(trained)
        if self.found is None:
            return
        for what, seconds in self.found.seconds.items():
            self.spent(what, seconds)
        self.info["resumed_after"] = [*self.info["resumed_after"], self.epochs_done]
        self.writer.write_run(self.info)
        self.log.info("  goes on after epoch %d of %d", self.epochs_done, self.config.epochs)
        self.log.rest()  # its turn may come much later

    def keep(self, state: State, fit_s: float) -> None:
        """Store a checkpoint. `fit_s`: spent on epochs, not yet counted by `spent`."""
        fit_s += self.seconds.get("fit", 0.0)
        self._checkpoints.write(state, {**self.seconds, "fit": fit_s})

    # --- its end --------------------------------------------------------------------------

    def complete(self, best_epoch: int, checkpoint_digest: str) -> None:
        self.info |= {
            "status": "completed", "best_epoch": best_epoch, "checkpoint_digest": checkpoint_digest,
        }  # fmt: skip
        self._write_end()
        self.writer.remove_checkpoints()
        self._end_as(read_run(self.writer.path))

    def give_up(self, error: Exception) -> None:
        """It has no result. What its epochs were stays."""
        self.info |= {"status": _status(error), "reason": _reason(error, self.config)}
        with suppress(OSError):  # most likely what it failed of; the caller is told all the same
            self._write_end()
        if isinstance(error, GraftError) and error.is_final:
            self.writer.remove_checkpoints()  # from there it would only end like this again
        self._end_as(error)

    def _write_end(self) -> None:
        spent = {what: round(seconds, 2) for what, seconds in self.seconds.items()}
        self.info["timings_s"] = {**spent, "total": round(sum(self.seconds.values()), 2)}
        self.writer.write_run(self.info)

    def _end_as(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._lock.release()
        self.log.rest()
        self._ended(self.member, outcome)


def _completed(member: Member, dataset: LoadedDataset) -> Record | None:
    """Its record, if it is completed with these settings on these data."""
    try:
        found = read_run(member.folder)
    except RecordError:
        return None
    wanted = {"identity": run_identity(member.config), "data_digest": dataset.digest}
    return found if found.is_completed and _is_same(found.info, wanted) else None


def _counted(earlier: Mapping[str, Any]) -> dict[str, Any]:
    """How often this run has been started, this time included, and where it went on."""
    return {
        "attempts": earlier.get("attempts", 1) + 1,
        "resumed_after": earlier.get("resumed_after", []),
    }


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in ("identity", "data_digest"))


def _first_info(member: Member, dataset: LoadedDataset) -> dict[str, Any]:
    config = member.config
    return {
        "status": "running",
        "reason": None,
        "identity": run_identity(config),
        "choices": dict(member.choices),
        "slot": member.slot,
        "classes": list(dataset.examples.classes),
        "metric": config.metric,
        "best_epoch": None,
        "parameters": None,
        "weights": None,
        "weights_digest": None,
        "trunk": None,
        "split": dataset.examples.shares(),
        "data_digest": dataset.digest,
        "notes": list(dataset.notes),
        "skipped": list(dataset.skipped),
        "attempts": 1,
        "resumed_after": [],
        "timings_s": {},
    }


def _status(error: Exception) -> str:
    # Diverged is the one failure that a user can read off the numbers: it has its own word.
    if isinstance(error, Diverged):
        return "diverged"
    return "pruned" if isinstance(error, Pruned) else "failed"


def _reason(error: Exception, config: RunConfig) -> str:
    """One line on why a run has no result."""
    if isinstance(error, Pruned):
        return error.reason
    text = " ".join(str(error).split())
    if isinstance(error, GraftError):
        return text
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"out of GPU memory at batch_size={config.batch_size}, image_size={config.image_size}"
            f"{machine.peak_in_words(config.device)}. A smaller batch_size needs less."
        )
    return f"{type(error).__name__}: {text}"[:500]
