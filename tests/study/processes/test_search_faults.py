"""What can go wrong with a search, row by row: S1 to S8 of the faults that must cost little."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

# --- S1: the driver is killed ----------------------------------------------------------------


def kill_at_random(app: Any, until: Any, source: random.Random, *overrides: str) -> bool:
    """Start the search, kill its driver at some moment; False: it was over before."""
    driver = app.start(*overrides)
    began, ended = len(app.notes("began")), len(app.notes("ended"))
    kind = source.choice(["starting", "within", "between", "between"])
    if kind == "starting":
        time.sleep(source.uniform(0.2, 2.5))
    elif kind == "within":
        until(lambda: len(app.notes("began")) > began or driver.poll() is not None)
        time.sleep(source.uniform(0, 0.3))
    else:
        until(lambda: len(app.notes("ended")) > ended or driver.poll() is not None)
        time.sleep(source.choice([0, 0.01, 0.03, 0.1]))
    if driver.poll() is not None:
        assert driver.returncode == 0, driver.communicate()[0]
        return False
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    return True


def survive(app: Any, until: Any, ended_whole: Any, num_kills: int, seed: int, *more: str) -> None:
    overrides = ("seconds=0.3", *more)
    source = random.Random(seed)
    kills = 0
    finished: dict[int, float] = {}  # number: when it was first seen to be finished
    values: dict[int, Any] = {}
    while kills < num_kills and kill_at_random(app, until, source, *overrides):
        kills += 1
        if not (app.out / "study.db").exists():
            continue
        for trial in app.trials():
            if trial.state.is_finished() and trial.number not in finished:
                finished[trial.number], values[trial.number] = time.time(), trial.values
    last = app.run(*overrides)
    assert last.code == 0, last.said
    trials = app.trials()
    ended_whole(trials, 12)
    assert [trial.number for trial in trials] == list(range(12))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}, [
        (trial.number, trial.user_attrs) for trial in trials if trial.state == TrialState.FAIL
    ]
    for note in app.notes("began"):
        assert note.at < finished.get(note.num, float("inf")), f"{note} after it had finished"
    for trial in trials:
        assert values.get(trial.number, trial.values) == trial.values
    assert set(app.nums("ended")) == set(range(12))
    assert len({str(trial.params) for trial in trials}) == 12
    assert [one["state"] for one in app.search()["trials"]] == ["completed"] * 12
    assert app.is_quiet()
    assert kills >= num_kills * 0.6
    print(f"{kills} kills, {len(app.notes('began'))} jobs begun for 12 trials")


def test_a_search_whose_driver_is_killed_ends_with_the_trials_asked_for(
    app: Any, until: Any, ended_whole: Any
) -> None:
    survive(app, until, ended_whole, 4, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_driver_that_is_killed_again_and_again(
    app: Any, until: Any, ended_whole: Any, seed: int
) -> None:
    survive(app, until, ended_whole, 30, seed, "seconds=0.6")


@pytest.mark.slow
def test_three_drivers_of_which_one_is_killed_again_and_again(
    app: Any, until: Any, ended_whole: Any
) -> None:
    source, total = random.Random(0), 40
    storage = f"sqlite:///{app.folder / 'shared.db'}"
    overrides = ("hydra.sweeper.study_name=one", f"hydra.sweeper.storage={storage}",
                 f"hydra.sweeper.n_trials={total}", "seconds=0.5")  # fmt: skip

    def start(place: int) -> Any:
        return app.start(f"hydra.sweep.dir={app.folder / str(place)}", *overrides)

    drivers = [start(place) for place in range(3)]
    for _ in range(15):
        time.sleep(source.uniform(0.3, 2.5))
        place = source.randrange(3)
        if drivers[place].poll() is None:
            os.kill(drivers[place].pid, signal.SIGKILL)
        drivers[place].wait()
        drivers[place] = start(place)
    for driver in drivers:
        said, _ = driver.communicate(timeout=200)
        assert driver.returncode == 0, said
    trials = app.trials(storage, "one")
    ended_whole(trials, total)
    counted = [t for t in trials if "surplus" not in t.user_attrs]
    assert {t.state for t in counted} == {TrialState.COMPLETE}
    assert set(app.nums("ended")) == {t.number for t in counted}
    # Of each trial one job ran to its end, unless its driver died before it could say so.
    for kind in ("began", "ended"):
        for number, count in Counter(app.nums(kind)).items():
            assert count <= 1 + trials[number].user_attrs.get("deaths", 0)


def test_a_trial_that_was_interrupted_runs_its_own_point_again(app: Any, until: Any) -> None:
    driver = app.start("seconds=3")
    assert until(lambda: len(app.notes("began")) == 2)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    before = {t.number: t.params for t in app.trials()}
    assert {0, 1} <= set(before)
    assert app.is_quiet()  # its workers do not outlive it
    again = app.run("hydra.sweeper.n_trials=3")
    assert again.code == 0, again.said
    assert "had not ended: they are run again" in again.said
    after = {t.number: t.params for t in app.trials()}
    assert all(after[number] == before[number] for number in (0, 1))
    assert len(after) == 3
    assert Counter(app.nums("began")) == {0: 2, 1: 2, 2: 1}


@pytest.mark.slow
def test_a_search_that_is_over_is_not_begun_again_and_goes_on_to_a_larger_total(app: Any) -> None:
    assert app.run("hydra.sweeper.n_trials=3").code == 0
    assert [path.name for path in app.out.glob("*study.db*")] == ["study.db"]  # to be copied
    first = [(t.number, t.params, t.values) for t in app.trials()]
    again = app.run("hydra.sweeper.n_trials=3")
    assert again.code == 0 and "its 3 trials are done" in again.said, again.said
    assert sorted(app.nums("began")) == [0, 1, 2]
    assert app.run("hydra.sweeper.n_trials=5").code == 0
    assert [(t.number, t.params, t.values) for t in app.trials()][:3] == first
    assert sorted(app.nums("began")) == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_ctrl_c_leaves_no_trial_running(app: Any, until: Any, ended_whole: Any) -> None:
    driver = app.start("seconds=1")
    assert until(lambda: len(app.notes("ended")) >= 1)
    os.kill(driver.pid, signal.SIGINT)
    said, _ = driver.communicate(timeout=30)
    assert driver.returncode != 0
    assert not [t for t in app.trials() if t.state == TrialState.RUNNING], said
    assert app.is_quiet()
    again = app.run("seconds=0.05")
    assert again.code == 0, again.said
    ended_whole(app.trials(), 12)
    assert [t.number for t in app.trials()] == list(range(12))


# --- S2: a job is killed ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_that_is_killed_costs_its_own_trial_alone(app: Any, ended_whole: Any) -> None:
    ended = app.run("die=[1,4]", "hydra.sweeper.n_trials=7", "hydra.sweeper.max_failures=2")
    assert ended.code == 0, ended.said
    trials = app.trials()
    ended_whole(trials, 7)
    assert [t.number for t in trials if t.state == TrialState.FAIL] == [1, 4]
    assert all(t.value is not None for t in trials if t.number not in (1, 4))
    assert "SIGKILL" in trials[1].user_attrs["reason"]
    assert "trial 1 failed" in ended.said and "Traceback" not in ended.said
    assert Counter(app.nums("began")) == dict.fromkeys(range(7), 1)  # a failed one is not repeated


@pytest.mark.slow
def test_a_search_stops_at_one_failure_too_many(app: Any) -> None:
    ended = app.run("die=[0,2]", "fail=[1]", "hydra.sweeper.max_failures=2", "seconds=0.3")
    assert ended.code == 1, ended.said
    assert "3 trials failed, more than hydra.sweeper.max_failures=2" in ended.said
    assert "trial 1 (x=" in ended.said and "ValueError: no luck with 1" in ended.said
    assert "best: trial" in ended.said or "No trial completed" in ended.said
    assert not [t for t in app.trials() if t.state == TrialState.RUNNING]
    assert len(app.notes("began")) <= 6  # what ran already, or stood before its slot
    assert app.is_quiet()


# --- S3, S4: nothing comes of them -----------------------------------------------------------


@pytest.mark.slow
def test_a_search_in_which_all_fail_says_of_each_why(app: Any) -> None:
    ended = app.run("fail=[0,1,2,3]", "hydra.sweeper.n_trials=4")
    assert ended.code == 1, ended.said
    assert "No trial completed." in ended.said
    for number in range(4):
        assert f"ValueError: no luck with {number}" in ended.said.split("No trial completed.")[1]
    assert "Traceback" not in ended.said and "best_trial" not in ended.said
    assert {t.state for t in app.trials()} == {TrialState.FAIL}


@pytest.mark.slow
def test_a_value_that_cannot_be_compared_fails_its_trial_alone(app: Any) -> None:
    odd = "weird=[not_a_number,infinite,nothing,text,huge,list,mapping]"
    ended = app.run(odd, "hydra.sweeper.n_trials=9")
    assert ended.code == 0, ended.said
    reasons = [t.user_attrs.get("reason", "") for t in app.trials()]
    for number, word in enumerate(
        ["nan", "inf", "None", "'good'", "one int", "[1.0, 2.0]", "loss"]
    ):
        assert word in reasons[number] and "it returned" in reasons[number], reasons[number]
    states = [t.state for t in app.trials()]
    assert states == [TrialState.FAIL] * 7 + [TrialState.COMPLETE] * 2
    assert "Traceback" not in ended.said


# --- S5: two searches on one new storage -----------------------------------------------------


def two_at_once(app: Any, folder: Path, *overrides: str) -> None:
    """Start two drivers of one study at the same time; both end well."""
    shared = ("hydra.sweeper.study_name=one", *overrides)
    drivers = [app.start(f"hydra.sweep.dir={folder / name}", *shared) for name in "ab"]
    for driver in drivers:
        said, _ = driver.communicate(timeout=120)
        assert driver.returncode == 0, said


def two_on_a_new_storage(app: Any, ended_whole: Any, count: int, *overrides: str) -> None:
    for repeat in range(count):
        storage = f"sqlite:///{app.folder / str(repeat)}.db"
        (app.folder / "notes").unlink(missing_ok=True)
        two_at_once(
            app, app.folder / str(repeat), f"hydra.sweeper.storage={storage}",
            "hydra.sweeper.n_trials=8", "seconds=0.05", *overrides,
        )  # fmt: skip
        trials = app.trials(storage, "one")
        ended_whole(trials, 8)
        began = Counter(app.nums("began"))
        assert len(began) == 8 and set(began.values()) == {1}, began
        assert sorted(app.nums("ended")) == sorted(app.nums("began"))


def test_two_searches_make_one_storage_and_share_its_trials(app: Any, ended_whole: Any) -> None:
    two_on_a_new_storage(app, ended_whole, 1)


@pytest.mark.slow
def test_two_searches_share_the_points_that_wait(app: Any, ended_whole: Any) -> None:
    two_on_a_new_storage(app, ended_whole, 1, "hydra/sweeper/sampler=grid", "x=0.5", "n=range(8)")


@pytest.mark.slow
@pytest.mark.parametrize("repeats", [5, 20])
def test_two_searches_share_a_study_time_and_again(
    app: Any, ended_whole: Any, repeats: int
) -> None:
    two_on_a_new_storage(app, ended_whole, repeats)


@pytest.mark.slow
def test_two_searches_share_a_grid_ten_times(app: Any, ended_whole: Any) -> None:
    two_on_a_new_storage(app, ended_whole, 10, "hydra/sweeper/sampler=grid", "x=0.5", "n=range(8)")


@pytest.mark.slow
def test_the_same_command_twice_at_once_does_the_work_once(app: Any, ended_whole: Any) -> None:
    drivers = [app.start("hydra.sweeper.n_trials=8") for _ in range(2)]
    for driver in drivers:
        said, _ = driver.communicate(timeout=120)
        assert driver.returncode == 0, said
    ended_whole(app.trials(), 8)
    assert set(Counter(app.nums("began")).values()) == {1}
    assert [one["state"] for one in app.search()["trials"]].count("completed") == 8


@pytest.mark.slow
def test_the_trials_of_a_killed_driver_are_run_by_the_other_one(
    app: Any, until: Any, ended_whole: Any
) -> None:
    first = app.start("seconds=60", "hydra.sweeper.n_trials=6")
    assert until(lambda: len(app.notes("began")) >= 2)
    second = app.start("seconds=0.5", "hydra.sweeper.n_trials=6")
    assert until(lambda: len(app.notes("began")) >= 4)
    os.kill(first.pid, signal.SIGKILL)
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 0, said
    ended_whole(app.trials(), 6)
    assert {t.state for t in app.trials()} == {TrialState.COMPLETE}
    assert sorted(app.nums("ended")) == list(range(6))


@pytest.mark.slow
def test_a_start_that_is_killed_while_it_makes_the_storage_spoils_nothing(
    app: Any, until: Any, ended_whole: Any
) -> None:
    source = random.Random(0)
    for repeat in range(5):
        driver = app.start("hydra.sweeper.n_trials=3")
        assert until(lambda: any(app.out.glob("*study.db*")), 30)
        time.sleep(0 if repeat == 0 else source.uniform(0, 0.3))
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    ended = app.run("hydra.sweeper.n_trials=3")
    assert ended.code == 0, ended.said
    ended_whole(app.trials(), 3)
    litter = [path.name for path in app.out.glob(".study.db*")]
    assert litter == [], litter


# --- S6: the storage fails -------------------------------------------------------------------


def refused(ended: Any, *words: str) -> None:
    """It ended with an error that says what it is, and no traceback."""
    assert ended.code not in (0, None), ended.said
    assert "hydra.sweeper.storage=" in ended.said and "cannot be used" in ended.said, ended.said
    assert "Traceback" not in ended.said, ended.said
    for word in words:
        assert word in ended.said, ended.said


def held(path: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process keeps the database to itself for a while."""
    code = (
        "import sqlite3, sys, time\n"
        "base = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)\n"
        "base.execute('BEGIN EXCLUSIVE')\nprint('held', flush=True)\n"
        "time.sleep(float(sys.argv[2]))"
    )
    import sys

    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def holders() -> Iterator[list[subprocess.Popen[str]]]:
    found: list[subprocess.Popen[str]] = []
    yield found
    for process in found:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_database_that_is_held_for_a_moment_costs_no_trial(
    app: Any, until: Any, ended_whole: Any, holders: Any
) -> None:
    driver = app.start("hydra.sweeper.n_trials=8", "seconds=0.3")
    assert until(lambda: len(app.notes("ended")) >= 2)
    holders.append(held(app.out / "study.db", 4))
    said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 0, said
    ended_whole(app.trials(), 8)
    assert set(Counter(app.nums("began")).values()) == {1}
    assert {t.state for t in app.trials()} == {TrialState.COMPLETE}


