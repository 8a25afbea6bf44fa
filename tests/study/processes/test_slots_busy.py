"""No slot waits for a batch; and others can look at the study."""

import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState


def busy_share(app: Any, num_slots: int, *, is_whole: bool) -> float:
    """The share of the slots' time in which a job runs, from the first job's beginning on: to the
    last one's end, or to the last one's beginning, after which there is nothing left to run."""
    began = {note.num: note.at for note in app.notes("began")}
    ended = {note.num: note.at for note in app.notes("ended")}
    assert set(began) == set(ended)
    first, last = min(began.values()), max((ended if is_whole else began).values())
    busy = sum(min(ended[num], last) - began[num] for num in began)
    return busy / (last - first) / num_slots


def gaps_s(app: Any) -> list[float]:
    """How long each process waits between a job and the next."""
    found = []
    for pid in {note.pid for note in app.notes()}:
        own = sorted((note.at, note.kind) for note in app.notes() if note.pid == pid)
        found += [b[0] - a[0] for a, b in itertools.pairwise(own) if a[1] == "ended"]
    return sorted(found)


@pytest.mark.slow
def test_four_slots_are_busy_though_trials_are_of_uneven_length(app: Any) -> None:
    # So long that the share tells of waiting, not of how busy the machine is with other things; a
    # second try is for when it is very much so.
    for attempt in range(2):
        here = app.folder / str(attempt)
        (app.folder / "notes").unlink(missing_ok=True)
        ended = app.run(f"hydra.sweep.dir={here}", "hydra.sweeper.n_trials=40", "reports=false",
                        "hydra.launcher.cpu_slots=4", "seconds=0.1", "longest=2.5")  # fmt: skip
        assert ended.code == 0, ended.said
        assert len(app.notes("ended")) == 40
        share, whole = (busy_share(app, 4, is_whole=is_whole) for is_whole in (False, True))
        gaps = gaps_s(app)
        print(f"busy {share:.3f} while trials are left, {whole:.3f} in all; between two jobs "
              f"{1000 * statistics.median(gaps):.0f} ms, at most {1000 * gaps[-1]:.0f} ms; "
              f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
        if share >= 0.9:
            return
    raise AssertionError(f"of the slots' time {share:.3f} was used")


@pytest.mark.slow
def test_a_long_trial_keeps_no_other_slot_waiting(app: Any) -> None:
    """In batches, each trial of the other slot would wait for the long one."""
    ended = app.run("hydra.sweeper.n_trials=9", "slow=[0]", "seconds=0.1", "epochs=1")
    assert ended.code == 0, ended.said
    began = {note.num: note.at for note in app.notes("began")}
    (long_one,) = [note for note in app.notes("ended") if note.num == 0]
    meanwhile = [num for num, at in began.items() if num and at < long_one.at]
    assert sorted(meanwhile) == list(range(1, 9))


@pytest.mark.slow
def test_the_next_trial_knows_of_those_that_have_ended(app: Any) -> None:
    """It is asked for when a slot becomes free, or one job before: not for a whole batch."""
    ended = app.run("hydra.sweeper.n_trials=12", "seconds=0.3", "epochs=1")
    assert ended.code == 0, ended.said
    trials = app.trials()
    for trial in trials:
        known = [t for t in trials if t.datetime_complete < trial.datetime_start]
        assert len(known) >= trial.number - 3  # two run, one is asked for ahead of them


# --- the dashboard ---------------------------------------------------------------------------


@pytest.fixture
def dashboard(app: Any) -> Iterator[Any]:
    """Starts `optuna-dashboard` on a storage; what its API says of a path."""
    beside = Path(sys.executable).with_name("optuna-dashboard")
    command = str(beside) if beside.exists() else shutil.which("optuna-dashboard")
    if command is None:
        pytest.skip("needs optuna-dashboard")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []

    def start(storage: str) -> Any:
        processes.append(
            subprocess.Popen(
                [command, storage, "--port", str(port), "--host", "127.0.0.1"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

        def read(path: str) -> Any:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return json.load(answer)

        return read

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_dashboard_shows_the_study(app: Any, until: Any, dashboard: Any) -> None:
    ended = app.run("hydra.sweeper.n_trials=4", "fail=[1]", "bad=[2]",
                    "hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.upper=1.9")  # fmt: skip
    assert ended.code == 0, ended.said
    read = dashboard(app.database)

    def is_up() -> bool:
        try:
            return bool(read("/api/studies"))
        except OSError:
            return False

    assert until(is_up, 60)
    (summary,) = read("/api/studies")["study_summaries"]
    assert summary["study_name"] == "app/out"
    shown = read(f"/api/studies/{summary['study_id']}")
    states = {trial["number"]: trial["state"] for trial in shown["trials"]}
    assert states == {0: "Complete", 1: "Fail", 2: "Pruned", 3: "Complete"}
    values = {t["number"]: t["values"] for t in shown["trials"] if t["state"] == "Complete"}
    own = {t.number: t.values for t in app.trials() if t.state == TrialState.COMPLETE}
    assert values == own
    assert [p["name"] for p in shown["trials"][0]["params"]] == ["x"]
    assert len(shown["trials"][0]["intermediate_values"]) == 2
