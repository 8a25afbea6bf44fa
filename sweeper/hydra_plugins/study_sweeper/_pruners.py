"""The median pruner, for trials that count by their best step.

A trial's value is the best that it has reported. So at each step bests are compared with bests, and
a trial that is still on its way to the best of all is let go on: one that gets better slowly looks
bad early, and may win. Learning curves flatten; what a trial would reach at the pace of its last
step is more than it will reach.

Prior art: the median stopping rule of Google Vizier (D. Golovin et al., KDD 2017), which Optuna's
`MedianPruner` follows; extrapolated learning curves (T. Domhan et al., IJCAI 2015).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

Values = Mapping[int, float]


class PercentilePruner(optuna.pruners.BasePruner):
    """Prunes a trial that is not among the best by a step, and not on its way to the best of all.

    Args:
        percentile: the best so many per cent of the completed trials, by their bests till the step,
            go on, 0 to 100.
        n_startup_trials: so many complete before one is pruned.
        n_warmup_steps: a report of an earlier step prunes nothing; nor does a trial's first.
        interval_steps: between two looks at a trial, from `n_warmup_steps` on.
        n_min_trials: completed trials that have reported till the step; with fewer nothing is
            pruned.
        look_ahead: False: a trial that is on its way is pruned, too.

    Raises:
        ValueError: an argument is out of its bounds.
    """

    def __init__(
        self,
        percentile: float,
        n_startup_trials: int = 5,
        n_warmup_steps: int = 0,
        interval_steps: int = 1,
        *,
        n_min_trials: int = 1,
        look_ahead: bool = True,
    ) -> None:
        if not 0 <= percentile <= 100:
            raise ValueError(f"percentile={percentile}: 0 to 100")
        for name, value, least in (
            ("n_startup_trials", n_startup_trials, 0),
            ("n_warmup_steps", n_warmup_steps, 0),
            ("interval_steps", interval_steps, 1),
            ("n_min_trials", n_min_trials, 1),
        ):
            if value < least:
                raise ValueError(f"{name}={value}: {least} or more")
        self._percentile, self._look_ahead = percentile, look_ahead
        self._where = f"the limit of the best {percentile:g} %"
        self._n_startup_trials, self._n_min_trials = n_startup_trials, n_min_trials
        self._n_warmup_steps, self._interval_steps = n_warmup_steps, interval_steps

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to end a trial with the step that it reported last."""
        step = trial.last_step
        if step is None or not self._is_time(step, trial.intermediate_values):
            return False
        completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(completed) < max(1, self._n_startup_trials):
            return False
        # From here on less is better.
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        others = [_signed(other.intermediate_values, sign) for other in completed]
        own = _signed(trial.intermediate_values, sign)
        if not own:
            return True  # nothing but NaN
        bests = [min(values) for other in others if (values := list(_until(other, step)))]
        # "Not greater" and "less" differ: of infinite values there may be no percentile.
        if len(bests) < self._n_min_trials or not min(own.values()) > self._cut(bests):
            return False
        return not (self._look_ahead and _may_win(own, step, [other for other in others if other]))

    def reason(self, study: optuna.Study, trial: FrozenTrial) -> str:
        """Why a trial is pruned, in words: with which step, its caller says."""
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        step = trial.last_step
        assert step is not None
        bests = [
            min(values)
            for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if (values := list(_until(_signed(other.intermediate_values, sign), step)))
        ]
        own = min(_signed(trial.intermediate_values, sign).values(), default=math.nan)
        return (
            f"at best {sign * own:.4g} till then, where {self._where} of {len(bests)} completed "
            f"trials is {sign * self._cut(bests):.4g} "
            f"({type(self).__name__.removesuffix('Pruner')} pruner)"
        )

    def _cut(self, bests: Sequence[float]) -> float:
        """What the share that goes on is at least as good as, less being better."""
        if not bests:
            return math.nan
        with np.errstate(invalid="ignore"):
            return float(np.percentile(bests, self._percentile))

    def _is_time(self, step: int, reported: Values) -> bool:
        """Whether this is the first report of the interval that the step is in."""
        since = step - self._n_warmup_steps
        if since < 0 or len(reported) < 2:
            return False
        began = self._n_warmup_steps + since // self._interval_steps * self._interval_steps
        return all(other < began for other in reported if other != step)


class MedianPruner(PercentilePruner):
    """Prunes a trial that is worse than the median; otherwise, and in its options, the same."""

    def __init__(self, **options: Any) -> None:
        super().__init__(50.0, **options)
        self._where = "the median"


def _signed(values: Values, sign: float) -> dict[int, float]:
    return {step: sign * value for step, value in values.items() if value == value}


def _until(values: Values, step: int) -> Iterable[float]:
    return (value for at, value in values.items() if at <= step)


def _may_win(own: Values, step: int, others: Iterable[Values]) -> bool:
    """Whether a trial that gains as much with each step as with its last would be the best."""
    goal = min(min(other.values()) for other in others)
    last = max(max(other) for other in others)
    before = max((at for at in own if at < step), default=None)
    if before is None:
        return True
    best = min(own.values())
    pace = (min(_until(own, before)) - best) / (step - before)
    return best - pace * max(0, last - step) <= goal
