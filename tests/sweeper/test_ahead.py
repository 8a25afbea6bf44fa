"""A worker that was started ahead of Hydra: it works, or it is ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from hydra_plugins.gpu_launcher import _ahead, ahead

Launch = Callable[..., Sequence[JobReturn]]

WARM = """
import logging, os, time

warm = []

def warm_up():
    warm.append(os.getpid())

def slowly():
    time.sleep(30)

def refused(jobs):
    raise ValueError("refused")

def registers():
    from omegaconf import OmegaConf
    OmegaConf.register_new_resolver("half_of", lambda text: f"{text} half")

def talks():
    for _ in range(20):
        logging.getLogger("warm").warning("still here")
        time.sleep(0.25)

def starts():
    from hydra_plugins.gpu_launcher import ahead
    ahead.start("warm.starts")
"""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No GPU, whatever this machine has; and the module `warm` is found here and in workers."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "warm.py").write_text(WARM)
    monkeypatch.syspath_prepend(tmp_path / "own")
    yield
    ahead.drop()
    sys.modules.pop("warm", None)


def started(warm_up: str = "warm.warm_up", **more: str) -> int:
    ahead.start(warm_up, more)
    process = _ahead._waiting[-1].process()
    assert process is not None
    return process.popen.pid


def is_alive(pid: int) -> bool:
    """Whether it runs: what has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_over(pid: int) -> bool:
    """Whether it has ended: what was killed just now may take a while on a busy machine."""
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_alive(pid)


def values(results: Sequence[JobReturn]) -> list[Any]:
    return [result._return_value for result in results]


def warmed(cfg: Any) -> tuple[int, list[int]]:
    import warm  # type: ignore[import-not-found]

    return os.getpid(), warm.warm


def test_the_launcher_takes_the_worker_that_it_would_have_started(launch: Launch) -> None:
    pid = started("warm.warm_up")
    settings = ("hydra.launcher.warm_up=warm.warm_up", "hydra.launcher.cpu_slots=1")
    found = values(launch(warmed, [["a=1"], ["a=2"]], *settings, launcher="slots"))
    assert found == [(pid, [pid])] * 2
    assert is_over(pid) and not _ahead._waiting


@pytest.mark.parametrize(
    ("launcher", "settings"),
    [
        ("slots", ["hydra.launcher.cpu_slots=1", "hydra.launcher.warm_up=warm.slowly"]),
        ("slots", ["hydra.launcher.gpus=['0']"]),
        ("slots_inline", []),
    ],
)
def test_one_that_is_not_the_same_is_ended_before_any_job_runs(
    launch: Launch, launcher: str, settings: list[str]
) -> None:
    pid = started("warm.warm_up")
    seen = []
    if launcher == "slots":
        settings = [*settings, "hydra.launcher.prepare=warm.refused"]
        with pytest.raises(ValueError, match="refused"):
            launch(warmed, [["a=1"]], *settings, launcher=launcher)
    else:
        launch(lambda cfg: seen.append(is_over(pid)), [["a=1"]], *settings, launcher=launcher)
        assert seen == [True]
    assert is_over(pid)


WARM_UP = "hydra.launcher.warm_up=warm.warm_up"


@pytest.mark.parametrize("what", ["environment", "folder"])
def test_another_environment_or_folder_is_another_worker(
    launch: Launch, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = started(**({"SOME_SETTING": "1"} if what == "environment" else {}))
    if what == "folder":
        monkeypatch.chdir(tmp_path)
    found = values(
        launch(lambda cfg: (os.getpid(), os.getcwd()), [["a=1"]], WARM_UP, launcher="slots")
    )
    assert found[0][0] != pid and found[0][1] == os.getcwd() and is_over(pid)


def test_with_gpus_it_is_the_worker_of_the_first(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8a,3")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pid = started()

    def task(cfg: Any) -> tuple[int, str]:
        (tmp_path / f"{cfg.a}.began").touch()
        deadline = time.monotonic() + 60  # or one slot may have both before the other is ready
        while len(list(tmp_path.glob("*.began"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]

    found = values(launch(task, [["a=1"], ["a=2"]], WARM_UP, launcher="slots"))
    assert (pid, "GPU-8a") in found and {device for _, device in found} == {"GPU-8a", "3"}


def test_what_registers_something_while_it_warms_up_is_left_as_it_is(launch: Launch) -> None:
    """By a worker that was not started ahead, that is."""

    def task(cfg: Any) -> str:
        return str(OmegaConf.create({"b": "${half_of:a}"}).b)

    setting = "hydra.launcher.warm_up=warm.registers"
    assert values(launch(task, [["a=1"]], setting, launcher="slots")) == ["a half"]


def test_a_warm_up_that_logs_is_alive(launch: Launch) -> None:
    settings = ["hydra.launcher.warm_up=warm.talks", "hydra.launcher.timeout_s=4.5"]
    ahead.start("warm.talks")
    assert values(launch(lambda cfg: cfg.a, [["a=1"]], *settings, launcher="slots")) == [1]


def test_a_worker_starts_none(launch: Launch) -> None:
    """An application may start one wherever it is imported: in the worker, too."""
    pid = started("warm.starts")
    setting = "hydra.launcher.warm_up=warm.starts"

    def task(cfg: Any) -> tuple[int, int]:
        from hydra_plugins.gpu_launcher import _ahead as own

        return os.getpid(), len(own._waiting)

    assert values(launch(task, [["a=1"]], setting, launcher="slots")) == [(pid, 0)]


def test_who_ends_early_does_not_wait_until_gpus_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nsleep 5\necho 0\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    ahead.start("warm.warm_up")
    (one,) = _ahead._waiting
    time.sleep(0.3)
    began = time.monotonic()
    ahead.drop()
    assert time.monotonic() - began < 4
    assert one.process() is None  # nor is it started then


def test_one_that_has_died_meanwhile_is_replaced(launch: Launch, capfd: Any) -> None:
    pid = started()
    os.kill(pid, signal.SIGKILL)
    assert is_over(pid)
    found = values(launch(lambda cfg: os.getpid(), [["a=1"]], WARM_UP, launcher="slots"))
    assert len(found) == 1 and found != [pid]
    assert "died" not in capfd.readouterr().err


def test_who_plans_does_not_wait_for_a_worker_that_warms_up(launch: Launch) -> None:
    started("warm.slowly")
    large = os.urandom(4_000_000)  # more than a pipe holds
    settings = ["warm_up=warm.slowly", "prepare=warm.refused", "cpu_slots=1"]
    began = time.monotonic()
    with pytest.raises(ValueError, match="refused"):
        launch(
            lambda cfg: len(large), [["a=1"]],
            *(f"hydra.launcher.{one}" for one in settings), launcher="slots",
        )  # fmt: skip
    assert time.monotonic() - began < 20


END = """
import os, sys
from hydra_plugins.gpu_launcher import _ahead, ahead
ahead.start("warm.slowly")
print(_ahead._waiting[0].process().popen.pid, flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("how", ["ended", "killed"])
def test_nothing_is_left_of_a_command_that_launches_nothing(how: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", END, how], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "own")},
    )  # fmt: skip
    assert done.stderr == ""
    assert is_over(int(done.stdout))
