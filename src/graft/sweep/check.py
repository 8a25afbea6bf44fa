"""A sweep: checked as a whole before it starts, its runs array by array, its results at the end."""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graft import backbones, metrics, record, train
from graft.config import METRICS, RunConfig, to_dict
from graft.data.raw import SHOWN, listed
from graft.dataset import LoadedDataset, load_dataset
from graft.errors import BadRequest, ConfigError, GraftError, RecordError, RunError
from graft.identity import NOT_RESULT, run_identity
from graft.record import Record, read_json, read_run, read_runs, write_json
from graft.report.__main__ import print_table, write_report
from graft.report.drawing import FOLDER, Drawing
from graft.run import Member, Outcome
from graft.tracking import Off, SweepTracking

log = logging.getLogger("graft")


@dataclass(frozen=True)
class Asked:
    """One run that was asked for: its folder's name, its choices as typed, its configuration."""

    name: str
    choices: Mapping[str, str]
    config: RunConfig

    @property
    def folder(self) -> Path:
        return folder_of(self.config) / self.name


def folder_of(config: RunConfig) -> Path:
    return Path(config.output_dir).absolute() / config.sweep.name


def prepare(asked: Sequence[Asked], *, command: str) -> Path:
    """Check a whole sweep, and write down what was asked for.

    Args:
        asked: every run.
        command: what was typed.

    Returns:
        The sweep's folder.

    Raises:
        BadRequest: everything that can be known to be wrong before training, at once.
    """
    problems: list[str] = []
    resolved = [one for one in (_resolved(run, problems) for run in asked) if one is not None]
    problems += _twice(asked)
    datasets = _datasets(resolved, problems)
    _check_networks(resolved, problems)
    problems += [p for one in resolved for p in _conflicts(one, datasets)]
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    for dataset in datasets.values():
        _introduce(dataset)
    _warn_of_large_batches(resolved, datasets)
    folder = folder_of(asked[0].config)
    _write_down(folder, asked, command)
    _planned[folder] = {train.trunk_key(one.config): one.config for one in reversed(resolved)}
    if len(resolved) > 1:
        log.info("%d runs in %d arrays", len(resolved), len(arrays(resolved)))
    _open_tracking(folder, asked[0].config)
    return folder


def arrays(asked: Sequence[Asked]) -> list[list[int]]:
    """Positions of the runs that are trained together, in arrays, in the order of their firsts."""
    found: dict[str, list[int]] = {}
    for position, run in enumerate(asked):
        found.setdefault(train.array_key(train.resolve(run.config)), []).append(position)
    return list(found.values())


def run_array(asked: Sequence[Asked]) -> list[float | Exception]:
    """Train runs of one array of a prepared sweep; what is finished is not trained again.

    Returns:
        Of each its metric on validation at the best epoch, or what ended it; the record and the
        log say so too.
    """
    resolved = [replace(one, config=train.resolve(one.config)) for one in asked]
    outcomes: dict[str, float | Exception] = {}
    left = []
    for one in resolved:
        finished = _finished(one.folder, one.config)
        if finished is None:
            left.append(one)
        else:
            log.info("%s is finished already: not trained again.", one.name)
            outcomes[one.name] = _value(finished)
    if left:
        outcomes |= _trained(left)
    return [outcomes[one.name] for one in asked]


def _trained(asked: Sequence[Asked]) -> dict[str, float | Exception]:
    numbers, total = _numbers(asked)
    _announce(asked, numbers, total)
    runs = {}
    for one, number in zip(asked, numbers, strict=True):
        tracking = _open_tracking(one.folder.parent, one.config)
        follower = tracking.run(number, _title(one, number), one.choices)
        follower.params(one.choices, to_dict(one.config))
        member = Member(one.config, one.folder, one.choices, [follower])
        runs[one.folder] = (one, member, follower)
    outcomes: dict[str, float | Exception] = {}

    def ended(member: Member, outcome: Outcome) -> None:
        one, _, follower = runs[member.folder]
        if isinstance(outcome, Exception):
            error = RunError(_report_failure(one, outcome, follower))
            error.__cause__ = outcome
            outcomes[one.name] = error
        else:
            _report_success(outcome, follower)
            outcomes[one.name] = _value(outcome)

    dataset = load_dataset(asked[0].config)
    members = [member for _, member, _ in runs.values()]
    train.train_array(members, dataset, beside=_beside(asked), ended=ended)
    return outcomes


