"""The median pruner: bests against bests, and who is on the way to the best goes on."""

import math
from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hydra_plugins.study_sweeper._pruners import MedianPruner, PercentilePruner

DIRECTIONS = ("minimize", "maximize")
# Three completed trials, less is better: at step 3 their bests are 1, 2 and 3.
OTHERS = ([1.5, 1.2, 1.0, 0.9], [2.5, 2.2, 2.0, 1.9], [3.5, 3.2, 3.0, 2.9])


def pruned(
    pruner: optuna.pruners.BasePruner,
    curve: Sequence[float],
    others: Sequence[Sequence[float]] = OTHERS,
    *,
    direction: str = "minimize",
    first: int = 1,
    every: int = 1,
) -> int | None:
    """The step with which a trial is ended; None if it comes to its end."""
    sign = 1 if direction == "minimize" else -1
    study = optuna.create_study(direction=direction, pruner=pruner)
    for other in others:
        trial = study.ask()
        for i, value in enumerate(other):
            trial.report(sign * value, first + i * every)
        study.tell(trial, sign * min([*other, 9.0], key=lambda value: (value != value, value)))
    trial = study.ask()
    for i, value in enumerate(curve):
        trial.report(sign * value, first + i * every)
        if trial.should_prune():
            return first + i * every
    return None


def median(**options: Any) -> MedianPruner:
    return MedianPruner(**{"n_startup_trials": 0, **options})


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_worse_half_is_pruned_and_the_better_is_not(direction: str) -> None:
    assert pruned(median(), [2.4, 2.3, 2.3, 2.3], direction=direction) == 2
    assert pruned(median(), [2.4, 2.1, 1.99, 1.89], direction=direction) is None
    assert pruned(median(), [2.5, 2.2, 2.0, 1.9], direction=direction) is None  # it is the median


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bests_are_compared_with_bests(direction: str) -> None:
    # The others have got worse since; so has the trial, whose best is still good.
    others = [[1.0, 5.0, 9.0], [1.1, 6.0, 9.0], [1.2, 7.0, 9.0]]
    assert pruned(median(), [1.05, 9.0, 9.0], others, direction=direction) is None
    assert pruned(median(), [2.0, 2.0, 2.0], others, direction=direction) == 2
    # Optuna's compares with what the others reported at that very step.
    optunas = optuna.pruners.MedianPruner(n_startup_trials=0, n_warmup_steps=2)
    assert pruned(optunas, [2.0, 2.0, 2.0], others, direction=direction) is None


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_who_would_be_the_best_at_its_pace_goes_on(direction: str) -> None:
    on_its_way = [4.0, 3.0, 2.5, 2.4]  # after step 2 at 1 a step: 1.0 at step 4; the best is 0.9
    assert pruned(median(), on_its_way, direction=direction) == 2
    faster = [4.2, 3.0, 2.5, 2.4]  # 0.6 at step 4; after step 3 at 0.5: 2.0
    assert pruned(median(), faster, direction=direction) == 3
    assert pruned(median(look_ahead=False), faster, direction=direction) == 2
    assert pruned(median(), [4.2, 3.0, 1.95, 1.9], direction=direction) is None


def test_steps_may_be_any_and_far_between() -> None:
    for first, every in ((0, 1), (1, 1), (10, 10), (0, 100)):
        where = {"first": first, "every": every}
        assert pruned(median(), [4.2, 3.0, 2.5, 2.4], **where) == first + 2 * every
        assert pruned(median(), [4.0, 3.0, 2.5, 2.4], **where) == first + every


def test_when_pruning_begins() -> None:
    bad = [9.0] * 6
    others = [[1.0] * 6] * 3
    assert pruned(median(), bad, others) == 2  # one report says nothing of a pace
    assert pruned(median(), bad, others, first=0) == 1
    assert pruned(median(n_warmup_steps=3), bad, others) == 3
    assert pruned(median(n_startup_trials=3), bad, others) == 2
    assert pruned(median(n_startup_trials=4), bad, others) is None
    assert pruned(median(), bad, []) is None
    assert pruned(median(n_min_trials=4), bad, others) is None
    # Those that reported nothing do not count.
    assert pruned(median(n_min_trials=3), bad, [*others, []]) == 2
    assert pruned(median(), bad, [[], []]) is None


