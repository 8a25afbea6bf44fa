"""The trials of a study: counted, asked for, given back.

A trial counts for `n_trials` unless it is a point that had been evaluated before, or one too many
of several drivers. A trial whose driver has died waits again, as itself: with its number and its
point, so nothing is lost and nothing doubled.
"""

import contextlib
import logging
import random
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import optuna
from optuna.exceptions import TrialPruned
from optuna.trial import FrozenTrial, Trial, TrialState

from hydra_plugins.study_sweeper._claims import set_back, take
from hydra_plugins.study_sweeper._presence import Presence
from hydra_plugins.study_sweeper._report import PRUNED, trial_of
from hydra_plugins.study_sweeper._space import Identity, Point, Space, identity

log = logging.getLogger(__name__)

# Attributes of a trial.
DRIVER = "driver"  # who runs it
DEATHS = "deaths"  # how many drivers have died while they ran it
SAME_AS = "same_as"  # the number of an earlier trial with the same point
SURPLUS = "surplus"  # one more than was asked for
ONE_TOO_MANY = "one more than was asked for, of several drivers"  # its reason
REASON = "reason"  # why it failed
FOLDER = "folder"  # where its first job ran, from the sweep's folder
VALUES = "values"  # of its jobs, where there are several

# A trial that takes the machine with it is given up in the end, lest a driver that is started
# again by itself never comes to an end. One that merely was there is not: of 30 drivers that were
# killed at random, 20 died while one and the same trial ran.
MAX_DEATHS = 100
# A trial that nobody has put his name to is being asked for, or its driver died at that moment.
ASKING_S = 60.0
LOOK_S = 1.0

# In an infinite space: a sampler that proposes nothing new so often has nothing left to propose.
MAX_REPEATED = 100


