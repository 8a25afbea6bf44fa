"""The driver of a sweep: one process that has checked it, hands it out, and puts it together.

It holds the sweep's lock, keeps MLflow and the figures up to date with what the workers leave
(follow.py), and in the end writes table and report.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft import record
from graft.catalog import find
from graft.config import RunConfig, to_dict
from graft.errors import ConfigError, RecordError
from graft.identity import run_identity
from graft.lock import Lock, Locked, held_by
from graft.progress import counted
from graft.record import (
    FIGURES,
    LOCK,
    Record,
    read_json,
    read_run,
    read_runs,
    readable_runs,
    write_json,
)
from graft.report.__main__ import print_table, write_report
from graft.report.ranking import Compared, compared
from graft.settings import array_key, resolve, trunk_key
from graft.sweep.asked import Asked, Value, finished, folder_of, value
from graft.sweep.check import checked
from graft.sweep.follow import Follower
from graft.tracking import Off, SweepTracking
from graft.tracking.letter import FOLDER as LETTERS

log = logging.getLogger("graft")

# The workers of a driver that was killed may need so long to notice.
WAIT_S = 5.0
# Each of many jobs that a launcher of others starts at once writes down its own run.
FILES_S = 60.0
# How long a process that lets go of a sweep waits for MLflow.
FLUSH_S = 60.0


@dataclass(frozen=True)
class Prepared:
    """A sweep that may begin.

    Attributes:
        arrays: positions of the runs that are trained together.
        done: position -> value, of the runs that are finished already.
        lengths: position -> how long a run takes, beside others: epochs, times blocks that train.
    """

    arrays: Sequence[Sequence[int]]
    done: Mapping[int, Value]
    lengths: Mapping[int, float] = field(default_factory=dict)


class Driver:
    """Drives one sweep.

    Args:
        folder: of the sweep.
        is_alone: whether no other process may drive it at the same time. Runs that a launcher of
            others hands out one by one each have a driver of their own, beside each other.
        wait_s: how long to wait for another process that drives it.

    Raises:
        ConfigError: another process drives it.
    """

    def __init__(self, folder: Path, *, is_alone: bool = True, wait_s: float = WAIT_S) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(folder / LOCK)
        try:
            self._lock.acquire(wait_s, shared=not is_alone)
        except Locked as error:
            raise ConfigError(
                f"{folder} is being worked on by {error}. Wait for it (graft-sweep status "
                f"{folder} shows how far it is), or name this sweep apart: sweep.name=..."
            ) from None
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written ({error.strerror}).") from error
        self._is_alone = is_alone
        # Of a driver beside others, what it was asked for: they see to theirs.
        self._own: list[Asked] = []
        self._tracking: SweepTracking | Off = Off()
        self._follower: Follower | None = None

    def begin(self, asked: Sequence[Asked], replaced: Sequence[Asked], command: str) -> Prepared:
        """Write down what was asked for, and say what is to be done.

        Args:
            asked: every run, resolved and checked.
            replaced: those of them whose folders hold something else, which is given up.
            command: what was typed.
        """
        for one in replaced:
            (one.folder / record.RUN).unlink(missing_ok=True)
        _write_down(self.folder, asked, command)
        if not self._is_alone:
            self._own += asked
        done = {place: value(one, found) for place, one in enumerate(asked)
                if (found := finished(one)) is not None}  # fmt: skip
        for place, one in enumerate(asked):
            if place not in done:
                _give_up_damaged(one)
        arrays = arrays_of(asked, done)
        if self._follower is None:  # else these are more runs of a search
            _say(asked, arrays, done)
        self.follow(asked[0].config)
        return Prepared(arrays, done, {place: _length(one) for place, one in enumerate(asked)})

    def failed(self, one: Asked, status: str, reason: str, *, is_final: bool) -> None:
        """A run has failed, perhaps without having been able to say so itself.

        Args:
            status, reason: for its record, where that does not say them already.
            is_final: whether it is not tried again.

        Raises:
            ConfigError: its settings are not allowed.
        """
        known = {
            "identity": run_identity(resolve(one.config)),
            "metric": one.config.metric,
        }
        _close(self.folder / one.name, {**_empty(one.name, one.choices), **known}, status, reason)
        if is_final:
            found = _record(one.folder)
            if found is not None:
                self._tracking.end(found)

    def refused(self, name: str, choices: Mapping[str, str], reason: str) -> None:
        """A run has settings that are not allowed, and was not begun."""
        _close(self.folder / name, _empty(name, choices), "failed", reason)

    def finish(self, *, is_interrupted: bool = False) -> bool:
        """Table, report and tracking for what the sweep has; prints where they are.

        What cannot be written, and what nobody can read any more, costs nothing else.

        Returns:
            Whether every run that was asked for is completed, and the report could be written.
            Beside others it answers for its own runs.
        """
        _close_unfinished(
            self.folder, "interrupted" if is_interrupted else "ended without a result"
        )
        if self._follower is not None:
            self._follower.look_last()  # figures are drawn, and sent, beside the report
        found, is_written = self._reported()
        if self._follower is not None:
            self._follower.stop()
        report, results = self.folder / record.REPORT, self.folder / record.RESULTS
        if is_written:
            _show(print, f"report:    {report}\nresults:   {results}")
        if found.ranking.order:
            _show(print, f"winner:    {found.ranking.order[0].path}")
        if not isinstance(self._tracking, Off):
            self._tracking.finish(read_runs(self.folder), report, results)
            titles = ("MLflow UI:", "  opens at")
            for title, line in zip(titles, self._tracking.ui_lines(), strict=False):
                _show(print, f"{title:<10} {line}")
        if is_interrupted:
            _show(print, "stopped: the same command goes on with what is not finished.")
        self._let_go()
        return is_written and self._is_complete(found.rows)

    def _reported(self) -> tuple[Compared, bool]:
        """Write the report and show its table: what it says, and whether it could be written."""
        is_written = True
        try:
            found = write_report(self.folder)
        except OSError as error:
            log.error("The report cannot be written: %s.", error.strerror or error)
            found, is_written = compared(self.folder), False
        _show(print_table, found)
        return found, is_written

    def _let_go(self) -> None:
        self._lock.release()
        with contextlib.suppress(Locked, OSError), self._lock:  # nobody else is at work here
            drawn = (self.folder / FIGURES, *self.folder.glob(f"*/{FIGURES}"))
            for folder in (self.folder, self.folder / LETTERS, *drawn):
                record.remove_parts(folder)  # of processes that were killed

    def _is_complete(self, rows: Sequence[Mapping[str, object]]) -> bool:
        own = {one.name for one in self._own}
        asked = [row for row in rows if not own or row["run"] in own]
        return record.is_complete([str(row["status"]) for row in asked])

    def leave(self) -> None:
        """Another process will finish the sweep: send what there is, and let go of it."""
        if self._follower is not None:
            self._follower.stop()
            self._follower = None
        self._tracking.wait(FLUSH_S)
        self._tracking.close()
        self._lock.release()

    def follow(self, config: RunConfig) -> None:
        """From now on, send MLflow what is new in the sweep's folder, and have figures drawn."""
        if self._follower is not None:
            return
        known = read_json(self.folder / record.SWEEP) or {}
        self._tracking = SweepTracking.open(
            self.folder, config.tracking, name=self.folder.name, command=known.get("command", ""),
            axes=known.get("axes", []), output_dir=Path(config.output_dir).absolute(),
        )  # fmt: skip
        self._follower = Follower(self.folder, self._tracking, self._own)


