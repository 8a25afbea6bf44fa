"""A study that was lost is made again from what the sweep's folder tells of it."""

from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.trial import TrialState

from hydra_plugins.study_sweeper import _restored, _trials
from hydra_plugins.study_sweeper._space import Space, space

SPACE = space(["x=interval(0,1)", "model=a,b"])


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study()


def told(number: int, state: str, x: float | None = 0.5, **more: Any) -> Mapping[str, Any]:
    """A trial as search.json has it."""
    params = {} if x is None else {"x": x, "model": "a"}
    values = [x] if state == "completed" else None
    return {"number": number, "state": state, "params": params, "values": values, **more}


def restored(study: optuna.Study, *trials: Mapping[str, Any], of: Space = SPACE) -> int:
    return _restored.restored(study, of, trials)


def test_trials_have_their_states_values_steps_and_reasons_again(study: optuna.Study) -> None:
    count = restored(
        study,
        told(0, "completed", 0.25, steps={"1": 0.5, "2": 0.25}, folder="0"),
        told(1, "pruned", 0.75, reason="worse than the median"),
        told(2, "failed", 0.1, reason="ValueError: no"),
        told(3, "completed", 0.25, same_as=0),
    )
    assert count == 4
    first, second, third, fourth = study.trials
    assert first.values == [0.25] and first.intermediate_values == {1: 0.5, 2: 0.25}
    assert first.params == {"x": 0.25, "model": "a"} and first.user_attrs["folder"] == "0"
    assert second.state == TrialState.PRUNED and third.state == TrialState.FAIL
    assert third.user_attrs["reason"] == "ValueError: no"
    assert [_trials.counts(trial) for trial in study.trials] == [True, True, True, False]
    assert fourth.user_attrs["same_as"] == 0


def test_trials_that_had_not_ended_wait_under_their_own_numbers(study: optuna.Study) -> None:
    trials = [told(0, "completed"), told(1, "running", 0.3), told(2, "completed", 0.4),
              told(3, "waiting", 0.6)]  # fmt: skip
    assert restored(study, *trials) == 2
    assert [t.state.name for t in study.trials] == ["COMPLETE", "WAITING", "COMPLETE", "WAITING"]
    assert study.ask().suggest_float("x", 0, 1) == 0.3


@pytest.mark.parametrize("state", ["completed", "pruned", "failed", "running", "waiting"])
def test_what_a_function_has_added_to_a_point_is_there_again(
    study: optuna.Study, state: str
) -> None:
    lr = FloatDistribution(1e-5, 0.1, log=True)
    point = {"x": 0.5, "+lr": 0.01}
    trial = told(0, state) | {"params": point, "distributions": {"+lr": distribution_to_json(lr)}}
    restored(study, trial)
    (found,) = study.trials
    assert _trials.counts(found) and found.params == point
    assert found.distributions == {"x": FloatDistribution(0, 1), "+lr": lr}
    assert found.state.is_finished() == (state not in ("running", "waiting"))


@pytest.mark.parametrize(
    "lost",
    [
        told(1, "running", None),  # it had no point yet
        told(1, "failed", None, reason=_trials.ONE_TOO_MANY),
        told(1, "failed", 0.2, reason=_trials.ONE_TOO_MANY),
        told(1, "completed", 7.0),  # not of this space any more
        {"number": 1, "state": "completed", "params": {"y": 1}, "values": [1.0]},
    ],
)
def test_numbers_stay_though_a_trial_between_them_cannot_be_had_again(
    study: optuna.Study, lost: Mapping[str, Any]
) -> None:
    restored(study, told(0, "completed"), lost, told(2, "completed", 0.75))
    assert [t.number for t in study.trials if _trials.counts(t)] == [0, 2]
    assert study.trials[2].params["x"] == 0.75
    assert all(t.state.is_finished() for t in study.trials)


def test_one_that_was_killed_over_it_goes_on(study: optuna.Study) -> None:
    trials = [told(n, "completed", n / 10) for n in range(5)]
    add, count = study.add_trial, 0

    def killed(trial: Any) -> None:
        nonlocal count
        count += 1
        if count > 2:
            raise KeyboardInterrupt
        add(trial)

    study.add_trial = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        restored(study, *trials)
    assert len(study.trials) == 2 and _restored.is_half_restored(study)
    study.add_trial = add  # type: ignore[method-assign]
    restored(study, *trials)
    assert [t.params["x"] for t in study.trials] == [0, 0.1, 0.2, 0.3, 0.4]
    assert not _restored.is_half_restored(study)
