"""Who is alive: known by a lock at once on the same machine, by its last word on another one."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hydra_plugins.study_sweeper import _presence, _storage, _trials
from hydra_plugins.study_sweeper._presence import Presence
from hydra_plugins.study_sweeper._search import Budget, Search
from hydra_plugins.study_sweeper._space import space

DRIVER = """
import sys, time
import optuna
from hydra_plugins.study_sweeper import _storage
from hydra_plugins.study_sweeper._presence import Presence
study = optuna.load_study(study_name="one", storage=_storage.opened(sys.argv[1]))
presence = Presence(study)
if "fork" in sys.argv:
    import os
    heard, said = os.pipe()
    if os.fork() == 0:
        os.write(said, b".")  # whoever is killed before this has not yet a child that lets go
        time.sleep(60)
    os.read(heard, 1)
print(presence.name, flush=True)
sys.stdin.readline()
presence.close()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's temporary folder of its own."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return path


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def study(address: str) -> Iterator[optuna.Study]:
    storage = _storage.opened(address)
    yield optuna.create_study(study_name="one", storage=storage)
    _storage.closed(storage)


@pytest.fixture
def own(study: optuna.Study) -> Iterator[Presence]:
    presence = Presence(study)
    yield presence
    if presence in _presence._alive:
        presence.close()


class Other:
    """A driver in a process of its own."""

    def __init__(self, address: str, *how: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, address, *how], text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **environment},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.name = self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def leave(self) -> None:
        self.process.communicate("\n", timeout=30)


@pytest.fixture
def others(address: str, study: optuna.Study) -> Iterator[Any]:
    """Starts drivers: `others()`."""
    found: list[Other] = []

    def start(*how: str, **environment: str) -> Other:
        found.append(Other(address, *how, **environment))
        return found[-1]

    yield start
    for other in found:
        subprocess.run(["kill", "-9", "--", f"-{other.process.pid}"], capture_output=True)
        other.process.communicate()


def word_of(study: optuna.Study, name: str, *, age_s: float, place: Any = "elsewhere") -> None:
    study.set_user_attr(f"driver:{name}", {"at": time.time() - age_s, "place": place})


def test_a_driver_that_is_killed_is_known_to_be_dead_at_once(own: Presence, others: Any) -> None:
    other = others()
    assert own.is_alive(other.name) and own.is_certain(other.name) and own.has_company()
    other.kill()
    assert not own.is_alive(other.name) and own.is_certain(other.name) and not own.has_company()


def test_a_driver_that_is_stopped_is_alive_however_long_it_is_silent(
    own: Presence, study: optuna.Study, others: Any
) -> None:
    other = others()
    word_of(study, other.name, age_s=10_000, place=_presence._place())
    assert own.is_alive(other.name)


def test_a_driver_that_leaves_takes_its_word_and_its_file_with_it(
    own: Presence, study: optuna.Study, others: Any, folder: Path
) -> None:
    other = others()
    assert (folder / f"hydra-study-{other.name}.lock").exists()
    other.leave()
    assert not (folder / f"hydra-study-{other.name}.lock").exists()
    assert study.user_attrs[f"driver:{other.name}"] is None
    assert not own.is_alive(other.name)
    own.close()
    assert list(folder.glob("hydra-study-*")) == []
    assert study.user_attrs[f"driver:{own.name}"] is None


def test_a_driver_is_dead_though_a_process_that_it_forked_lives_on(
    own: Presence, others: Any
) -> None:
    other = others("fork")
    assert own.is_alive(other.name)
    other.kill()
    assert not own.is_alive(other.name)


def test_several_may_look_at_once_at_one_that_is_dead(own: Presence, others: Any) -> None:
    other = others()
    other.kill()
    path = _presence._path(other.name)
    looking = os.open(path, os.O_RDONLY)
    try:
        _presence.fcntl.flock(looking, _presence.fcntl.LOCK_SH)
        assert not own.is_alive(other.name)
    finally:
        os.close(looking)


