"""The study of a sweep: opened and checked, its trials counted, asked for, given back.

A trial counts for `n_trials` unless it is a point that had been evaluated before, or one too many
of several drivers. A trial whose driver has died waits again, as itself: with its number and its
point, so nothing is lost and nothing doubled.
"""

import logging
import random
import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility, distribution_to_json
from optuna.distributions import json_to_distribution as from_json
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from hydra_plugins.study_sweeper._errors import BadSearch
from hydra_plugins.study_sweeper._presence import Presence
from hydra_plugins.study_sweeper._report import trial_of
from hydra_plugins.study_sweeper._space import Point, Space, identity

log = logging.getLogger(__name__)

# Attributes of a trial.
DRIVER = "driver"  # who runs it
DEATHS = "deaths"  # how many drivers have died while they ran it
SAME_AS = "same_as"  # the number of an earlier trial with the same point
SURPLUS = "surplus"  # one more than was asked for
REASON = "reason"  # why it failed
FOLDER = "folder"  # where its first job ran, from the sweep's folder
VALUES = "values"  # of its jobs, where there are several

MAX_DEATHS = 5
# A trial that nobody has put his name to is being asked for, or its driver died at that moment.
ASKING_S = 60.0

# In an infinite space: a sampler that proposes nothing new so often has nothing left to propose.
MAX_REPEATED = 100

_SPACE, _FIXED = "space", "fixed"  # attributes of the study


