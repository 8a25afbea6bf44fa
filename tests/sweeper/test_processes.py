"""Worker processes: each with a device of its own, each job on its own feet, none left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException

from hydra_plugins.gpu_launcher._slots import slots, visible_gpus

Launch = Callable[..., Sequence[JobReturn]]


@pytest.fixture
def apart(launch: Launch) -> Launch:
    """`launch` on two slots without a GPU, unless the settings say other."""

    def run(task: Callable[[Any], Any], jobs: Any, *settings: str, **options: Any) -> Any:
        where = [] if any("gpus" in one for one in settings) else ["hydra.launcher.cpu_slots=2"]
        return launch(task, jobs, *where, *settings, launcher="slots", **options)

    return run


def jobs(count: int) -> list[list[str]]:
    return [[f"a={i}"] for i in range(count)]


def outcomes(results: Sequence[JobReturn]) -> list[Any]:
    return [result._return_value for result in results]


# --- devices --------------------------------------------------------------------------------


def test_each_job_has_one_device_to_itself(apart: Launch) -> None:
    def task(cfg: Any) -> Any:
        started = time.time()
        time.sleep(0.1)
        return os.environ["CUDA_VISIBLE_DEVICES"], started, time.time(), os.getpid()

    found = outcomes(apart(task, jobs(16), "hydra.launcher.gpus=[0,1,2,3]"))
    assert {device for device, *_ in found} == {"0", "1", "2", "3"}
    by_device = {d: sorted(one[1:3] for one in found if one[0] == d) for d in "0123"}
    for times in by_device.values():
        assert all(end <= start for (_, end), (start, _) in pairwise(times))
    # Workers stay for the next job.
    assert len({pid for *_, pid in found}) == 4


def test_slots_of_declared_and_of_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8a,5")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert [slot.name for slot in slots(None, 1, None)] == ["gpu 3", "gpu GPU-8a", "gpu 5"]
    assert [slot.name for slot in slots([2, "3"], 1, None)] == ["gpu 5", "gpu 3"]
    assert [s.environment for s in slots([0], 2, None)] == [{"CUDA_VISIBLE_DEVICES": "3"}] * 2
    assert [slot.name for slot in slots([0], 2, None)] == ["gpu 3/0", "gpu 3/1"]
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in slots(None, 1, 2)] == ["", ""]


@pytest.mark.parametrize("hidden", ["", "-1", "-1,0"])
def test_hidden_gpus_are_not_visible(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert visible_gpus() == []
    assert [slot.name for slot in slots(None, 1, None)] == ["cpu 0"]


def test_processors_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    found = [slot.environment["OMP_NUM_THREADS"] for slot in slots(None, 1, cores)]
    assert found == ["1"] * cores
    assert slots(None, 1, 1)[0].environment["OMP_NUM_THREADS"] == str(cores)


@pytest.mark.parametrize(
    ("gpus", "per_gpu", "cpu_slots", "said"),
    [
        ([2], 1, None, "gpus: 2 is not there. Visible: 0, 1"),
        (["GPU-x"], 1, None, "GPU-x is not there"),
        ([0, 0], 1, None, "names 0 twice"),
        ([], 1, None, r"gpus=\[\]"),
        (None, 0, None, "per_gpu=0"),
        ([0], 1, 2, "not both"),
        (None, 1, 0, "cpu_slots=0"),
    ],
)
def test_slots_that_are_not_there_are_refused(
    monkeypatch: pytest.MonkeyPatch, gpus: Any, per_gpu: int, cpu_slots: Any, said: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(HydraException, match=said):
        slots(gpus, per_gpu, cpu_slots)


# --- ends -----------------------------------------------------------------------------------


def test_a_job_that_dies_costs_itself_alone(apart: Launch, capsys: Any) -> None:
    def task(cfg: Any) -> Any:
        if cfg.a == 1:
            raise ValueError("one")
        if cfg.a == 2:
            os._exit(3)
        if cfg.a == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if cfg.a == 4:
            sys.exit("four")
        return cfg.a

    found = apart(task, jobs(8))
    values = outcomes(found)
    assert [values[i] for i in (0, 5, 6, 7)] == [0, 5, 6, 7]
    assert isinstance(values[1], ValueError) and str(values[1]) == "one"
    assert "exit code 3" in str(values[2])
    assert "SIGKILL" in str(values[3]) and "memory" in str(values[3])
    assert "sys.exit('four')" in str(values[4])
    assert [r.status == JobStatus.COMPLETED for r in found] == [True] + [False] * 4 + [True] * 3
    said = capsys.readouterr().out
    assert "job 3 (a=3) failed: WorkerDied: its process was killed by signal 9 (SIGKILL)" in said
    assert "4 of 8 jobs failed" in said


def test_a_failure_keeps_its_traceback(apart: Launch) -> None:
    def deep() -> None:
        raise KeyError("deep")

    def task(cfg: Any) -> None:
        deep()

    (error,) = outcomes(apart(task, jobs(1)))
    assert "in deep" in "".join(error.__notes__)


def test_what_cannot_travel_is_told_in_words(apart: Launch) -> None:
    class Unreadable(Exception):
        """Is pickled without a word, and cannot be read again."""

        def __init__(self, one: str, two: str) -> None:
            super().__init__(f"{one} and {two}")

    def task(cfg: Any) -> Any:
        if cfg.a == 0:
            raise Unreadable("this", "that")
        return (i for i in range(3))

    first, second = outcomes(apart(task, jobs(2)))
    assert "Unreadable: this and that" in str(first)
    assert "cannot be pickled" in str(second)


def test_a_silent_job_is_ended_and_one_that_logs_is_not(apart: Launch) -> None:
    def task(cfg: Any) -> Any:
        import logging

        for _ in range(8):
            time.sleep(0.5)
            if cfg.a == 1:
                logging.getLogger("app").info("at work")
        return cfg.a

    silent, talking = outcomes(apart(task, jobs(2), "hydra.launcher.timeout_s=2.5"))
    assert "no sign of life for 2.5 s" in str(silent)
    assert talking == 1


def test_fail_fast_ends_what_runs(apart: Launch) -> None:
    def task(cfg: Any) -> Any:
        if cfg.a == 0:
            raise ValueError("at once")
        time.sleep(60)

    started = time.monotonic()
    found = outcomes(apart(task, jobs(4), "hydra.launcher.fail_fast=true"))
    assert time.monotonic() - started < 20
    assert isinstance(found[0], ValueError)
    assert all("skipped" in str(one) for one in found[1:])


def test_no_job_no_process(apart: Launch) -> None:
    def task(cfg: Any) -> Any:
        return os.getpid()

    assert len({*outcomes(apart(task, jobs(1)))}) == 1  # of two slots one was needed


# --- the launcher is stopped ----------------------------------------------------------------

APP = """
import os, time, hydra
@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    (open(f"{cfg.folder}/{os.getpid()}", "w")).close()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        open(f"{cfg.folder}/{os.getpid()}.saved", "w").close()
        raise
main()
"""


@pytest.mark.parametrize(("sent", "is_in_order"), [(signal.SIGINT, True), (signal.SIGKILL, False)])
def test_no_process_outlives_the_launcher(
    tmp_path: Path, sent: signal.Signals, is_in_order: bool
) -> None:
    (tmp_path / "app.py").write_text(APP)
    folder = tmp_path / "pids"
    folder.mkdir()
    command = [
        sys.executable, "app.py", "-m", "hydra/launcher=slots", f"+folder={folder}",
        "hydra.launcher.cpu_slots=2", "+x=0,1",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as driver:
        until(lambda: len(list(folder.iterdir())) == 2)
        pids = [int(path.name) for path in folder.iterdir()]
        driver.send_signal(sent)
        driver.wait(30)
    until(lambda: not any(is_there(pid) for pid in pids))
    assert len(list(folder.glob("*.saved"))) == (2 if is_in_order else 0)


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
