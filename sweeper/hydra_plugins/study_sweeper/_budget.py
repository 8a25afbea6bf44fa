"""When a search is over."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

# So many trials have failed in this start, and none has ever completed: something is wrong with all
# of them. Those of earlier starts may have failed of what has been mended since.
HOPELESS = 10


@dataclass(frozen=True)
class Budget:
    """When a search is over; None: that is no limit. See `config.SearchConf`."""

    n_trials: int | None = None
    timeout_s: float | None = None
    patience: int | None = None
    n_jobs: int | None = None
    max_failures: int | None = None
    max_failure_rate: float | None = None

    def too_many_failures(self, ended: Sequence[FrozenTrial], before: Set[int]) -> str | None:
        """How many trials have failed, if that is more than is allowed.

        Args:
            ended: the trials that count and run no more.
            before: numbers of those that ended in earlier starts.
        """
        num_failed = sum(1 for trial in ended if trial.state == TrialState.FAIL)
        most, share = self.max_failures, self.max_failure_rate
        if most is not None and num_failed > most:
            return f"{num_failed} trials failed, more than hydra.sweeper.max_failures={most}"
        if share is not None and ended and num_failed / len(ended) > share:
            return (
                f"{num_failed} of {len(ended)} trials failed, more than "
                f"hydra.sweeper.max_failure_rate={share:g}"
            )
        num_new = sum(1 for trial in ended if trial.number not in before)
        if len(ended) == num_failed and num_new >= HOPELESS:
            return f"all of the first {num_failed} trials failed"
        return None

    def out_of_patience(
        self, ended: Sequence[FrozenTrial], directions: Sequence[StudyDirection]
    ) -> str | None:
        """How many trials in turn were no better, if that is more than is waited for."""
        if self.patience is None or _num_without_better(ended, directions) < self.patience:
            return None
        return f"{self.patience} trials in turn without a better one"


def _num_without_better(ended: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> int:
    """Trials that have ended since the best one did."""
    best: list[FrozenTrial] = []
    since = 0
    for trial in sorted(ended, key=lambda t: (t.datetime_complete or datetime.min, t.number)):
        is_better = trial.state == TrialState.COMPLETE and not any(
            _is_as_good(one, trial, directions) for one in best
        )
        since = 0 if is_better else since + 1
        if is_better:
            best.append(trial)
    return since


def _is_as_good(one: FrozenTrial, other: FrozenTrial, directions: Sequence[StudyDirection]) -> bool:
    """Whether `one` is at least as good in every objective."""
    signs = [1 if direction == StudyDirection.MAXIMIZE else -1 for direction in directions]
    pairs = zip(signs, one.values or (), other.values or (), strict=True)
    return all(sign * a >= sign * b for sign, a, b in pairs)