def created(
    name: str,
    storage: optuna.storages.BaseStorage,
    directions: Sequence[str],
    pruner: Any,
) -> tuple[optuna.Study, bool]:
    """The study, and whether it was made now.

    Raises:
        BadSearch: it has other objectives.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            directions=[StudyDirection[one.upper()] for one in directions],
            pruner=pruner,
        )
        is_new = True
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
        is_new = False
    found = [one.name.lower() for one in study.directions]
    if found != list(directions):
        raise BadSearch(
            f"The study {name} was made with hydra.sweeper.direction={','.join(found)}, now it is "
            f"{','.join(directions)}. Name another one: hydra.sweeper.study_name=..."
        )
    return study, is_new


def check_same(study: optuna.Study, space: Space, bookkeeping: Sequence[str] = ()) -> None:
    """That a study can go on with a space, and note it in there.

    Args:
        bookkeeping: sections of the configuration that say where or how fast, and may change.

    Raises:
        BadSearch: its trials were of other settings, or its choices were others.
    """
    known = {key: from_json(text) for key, text in study.user_attrs.get(_SPACE, {}).items()}
    for param in space.params:
        try:
            if param.name in known:
                check_distribution_compatibility(known[param.name], param.distribution)
        except ValueError as error:
            raise BadSearch(
                f"{param.key}: the study {study.study_name} has it as {known[param.name]}, "
                f"now it is {param.distribution}; trials of both cannot be compared. "
                "Name another study (hydra.sweeper.study_name=..., or another sweep), which may "
                "begin with the points of this one: hydra.sweeper.enqueue=<the sweep's folder>."
            ) from error
    before = study.user_attrs.get(_FIXED)
    now = sorted(one for one in space.fixed if section(one) not in {"hydra", *bookkeeping})
    if before is not None and before != now and study.get_trials(deepcopy=False):
        raise BadSearch(
            f"The study {study.study_name} holds trials of other settings: "
            f"{_changed(before, now)}. "
            "Name another study: hydra.sweeper.study_name=..., or another sweep."
        )
    texts = {p.name: distribution_to_json(p.distribution) for p in space.params}
    study.set_user_attr(_SPACE, texts)
    study.set_user_attr(_FIXED, now)


def section(override: str) -> str:
    """The section of the configuration that an override sets something in."""
    return re.split(r"[./@=]", override.lstrip("+~"), maxsplit=1)[0]


def _changed(before: Sequence[str], now: Sequence[str]) -> str:
    gone, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    was = f"they had {', '.join(gone)}" if gone else "they had none of these"
    return f"{was}; now {', '.join(new) or 'nothing stands for it'}"


class Trials:
    """The trials of a study, for one driver of it.

    Args:
        total: `n_trials`; None: no limit.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        presence: Presence,
        total: int | None,
        seed: int | None,
        custom: Any = None,
    ) -> None:
        self._study, self._space, self._presence = study, space, presence
        self._total, self._seed, self._custom = total, seed, custom
        points = None if custom is not None else space.points()
        # Every point of a finite space, by its identity.
        self._every = None if points is None else {identity(point): point for point in points}

    @property
    def all(self) -> list[FrozenTrial]:
        """As they are now: this asks the storage."""
        return self._study.get_trials(deepcopy=False)

    def is_exhausted(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether every point of a finite space has been taken, and none waits."""
        if self._every is None or any(trial.state == TrialState.WAITING for trial in trials):
            return False
        return set(self._every) <= self._taken(trials)

    @property
    def num_points(self) -> int | None:
        return None if self._every is None else len(self._every)

    def ask(self) -> tuple[Trial, Point] | None:
        """A trial and its point, which no other trial has; None: there is none.

        It is one of those that wait, if any do.
        """
        while self._every is None or not self.is_exhausted(self.all):
            trial = self._study.ask()
            trial.set_user_attr(DRIVER, self._presence.name)
            others = [one for one in self.all if one.number != trial.number and counts(one)]
            if self._is_surplus(trial, others):
                self._close(trial, SURPLUS, True)
                return None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                point = self._space.suggested(trial)
            if self._custom is not None:
                point |= self._custom(trial, point)
            same = self._same(trial, point, others)
            if same is None:
                return trial, point
            self._take_over(trial, same)
            if self._every is None and self._num_repeated() > MAX_REPEATED:
                return None
            left = self._left(others)
            if left:
                chosen = random.Random(f"{self._seed} {trial.number}").choice(left)
                self._study.enqueue_trial(chosen)
        return None

    def give_back(self, number: int) -> None:
        """A trial that will not be run to its end here waits for whoever goes on."""
        trial_id = trial_of(self._study, number)._trial_id
        self._study._storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def reclaim(self) -> list[int]:
        """Let trials wait again whose drivers have died; their numbers."""
        found = []
        for trial in self.all:
            if trial.state != TrialState.RUNNING or not self._is_orphan(trial):
                continue
            # Another driver may have been here a moment ago.
            now = self._study._storage.get_trial(trial._trial_id)
            is_same = now.user_attrs.get(DRIVER) == trial.user_attrs.get(DRIVER)
            if now.state != TrialState.RUNNING or not is_same:
                continue
            deaths = int(now.user_attrs.get(DEATHS, 0)) + 1
            storage = self._study._storage
            storage.set_trial_user_attr(trial._trial_id, DEATHS, deaths)
            if deaths >= MAX_DEATHS:
                reason = f"the search died {deaths} times while it ran"
                storage.set_trial_user_attr(trial._trial_id, REASON, reason)
                storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            else:
                storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
            found.append(trial.number)
        return found

    # --- inside ------------------------------------------------------------------------------

    def _is_orphan(self, trial: FrozenTrial) -> bool:
        driver = trial.user_attrs.get(DRIVER)
        if driver is not None:
            return not self._presence.is_alive(str(driver))
        if not self._presence.has_company():
            return True
        return trial.duration is None and _age_s(trial) > ASKING_S

    def _is_surplus(self, trial: Trial, others: Sequence[FrozenTrial]) -> bool:
        """Of several drivers that ask at once, the later ones may get one too many."""
        before = sum(1 for one in others if one.number < trial.number and is_taken(one))
        return self._total is not None and before >= self._total

    def _same(
        self, trial: Trial, point: Point, others: Sequence[FrozenTrial]
    ) -> FrozenTrial | None:
        """A trial that has this point already, or is about to."""
        own = identity(point)
        for other in others:
            is_first = other.state.is_finished() or other.number < trial.number
            if is_first and other.params and identity(self._rounded(other)) == own:
                return other
        return None

    def _rounded(self, trial: FrozenTrial) -> dict[str, Any]:
        params = {param.name: param for param in self._space.params}
        return {
            key: params[key].rounded(value) if key in params else value
            for key, value in trial.params.items()
        }

    def _take_over(self, trial: Trial, same: FrozenTrial) -> None:
        """The value of a point that was evaluated before."""
        log.info("trial %d is the same point as trial %d: not run again", trial.number, same.number)
        if same.state == TrialState.COMPLETE:
            trial.set_user_attr(SAME_AS, same.number)
            self._study.tell(trial.number, same.values)
        else:
            self._close(trial, SAME_AS, same.number)

    def _close(self, trial: Trial, attribute: str, value: Any) -> None:
        trial.set_user_attr(attribute, value)
        self._study.tell(trial.number, state=TrialState.FAIL)

    def _num_repeated(self) -> int:
        """Of the last trials, how many in turn were points that had been evaluated."""
        count = 0
        for trial in reversed(self.all):
            if SAME_AS not in trial.user_attrs:
                break
            count += 1
        return count

    def _left(self, trials: Sequence[FrozenTrial]) -> list[Point]:
        """Points of a finite space that no trial has."""
        if self._every is None:
            return []
        taken = self._taken(trials)
        return [point for key, point in self._every.items() if key not in taken]

    def _taken(self, trials: Sequence[FrozenTrial]) -> set[tuple[tuple[str, str], ...]]:
        taken = set()
        for trial in trials:
            if counts(trial):
                waits_for = trial.system_attrs.get("fixed_params") if not trial.params else None
                taken.add(identity(waits_for or self._rounded(trial)))
        return taken


def counts(trial: FrozenTrial) -> bool:
    """Whether it is one of those that were asked for."""
    return SAME_AS not in trial.user_attrs and SURPLUS not in trial.user_attrs


def is_taken(trial: FrozenTrial) -> bool:
    """Whether it counts, and has ended or is being run, here or elsewhere."""
    return counts(trial) and trial.state != TrialState.WAITING


def _age_s(trial: FrozenTrial) -> float:
    began = trial.datetime_start
    return (datetime.now() - began).total_seconds() if began else 0.0


def enqueue(study: optuna.Study, points: Sequence[Mapping[str, Any]]) -> int:
    """Put points into the queue that no trial has yet; how many."""
    known = [
        identity(trial.system_attrs.get("fixed_params") or trial.params)
        for trial in study.get_trials(deepcopy=False)
    ]
    count = 0
    for point in points:
        if identity(point) not in known:
            known.append(identity(point))
            study.enqueue_trial(dict(point))
            count += 1
    return count


def restored(study: optuna.Study, space: Space, trials: Sequence[Mapping[str, Any]]) -> int:
    """Put trials that a sweep's folder tells of into a new study; how many.

    Args:
        trials: as `_results.read` gives them.
    """
    distributions = {param.name: param.distribution for param in space.params}
    states = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED,
              "failed": TrialState.FAIL}  # fmt: skip
    count = 0
    for trial in trials:
        state = states.get(str(trial["state"]))
        params = dict(trial["params"])
        if not set(params) <= set(distributions) or not params:
            continue
        if state is None:  # it ran, or waited
            study.enqueue_trial(params)
            continue
        attrs = {key: trial[key] for key in (REASON, FOLDER, SAME_AS) if trial.get(key) is not None}
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                params=params,
                distributions={key: distributions[key] for key in params},
                values=trial["values"] if state == TrialState.COMPLETE else None,
                intermediate_values={int(k): v for k, v in (trial.get("steps") or {}).items()},
                user_attrs=attrs,
            )
        )
        count += 1
    return count
