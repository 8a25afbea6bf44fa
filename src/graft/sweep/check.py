"""A sweep is checked as a whole: what can be known to be wrong is said before its first run."""

import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graft import backbones, metrics, record
from graft.config import METRICS, Model, RunConfig, to_dict
from graft.data.raw import listed
from graft.dataset import LoadedDataset, load_dataset
from graft.errors import BadRequest, ConfigError, RecordError
from graft.identity import NOT_RESULT, run_identity
from graft.record import read_run
from graft.settings import resolve
from graft.sweep.asked import Asked

log = logging.getLogger("graft")


def checked(asked: Sequence[Asked]) -> tuple[list[Asked], list[Asked]]:
    """Everything that can be known before training; the data are introduced in the log.

    Returns:
        (the runs, their configurations with nothing left open; those of them whose folders hold
        other settings, data or weights, which sweep.overwrite=true allows to be replaced)

    Raises:
        BadRequest: everything that is wrong, at once.
    """
    problems: list[str] = []
    resolved = [one for one in (_resolved(run, problems) for run in asked) if one is not None]
    problems += _twice(asked)
    problems += _chosen_by_unlike_losses(resolved)
    datasets = _datasets(resolved, problems)
    problems += _without_value(resolved, datasets)
    _check_weights(resolved, problems)
    _check_strategies(resolved, problems)
    replaced = []
    for one in resolved:
        conflicts = _conflicts(one, datasets)
        if conflicts and one.config.sweep.overwrite:
            replaced.append(one)
        else:
            problems += conflicts
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    for dataset in datasets.values():
        _introduce(dataset)
    _warn_of_large_batches(resolved, datasets)
    return resolved, replaced


def problems_of(asked: Sequence[Asked]) -> list[str]:
    """What is wrong with settings alone, whatever data and weights are."""
    problems: list[str] = []
    resolved = [one for one in (_resolved(run, problems) for run in asked) if one is not None]
    _check_strategies(resolved, problems)
    return list(dict.fromkeys(problems))


def _resolved(asked: Asked, problems: list[str]) -> Asked | None:
    try:
        return Asked(asked.name, asked.choices, resolve(asked.config))
    except BadRequest as error:
        problems.append(str(error))
        return None


def _twice(asked: Sequence[Asked]) -> list[str]:
    counts = Counter(run.name for run in asked)
    twice = sorted(name for name, count in counts.items() if count > 1)
    return [f"The run {name} was asked for twice. Name each value once." for name in twice]


def _chosen_by_unlike_losses(asked: Sequence[Asked]) -> list[str]:
    """Class weights and smoothing change what a loss measures: the lowest would say nothing."""
    axes = {axis for run in asked for axis in run.config.sweep.axes}
    differing = sorted(axis for axis in axes if axis.partition(".")[0] == "loss")
    names = {
        f"sweep.objectives=[{','.join(run.config.sweep.objectives)}]"
        if run.config.sweep.objectives
        else f"metric={run.config.metric}"
        for run in asked
        if "val_loss" in (run.config.sweep.objectives or (run.config.metric,))
    }
    if not differing:
        return []
    return [
        f"{name} cannot choose between runs that differ in {', '.join(differing)}: it changes what "
        "val_loss measures. Choose by another metric, such as val_accuracy."
        for name in sorted(names)
    ]


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


def _without_value(
    asked: Sequence[Asked], datasets: Mapping[tuple[Any, ...], LoadedDataset]
) -> list[str]:
    """What is to choose, and has no value on the validation pictures, whatever is trained."""
    problems: dict[str, None] = {}
    for key, dataset in datasets.items():
        examples = dataset.examples
        labels, classes = np.unique(examples.labels[examples.val]), examples.classes
        defined = {"loss", *metrics.defined(labels, len(classes))}
        lacking = [name for i, name in enumerate(classes) if i not in labels]
        for config in (run.config for run in asked if _dataset_key(run.config) == key):
            wanted = [("metric", config.metric)]
            wanted += [("sweep.objectives", name) for name in config.sweep.objectives]
            for setting, name in wanted:
                if name in METRICS and name.removeprefix("val_") not in defined:
                    problems[
                        f"{setting}={name} has no value here: no validation picture is of "
                        f"{listed(lacking)}. Choose by another metric, such as val_accuracy."
                    ] = None
    return list(problems)


def _check_weights(asked: Sequence[Asked], problems: list[str]) -> None:
    """They are there, and fit."""
    for config in {(r.config.model, r.config.image_size): r.config for r in asked}.values():
        try:
            assert config.image_size is not None
            backbones.check(config.model, image_size=config.image_size)
        except BadRequest as error:
            problems.append(str(error))


def _check_strategies(asked: Sequence[Asked], problems: list[str]) -> None:
    """Each finds its blocks."""
    for config in {(r.config.model.name, r.config.strategy): r.config for r in asked}.values():
        try:
            config.strategy.trainable(list(backbones.find(config.model.name).blocks))
        except BadRequest as error:
            problems.append(str(error))


def _conflicts(asked: Asked, datasets: Mapping[tuple[Any, ...], LoadedDataset]) -> list[str]:
    """What stands in a run's folder already, of other settings, other data or other weights."""
    if not (asked.folder / record.RUN).is_file():
        return []
    try:
        found = read_run(asked.folder)
        is_same = found.info.get("identity") == run_identity(asked.config)
        # Thousands of YAML files take minutes: read only where there is something to tell.
        old = {} if is_same else dict(found.config)
    except RecordError:
        return []  # damaged: it is trained anew
    if not is_same:
        differing = "; ".join(_differences(old, to_dict(asked.config))) or "its meaning"
        return [
            f"{asked.folder} holds this run with other settings: {differing}. "
            "Give this sweep another name, sweep.name=..., or replace it: sweep.overwrite=true."
        ]
    dataset = datasets.get(_dataset_key(asked.config))
    # None: it ended before it had read them.
    if dataset is not None and found.info.get("data_digest") not in (None, dataset.digest):
        return [
            f"{asked.folder} holds this run on other data: the table or a picture has changed. "
            "Give this sweep another name, sweep.name=..., or replace it: sweep.overwrite=true."
        ]
    if _has_other_weights(found.info, asked.config.model):
        return [
            f"{asked.folder} holds this run with other weights: "
            f"model.weights={asked.config.model.weights} has changed. "
            "Give this sweep another name, sweep.name=..., or replace it: sweep.overwrite=true."
        ]
    return []


def _has_other_weights(info: Mapping[str, Any], model: Model) -> bool:
    """A file of the user's may have been written anew under its name."""
    before = info.get("weights_digest")  # None: it was never read
    try:
        return before is not None and backbones.own_digest(model) not in (None, before)
    except BadRequest:  # said already
        return False


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


_introduced: set[str] = set()


def _introduce(dataset: LoadedDataset) -> None:
    """Say what the data are, once: sizes and class shares of each split, and what was noticed."""
    if dataset.digest in _introduced:  # a search asks for its runs one by one
        return
    _introduced.add(dataset.digest)
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


@functools.cache
def _warn_once(text: str) -> None:
    log.warning("%s", text)
