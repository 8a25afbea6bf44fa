"""The search itself: a feed for the launcher. Trials out as slots become free, values in.

more    within the budgets: ask the study, a job for each replicate
ended   all jobs of a trial have ended: tell the study
close   what runs no more is given back
"""

import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from hydra.core.utils import JobReturn
from optuna.exceptions import TrialPruned
from optuna.trial import FrozenTrial, TrialState

from hydra_plugins.study_sweeper._budget import Budget
from hydra_plugins.study_sweeper._outcome import folder_of, in_words, is_pruning, outcome
from hydra_plugins.study_sweeper._presence import Presence
from hydra_plugins.study_sweeper._report import COMPLETED, PRUNED, trial_of
from hydra_plugins.study_sweeper._space import Point, Space
from hydra_plugins.study_sweeper._storage import awaited
from hydra_plugins.study_sweeper._text import written
from hydra_plugins.study_sweeper._trials import FOLDER, REASON, VALUES, Trials, counts, is_taken

log = logging.getLogger(__name__)


@dataclass
class _Open:
    """A trial that runs here.

    Attributes:
        left: replicates that have not been handed out.
        values: of each job that has ended, what it returned, or what ended it.
    """

    number: int
    point: Point
    left: list[int]
    values: dict[int, Any] = field(default_factory=dict)
    folder: str | None = None