def _announce(asked: Sequence[Asked], numbers: Sequence[int], total: int) -> None:
    names = [one.name for one in asked]
    if len(names) == 1:
        log.info("run %d of %d: %s", numbers[0] + 1, total, names[0])
        return
    shown = listed([str(number + 1) for number in numbers])
    log.info("runs %s of %d, one array:", shown, total)
    for name in names[:SHOWN]:
        log.info("  %s", name)
    if len(names) > SHOWN:
        log.info("  and %d more", len(names) - SHOWN)


def _title(asked: Asked, number: int) -> str:
    """In MLflow."""
    return f"{number:02d} " + " ".join(
        value if key == "strategy" else f"{key.split('.')[-1]}={value}"
        for key, value in asked.choices.items()
    )


def _report_success(done: Record, follower: Any) -> None:
    scores = _scores(done)
    tell = functools.partial(follower.finish, done, "completed", None, scores)
    _drawing.add(done, tell, _opened[done.path.parent].aside)
    log.info(
        "  %s: best epoch %d, validation accuracy %.4f, test accuracy %.4f, %.1f s",
        done.name, done.info["best_epoch"], scores["best/val_accuracy"], scores["test/accuracy"],
        scores["seconds"],
    )  # fmt: skip


def finish(folder: Path, *, is_interrupted: bool = False) -> bool:
    """Write table, report and tracking for what a sweep has; print where they are.

    Returns:
        Whether every run that was asked for is completed.
    """
    _close_unfinished(folder, "interrupted" if is_interrupted else "ended without a result")
    rows = write_report(folder)
    print_table(rows, folder)
    records = read_runs(folder)
    _drawing.finish()
    for one in records:
        if one.is_completed and not (one.path / FOLDER).exists():  # an earlier start was killed
            _drawing.add(one, lambda: None)
    _drawing.finish()
    opened = _opened.get(folder)
    print(f"report:    {folder / record.REPORT}")
    print(f"results:   {folder / record.RESULTS}")
    if opened is not None and not isinstance(opened, Off):
        opened.finish(records, folder / record.REPORT, folder / record.RESULTS)
        for title, line in zip(("MLflow UI:", "  opens at"), opened.ui_lines(), strict=False):
            print(f"{title:<10} {line}")
    if is_interrupted:
        print("stopped: the same command goes on with what is not finished.")
    return bool(rows) and all(row["status"] == "completed" for row in rows)


# --- checks ---------------------------------------------------------------------------------


def _resolved(asked: Asked, problems: list[str]) -> Asked | None:
    try:
        return Asked(asked.name, asked.choices, train.resolve(asked.config))
    except BadRequest as error:
        problems.append(str(error))
        return None


def _twice(asked: Sequence[Asked]) -> list[str]:
    names = [run.name for run in asked]
    twice = sorted({name for name in names if names.count(name) > 1})
    return [f"The run {name} was asked for twice. Name each value once." for name in twice]


def _datasets(asked: Sequence[Asked], problems: list[str]) -> dict[tuple[Any, ...], LoadedDataset]:
    """Every distinct dataset, read and checked."""
    found: dict[tuple[Any, ...], LoadedDataset] = {}
    for config in {_dataset_key(run.config): run.config for run in asked}.values():
        try:
            found[_dataset_key(config)] = load_dataset(config)
        except BadRequest as error:
            problems.append(str(error))
    return found


def _dataset_key(config: RunConfig) -> tuple[Any, ...]:
    return (config.dataset,)


def _check_networks(asked: Sequence[Asked], problems: list[str]) -> None:
    """Weights are there and fit; every strategy finds its blocks."""
    for config in {(r.config.model, r.config.image_size): r.config for r in asked}.values():
        try:
            assert config.image_size is not None
            backbones.check(config.model, image_size=config.image_size)
        except BadRequest as error:
            problems.append(str(error))
    for config in {(r.config.model.name, r.config.strategy): r.config for r in asked}.values():
        try:
            config.strategy.trainable(list(backbones.find(config.model.name).blocks))
        except BadRequest as error:
            problems.append(str(error))


def _conflicts(asked: Asked, datasets: Mapping[tuple[Any, ...], LoadedDataset]) -> list[str]:
    """What stands in a run's folder already, of other settings or other data."""
    if not (asked.folder / record.RUN).is_file():
        return []
    try:
        found = read_run(asked.folder)
        new, old = to_dict(asked.config), dict(found.config)
    except RecordError:
        return []  # damaged: it is trained anew
    if found.info["identity"] != run_identity(asked.config):
        differing = "; ".join(_differences(old, new)) or "its meaning"
        return [
            f"{asked.folder} holds this run with other settings: {differing}. "
            "Give this sweep another name: sweep.name=..."
        ]
    dataset = datasets.get(_dataset_key(asked.config))
    if dataset is not None and found.info["data_digest"] != dataset.digest:
        return [
            f"{asked.folder} holds this run on other data: the table or a picture has changed. "
            "Give this sweep another name: sweep.name=..."
        ]
    return []