@pytest.mark.parametrize(("age_s", "is_alive"), [(0, True), (100, True), (130, False)])
def test_a_driver_elsewhere_is_judged_by_the_age_of_its_word(
    own: Presence, study: optuna.Study, age_s: float, is_alive: bool
) -> None:
    word_of(study, "far", age_s=age_s, place=["another host", "boot", 1, 2])
    assert own.is_alive("far") == is_alive and not own.is_certain("far")
    assert own.has_company() == is_alive


def test_a_driver_of_another_temporary_folder_on_this_host_is_not_taken_for_dead(
    own: Presence, others: Any, tmp_path: Path
) -> None:
    other_folder = tmp_path / "private"
    other_folder.mkdir()
    other = others(TMPDIR=str(other_folder))
    assert own.is_alive(other.name)
    assert not own.is_certain(other.name)


def test_a_word_of_a_machine_that_has_started_anew_since_is_judged_by_its_age(
    own: Presence, study: optuna.Study
) -> None:
    host, _, *folder = _presence._place()
    word_of(study, "before", age_s=130, place=[host, "another boot", *folder])
    assert not own.is_alive("before")


def test_one_that_never_said_a_word_is_not_alive(own: Presence) -> None:
    assert not own.is_alive("nobody")


def test_without_a_temporary_folder_a_driver_is_judged_by_its_word(
    study: optuna.Study, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "gone"))
    one = Presence(study)
    monkeypatch.setattr(tempfile, "tempdir", None)
    other = Presence(study)
    try:
        assert other.is_alive(one.name) and not other.is_certain(one.name)
        assert one.is_alive(other.name)
    finally:
        other.close()
        one.close()
    assert study.user_attrs[f"driver:{one.name}"] is None


def test_a_swept_temporary_folder_does_not_kill_a_driver(
    own: Presence, study: optuna.Study, folder: Path
) -> None:
    (path,) = folder.glob("hydra-study-*")
    path.unlink()
    own._hold_on()
    assert path.exists()
    assert _presence.is_alive(own.name, study.user_attrs[f"driver:{own.name}"])


# --- what follows for trials ------------------------------------------------------------------


def trials_of(study: optuna.Study, own: Presence, total: int = 3) -> _trials.Trials:
    return _trials.Trials(study, space(["x=interval(0,1)"]), own, total, None)


def running_of(study: optuna.Study, name: str | None) -> int:
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    if name is not None:
        trial.set_user_attr("driver", name)
    return trial.number


def test_trials_of_the_dead_wait_again_and_those_of_the_living_are_left(
    own: Presence, study: optuna.Study, others: Any
) -> None:
    dead, alive = others(), others()
    for name in (dead.name, alive.name):
        running_of(study, name)
    trials = trials_of(study, own)
    assert trials.ask() is not None
    dead.kill()
    params = study.trials[0].params
    assert trials.reclaim() == [0]
    assert [t.state.name for t in study.trials] == ["WAITING", "RUNNING", "RUNNING"]
    asked = trials.ask()
    assert asked is not None and asked[0].number == 0 and asked[1] == params
    assert study.trials[0].user_attrs["driver"] == own.name


def test_a_trial_without_a_name_is_left_while_somebody_may_be_about_to_sign_it(
    own: Presence, study: optuna.Study, others: Any
) -> None:
    other = others()
    running_of(study, None)
    trials = trials_of(study, own)
    assert trials.reclaim() == []
    other.kill()
    assert trials.reclaim() == [0]


def test_a_trial_that_costs_its_driver_each_time_is_given_up(
    own: Presence, study: optuna.Study, caplog: pytest.LogCaptureFixture
) -> None:
    number = running_of(study, "dead")
    study._storage.set_trial_user_attr(
        study.trials[number]._trial_id, "deaths", _trials.MAX_DEATHS - 1
    )
    assert trials_of(study, own).reclaim() == []  # it is not run again
    (trial,) = study.trials
    assert (
        trial.state == TrialState.FAIL
        and f"died {_trials.MAX_DEATHS} times" in trial.user_attrs["reason"]
    )


def test_a_trial_that_a_failing_storage_gave_nobody_is_taken_up_again(
    own: Presence, study: optuna.Study
) -> None:
    running_of(study, own.name)  # the driver never heard of it
    trials = trials_of(study, own)
    assert trials.reclaim() == [0]
    asked = trials.ask()
    assert asked is not None and asked[0].number == 0
    assert trials.reclaim() == []


