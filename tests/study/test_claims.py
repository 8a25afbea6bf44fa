"""Who gets a trial: of several drivers that reach for the same one, exactly one."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from hydra_plugins.study_sweeper import _storage
from hydra_plugins.study_sweeper._claims import set_back, take

Open = Callable[[], optuna.Study]


@pytest.fixture(params=["sqlite", "journal"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens one study again and again, as drivers in processes of their own do."""
    address = f"{request.param}:///{tmp_path / 'study'}"
    storages: list[BaseStorage] = []

    def open_it() -> optuna.Study:
        storages.append(_storage.opened(address))
        return optuna.create_study(study_name="one", storage=storages[-1], load_if_exists=True)

    yield open_it
    for storage in storages:
        _storage.closed(storage)


def at_once(count: int, call: Callable[[int], Any]) -> list[Any]:
    """What each of several threads gets that begin at the same time."""
    found: list[Any] = [None] * count
    together = threading.Barrier(count)

    def one(place: int) -> None:
        together.wait()
        found[place] = call(place)

    threads = [threading.Thread(target=one, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_trial_that_waits_is_given_to_one_driver(opened: Open) -> None:
    studies = [opened() for _ in range(4)]
    for x in range(20):
        studies[0].enqueue_trial({"x": x})

    def taken(place: int) -> list[int]:
        trials = studies[place].get_trials(deepcopy=False)
        storage = studies[place]._storage
        return [t.number for t in trials if take(storage, t._trial_id, {"driver": place})]

    found = at_once(4, taken)
    assert Counter(number for numbers in found for number in numbers) == dict.fromkeys(range(20), 1)
    for trial in opened().trials:
        assert trial.state == TrialState.RUNNING and trial.datetime_start is not None
        assert trial.number in found[trial.user_attrs["driver"]]


def test_a_trial_whose_driver_died_is_set_back_once(opened: Open) -> None:
    studies = [opened() for _ in range(4)]
    trial = studies[0].ask()
    trial.set_user_attr("driver", "dead")
    dead = {"driver": "dead", "deaths": None}

    def back(place: int) -> bool:
        attrs = {"deaths": 1}
        storage = studies[place]._storage
        return set_back(storage, trial._trial_id, TrialState.WAITING, dead, attrs)

    assert sorted(at_once(4, back)) == [False, False, False, True]
    assert opened().trials[0].state == TrialState.WAITING
    assert opened().trials[0].user_attrs == {"driver": "dead", "deaths": 1}


def test_a_trial_that_somebody_has_set_back_and_begun_is_left_alone(opened: Open) -> None:
    study, late = opened(), opened()
    trial = study.ask()
    trial.set_user_attr("driver", "dead")
    seen = {"driver": "dead", "deaths": None}  # by two drivers, of which one is slow
    assert set_back(study._storage, trial._trial_id, TrialState.WAITING, seen, {"deaths": 1})
    assert take(study._storage, trial._trial_id, {"driver": "quick"})
    assert not set_back(late._storage, trial._trial_id, TrialState.WAITING, seen, {"deaths": 1})
    (now,) = late.trials
    assert now.state == TrialState.RUNNING and now.user_attrs["driver"] == "quick"


def test_a_trial_that_has_ended_is_neither_given_nor_set_back(opened: Open) -> None:
    study = opened()
    trial = study.ask()
    study.tell(trial, 1.0)
    assert not take(study._storage, trial._trial_id, {"driver": "late"})
    assert not set_back(study._storage, trial._trial_id, TrialState.WAITING, {}, {})
    (now,) = opened().trials
    assert now.state == TrialState.COMPLETE and now.value == 1.0 and not now.user_attrs


def test_a_trial_that_is_given_up_has_ended(opened: Open) -> None:
    study = opened()
    trial = study.ask()
    attrs = {"reason": "it was enough"}
    assert set_back(study._storage, trial._trial_id, TrialState.FAIL, {}, attrs)
    (now,) = opened().trials
    assert now.state == TrialState.FAIL and now.datetime_complete is not None
    assert now.user_attrs == attrs