def _warn_of_large_batches(
    asked: Sequence[Asked], datasets: Mapping[tuple[Any, ...], LoadedDataset]
) -> None:
    for config in (run.config for run in asked):
        size = len(datasets[_dataset_key(config)].examples.train)
        if config.batch_size > size:
            _warn_once(
                f"  note: batch_size={config.batch_size} is larger than the training set of "
                f"{size:,}: each epoch is one step on all of it."
            )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """ "epochs was 10, now 20" for every key that differs and matters."""
    out = []
    for key in {**old, **new}:
        if not prefix and key in NOT_RESULT:
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key} was {a}, now {b}")
    return out


def _introduce(dataset: LoadedDataset) -> None:
    """Say what the data are: sizes and class shares of each split, and what was noticed."""
    shares = dataset.examples.shares()
    total = sum(sum(counts.values()) for counts in shares.values())
    log.info("%s pictures, %d classes", f"{total:,}", len(dataset.examples.classes))
    for split, counts in shares.items():
        size = sum(counts.values())
        shown = list(counts.items())[:8]
        said = ", ".join(f"{name}: {count / max(size, 1):.1%}" for name, count in shown)
        more = f", and {len(counts) - 8} more classes" if len(counts) > 8 else ""
        log.info("  %-5s %6s   %s%s", split, f"{size:,}", said, more)
    for note in dataset.notes:
        log.warning("  note: %s", note)


# --- what was asked for, what came out ------------------------------------------------------


def _write_down(folder: Path, asked: Sequence[Asked], command: str) -> None:
    """sweep.json: every run that was ever asked for in this folder, in order."""
    known = read_json(folder / record.SWEEP) or {}
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
    # Hydra's copy of the same, with any password in it.
    (folder / "multirun.yaml").unlink(missing_ok=True)


# One run of each strategy and trunk of a sweep.
_planned: dict[Path, dict[str, RunConfig]] = {}


def _beside(asked: Sequence[Asked]) -> list[RunConfig]:
    """One run for each strategy and trunk of the sweep but those of this array."""
    own = train.trunk_key(asked[0].config)
    every = _planned.get(asked[0].folder.parent, {})
    return [config for key, config in every.items() if key != own]


_drawing = Drawing()
_opened: dict[Path, SweepTracking | Off] = {}


def _open_tracking(folder: Path, config: RunConfig) -> SweepTracking | Off:
    if folder not in _opened:
        known = read_json(folder / record.SWEEP) or {}
        _opened[folder] = SweepTracking.open(
            folder, config.tracking, name=folder.name, command=known.get("command", ""),
            axes=known.get("axes", []), output_dir=Path(config.output_dir).absolute(),
        )  # fmt: skip
    return _opened[folder]


def _numbers(asked: Sequence[Asked]) -> tuple[list[int], int]:
    """The runs' numbers in their sweep, from 0, and how many runs it has."""
    runs = (read_json(asked[0].folder.parent / record.SWEEP) or {}).get("runs", [])
    place = {run["run"]: number for number, run in enumerate(runs)}
    return [place.get(one.name, len(runs)) for one in asked], len(runs)


def _finished(folder: Path, config: RunConfig) -> Record | None:
    try:
        found = read_run(folder)
    except RecordError:
        return None
    is_same = found.info["identity"] == run_identity(config)
    return found if found.is_completed and is_same else None


def _value(done: Record) -> float:
    """The selection metric at the best epoch; minus a loss would hide what it is."""
    row = done.epochs.iloc[int(done.info["best_epoch"]) - 1]
    assert done.info["metric"] in METRICS
    return float(row[done.info["metric"]])


@functools.cache
def _warn_once(text: str) -> None:
    log.warning("%s", text)


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


def _report_failure(asked: Asked, error: Exception, follower: Any) -> str:
    """Say at once that a run failed, and why; the reason."""
    try:
        found: Record | None = read_run(asked.folder)
    except RecordError:
        found = None
    status = str(found.info["status"]) if found else "failed"
    reason = str((found.info["reason"] if found else None) or error)
    log.error("  %s: %s", status, reason)
    if not isinstance(error, GraftError):
        log.error("  log: %s", asked.folder / record.LOG)
    follower.finish(found, status, reason, {})
    return reason


def _close_unfinished(folder: Path, reason: str) -> None:
    """A run that still says "running" was killed with its process: say so in its record."""
    for found in read_runs(folder):
        if found.info["status"] == "running":
            write_json(
                found.path / record.RUN, {**found.info, "status": "skipped", "reason": reason}
            )