@pytest.mark.parametrize(("interval", "looks"), [(1, [3, 4, 5, 6]), (2, [3, 5]), (3, [3, 6])])
def test_intervals_are_optunas(interval: int, looks: list[int]) -> None:
    options = {"n_startup_trials": 0, "n_warmup_steps": 3, "interval_steps": interval}
    for begins in range(1, 7):  # step from which the trial is the worst
        others = [[5.0] * (begins - 1) + [1.0] * (7 - begins)] * 3
        expected = next((look for look in looks if look >= begins), None)
        for pruner in (MedianPruner(**options), optuna.pruners.MedianPruner(**options)):
            assert pruned(pruner, [4.9] * 6, others) == expected


def test_a_percentile_is_the_share_that_goes_on() -> None:
    others = [[float(i)] * 4 for i in range(1, 11)]
    for percentile, best in ((0, 1.0), (10, 1.9), (50, 5.5), (100, 10.0)):
        for pruner in (
            PercentilePruner(percentile, n_startup_trials=0),
            optuna.pruners.PercentilePruner(percentile, n_startup_trials=0, n_warmup_steps=2),
        ):
            assert pruned(pruner, [best] * 4, others) is None
            assert pruned(pruner, [best + 0.01] * 4, others) == 2


def test_a_value_that_is_none_is_left_out() -> None:
    others = [*OTHERS, [math.nan, 2.0, math.nan, 1.5]]
    assert pruned(median(), [9.0, math.nan, 9.0, 9.0], others) == 2
    assert pruned(median(), [math.nan, 9.0, 9.0, 9.0], others) == 3  # no pace before
    assert pruned(median(), [math.nan] * 4, others) == 2


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_infinite_values_are_the_worst_and_no_more(direction: str) -> None:
    others = [[math.inf] * 4] * 4
    assert pruned(median(), [1.5, 1.4, 1.39, 1.3], others, direction=direction) is None
    late = [[math.inf] * 3 + [0.1]] * 4  # no percentile till there; at its pace nobody gets to 0.1
    assert pruned(median(), [1.5, 1.4, 1.39], late, direction=direction) is None
    others = [*OTHERS, [math.inf] * 4]
    assert pruned(median(), [math.inf] * 4, others, direction=direction) == 2
    assert pruned(median(), [2.4, 2.1, 1.99, 1.89], others, direction=direction) is None


def test_it_says_why() -> None:
    study = optuna.create_study(pruner=median())
    for other in OTHERS:
        trial = study.ask()
        for step, value in enumerate(other, start=1):
            trial.report(value, step)
        study.tell(trial, min(other))
    trial = study.ask()
    for step, value in ((1, 2.75), (2, 8.0)):
        trial.report(value, step)
    said = median().reason(study, study.get_trials(states=(TrialState.RUNNING,))[0])
    assert said == (
        "at best 2.75 till then, where the median of 3 completed trials is 2.2 (Median pruner)"
    )
    (running,) = study.get_trials(states=(TrialState.RUNNING,))
    assert PercentilePruner(0, n_startup_trials=0).reason(study, running) == (
        "at best 2.75 till then, where the limit of the best 0 % of 3 completed trials is 1.2 "
        "(Percentile pruner)"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_startup_trials": -1},
        {"n_warmup_steps": -1},
        {"interval_steps": 0},
        {"n_min_trials": 0},
        {"percentile": 101},
        {"percentile": -1},
    ],
)
def test_what_is_out_of_bounds_is_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}={wrong[name]}"):
        PercentilePruner(**{"percentile": 50.0, **wrong})