class Trials:
    """The trials of a study, for one driver of it.

    Args:
        total: `n_trials`; None: no limit.
        grid: points that are asked for in their order, before a sampler is. In the queue of the
            study a thousand of them would be read anew with each look at it.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        presence: Presence,
        total: int | None,
        seed: int | None,
        custom: Any = None,
        grid: Sequence[Point] = (),
    ) -> None:
        self._study, self._space, self._presence = study, space, presence
        self._total, self._seed, self._custom = total, seed, custom
        points = None if custom is not None else space.points()
        # Every point of a finite space, by its identity.
        self._every = None if points is None else {identity(point): point for point in points}
        self._grid = {identity(point): point for point in grid}
        self._ended: dict[int, Identity] = {}  # their points, by number: these do not change
        # Numbers of trials that were asked for here and have not ended. One that is none of them,
        # though it has this driver's name, was asked for when the storage failed.
        self._out: set[int] = set()

    @property
    def all(self) -> list[FrozenTrial]:
        """As they are now: this asks the storage."""
        return self._study.get_trials(deepcopy=False)

    def is_exhausted(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether every point of a finite space has been taken, and none waits."""
        if self._every is None or any(trial.state == TrialState.WAITING for trial in trials):
            return False
        return self._every.keys() <= self._taken(trials)

    @property
    def num_points(self) -> int | None:
        return None if self._every is None else len(self._every)

    def ask(self) -> tuple[Trial, Point] | None:
        """A trial and its point, which no other trial has; None: there is none.

        It is one of those that wait, if any do.

        Raises:
            TrialPruned: by the application's part of the space, which wants nothing of its point.
        """
        while self._every is None or not self.is_exhausted(self.all):
            trial = self._next()
            try:
                others = self._others(trial)
                if self._is_surplus(trial, others):
                    self._close(trial, SURPLUS, True)
                    return None
                point = self._suggested(trial)
                if self._every is not None:  # one who asked at the same time may have this point
                    others = self._others(trial)
                same = self._same(trial, point, others)
                if same is None:
                    self._out.add(trial.number)
                    return trial, point
                self._take_over(trial, same)
            except TrialPruned as error:
                self.prune(trial, str(error) or "custom_search_space says so")
                raise
            except BaseException:
                with contextlib.suppress(Exception):  # the storage may be what has failed
                    self.give_back(trial.number)
                raise
            if self._every is None and self._num_repeated() > MAX_REPEATED:
                return None
            left = [] if self._grid else self._left(others)
            if left:
                chosen = random.Random(f"{self._seed} {trial.number}").choice(left)
                self._study.enqueue_trial(chosen)
        return None

    def own(self, trial: Trial) -> FrozenTrial | None:
        """A trial that was asked for here, as it is now; None: it is another driver's. Of one that
        was silent for long, others may have thought that it is dead."""
        storage, name = self._study._storage, self._presence.name
        known = storage.get_trial(trial._trial_id)
        is_back = known.state == TrialState.WAITING
        if is_back and take(storage, trial._trial_id, {DRIVER: name}):
            known = storage.get_trial(trial._trial_id)
        is_own = known.state == TrialState.RUNNING and known.user_attrs.get(DRIVER) == name
        return known if is_own else None

    def prune(self, trial: Trial, reason: str, step: int | None = None) -> None:
        """It ends as pruned: by what it reported at a step, or by the application itself."""
        trial.set_user_attr(PRUNED, {"step": step, "reason": reason})
        self._study.tell(trial.number, state=TrialState.PRUNED)
        at = f" at {step}" if step is not None else ""
        log.info("trial %d pruned%s: %s", trial.number, at, reason)

    def forget(self, number: int) -> None:
        """A trial has ended, or is another driver's."""
        self._out.discard(number)

    def give_back(self, number: int) -> None:
        """A trial that will not be run to its end here waits for whoever goes on."""
        self.forget(number)
        trial_id = trial_of(self._study, number)._trial_id
        expected = {DRIVER: self._presence.name}
        set_back(self._study._storage, trial_id, TrialState.WAITING, expected, {})

    def reclaim(self) -> list[int]:
        """Let trials wait again whose drivers have died; their numbers."""
        found = []
        for trial in self.all:
            if trial.state != TrialState.RUNNING or not self._is_orphan(trial):
                continue
            expected = {key: trial.user_attrs.get(key) for key in (DRIVER, DEATHS)}
            deaths = int(expected[DEATHS] or 0) + 1
            state, attrs = TrialState.WAITING, dict[str, Any]({DEATHS: deaths})
            if deaths >= MAX_DEATHS:
                reason = f"the search died {deaths} times while it ran"
                log.warning("trial %d failed: %s", trial.number, reason)
                state, attrs = TrialState.FAIL, {**attrs, REASON: reason}
            is_done = set_back(self._study._storage, trial._trial_id, state, expected, attrs)
            if is_done and state == TrialState.WAITING:
                found.append(trial.number)
        return found

    def reclaim_in_time(self) -> list[int]:
        """The same, once it is known of every trial that runs elsewhere whether anybody runs it:
        a driver on another machine is alive if it says another word, dead if it is silent."""
        heard: dict[str, Any] = {}
        is_said = False
        while not (found := self.reclaim()):
            running = [trial for trial in self.all if trial.state == TrialState.RUNNING]
            doubtful = [str(trial.number) for trial in running if self._is_doubtful(trial, heard)]
            if not doubtful:
                return []
            if not is_said:
                is_said = True
                log.info(
                    "trials %s run elsewhere, or did: waiting for a sign of life of their driver",
                    ", ".join(doubtful),
                )
            time.sleep(LOOK_S)
        return found

    # --- inside ------------------------------------------------------------------------------

    def _next(self) -> Trial:
        """A trial of this driver, without a point unless it had waited, or they have an order.

        As `Study.ask`, but that nobody else can be given the same one, nor find it without a name.
        """
        study, own = self._study, {DRIVER: self._presence.name}
        study._thread_local.cached_all_trials = None
        for one in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            if take(study._storage, one._trial_id, own):
                return Trial(study, one._trial_id)
        point = self._next_of_grid()
        given = {} if point is None else {"fixed_params": point}
        begun = optuna.trial.create_trial(
            state=TrialState.RUNNING, user_attrs=own, system_attrs=given
        )
        return Trial(study, study._storage.create_new_trial(study._study_id, begun))

    def _next_of_grid(self) -> Point | None:
        if not self._grid:
            return None
        known = self._space.by_name  # a function of the application may have suggested more
        taken = {tuple(one for one in key if one[0] in known) for key in self._taken(self.all)}
        return next((point for key, point in self._grid.items() if key not in taken), None)

    def _others(self, trial: Trial) -> list[FrozenTrial]:
        return [one for one in self.all if one.number != trial.number and counts(one)]

    def _suggested(self, trial: Trial) -> Point:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            point = self._space.suggested(trial)
        if self._custom is not None:
            point |= self._custom(trial, point)
        return point

    def _is_doubtful(self, trial: FrozenTrial, heard: dict[str, Any]) -> bool:
        """Whether it cannot be told yet if somebody runs it.

        Args:
            heard: the first word of each driver, which is added.
        """
        driver = trial.user_attrs.get(DRIVER)
        if driver is None:
            return self._presence.has_company()
        if self._presence.is_certain(driver):
            return False
        word = self._presence.word(driver)
        return bool(heard.setdefault(driver, word) == word)

    def _is_orphan(self, trial: FrozenTrial) -> bool:
        driver = trial.user_attrs.get(DRIVER)
        if driver == self._presence.name:
            return trial.number not in self._out
        if driver is not None:
            return not self._presence.is_alive(str(driver))
        if not self._presence.has_company():
            return True
        return _age_s(trial) > ASKING_S

    def _is_surplus(self, trial: Trial, others: Sequence[FrozenTrial]) -> bool:
        """Of several drivers that ask at once, the later ones may get one too many."""
        # One that waits and had begun is about to go on, whatever waits besides may never begin.
        before = [one for one in others if one.number < trial.number]
        count = sum(1 for one in before if is_taken(one) or DRIVER in one.user_attrs)
        return self._total is not None and count >= self._total

    def _same(
        self, trial: Trial, point: Point, others: Sequence[FrozenTrial]
    ) -> FrozenTrial | None:
        """A trial that has this point already, or is about to."""
        own = identity(point)
        for other in others:
            is_first = other.state.is_finished() or other.number < trial.number
            if is_first and own and self._identity(other) == own:
                return other
        return None

    def _take_over(self, trial: Trial, same: FrozenTrial) -> None:
        """The value of a point that was evaluated before."""
        log.info("trial %d is the same point as trial %d: not run again", trial.number, same.number)
        if same.state == TrialState.COMPLETE:
            trial.set_user_attr(SAME_AS, same.number)
            self._study.tell(trial.number, same.values)
        else:
            self._close(trial, SAME_AS, same.number)

    def _close(self, trial: Trial, attribute: str, value: Any) -> None:
        if attribute == SURPLUS:
            trial.set_user_attr(REASON, ONE_TOO_MANY)
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

    def _taken(self, trials: Sequence[FrozenTrial]) -> set[Identity]:
        return {self._identity(trial) for trial in filter(counts, trials)}

    def _identity(self, trial: FrozenTrial) -> Identity:
        """Of its point. Of all trials it is asked for with each new one."""
        found = self._ended.get(trial.number)
        if found is None:
            found = identity(self._space.of_trial(params_of(trial)))
            if trial.state.is_finished():
                self._ended[trial.number] = found
        return found


def counts(trial: FrozenTrial) -> bool:
    """Whether it is one of those that were asked for."""
    return SAME_AS not in trial.user_attrs and SURPLUS not in trial.user_attrs


def params_of(trial: FrozenTrial) -> Mapping[str, Any]:
    """What it has, or will have: one that waits may have been put into the queue with a point."""
    return trial.params or trial.system_attrs.get("fixed_params") or {}


def is_taken(trial: FrozenTrial) -> bool:
    """Whether it counts, and has ended or is being run, here or elsewhere."""
    return counts(trial) and trial.state != TrialState.WAITING


def _age_s(trial: FrozenTrial) -> float:
    began = trial.datetime_start
    return (datetime.now(began.tzinfo) - began).total_seconds() if began else 0.0
