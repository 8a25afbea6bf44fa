"""Runs of a sweep, trained: what a worker does. It leaves files; the driver sees to the rest.

get_ready   what can be done for a run while the sweep is still being planned
run_array   trains what is not finished of an array, each run to its own folder
            (and, for MLflow, its letter: see graft.tracking)
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from graft import backbones, machine, metrics, progress, record, train
from graft.config import RunConfig, from_dict, to_dict
from graft.data.raw import SHOWN, listed
from graft.dataset import load_dataset
from graft.errors import ConfigError, Pruned, RecordError, RunError
from graft.fit.learner import Judge
from graft.record import Record, read_json, read_run
from graft.run import Member, Outcome
from graft.settings import resolve, trunk_key
from graft.sweep.asked import Asked, Value, finished, value
from graft.tracking import OffRun, RunTracking, run_tracking

log = logging.getLogger("graft")


def get_ready(config: RunConfig) -> None:
    """Have what a run will need first: its network's library, and its device awake.

    Else they are waited for when the sweep has been planned.
    """
    with ThreadPoolExecutor(1, "wake") as beside:  # libraries load while Python imports
        awake = beside.submit(machine.wake, machine.device(config.device))
        backbones.import_for(config.model.name)
        awake.result()


def run_array(
    asked: Sequence[Asked], *, slot: str = "", judges: Mapping[str, Judge] = {}
) -> list[Value | Exception]:
    """Train runs of one array of a prepared sweep; what is finished is not trained again.

    Args:
        slot: where, for the records.
        judges: by the name of a run, who may end it early: see `Member`.

    Returns:
        Of each its value, or what ended it (`Pruned`, if it was its judge); the record and the log
        say so too.
    """
    resolved = [replace(one, config=resolve(one.config)) for one in asked]
    outcomes: dict[str, Value | Exception] = {}
    left = []
    for one in resolved:
        done = finished(one)
        if done is None:
            left.append(one)
        else:
            log.info("%s is finished already: not trained again.", one.name)
            outcomes[one.name] = value(one, done)
    if left:
        outcomes |= _trained(left, slot, judges)
    return [outcomes[one.name] for one in asked]


def _trained(
    asked: Sequence[Asked], slot: str, judges: Mapping[str, Judge]
) -> dict[str, Value | Exception]:
    numbers, total = _numbers(asked)
    _announce(asked, numbers, total)
    runs = {}
    for one, number in zip(asked, numbers, strict=True):
        follower = _follower(one, number)
        follower.params(one.choices, to_dict(one.config))
        member = Member(
            one.config, one.folder, one.choices, [follower], slot=slot, judge=judges.get(one.name)
        )
        runs[one.folder] = (one, member, follower)
    outcomes: dict[str, Value | Exception] = {}

    def ended(member: Member, outcome: Outcome) -> None:
        one, _, follower = runs[member.folder]
        if isinstance(outcome, Pruned):
            progress.tell(one.name, 1.0, "pruned")
            _report_pruned(one, outcome, follower)
            outcomes[one.name] = outcome
        elif isinstance(outcome, Exception):
            progress.tell(one.name, 1.0, "failed")
            outcomes[one.name] = _failure(one, outcome, follower)
        else:
            progress.tell(one.name, 1.0, "completed")
            _report_success(outcome, follower)
            outcomes[one.name] = value(one, outcome)

    dataset = load_dataset(asked[0].config)
    members = [member for _, member, _ in runs.values()]
    train.train_array(members, dataset, beside=_beside(asked[0]), ended=ended)
    return outcomes


def _follower(one: Asked, number: int) -> RunTracking | OffRun:
    title = f"{number:02d} {one.title}"
    return run_tracking(one.folder.parent, one.config.tracking, number, title, one.choices)


def _announce(asked: Sequence[Asked], numbers: Sequence[int], total: int) -> None:
    names = [one.name for one in asked]
    if len(names) == 1:
        log.info("%s: %s", f"run {numbers[0] + 1} of {total}" if total else "run", names[0])
        return
    shown = listed([str(number + 1) for number in numbers])
    # On a machine that does not see the sweep's folder, nobody knows their numbers.
    log.info("%s, one array:", f"runs {shown} of {total}" if total else f"{len(names)} runs")
    for name in names[:SHOWN]:
        log.info("  %s", name)
    if len(names) > SHOWN:
        log.info("  and %d more", len(names) - SHOWN)


def _report_success(done: Record, follower: RunTracking | OffRun) -> None:
    found = _scores(done)
    follower.finish(done, "completed", None, found)
    log.info(
        "  %s: best epoch %d, validation accuracy %.4f, test accuracy %.4f, %.1f s",
        done.name, done.info["best_epoch"], found["best/val_accuracy"], found["test/accuracy"],
        found["seconds"],
    )  # fmt: skip


def _report_pruned(asked: Asked, error: Pruned, follower: RunTracking | OffRun) -> None:
    follower.finish(_record(asked), "pruned", error.reason, {})
    log.info("  %s: %s", asked.name, error)


def _failure(asked: Asked, error: Exception, follower: RunTracking | OffRun) -> RunError:
    """What the launcher is told: the reason in a line, and whether another try may help."""
    found = _record(asked)
    status = str(found.info["status"]) if found else "failed"
    if status == "running":  # of another process, which holds it: the record is not ours
        found, status = None, "failed"
    reason = str((found.info["reason"] if found else None) or error)
    follower.finish(found, status, reason, {})
    told = RunError(f"{status}: {reason}" if status != "failed" else reason)
    told.is_final = getattr(error, "is_final", False)
    told.__cause__ = error
    return told


def _record(asked: Asked) -> Record | None:
    try:
        return read_run(asked.folder)
    except RecordError:
        return None


def _numbers(asked: Sequence[Asked]) -> tuple[list[int], int]:
    """The runs' numbers in their sweep, from 0, and how many runs it has."""
    runs = (read_json(asked[0].folder.parent / record.SWEEP) or {}).get("runs", [])
    place = {run["run"]: number for number, run in enumerate(runs)}
    return [place.get(one.name, len(runs)) for one in asked], len(runs)


def _scores(done: Record) -> dict[str, float]:
    """What tracking shows of a finished run, from its stored predictions."""
    val, test = (metrics.scores(done.predictions.of(split)) for split in ("val", "test"))
    out = {f"best/val_{name}": value for name, value in val.items() if "/" not in name}
    out |= {f"test/{name.replace('/', '_')}": value for name, value in test.items()}
    out |= {
        "best/epoch": float(done.info["best_epoch"]),
        "seconds": float(done.info["timings_s"]["total"]),
        "trainable_parameters": float(done.info["parameters"]["trainable"]),
    }
    return out


# --- what the sweep shares ------------------------------------------------------------------


def _beside(asked: Asked) -> list[RunConfig]:
    """One run for each strategy and trunk of the sweep but the one of this array."""
    own = trunk_key(asked.config)
    trunks = (read_json(asked.folder.parent / record.PLAN) or {}).get("trunks", {})
    found = []
    for key, config in trunks.items():
        if key == own:
            continue
        # An earlier start of the sweep may have been on a device that is not here.
        with suppress(ConfigError):
            found.append(resolve(from_dict(config)))
    return found