def prepare(
    asked: Sequence[Asked], *, command: str, driver: Driver | None = None, is_alone: bool = True
) -> tuple[Driver, Prepared]:
    """Check a whole sweep, and write down what was asked for.

    Args:
        asked: every run.
        command: what was typed.
        driver: of the same sweep, if this process has one already.
        is_alone: see `Driver`.

    Raises:
        BadRequest: everything that can be known to be wrong before training, at once.
    """
    resolved, replaced = checked(asked)
    folder = folder_of(asked[0].config)
    if driver is not None and driver.folder == folder:
        return driver, driver.begin(resolved, replaced, command)
    driver = Driver(folder, is_alone=is_alone)
    try:
        return driver, driver.begin(resolved, replaced, command)
    except BaseException:  # Ctrl-C, too: what there is already can then be reported
        driver._lock.release()
        raise


def arrays_of(asked: Sequence[Asked], done: Mapping[int, Value]) -> list[list[int]]:
    """Positions of the runs that are trained together, in arrays, in the order of their firsts."""
    found: dict[str, list[int]] = {}
    for place, run in enumerate(asked):
        if place not in done:
            found.setdefault(array_key(run.config), []).append(place)
    return list(found.values())


def _show(show: Callable[..., object], *what: object) -> None:
    """Print, as long as somebody reads it: a terminal may be gone, a pipe closed."""
    with contextlib.suppress(OSError, SystemExit):  # rich ends the process where a pipe is closed
        show(*what)


def _length(one: Asked) -> float:
    blocks = find(one.config.model.name).blocks
    return float(one.config.epochs * len(one.config.strategy.trainable(list(blocks))))


