"""A search from its settings to its results."""

import contextlib
import logging
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra.core.utils import configure_log
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.study_sweeper import (
    _points,
    _report,
    _restored,
    _results,
    _rounds,
    _samplers,
    _storage,
    _study,
)
from hydra_plugins.study_sweeper._asked import Asked
from hydra_plugins.study_sweeper._budget import Budget
from hydra_plugins.study_sweeper._errors import BadSearch, SearchFailed
from hydra_plugins.study_sweeper._presence import Presence
from hydra_plugins.study_sweeper._search import Search, shown
from hydra_plugins.study_sweeper._space import Space
from hydra_plugins.study_sweeper._trials import Trials, is_taken

log = logging.getLogger(__name__)

_WILCOXON = "WilcoxonPruner"


def run(
    asked: Asked,
    space: Space,
    custom: Any,
    *,
    launcher: Launcher,
    config: DictConfig,
    is_group: Callable[[str], bool],
) -> None:
    """See `StudySweeper.sweep`."""
    settings = asked.settings
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    folder = Path(str(config.hydra.sweep.dir)).absolute()
    points = _points.points(settings.get("enqueue"), space)
    is_grid = _samplers.is_grid(settings.sampler)
    grid = _grid(space, asked.budget.n_trials) if is_grid else []
    address = _storage.address(settings.get("storage"), folder)
    name = _report.study_name(config.hydra)
    if settings.get("dry_run"):
        _say_what(asked, space, points, address, name)
        return
    traces = _Traces(folder, _storage.file_of(address))
    storage = _storage.opened(address)
    pruner = _samplers.pruner(settings.pruner)
    with _storage.explained(address):
        study, is_new = _study.created(name, storage, asked.directions, pruner)
    folder.mkdir(parents=True, exist_ok=True)
    presence, search, write, is_void = None, None, None, False
    try:
        with _storage.explained(address):
            bookkeeping = settings.get("bookkeeping") or ()
            jobs = _study.jobs_of(settings.get("replicates") or 1, settings.replicate_key)
            _study.check_same(study, space, bookkeeping, asked.given_names, jobs)
            presence = Presence(study)
            search = _prepared(asked, space, custom, study, is_new, folder, points, grid, presence)
        results = _results.Results(
            folder, study, space, storage=_storage.in_words(address), names=asked.names,
            n_trials=asked.budget.n_trials, sampler=_name(study.sampler), is_group=is_group,
            choices=OmegaConf.select(config, "hydra.runtime.choices") or (),
            bookkeeping=bookkeeping,
        )  # fmt: skip
        write = _quietly(results.write, address)
        search.told = write
        _launched(search, launcher, settings, config, address)
    except Exception:
        is_void = is_new and not _has_begun(study) and not (search and search.has_company())
        raise
    finally:
        if search is not None:
            search.close()
        elif presence is not None:
            presence.close()
        if is_void:
            traces.remove(study)
        elif search is not None and write is not None:
            write(search.stopped, is_due=True)
    try:
        with _storage.explained(address):
            _ended(search, results)
    except OSError as error:
        raise SearchFailed(
            f"The search has ended, and its results cannot be written: {error}. See that there is "
            "room, and give the same command."
        ) from error
    finally:
        _storage.closed(storage)


def _quietly(write: Callable[..., object], address: Any) -> Callable[..., None]:
    """The study has each trial, files are for people: without them the search goes on."""
    said = set[str]()

    def quiet(*args: Any, **kwargs: Any) -> None:
        try:
            write(*args, **kwargs)
        except Exception as error:
            text = _storage.problem(error, address) or str(error)
            if text not in said:
                said.add(text)
                log.warning("%s cannot be written: %s", _results.SEARCH, text)

    return quiet


def _prepared(
    asked: Asked,
    space: Space,
    custom: Any,
    study: optuna.Study,
    is_new: bool,
    folder: Path,
    points: Sequence[Any],
    grid: Sequence[Any],
    presence: Presence,
) -> Search:
    settings, budget = asked.settings, asked.budget
    while not is_new and _restored.is_half_restored(study) and presence.has_company():
        time.sleep(0.2)  # somebody is about it
    is_half = is_new or _restored.is_half_restored(study)
    if is_half and (known := _results.told_of(folder, study)):
        count = _restored.restored(study, space, known)
        log.warning("The study is new; %d trials are taken over from %s.", count, folder)
    num_queued = _study.enqueue(study, points)
    if num_queued:
        log.info("%d points to begin with", num_queued)
    seed = settings.sampler.get("seed")
    trials = Trials(study, space, presence, budget.n_trials, seed, custom, grid)
    waiting = trials.reclaim()
    if waiting:
        log.info("trials %s had not ended: they are run again", ", ".join(map(str, waiting)))
    # What was only put into the queue has not been proposed.
    num_trials = len(trials.all) - num_queued
    study.sampler = _samplers.sampler(
        settings.sampler, num_trials=num_trials, is_conditional=space.is_conditional()
    )
    if not is_new:
        _say_state(trials, budget)
    replicates, is_wilcoxon = settings.get("replicates") or 1, _name(study.pruner) == _WILCOXON
    if is_wilcoxon and (replicates == 1 or len(study.directions) > 1):
        log.warning(
            "The pruner wilcoxon compares the jobs that a trial has for several seeds, by one "
            "objective: with hydra.sweeper.replicates=%d and %d objectives it prunes nothing.",
            replicates, len(study.directions),
        )  # fmt: skip
    return Search(
        study, trials, space, budget, together=settings.get("together") or 1,
        replicates=replicates, replicate_key=settings.replicate_key,
        in_turn=is_wilcoxon and len(study.directions) == 1,
        presence=presence, sweep_dir=folder,
        names=asked.given_names,
    )  # fmt: skip