class Search:
    """See `hydra_plugins.gpu_launcher.feed.Feed`, which this is.

    Args:
        together: trials for each free slot.
        replicates: jobs of a trial.
        replicate_key: what they differ in.
        in_turn: whether a trial's jobs run one after the other, each judged before the next.
        presence: of this driver.
        sweep_dir: absolute.
        names: of the objectives, where they were given.

    Attributes:
        told: called after each trial that has ended.
        stopped: why no more trials are asked for; None: they still are.
        problem: why the search is to end as failed.
    """

    def __init__(
        self,
        study: optuna.Study,
        trials: Trials,
        space: Space,
        budget: Budget,
        *,
        together: int = 1,
        replicates: int = 1,
        replicate_key: str = "seed",
        in_turn: bool = False,
        presence: Presence,
        sweep_dir: Path,
        names: Sequence[str] = (),
    ) -> None:
        self._study, self._trials, self._space, self._budget = study, trials, space, budget
        self._replicates, self._key = replicates, replicate_key
        self.together = together
        self._in_turn, self._presence, self._sweep_dir = in_turn, presence, sweep_dir
        self._objectives = names
        self.told: Callable[[], object] = lambda: None
        self._open: dict[int, _Open] = {}
        self._began = time.monotonic()
        # Whether all trials are taken, and some by other drivers, which may die.
        self._may_go_on = False
        self.stopped: str | None = None
        self.problem: str | None = None
        # Numbers of trials that ended in earlier starts.
        self._before = {trial.number for trial in _ended(trials.all)}

    @property
    def num_jobs(self) -> int | None:
        """How many jobs this start will run, as far as anybody knows."""
        if self._budget.n_trials is None:
            return None
        return max(0, self._budget.n_trials - len(self._before)) * self._replicates

    # --- out ---------------------------------------------------------------------------------

    def more(self, num_free: int) -> list[tuple[int, list[str], str]]:
        """Jobs for so many free slots."""
        jobs = self._continued(num_free) if self._in_turn else []
        wanted = max(1, math.ceil(num_free * self.together / self._replicates))
        if self._in_turn:
            wanted = (num_free - len(jobs)) * self.together
        if self._budget.n_jobs is not None:
            wanted = min(wanted, self._budget.n_jobs - len(self._open))
        for _ in range(wanted):
            begun = awaited(self._begun)
            if begun is None:
                break
            jobs += self._jobs(begun, 1 if self._in_turn else self._replicates)
        return jobs

    def _begun(self) -> _Open | None:
        """A trial that begins; None: there is none now."""
        while True:
            if self.stopped is None or self._may_go_on:
                self.stopped = self._over()
            if self.stopped is not None:
                return None
            try:
                asked = self._trials.ask()
            except TrialPruned:  # by the application's part of the space
                self.told()
                continue
            if asked is None:
                is_full = self._is_full(self._trials.all)
                self.stopped = self._full() if is_full else self._exhausted()
                return None
            trial, point = asked
            begun = _Open(trial.number, point, list(range(self._replicates)))
            self._open[trial.number] = begun
            return begun

    def _jobs(self, begun: _Open, count: int) -> list[tuple[int, list[str], str]]:
        point = self._space.overrides(begun.point)
        label = " ".join(f"{key}={_in_short(value)}" for key, value in begun.point.items())
        jobs = []
        for replicate in begun.left[:count]:
            own = [f"{self._key}={replicate}"] if self._replicates > 1 else []
            num = begun.number * self._replicates + replicate
            overrides = [*self._space.fixed, *point, *own]
            jobs.append((num, overrides, " ".join([label, *own])))
        del begun.left[:count]
        return jobs

    def _continued(self, num_free: int) -> list[tuple[int, list[str], str]]:
        """The next replicates of trials that have had some, and are worth the next."""
        ready = [
            one
            for one in self._open.values()
            if one.left and len(one.values) + len(one.left) == self._replicates
        ]
        jobs = []
        for one in ready[:num_free]:
            jobs += self._jobs(one, 1)
        return jobs

    # --- over --------------------------------------------------------------------------------

    def _over(self) -> str | None:
        """Why no further trial begins; None: one may."""
        budget, spent = self._budget, time.monotonic() - self._began
        trials = self._trials.all
        # Those that run elsewhere count, as long as there is somebody who runs them.
        self._may_go_on = False
        is_full = self._is_full(trials)
        if (is_full or self._trials.is_exhausted(trials)) and not self._reclaimed():
            return self._full() if is_full else self._exhausted()
        if budget.timeout_s is not None and spent >= budget.timeout_s:
            return f"its {budget.timeout_s:g} s are over"
        ended = _ended(trials)
        self.problem = budget.too_many_failures(ended, self._before)
        return self.problem or budget.out_of_patience(ended, self._study.directions)

    def _is_full(self, trials: Sequence[FrozenTrial]) -> bool:
        total = self._budget.n_trials
        return total is not None and sum(map(is_taken, trials)) >= total

    def _reclaimed(self) -> bool:
        """Whether trials wait again that others have left behind."""
        trials = self._trials
        return bool(trials.reclaim() if self._open else trials.reclaim_in_time())

    def _full(self) -> str:
        return f"its {self._budget.n_trials} trials are done{self._elsewhere()}"

    def _exhausted(self) -> str:
        count = self._trials.num_points
        if count is None:
            return "the sampler proposes only points that have been evaluated"
        return f"all {count} points of the space have been evaluated{self._elsewhere()}"

    def _elsewhere(self) -> str:
        """Which trials run elsewhere: the search may go on with these."""
        others = [
            str(trial.number)
            for trial in self._trials.all
            if trial.state == TrialState.RUNNING and trial.number not in self._open
        ]
        self._may_go_on = bool(others)
        return f", or run elsewhere: {', '.join(others)}" if others else ""

    def too_many_failures(self) -> str | None:
        """How many trials have failed, if that is more than is allowed."""
        return self._budget.too_many_failures(_ended(self._trials.all), self._before)

    # --- in ----------------------------------------------------------------------------------

    def ended(self, num: int, result: JobReturn) -> None:
        """Take note of a job; of its trial, once it is the last one."""
        number, replicate = divmod(num, self._replicates)
        one = self._open[number]
        one.values[replicate] = outcome(result, len(self._study.directions), self._objectives)
        one.folder = one.folder or folder_of(result, self._sweep_dir)
        if self._in_turn and one.left and not awaited(lambda: self._is_to_stop(one, replicate)):
            return
        if len(one.values) + len(one.left) == self._replicates and (not one.left or self._in_turn):
            awaited(lambda: self._settle(one))
            del self._open[number]
            self._trials.forget(number)
            self.told()

    def _is_to_stop(self, one: _Open, replicate: int) -> bool:
        """Whether the next replicates of a trial are not worth it."""
        value = one.values[replicate]
        if isinstance(value, BaseException):
            return True
        trial = trial_of(self._study, one.number)
        known = self._trials.own(trial)
        if known is None:
            return True
        if replicate not in known.intermediate_values:  # of a driver that has died
            trial.report(value[0], replicate)
        if not trial.should_prune():
            return False
        reason = f"worse than the best trial over the same {len(one.values)} jobs"
        trial.set_user_attr(PRUNED, {"step": replicate, "reason": reason})
        return True

    def _settle(self, one: _Open) -> None:
        """Tell the study how a trial ended."""
        trial = trial_of(self._study, one.number)
        known = self._trials.own(trial)
        if known is None:
            log.warning("trial %d is another driver's by now: its result there counts", one.number)
            return
        if one.folder is not None:
            trial.set_user_attr(FOLDER, one.folder)
        errors = [value for value in one.values.values() if isinstance(value, BaseException)]
        pruned = known.user_attrs.get(PRUNED)
        jobs = range(self._replicates)
        if all(COMPLETED.format(job=job) in known.user_attrs for job in jobs):
            pruned = None  # nothing was left to be saved
        if pruned is None and errors and is_pruning(errors[0]):
            pruned = {"step": None, "reason": str(errors[0]) or "the job says so"}
            errors = []
        if errors:
            reason = in_words(errors[0])
            trial.set_user_attr(REASON, reason)
            self._study.tell(one.number, state=TrialState.FAIL)
            log.warning("trial %d failed: %s", one.number, reason)
            return
        if pruned is not None:
            self._trials.prune(trial, **pruned)
            return
        every = [one.values[replicate] for replicate in sorted(one.values)]
        means = [statistics.fmean(values) for values in zip(*every, strict=True)]
        if self._replicates > 1:
            trial.set_user_attr(VALUES, every)
        self._study.tell(one.number, means)
        log.info("trial %d: %s%s", one.number, shown(means), self._best_so_far())

    def _best_so_far(self) -> str:
        if len(self._study.directions) > 1:
            return f" ({len(self._study.best_trials)} on the Pareto front)"
        best = self._study.best_trial
        return f" (best {shown(best.values)}, trial {best.number})"

    def has_company(self) -> bool:
        """Whether others work on the study."""
        try:
            return self._presence.has_company()
        except Exception:  # nobody knows
            return True

    def close(self) -> None:
        """Trials that have not ended wait for whoever goes on with the study.

        Where the storage has failed that need not be said: they will be found to be left behind.
        """
        numbers, has_failed = list(self._open), False
        self._open.clear()
        try:
            for number in numbers:
                self._trials.give_back(number)
        except Exception as error:
            has_failed = True
            log.debug("trials %s are not given back: %s", numbers, error)
        finally:
            self._presence.close(is_silent=has_failed)

    def failures(self, most: int = 20) -> list[str]:
        """A line for each trial that failed."""
        failed = [t for t in self._trials.all if t.state == TrialState.FAIL and counts(t)]
        lines = []
        for trial in failed[:most]:
            point = " ".join(f"{key}={written(value)}" for key, value in trial.params.items())
            lines.append(f"  trial {trial.number} ({point}): {trial.user_attrs.get(REASON, '')}")
        return lines + ([f"  and {len(failed) - most} more"] if failed[most:] else [])


def _ended(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those that count and run no more."""
    return [trial for trial in trials if counts(trial) and trial.state.is_finished()]


def _in_short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else written(value)


def shown(values: Sequence[float] | None) -> str:
    return ", ".join(f"{value:.5g}" for value in values or ())