def _say(
    asked: Sequence[Asked], arrays: Sequence[Sequence[int]], done: Mapping[int, Value]
) -> None:
    left = len(asked) - len(done)
    if done and left:
        log.info("%d of %d runs are finished already.", len(done), len(asked))
    elif done:
        log.info("All %d runs are finished already: nothing is trained.", len(asked))
    if left > 1:
        log.info("%d runs in %s", left, counted(len(arrays), "array"))


def _write_down(folder: Path, asked: Sequence[Asked], command: str) -> None:
    """sweep.json: every run that was ever asked for in this folder, in order; and plan.json."""
    lock = Lock(folder / f"{LOCK}.files")
    try:
        lock.acquire(FILES_S)
    except Locked as error:
        raise ConfigError(f"{folder / record.SWEEP} is being written by {error}.") from None
    with lock:
        known = _known(folder)
        runs = {run["run"]: run for run in known.get("runs", [])}
        runs |= {run.name: {"run": run.name, "choices": dict(run.choices)} for run in asked}
        axes = list(dict.fromkeys([*known.get("axes", []), *(k for r in asked for k in r.choices)]))
        values = {
            "format": record.FORMAT,
            "name": folder.name,
            "command": record.without_password(command),
            "axes": axes,
            "runs": list(runs.values()),
        }
        write_json(folder / record.SWEEP, values)
        shared = (read_json(folder / record.PLAN) or {}).get("trunks", {})
        shared |= {key: _plain(config) for key, config in _trunks(asked).items()}
        write_json(folder / record.PLAN, {"format": record.FORMAT, "trunks": shared})
    # Hydra's copy of the same, with any password in it.
    (folder / "multirun.yaml").unlink(missing_ok=True)


def _trunks(asked: Sequence[Asked]) -> Mapping[str, RunConfig]:
    """One run for each strategy and trunk of a sweep, by `trunk_key`."""
    return {trunk_key(one.config): one.config for one in reversed(asked)}


def _known(folder: Path) -> dict[str, Any]:
    """sweep.json; where it is damaged, what the runs' own folders say."""
    known = read_json(folder / record.SWEEP)
    if known is not None:
        return known
    runs = [
        {"run": one.name, "choices": one.info.get("choices", {})} for one in readable_runs(folder)
    ]
    if (folder / record.SWEEP).exists():
        log.warning(
            "%s is damaged: made anew from the folders of its %d runs.",
            folder / record.SWEEP, len(runs),
        )  # fmt: skip
    return {"runs": runs, "axes": list(dict.fromkeys(key for r in runs for key in r["choices"]))}


def _plain(config: RunConfig) -> dict[str, Any]:
    """A configuration for plan.json: without where it is tracked, which may hold a password."""
    return {key: part for key, part in to_dict(config).items() if key not in ("tracking", "sweep")}


# --- ends that the runs could not write down themselves --------------------------------------


def _record(folder: Path) -> Record | None:
    try:
        return read_run(folder)
    except RecordError:
        return None


def _give_up_damaged(one: Asked) -> None:
    """A record that says "completed" and cannot be read: else nobody would train that run anew."""
    found = _record(one.folder)
    if found is not None and found.is_completed and finished(one) is None:
        log.warning("The record in %s is damaged: the run is trained anew.", one.folder)
        (one.folder / record.RUN).unlink(missing_ok=True)


def _close(folder: Path, empty: Mapping[str, Any], status: str, reason: str) -> None:
    """What a run's record says of its end, where the run's process could not.

    Args:
        empty: the record of a run that has not even begun to write one.
    """
    found = _record(folder)
    info = found.info if found is not None else empty
    if info["status"] == "running" and not held_by(folder / LOCK):
        write_json(folder / record.RUN, {**info, "status": status, "reason": reason})


def _empty(name: str, choices: Mapping[str, str]) -> dict[str, Any]:
    return {
        "format": record.FORMAT, "run": name, "status": "running", "reason": None,
        "identity": None, "choices": dict(choices), "classes": [], "metric": None,
        "best_epoch": None, "parameters": None, "weights": None, "weights_digest": None,
        "trunk": None, "split": {}, "data_digest": None, "notes": [], "skipped": [],
        "attempts": 1, "resumed_after": [], "timings_s": {},
    }  # fmt: skip


def _close_unfinished(folder: Path, reason: str) -> None:
    """A run that still says "running" was killed with its process: say so in its record."""
    for found in readable_runs(folder):
        if found.info["status"] == "running" and not held_by(found.path / LOCK):
            info = {**found.info, "status": "skipped", "reason": reason}
            with contextlib.suppress(OSError):  # a full disk: the table then says "running"
                write_json(found.path / record.RUN, info)