@pytest.mark.slow
def test_a_database_that_stays_held_ends_the_search_in_words(
    app: Any, until: Any, ended_whole: Any, holders: Any
) -> None:
    storage = f"hydra.sweeper.storage='{app.database}?timeout=1'"
    driver = app.start(storage, "seconds=0.5")
    assert until(lambda: len(app.notes("ended")) >= 3)
    holders.append(held(app.out / "study.db", 600))
    began = time.monotonic()
    said, _ = driver.communicate(timeout=60)
    print("gave up after", time.monotonic() - began)
    assert driver.returncode == 1
    assert "database is locked" in said and "Another process" in said, said
    assert "Traceback" not in said, said
    assert app.is_quiet()
    at_start = app.run(storage)
    refused(at_start, "locked")
    assert at_start.seconds < 30
    holders[0].kill()
    holders[0].wait()
    again = app.run(storage, "seconds=0.05")
    assert again.code == 0, again.said
    ended_whole(app.trials(), 12)
    assert [t.number for t in app.trials()] == list(range(12))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["sqlite", pytest.param("journal", marks=pytest.mark.slow)])
def test_a_storage_in_a_place_that_cannot_be_written_is_refused_before_any_job(
    app: Any, scheme: str
) -> None:
    (app.folder / "taken").mkdir()
    (app.folder / "file").write_text("text")
    for place in ("taken", "file/study.db", "file"):
        ended = app.run(f"hydra.sweeper.storage={scheme}:///{app.folder / place}")
        refused(ended)
        assert app.notes() == []
        assert (app.folder / "file").read_text() == "text"


