"""Failures of all sorts, in real processes: who is run again, how often, what it costs others."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn

from hydra_plugins.gpu_launcher.ends import Skipped, TimedOut, WorkerDied

Launch = Callable[..., Sequence[JobReturn]]

APPLICATION = """
heard = []

def in_threes(jobs):
    return [range(start, min(start + 3, len(jobs))) for start in range(0, len(jobs), 3)]

def all_together(jobs):
    return [range(len(jobs))]

def together(jobs):
    import os, pathlib
    folder = pathlib.Path(jobs[0].hydra.sweep.dir).parent / "starts"
    with open(folder / "arrays", "a") as file:
        file.write(" ".join(str(job.a) for job in jobs) + "\\n")
    if any(job.a == 5 for job in jobs):
        os._exit(1)
    return [10 * job.a for job in jobs]

def ended(job, error, retry):
    heard.append((job.a, type(error).__name__, retry))

def ended_badly(job, error, retry):
    raise RuntimeError("in ended")
"""


class Sweep:
    """A sweep in two slots without a GPU; its jobs leave a mark each time they start."""

    def __init__(self, launch: Launch, application: Any, folder: Path) -> None:
        self._launch, self._application, self.folder = launch, application, folder
        self.launcher = "slots"

    def run(self, does: Callable[[int, int], Any], count: int, *settings: str) -> list[Any]:
        """Values and exceptions of jobs that run `does(number, how often it has run before)`."""
        folder = self.folder

        def task(cfg: Any) -> Any:
            before = len(list(folder.glob(f"{cfg.a}-*")))
            (folder / f"{cfg.a}-{before}").write_text(str(time.time()))
            return does(cfg.a, before)

        keys = {"ended": "some_application.ended", "max_retries": 2}
        if self.launcher == "slots":
            keys["cpu_slots"] = 2
        ours = [f"hydra.launcher.{key}={value}" for key, value in keys.items()]
        jobs = [[f"a={num}"] for num in range(count)]
        results = self._launch(task, jobs, *ours, *settings, launcher=self.launcher)
        return [result._return_value for result in results]

    def starts(self, num: int) -> int:
        return len(list(self.folder.glob(f"{num}-*")))

    @property
    def heard(self) -> list[tuple[int, str, int]]:
        """(job, exception, number of its next retry), as the application heard of them."""
        found: list[tuple[int, str, int]] = self._application.heard
        return found


@pytest.fixture
def sweep(launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "some_application.py").write_text(APPLICATION)
    (tmp_path / "starts").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    import some_application  # type: ignore[import-not-found]

    yield Sweep(launch, some_application, tmp_path / "starts")
    del sys.modules["some_application"]


# --- a job that fails -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["slots", "slots_inline"])
def test_a_job_that_raises_once_completes(sweep: Sweep, launcher: str, capsys: Any) -> None:
    def does(num: int, before: int) -> int:
        if num == 1 and not before:
            raise ConnectionError("not yet")
        return num

    sweep.launcher = launcher
    assert sweep.run(does, 3) == [0, 1, 2]
    assert [sweep.starts(num) for num in range(3)] == [1, 2, 1]
    assert sweep.heard == [(1, "ConnectionError", 1)]
    said = capsys.readouterr().out
    assert "job 1 (a=1) failed; tried again (1 of 2): ConnectionError: not yet\nLog: " in said
    assert "3 of 3" in said and "jobs failed" not in said


@pytest.mark.slow
def test_a_job_that_always_fails_is_started_three_times(sweep: Sweep) -> None:
    def does(num: int, before: int) -> int:
        if num == 1:
            raise ValueError(f"start {before}")
        return num

    values = sweep.run(does, 3)
    assert [values[0], str(values[1]), values[2]] == [0, "start 2", 2]
    assert [sweep.starts(num) for num in range(3)] == [1, 3, 1]
    assert sweep.heard == [(1, "ValueError", retry) for retry in (1, 2, 0)]


def test_a_job_whose_process_is_killed_once_completes(sweep: Sweep) -> None:
    def does(num: int, before: int) -> int:
        if num == 0 and not before:
            os.kill(os.getpid(), signal.SIGKILL)
        return num

    assert sweep.run(does, 4) == [0, 1, 2, 3]
    assert [sweep.starts(num) for num in range(4)] == [2, 1, 1, 1]
    assert sweep.heard == [(0, "WorkerDied", 1)]


@pytest.mark.slow
def test_a_job_whose_process_is_always_killed_has_failed(sweep: Sweep) -> None:
    def does(num: int, before: int) -> int:
        if num == 0:
            os.kill(os.getpid(), signal.SIGSEGV)
        return num

    first, *others = sweep.run(does, 4, "hydra.launcher.max_retries=1")
    assert isinstance(first, WorkerDied) and "SIGSEGV" in str(first)
    assert others == [1, 2, 3]
    assert sweep.starts(0) == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sleeps", "is stopped"])
def test_a_job_that_hangs_is_ended_and_run_again(sweep: Sweep, how: str) -> None:
    def does(num: int, before: int) -> int:
        if num == 0 and not before:
            if how == "is stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(60)
        return num

    assert sweep.run(does, 2, "hydra.launcher.timeout_s=5") == [0, 1]
    assert sweep.heard == [(0, "TimedOut", 1)]


@pytest.mark.slow
def test_a_job_that_always_hangs_has_failed(sweep: Sweep) -> None:
    settings = ("hydra.launcher.timeout_s=5", "hydra.launcher.max_retries=0")
    (value,) = sweep.run(lambda num, before: time.sleep(60), 1, *settings)
    assert isinstance(value, TimedOut) and "no sign of life for 5 s" in str(value)


@pytest.mark.slow
def test_what_is_final_is_not_run_again(sweep: Sweep) -> None:
    def does(num: int, before: int) -> int:
        class Locked(Exception):
            """Cannot be told as it is."""

            is_final = True

            def __init__(self) -> None:
                super().__init__("holds a lock")
                self.lock = threading.Lock()

        error = ValueError("the loss is nan") if num == 0 else Locked()
        error.is_final = True  # type: ignore[union-attr]
        raise error

    first, second = sweep.run(does, 2)
    assert str(first) == "the loss is nan" and "Locked: holds a lock" in str(second)
    assert [sweep.starts(num) for num in range(2)] == [1, 1]
    assert sorted(sweep.heard) == [(0, "ValueError", 0), (1, "Untold", 0)]


@pytest.mark.slow
def test_an_idle_slot_wakes_up_for_a_retry(sweep: Sweep) -> None:
    def does(num: int, before: int) -> float:
        if num == 1:
            time.sleep(4)
        elif not before:
            raise ValueError("once")
        return time.time()

    retried, other = sweep.run(does, 2)
    assert retried < other - 1


@pytest.mark.slow
def test_fail_fast_waits_for_the_last_retry_and_ends_what_runs(sweep: Sweep) -> None:
    def does(num: int, before: int) -> None:
        if num == 0:
            raise ValueError(f"start {before}")
        time.sleep(60)

    began = time.monotonic()
    first, second = sweep.run(does, 2, "hydra.launcher.fail_fast=true")
    assert time.monotonic() - began < 30
    assert str(first) == "start 2" and isinstance(second, Skipped)
    assert [sweep.starts(0), sweep.starts(1)] == [3, 1]


@pytest.mark.slow
def test_an_application_that_fails_to_hear_of_a_failure_costs_no_job(
    sweep: Sweep, capsys: Any
) -> None:
    def does(num: int, before: int) -> int:
        if num == 0:
            raise ValueError("zero")
        return num

    key = "hydra.launcher.ended=some_application.ended_badly"
    first, second = sweep.run(does, 2, key, "hydra.launcher.max_retries=0")
    assert (str(first), second) == ("zero", 1)
    assert "hydra.launcher.ended failed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_worker_that_dies_while_it_is_idle_costs_no_job(sweep: Sweep) -> None:
    def does(num: int, before: int) -> int:
        if not before:
            threading.Timer(0.2, os._exit, (1,)).start()  # before the retry is due
            raise ValueError("once")
        return num

    assert sweep.run(does, 2) == [0, 1]
    assert sorted(sweep.heard) == [(0, "ValueError", 1), (1, "ValueError", 1)]


# --- an array ---------------------------------------------------------------------------------

TOGETHER = (
    "hydra.launcher.prepare=some_application.all_together",
    "hydra.launcher.together=some_application.together",
)


def test_halves_find_the_job_that_kills_its_process(sweep: Sweep, capsys: Any) -> None:
    settings = [*TOGETHER, "hydra.launcher.max_retries=1", "hydra.launcher.cpu_slots=1"]
    values = sweep.run(lambda num, before: None, 8, *settings)
    culprit = values.pop(5)
    assert isinstance(culprit, WorkerDied) and "exit code 1" in str(culprit)
    assert values == [0, 10, 20, 30, 40, 60, 70]
    arrays = (sweep.folder / "arrays").read_text().splitlines()
    assert arrays[0] == "0 1 2 3 4 5 6 7"
    assert sorted(arrays[1:]) == sorted(["0 1 2 3", "4 5 6 7", "4 5", "6 7", "4", "5", "5"])
    assert sweep.heard == [(5, "WorkerDied", 1), (5, "WorkerDied", 0)]
    said = capsys.readouterr().out
    assert "1-8 of 8 on cpu 0: jobs 0, 1, 2, 3, 4, 5, 6, 7 together" in said
    assert said.count("they go on in two arrays") == 3
    assert "1 of 8 jobs failed: job 5 (a=5): WorkerDied" in said


# --- processes that do not get ready ----------------------------------------------------------


@pytest.mark.slow
def test_a_worker_that_never_gets_ready_is_no_endless_loop(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from hydra_plugins.gpu_launcher import _processes

    monkeypatch.setattr(_processes, "RESTS_S", (0.1,))
    (sweep.folder.parent / "warm.py").write_text("import os\nos._exit(7)\n")
    values = sweep.run(lambda num, before: num, 5, "hydra.launcher.warm_up=warm.warm")
    expected = "no worker gets ready: its process left with exit code 7, without a result."
    assert all(str(one).startswith(expected) for one in values)
    assert [retry for *_, retry in sweep.heard] == [0] * 5
    assert capsys.readouterr().out.count("is left out: no worker gets ready there") == 2


@pytest.mark.slow
def test_a_slot_whose_worker_never_gets_ready_costs_no_job(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from hydra_plugins.gpu_launcher import _processes

    monkeypatch.setattr(_processes, "RESTS_S", (0.1,))
    (sweep.folder.parent / "warm.py").write_text(
        "import os\nfrom hydra_plugins.gpu_launcher import progress\n"
        "def warm():\n    if progress.slot() == 'cpu 0':\n        os._exit(7)\n"
    )

    def does(num: int, before: int) -> int:
        time.sleep(1.5)  # in all, longer than cpu 0 takes to try twice
        return num

    assert sweep.run(does, 4, "hydra.launcher.warm_up=warm.warm") == [0, 1, 2, 3]
    assert sweep.heard == []
    assert "cpu 0 is left out" in capsys.readouterr().out


@pytest.mark.slow
def test_a_worker_that_is_silent_while_it_warms_up_is_ended(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra_plugins.gpu_launcher import _processes

    monkeypatch.setattr(_processes, "RESTS_S", ())
    (sweep.folder.parent / "warm.py").write_text("def warm():\n    import time; time.sleep(60)\n")
    settings = ("hydra.launcher.warm_up=warm.warm", "hydra.launcher.timeout_s=2.5")
    (value,) = sweep.run(lambda num, before: num, 1, *settings)
    assert "no worker gets ready: it gave no sign of life for 2.5 s" in str(value)


# --- all at once ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_with_failures_of_all_sorts_loses_no_job(sweep: Sweep) -> None:
    def does(num: int, before: int) -> int:
        if num % 5 == 1 and not before:
            os.kill(os.getpid(), signal.SIGKILL)
        if num % 5 == 2 and before < 2:
            raise ValueError(num)
        if num == 13 and before < 1:
            time.sleep(60)
        return num

    assert sweep.run(does, 30, "hydra.launcher.timeout_s=6") == list(range(30))
    assert [sweep.starts(num) for num in range(10)] == [1, 2, 3, 1, 1] * 2