def test_a_driver_that_was_thought_dead_gives_way(own: Presence, study: optuna.Study) -> None:
    trials = trials_of(study, own)
    asked = trials.ask()
    assert asked is not None and trials.own(asked[0]) is not None
    study._storage.set_trial_user_attr(asked[0]._trial_id, "driver", "another")
    assert trials.own(asked[0]) is None
    trials.give_back(0)
    assert study.trials[0].state == TrialState.RUNNING  # the other one's


def test_a_trial_that_was_set_back_under_a_living_driver_is_its_own_until_another_begins_it(
    own: Presence, study: optuna.Study
) -> None:
    trials = trials_of(study, own)
    asked = trials.ask()
    assert asked is not None
    study._storage.set_trial_state_values(asked[0]._trial_id, TrialState.WAITING)
    assert trials.own(asked[0]) is not None
    assert study.trials[0].state == TrialState.RUNNING


@pytest.mark.slow
def test_the_last_trials_of_a_silent_machine_are_waited_for_until_it_is_dead(
    own: Presence, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_presence, "SILENT_S", 3.0)
    monkeypatch.setattr(_trials, "LOOK_S", 0.1)
    began = time.monotonic()
    word_of(study, "far", age_s=1, place=["another host", "boot", 1, 2])
    running_of(study, "far")
    trials = trials_of(study, own)
    assert trials.reclaim() == []
    assert trials.reclaim_in_time() == [0]
    assert 1 < time.monotonic() - began < 10


def test_the_last_trials_of_a_machine_that_speaks_are_left_to_it(
    own: Presence, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_trials, "LOOK_S", 0.1)
    word_of(study, "far", age_s=1, place=["another host", "boot", 1, 2])
    running_of(study, "far")
    trials = trials_of(study, own)
    speaks = iter([False, False, True])
    monkeypatch.setattr(
        _trials.time, "sleep",
        lambda s: word_of(study, "far", age_s=0, place=["x"]) if next(speaks) else None,
    )  # fmt: skip
    assert trials.reclaim_in_time() == []
    assert next(speaks, None) is None


@pytest.fixture
def finite(own: Presence, study: optuna.Study, tmp_path: Path) -> Search:
    """A search of a space with one point, which another machine runs as trial 0."""
    asked = study.ask()
    asked.suggest_int("x", 1, 1)
    asked.set_user_attr("driver", "far")
    one_point = space(["x=range(1,2)"])
    trials = _trials.Trials(study, one_point, own, None, None)
    return Search(study, trials, one_point, Budget(), presence=own, sweep_dir=tmp_path)


def test_the_last_point_of_a_space_is_run_here_once_its_machine_is_dead(
    study: optuna.Study, finite: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_trials, "LOOK_S", 0.1)
    word_of(study, "far", age_s=_presence.SILENT_S - 0.5)
    assert [num for num, *_ in finite.more(1)] == [0]


def test_the_last_point_of_a_space_is_left_to_a_machine_as_long_as_it_speaks(
    study: optuna.Study, finite: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    word_of(study, "far", age_s=1)
    monkeypatch.setattr(_trials.time, "sleep", lambda s: word_of(study, "far", age_s=0))
    assert finite.more(1) == []
    said = "all 1 points of the space have been evaluated, or run elsewhere: 0"
    assert finite.stopped == said
    word_of(study, "far", age_s=2 * _presence.SILENT_S)
    assert [num for num, *_ in finite.more(1)] == [0]


def test_of_two_that_ask_at_once_for_the_last_trial_one_gets_none(
    own: Presence, study: optuna.Study
) -> None:
    """A trial that another driver has set back is begun before one that is new."""
    for _ in range(2):
        running_of(study, "dead")
    trials = trials_of(study, own, total=2)
    third = running_of(study, None)  # asked for when the dead one's still seemed to run
    del third
    assert trials.reclaim() == [0, 1, 2]
    asked = [trials.ask() for _ in range(3)]
    assert [one[0].number if one else None for one in asked] == [0, 1, None]
    assert study.trials[2].user_attrs["surplus"] is True
