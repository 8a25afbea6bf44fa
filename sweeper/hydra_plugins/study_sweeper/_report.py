"""A trial, seen from its job: values in, whether to stop out.

Where a point is judged by several jobs (`replicates`), the trial's value at a step is the mean of
theirs: whoever reports a step last, asks; the others hear of it with their next step.
"""

import logging
import operator
import statistics
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, Trial, TrialState

from hydra_plugins.study_sweeper import _samplers, _storage
from hydra_plugins.study_sweeper._pruners import PercentilePruner

log = logging.getLogger(__name__)

# Attributes of a trial.
PRUNED = "pruned"  # {"step":, "reason":}
COMPLETED = "job {job} completed"  # whatever the pruner says
# How long a job leaves a study alone that has failed: to find out may take it as long as a lock.
LOST_S = 60.0
_lost_until: "weakref.WeakKeyDictionary[optuna.Study, float]" = weakref.WeakKeyDictionary()
_OF_STEP = "job {job} at {step}"


def study_name(hydra: Any) -> str:
    """`hydra.sweeper.study_name`, or what stands for it: known to the sweeper and to every job."""
    if hydra.sweeper.study_name is not None:
        return str(hydra.sweeper.study_name)
    return f"{hydra.job.name}/{Path(str(hydra.sweep.dir)).name}"


def loaded(storage: Any, name: str, pruner: DictConfig) -> optuna.Study | None:
    """The study of a job that runs; None if nothing can be pruned in it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = _storage.opened(storage, is_new_allowed=False)
    study = optuna.load_study(study_name=name, storage=found, pruner=_samplers.pruner(pruner))
    return study if len(study.directions) == 1 else None


def trial_of(study: optuna.Study, number: int) -> Trial:
    """The trial of a number, to be reported to.

    Optuna has no public way to get at a trial that another process has asked for.
    """
    trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    return Trial(study, trial_id)


class Handle:
    """The trial of one job.

    Args:
        num: the job's number.
        replicates: how many jobs a trial has.
    """

    def __init__(self, study: optuna.Study, num: int, replicates: int) -> None:
        self._study = study
        self._number, self._job = divmod(num, replicates)
        self._replicates = replicates

    def report(self, step: int, value: float) -> str | None:
        """Say how good it is at a step; why it should stop, or None.

        Raises:
            TypeError, ValueError: what was given is no number, or no step.
        """
        value, step = float(value), operator.index(step)
        if step < 0:
            raise ValueError(f"report: step={step}, it begins with 0")
        if value != value or time.monotonic() < _lost_until.get(self._study, 0.0):
            return None
        try:
            return self._reported(value, step)
        except Exception as error:  # it costs time, never the job
            _lost_until[self._study] = time.monotonic() + LOST_S
            log.warning("The search's study has failed, nothing is pruned for now: %s", error)
            return None

    def has_completed(self) -> None:
        """The job came to its end, though it was to stop: there was nothing left to be saved."""
        try:
            trial = trial_of(self._study, self._number)
            trial.set_user_attr(COMPLETED.format(job=self._job), True)
        except Exception as error:
            log.warning("The search's study has failed: %s", error)

    def _reported(self, value: float, step: int) -> str | None:
        trial = trial_of(self._study, self._number)
        known = self._study._storage.get_trial(trial._trial_id)
        if known.state != TrialState.RUNNING:
            return None
        if known.user_attrs.get(PRUNED) is not None:
            return str(known.user_attrs[PRUNED]["reason"])
        if self._replicates > 1:
            mean = self._mean(trial, known, value, step)
            if mean is None:
                return None
            value = mean
        if step not in known.intermediate_values:
            trial.report(value, step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if not trial.should_prune():
                return None
        reason = self._reason(value, step)
        trial.set_user_attr(PRUNED, {"step": step, "reason": reason})
        return reason

    def _mean(self, trial: Trial, known: FrozenTrial, value: float, step: int) -> float | None:
        """Over all jobs of the trial; None: others have not come so far."""
        trial.set_user_attr(_OF_STEP.format(job=self._job, step=step), value)
        attrs = self._study._storage.get_trial(trial._trial_id).user_attrs
        keys = [_OF_STEP.format(job=job, step=step) for job in range(self._replicates)]
        if any(key not in attrs for key in keys):
            return None
        return statistics.fmean(float(attrs[key]) for key in keys)

    def _reason(self, value: float, step: int) -> str:
        pruner = self._study.pruner
        if isinstance(pruner, PercentilePruner):
            trial = trial_of(self._study, self._number)
            return pruner.reason(self._study, self._study._storage.get_trial(trial._trial_id))
        name = type(self._study.pruner).__name__.removesuffix("Pruner")
        others = [
            trial.intermediate_values[step]
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if step in trial.intermediate_values
        ]
        if not others:
            return f"{value:.4g} there ({name} pruner)"
        # What Optuna's median pruner compares with; of the others, a hint.
        return (
            f"{value:.4g} there, where the median of {len(others)} completed trials is "
            f"{statistics.median(others):.4g} ({name} pruner)"
        )