def _launched(
    search: Search,
    launcher: Launcher,
    settings: DictConfig,
    config: DictConfig,
    address: Any,
) -> None:
    launch_from = getattr(launcher, "launch_from", None)
    with _storage.explained(address):
        if launch_from is not None:
            launch_from(search)
        else:
            _rounds.run(search, launcher, settings.get("n_jobs") or _rounds.num_jobs(config))


def _ended(search: Search, results: _results.Results) -> None:
    """Files, and what a person reads at the end."""
    best = results.write(search.stopped, is_last=True)
    log.info("The search has ended: %s.", search.stopped or "stopped")
    if not best:
        raise SearchFailed("\n".join(["No trial completed.", *search.failures()]))
    for trial in best[:10]:
        log.info("best: trial %d, %s", trial.number, shown(trial.values))
    if len(best) == 1:
        log.info("  %s", shlex.join(results.command(best[0])))
    problem = search.problem or search.too_many_failures()
    if problem is None and search.stopped is None:
        problem = "the launcher has ended it (hydra.launcher.fail_fast)"
    if problem is not None:
        raise SearchFailed("\n".join([f"The search has failed: {problem}.", *search.failures()]))


def _grid(space: Space, n_trials: int | None) -> list[Any]:
    points = space.points()
    if points is None:
        raise BadSearch(
            "hydra/sweeper/sampler=grid: the space is not finite, or has more points than can be "
            "listed. Give choices or ranges: lr=1e-3,1e-4."
        )
    found = list(points)
    if n_trials is not None and len(found) > n_trials:
        log.warning(
            "The grid has %d points, hydra.sweeper.n_trials is %d: the first %d are run.",
            len(found), n_trials, n_trials,
        )  # fmt: skip
    return found


def _say_what(asked: Asked, space: Space, points: Sequence[Any], address: Any, name: str) -> None:
    """The dry run."""
    budget, settings = asked.budget, asked.settings
    print("search (a dry run: nothing is written, nothing is run)")
    for param in space.params:
        when = "".join(f", where {k} is {' or '.join(sorted(v))}" for k, v in param.when.items())
        print(f"  {param.key}: {param.distribution}{when}")
    print(f"  fixed: {' '.join(space.fixed) or 'nothing'}")
    print(f"  sampler {_short(settings.sampler)}, pruner {_short(settings.pruner)}")
    each = f" of {settings.replicates} jobs each" if settings.replicates > 1 else ""
    print(f"  {asked.goal}; at most {budget.n_trials or 'any number of'} trials{each}")
    every = space.points()
    if every is not None:
        print(f"  the space has {len(list(every))} points")
    if points:
        print(f"  {len(points)} points to begin with")
    print(f"  study {name} in {_storage.in_words(address)}: {_state_of(address, name)}")


def _state_of(address: Any, name: str) -> str:
    """
    Raises:
        BadSearch: the storage cannot be used.
    """
    try:
        with _storage.explained(address):
            storage = _storage.opened(address, is_new_allowed=False)
            study = optuna.load_study(study_name=name, storage=storage)
            trials = study.get_trials(deepcopy=False)
    except (FileNotFoundError, KeyError):
        return "not begun"
    states = [trial.state.name.lower() for trial in trials]
    kinds = sorted(set(states))
    return ", ".join(f"{states.count(kind)} {kind}" for kind in kinds) or "no trial yet"


def _say_state(trials: Trials, budget: Budget) -> None:
    count = sum(map(is_taken, trials.all))
    if count:
        of = f" of {budget.n_trials}" if budget.n_trials is not None else ""
        log.info("The study goes on: %d%s trials are there already.", count, of)


def _has_begun(study: optuna.Study) -> bool:
    """Whether any trial of it has come to anything."""
    try:
        trials = study.get_trials(deepcopy=False)
    except Exception:
        return True
    return any(trial.state.is_finished() or trial.intermediate_values for trial in trials)


class _Traces:
    """What a search makes before its first job runs; it goes if none ever does.

    Args:
        folder: of the sweep.
        path: of the storage, if it is a file.
    """

    def __init__(self, folder: Path, path: Path | None) -> None:
        self._folders = [one for one in (folder, *folder.parents) if not one.exists()]
        self._path = path if path is not None and not path.exists() else None

    def remove(self, study: optuna.Study) -> None:
        """It is as if nothing had been asked for."""
        optuna.delete_study(study_name=study.study_name, storage=study._storage)
        is_empty = not optuna.study.get_all_study_names(study._storage)
        _storage.closed(study._storage)
        if self._path is not None and is_empty:
            for suffix in ("", *_storage.BESIDE):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        for folder in self._folders:
            with contextlib.suppress(OSError):  # somebody else has put something there
                folder.rmdir()


def _name(thing: Any) -> str:
    return type(thing).__name__


def _short(config: DictConfig | None) -> str:
    return "none" if config is None else str(config.get("_target_", "")).rpartition(".")[2]