@pytest.fixture
def mounted(app: Any, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small disk of its own for the sweep."""
    found: list[Path] = []

    def mount(options: str) -> Path:
        path = tmp_path / "disk"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("nothing can be mounted here")
        found.append(path)
        return path

    yield mount
    app.end()
    for path in found:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="No space left"):
        while True:
            os.write(file, b"x" * 4096)
    os.close(file)


@pytest.mark.slow
def test_a_full_disk_ends_the_search_in_words_and_the_next_start_goes_on(
    app: Any, until: Any, ended_whole: Any, mounted: Callable[[str], Path]
) -> None:
    disk = mounted("size=2m")
    storage = f"sqlite:///{disk / 'study.db'}"
    driver = app.start(f"hydra.sweeper.storage={storage}", "seconds=0.3")
    assert until(lambda: len(app.notes("ended")) >= 3)
    fill(disk / "ballast")
    said, _ = driver.communicate(timeout=90)
    assert driver.returncode == 1, said
    assert "Traceback" not in said, said
    assert "full" in said and "cannot be used" in said, said
    finished = {one["number"] for one in app.search()["trials"] if one["state"] == "completed"}
    (disk / "ballast").unlink()
    again = app.run(f"hydra.sweeper.storage={storage}", "seconds=0.05")
    assert again.code == 0, again.said
    ended_whole(app.trials(storage), 12)
    assert all(app.nums("began").count(number) == 1 for number in finished)


@pytest.mark.slow
def test_a_full_disk_under_the_sweeps_folder_does_not_end_the_search_with_a_traceback(
    app: Any, until: Any, ended_whole: Any, mounted: Callable[[str], Path]
) -> None:
    disk = mounted("size=3m")
    here = (f"hydra.sweep.dir={disk / 'out'}", "hydra.sweeper.n_trials=10")
    driver = app.start(*here, "seconds=0.5")
    assert until(lambda: len(app.notes("ended")) >= 2)
    fill(disk / "ballast")
    said, _ = driver.communicate(timeout=90)
    assert driver.returncode == 1, said
    # A job may have its own to say of a log that cannot be written.
    ours = [line for line in said.splitlines() if not line.startswith("[cpu ")]
    assert "Traceback" not in "\n".join(ours), said
    assert "full" in ours[-3] or "No space" in ours[-3], ours
    (disk / "ballast").unlink()
    again = app.run(*here, "seconds=0.05", "hydra.sweeper.n_trials=14")
    assert again.code == 0, again.said
    ended_whole(app.trials(f"sqlite:///{disk / 'out' / 'study.db'}"), 14)


def damage(path: Path, how: str) -> None:
    size = path.stat().st_size
    with path.open("r+b") as stream:
        if how == "flipped":
            stream.seek(0)
            stream.write(bytes(random.Random(0).randbytes(100)))
            stream.seek(4096)
            stream.write(random.Random(1).randbytes(size - 4096))
        elif how == "cut":
            stream.truncate(size // 3)
        else:
            stream.seek(4096)
            stream.write(random.Random(1).randbytes(size - 4096))


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["cut", *(pytest.param(how, marks=pytest.mark.slow) for how in ("flipped", "inside"))]
)
def test_a_damaged_database_is_refused_and_made_anew_from_the_sweeps_folder(
    app: Any, ended_whole: Any, how: str
) -> None:
    assert app.run("hydra.sweeper.n_trials=4", "fail=[1]").code == 0
    before = [(t.number, t.state, t.params, t.values) for t in app.trials()]
    damage(app.out / "study.db", how)
    ended = app.run("hydra.sweeper.n_trials=6")
    refused(ended, "Move it away")
    assert (app.out / "0" / ".hydra" / "config.yaml").exists()
    (app.out / "study.db").rename(app.folder / "damaged.db")
    again = app.run("hydra.sweeper.n_trials=6")
    assert again.code == 0, again.said
    assert "4 trials are taken over" in again.said
    after = [(t.number, t.state, t.params, t.values) for t in app.trials()]
    assert after[:4] == before
    ended_whole(app.trials(), 6)
    assert sorted(app.nums("began")) == list(range(6))


@pytest.mark.slow
def test_what_the_folder_tells_of_other_trials_is_not_taken_over(
    app: Any, ended_whole: Any
) -> None:
    assert app.run("hydra.sweeper.n_trials=3", "n=1").code == 0
    # Another study in the same folder, as the message for other settings says.
    ended = app.run("hydra.sweeper.n_trials=2", "n=2", "hydra.sweeper.study_name=two")
    assert ended.code == 0 and "taken over" not in ended.said, ended.said
    ended_whole(app.trials(name="two"), 2)
    # The study is lost, and the settings are others now.
    (app.out / "study.db").unlink()
    ended = app.run("hydra.sweeper.n_trials=2", "n=3", "hydra.sweeper.study_name=two")
    assert ended.code == 0 and "of other settings: they are left" in ended.said, ended.said
    assert len(app.notes("began")) == 7


@pytest.mark.slow
def test_a_database_that_is_lost_in_a_killed_search_is_made_anew(
    app: Any, until: Any, ended_whole: Any
) -> None:
    driver = app.start("seconds=0.6", "hydra.sweeper.n_trials=8")
    assert until(lambda: len(app.notes("ended")) >= 4)
    time.sleep(1.5)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert app.is_quiet()
    told = {one["number"]: one for one in app.search()["trials"] if one["state"] == "completed"}
    assert told
    (app.out / "study.db").rename(app.folder / "lost.db")  # but not what SQLite has beside it
    again = app.run("seconds=0.05", "hydra.sweeper.n_trials=8")
    assert again.code == 0, again.said
    trials = app.trials()
    ended_whole(trials, 8)
    assert [t.number for t in trials] == list(range(8))
    for number, one in told.items():
        assert trials[number].params == one["params"] and trials[number].values == one["values"]
        assert app.nums("began").count(number) == 1


# --- S7: what cannot be carried out ----------------------------------------------------------

NONSENSE = [
    ("hydra.sweeper.n_trials=0", "n_trials=0"),
    ("hydra.sweeper.n_trials=-3", "n_trials=-3"),
    ("x=interval(3,1)", "x=interval(3,1)"),
    ("x=tag(log,interval(0,1))", "log"),
    ("x=choice()", "x=choice()"),
    ("n=range(0,9,0)", "n=range(0,9,0)"),
    ("nowhere=interval(0,1)", "nowhere"),
    ("hydra.sweeper.direction=upwards", "upwards"),
]


@pytest.mark.parametrize(
    ("override", "word"),
    [
        pytest.param(*one, id=one[0], marks=[] if place < 2 else [pytest.mark.slow])
        for place, one in enumerate(NONSENSE)
    ],
)
def test_nonsense_is_refused_before_any_job_and_before_anything_is_made(
    app: Any, override: str, word: str
) -> None:
    ended = app.run(override)
    assert ended.code not in (0, None), ended.said
    assert word in ended.said, ended.said
    assert "Traceback" not in ended.said, ended.said
    assert app.notes() == []
    assert not (app.out / "study.db").exists()
    assert not (app.out / "search.json").exists()
    assert not app.out.exists()


@pytest.mark.slow
def test_a_grid_with_more_points_than_trials_is_said(app: Any) -> None:
    ended = app.run("hydra/sweeper/sampler=grid", "x=0.5", "n=range(6)", "hydra.sweeper.n_trials=4")
    assert ended.code == 0, ended.said
    assert "6 points" in ended.said and "n_trials is 4" in ended.said
    assert len(app.notes("ended")) == 4


# --- S8: a trial is pruned -------------------------------------------------------------------


@pytest.mark.slow
def test_a_pruned_trial_is_shown_as_pruned_and_frees_its_slot_at_once(app: Any) -> None:
    ended = app.run(
        "hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.upper=1.9", "bad=[1,3]",
        "hydra.sweeper.n_trials=6", "seconds=1", "epochs=10",
    )  # fmt: skip
    assert ended.code == 0, ended.said
    trials = app.trials()
    assert [t.number for t in trials if t.state == TrialState.PRUNED] == [1, 3]
    assert [len(t.intermediate_values) for t in trials] == [10, 1, 10, 1, 10, 10]
    assert "trial 1 pruned at 1" in ended.said and "failed" not in ended.said
    assert [one["state"] for one in app.search()["trials"]].count("pruned") == 2
    began = {note.num: note for note in app.notes("began")}
    done = {note.num: note for note in app.notes("ended")}
    for number in (1, 3):
        next_here = [n.at for n in began.values()
                     if n.pid == began[number].pid and n.at > done[number].at]  # fmt: skip
        assert min(next_here) - done[number].at < 1.0
