"""Worker processes: each with a device of its own, each job on its own feet, none left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException

from hydra_plugins.gpu_launcher._slots import slots, visible_gpus

Launch = Callable[..., Sequence[JobReturn]]


@pytest.fixture
def apart(launch: Launch) -> Launch:
    """`launch` on two slots without a GPU, unless the settings say other."""

    def run(task: Callable[[Any], Any], jobs: Any, *settings: str, **options: Any) -> Any:
        says = any("gpus" in one or "cpu_slots" in one for one in settings)
        where = [] if says else ["hydra.launcher.cpu_slots=2"]
        return launch(task, jobs, *where, *settings, launcher="slots", **options)

    return run


def jobs(count: int) -> list[list[str]]:
    return [[f"a={i}"] for i in range(count)]


def outcomes(results: Sequence[JobReturn]) -> list[Any]:
    return [result._return_value for result in results]


# --- devices --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("per_gpu", "at_once"), [(1, 1), (2, 2)])
def test_devices_are_shared_by_as_many_jobs_as_asked_and_share_the_load(
    apart: Launch, tmp_path: Path, per_gpu: int, at_once: int
) -> None:
    def task(cfg: Any) -> int:
        device = os.environ["CUDA_VISIBLE_DEVICES"]
        (tmp_path / f"{cfg.a}.began").write_text(f"{device} {time.time()}")
        time.sleep(0.4 if cfg.a % 4 == 0 else 0.2)
        (tmp_path / f"{cfg.a}.ended").write_text(f"{device} {time.time()}")
        return os.getpid()

    devices = "hydra.launcher.gpus=[0,1,2,3]"
    found = outcomes(apart(task, jobs(32), devices, f"hydra.launcher.per_gpu={per_gpu}"))
    assert len({*found}) == 4 * per_gpu  # workers stay for the next job
    changes: dict[str, list[tuple[float, int]]] = {}
    for kind, change in {"began": 1, "ended": -1}.items():
        for path in tmp_path.glob(f"*.{kind}"):
            device, at = path.read_text().split()
            changes.setdefault(device, []).append((float(at), change))
    assert sorted(changes) == ["0", "1", "2", "3"]
    assert sum(map(len, changes.values())) == 64
    for own in changes.values():
        running = list(accumulate(change for _, change in sorted(own)))
        assert min(running) == 0 and max(running) == at_once
        assert 4 <= len(own) // 2 <= 12  # of 32 jobs, 8 if all were equally fast


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
        ([0, "0"], 1, None, "names 0 twice"),
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
        try:
            deep()
        except KeyError as error:
            raise ValueError("shallow") from error

    (error,) = outcomes(apart(task, jobs(1)))
    frames = traceback.extract_tb(error.__cause__.__traceback__)
    assert [frame.name for frame in frames] == ["task", "deep"]
    assert frames[1].line == 'raise KeyError("deep")'
    assert "in task" in "".join(traceback.format_exception(error))


def test_what_cannot_travel_is_told_in_words(apart: Launch) -> None:
    class Locked(Exception):
        def __init__(self) -> None:
            super().__init__("holds a lock")
            self.lock = threading.Lock()

    class Unreadable(Exception):
        """Alone, it could be pickled, and not be read again."""

        def __init__(self, one: str, two: str) -> None:
            super().__init__(f"{one} and {two}")

    def task(cfg: Any) -> Any:
        if cfg.a == 0:
            raise Locked
        if cfg.a == 1:
            raise Unreadable("this", "that")
        return (i for i in range(3))

    first, second, third = outcomes(apart(task, jobs(3)))
    assert "Locked: holds a lock" in str(first)
    assert "in task" in "".join(first.__notes__)
    assert (type(second).__name__, str(second)) == ("Unreadable", "this and that")
    assert "cannot be pickled" in str(third)


def test_a_silent_job_is_ended_and_one_that_logs_or_tells_is_not(apart: Launch) -> None:
    def task(cfg: Any) -> int:
        import logging

        from hydra_plugins.gpu_launcher import progress

        for step in range(8):
            time.sleep(0.5)
            if cfg.a == 1:
                logging.getLogger("app").info("at work")
            if cfg.a == 2:
                progress.tell(2, step / 8)
        return int(cfg.a)

    settings = ("hydra.launcher.timeout_s=2.5", "hydra.launcher.cpu_slots=3")
    silent, logging, telling = outcomes(apart(task, jobs(3), *settings))
    assert "no sign of life for 2.5 s" in str(silent)
    assert (logging, telling) == (1, 2)


@pytest.mark.slow
def test_a_worker_that_was_told_to_stop_gets_no_other_job(apart: Launch) -> None:
    def task(cfg: Any) -> Any:
        if cfg.a == 1:
            os._exit(3)
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            return os.getpid()

    settings = ("hydra.launcher.timeout_s=3", "hydra.launcher.cpu_slots=1")
    first, second = outcomes(apart(task, jobs(2), *settings))
    assert isinstance(first, int) and not is_there(first)
    assert "exit code 3" in str(second)


def test_what_a_job_does_to_its_process_is_what_it_would_do_elsewhere(
    apart: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its children can be interrupted, its end is heard, and it may go where it likes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "away").mkdir()
    sleeper = "import time; print(flush=True); time.sleep(20)"

    def task(cfg: Any) -> Any:
        import atexit

        child = subprocess.Popen([sys.executable, "-c", sleeper], stdout=-1, stderr=-3)
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        atexit.register((tmp_path / f"{cfg.a}.ended").touch)
        os.chdir(tmp_path / "away")
        return child.wait()

    settings = ("hydra.launcher.cpu_slots=1", "hydra.sweep.dir=here")
    assert outcomes(apart(task, jobs(2), *settings)) == [-signal.SIGINT] * 2
    assert sorted(path.name for path in tmp_path.glob("*.ended")) == ["0.ended", "1.ended"]
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["0", "1"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_no_job_no_process(apart: Launch) -> None:
    def task(cfg: Any) -> Any:
        return os.getpid()

    assert len({*outcomes(apart(task, jobs(1)))}) == 1  # of two slots one was needed


# --- before the first job ---------------------------------------------------------------------

APPLICATION = """
import os

warm = []

def warm_up():
    warm.append(os.getpid())

def warm_up_in_vain():
    raise ImportError("not here")

def get_ready(config):
    warm.append((os.getpid(), config.a, config.hydra.job.num))

def get_ready_in_vain(config):
    raise ImportError("not here")

def prepare(jobs):
    from hydra_plugins.gpu_launcher.plan import Plan, slot_names  # found anew, after Hydra's look
    return Plan(done={0: slot_names(), 2: None})

def interrupted(jobs):
    raise KeyboardInterrupt
"""


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that is found here and in the workers."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "some_application.py").write_text(APPLICATION)
    monkeypatch.syspath_prepend(tmp_path / "own")
    yield "some_application"
    sys.modules.pop("some_application", None)


@pytest.mark.slow
def test_a_worker_warms_up_once_before_its_first_job(apart: Launch, application: str) -> None:
    def task(cfg: Any) -> bool:
        import some_application  # type: ignore[import-not-found]

        return bool(some_application.warm == [os.getpid()])

    setting = f"hydra.launcher.warm_up={application}.warm_up"
    assert outcomes(apart(task, jobs(4), setting)) == [True] * 4


def test_a_worker_gets_ready_for_the_first_job(apart: Launch, application: str) -> None:
    def task(cfg: Any) -> Any:
        import some_application

        return os.getpid(), some_application.warm

    setting = f"hydra.launcher.get_ready={application}.get_ready"
    for pid, ready in outcomes(apart(task, jobs(4), setting)):
        assert ready == [(pid, 0, 0)]  # once, whichever job it then got


@pytest.mark.slow
def test_getting_ready_in_vain_costs_no_job(apart: Launch, application: str) -> None:
    for name in ("get_ready_in_vain", "nothing"):
        setting = f"hydra.launcher.get_ready={application}.{name}"
        assert outcomes(apart(lambda cfg: cfg.a, jobs(2), setting)) == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{}.warm_up_in_vain", ""),
        ("{}.nothing", "AttributeError: module '{}' has no attribute 'nothing'"),
        ("__main__.warm_up", "a worker cannot import the script"),
    ],
)
def test_warming_up_in_vain_costs_no_job(
    apart: Launch, application: str, capsys: Any, name: str, said: str
) -> None:
    setting = f"hydra.launcher.warm_up={name.format(application)}"
    assert outcomes(apart(lambda cfg: cfg.a, jobs(2), setting)) == [0, 1]
    error = capsys.readouterr().err
    assert (f"{setting} is not called: {said.format(application)}" in error) == bool(said)


@pytest.mark.slow
def test_prepared_jobs_that_are_done_are_not_run(apart: Launch, application: str) -> None:
    setting = f"hydra.launcher.prepare={application}.prepare"
    found = apart(lambda cfg: cfg.a, jobs(4), setting)
    assert outcomes(found) == [("cpu 0", "cpu 1"), 1, None, 3]
    assert all(one.status == JobStatus.COMPLETED for one in found)


def test_ctrl_c_while_jobs_are_prepared_leaves_no_process(apart: Launch, application: str) -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        apart(lambda cfg: cfg.a, jobs(4), f"hydra.launcher.prepare={application}.interrupted")
    assert time.monotonic() - began < 8  # nobody waits until the workers have started
    assert not children()


def test_what_an_application_imports_is_what_the_launcher_uses() -> None:
    """Hydra executes a plugin's files when it looks for plugins, also those that are there."""
    from hydra_plugins.gpu_launcher import ends, plan, progress

    before = ends.TimedOut, plan.Plan, progress.tell
    Plugins.instance()._initialize()
    from hydra_plugins.gpu_launcher import ends, plan, progress

    assert (ends.TimedOut, plan.Plan, progress.tell) == before


# --- what a job says --------------------------------------------------------------------------


@pytest.mark.slow
def test_whatever_a_job_prints_costs_no_job(apart: Launch, capsys: Any) -> None:
    def task(cfg: Any) -> int:
        if cfg.a == 0:
            sys.stdout.write("x" * 3_000_000 + "\r" + "y" * 100_000)
        if cfg.a == 1:
            os.write(1, bytes(range(256)) * 1000)
        if cfg.a == 2:
            sys.stdout.close()
            os.close(1)
        if cfg.a == 3:
            for step in range(1000):
                print(f"\r{step} of 1000", end="", file=sys.stderr)
        if cfg.a == 4:
            print("[red]not red[/]", "\x1b[31mred\x1b[0m", "é漢😀", "first\nsecond")
        return int(cfg.a)

    for num in range(5):
        (value,) = outcomes(apart(task, [[f"a={num}"]], "hydra.launcher.cpu_slots=1"))
        assert value == num
        found = capsys.readouterr()
        if num == 3:
            assert "999 of 1000\n" in found.err and "998 of 1000" not in found.err
        if num == 4:
            assert "[red]not red[/] \x1b[31mred\x1b[0m é漢😀 first\nsecond\n" in found.out
        assert max(map(len, found.out.split("\n"))) <= (1 << 17)


def test_what_several_jobs_print_says_where_it_comes_from(apart: Launch, capsys: Any) -> None:
    apart(lambda cfg: print("number", cfg.a), jobs(4))
    lines = [line for line in capsys.readouterr().out.splitlines() if "number" in line]
    assert sorted(line.split("] ")[1] for line in lines) == [f"number {num}" for num in range(4)]
    assert {line.split("]")[0] for line in lines} <= {"[cpu 0", "[cpu 1"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["in its session", "in a session of its own"])
def test_what_a_job_has_started_does_not_keep_the_launcher(apart: Launch, how: str) -> None:
    def task(cfg: Any) -> int:
        endless = [sys.executable, "-c", "while True: print('y' * 1000)"]
        child = subprocess.Popen(endless, start_new_session=how != "in its session")
        if cfg.a == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return child.pid

    began = time.monotonic()
    first, second = outcomes(apart(task, jobs(2), "hydra.launcher.cpu_slots=1"))
    if how != "in its session":
        os.kill(first, signal.SIGKILL)
    assert "SIGKILL" in str(second)
    assert time.monotonic() - began < 15
    until(lambda: not is_there(first))


@pytest.mark.slow
def test_the_end_of_a_process_is_noticed_though_a_fork_of_it_lives(apart: Launch) -> None:
    def task(cfg: Any) -> None:
        from hydra_plugins.gpu_launcher import progress

        if os.fork() == 0:
            for _ in range(300):  # what a fork says is nobody's sign of life
                progress.tell(None, 0.5)
                time.sleep(0.1)
            os._exit(0)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    began = time.monotonic()
    (error,) = outcomes(apart(task, jobs(1)))
    assert "SIGKILL" in str(error)
    assert time.monotonic() - began < 8


def test_a_result_that_only_the_worker_can_read_is_told_in_words(
    apart: Launch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far_away.py").write_text("class Value: pass\n")
    folder = str(tmp_path / "elsewhere")

    def task(cfg: Any) -> Any:
        sys.path.insert(0, folder)
        import far_away  # type: ignore[import-not-found]

        return far_away.Value() if cfg.a else 0

    first, second = outcomes(apart(task, jobs(2)))
    assert first == 0
    assert "its result cannot be read here (ModuleNotFoundError" in str(second)


def test_an_application_that_cannot_travel_is_said_before_any_job(apart: Launch) -> None:
    lock = threading.Lock()
    with pytest.raises(HydraException, match="cannot be sent to a worker process: TypeError"):
        apart(lambda cfg: lock, jobs(1))


@pytest.mark.slow
def test_too_few_open_files_are_said_and_cost_no_job(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import resource, hydra\n@hydra.main(version_base='1.3', config_path=None)\n"
        "def main(cfg):\n    print('job', cfg.x)\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (24, hard))\nmain()\n"
    )
    settings = ["hydra/launcher=slots", "hydra.launcher.cpu_slots=8", "+x=range(8)"]
    command = [sys.executable, "app.py", "-m", *settings]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    printed = [line[-5:] for line in done.stdout.splitlines() if line.startswith("[cpu")]
    assert sorted(printed) == [f"job {x}" for x in range(8)]
    assert "Too many open files" in done.stdout


# --- several launches -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_launcher_can_be_asked_again(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import hydra\n@hydra.main(version_base='1.3', config_path=None)\n"
        "def main(cfg):\n    print('job', cfg.x)\nmain()\n"
    )
    settings = ["hydra/launcher=slots", "hydra.launcher.cpu_slots=2", "+x=0,1,2,3,4"]
    command = [sys.executable, "app.py", "-m", *settings, "hydra.sweeper.max_batch_size=2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    printed = [line[-5:] for line in done.stdout.splitlines() if line.startswith("[cpu")]
    assert sorted(printed) == [f"job {x}" for x in range(5)]
    folders = [path.name for path in tmp_path.glob("multirun/*/*/*") if path.is_dir()]
    assert sorted(folders) == list("01234")


@pytest.mark.slow
def test_ten_thousand_jobs_take_no_memory(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import resource, hydra\n@hydra.main(version_base='1.3', config_path=None)\n"
        "def main(cfg):\n    return cfg.x\nmain()\n"
        "print('MB', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    used = []
    for count in (100, 10_000):
        settings = ["hydra/launcher=slots", f"+x=range({count})", "hydra.output_subdir=null"]
        command = [sys.executable, "app.py", "-m", *settings, "hydra.launcher.cpu_slots=2"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        used.append(int(done.stdout.split("MB")[1]))
    assert used[1] - used[0] < 150


# --- the launcher is stopped ----------------------------------------------------------------

APP = """
import os, subprocess, time, hydra
@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    for pid in (subprocess.Popen(["sleep", "60"]).pid, os.getpid()):
        (open(f"{cfg.folder}/{pid}", "w")).close()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        open(f"{cfg.folder}/{os.getpid()}.saved", "w").close()
        raise
main()
"""


UNWINDS = """
import signal
class Terminated(BaseException): pass
def unwind(number, frame): raise Terminated
signal.signal(signal.SIGTERM, unwind)
"""


@pytest.mark.parametrize(("sent", "is_in_order"), [(signal.SIGINT, True), (signal.SIGKILL, False)])
def test_no_process_outlives_the_launcher(
    tmp_path: Path, sent: signal.Signals, is_in_order: bool
) -> None:
    driver, folder, pids = started(tmp_path)
    with driver:
        driver.send_signal(sent)
        driver.wait(30)
    until(lambda: not any(is_there(pid) for pid in pids))
    assert len(list(folder.glob("*.saved"))) == (2 if is_in_order else 0)


@pytest.mark.slow
def test_what_jobs_have_left_running_ends_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    """In a worker that works, and in one that waits for its next job."""
    is_first = "    if cfg.x == 0: return\n    try:"
    driver, _, pids = started(tmp_path, APP.replace("    try:", is_first))
    with driver:
        time.sleep(1)
        driver.kill()
    until(lambda: not any(is_there(pid) for pid in pids))


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    driver, _, pids = started(tmp_path, APP.replace("raise\n", "time.sleep(60)\n"))
    with driver:
        driver.send_signal(signal.SIGINT)
        time.sleep(1)
        assert driver.poll() is None  # the jobs are given time to save what they have
        began = time.monotonic()
        driver.send_signal(signal.SIGINT)
        driver.wait(30)
        assert time.monotonic() - began < 5
    until(lambda: not any(is_there(pid) for pid in pids))


@pytest.mark.slow
def test_an_application_that_unwinds_at_a_signal_leaves_no_process(tmp_path: Path) -> None:
    driver, folder, pids = started(tmp_path, UNWINDS + APP)
    with driver:
        driver.send_signal(signal.SIGTERM)
        driver.wait(30)
    until(lambda: not any(is_there(pid) for pid in pids))
    assert len(list(folder.glob("*.saved"))) == 2


def started(tmp_path: Path, app: str = APP) -> tuple["subprocess.Popen[bytes]", Path, list[int]]:
    """(a launcher with two running jobs, their folder, their processes and what they started)"""
    (tmp_path / "app.py").write_text(app)
    folder = tmp_path / "pids"
    folder.mkdir()
    command = [
        sys.executable, "app.py", "-m", "hydra/launcher=slots", f"+folder={folder}",
        "hydra.launcher.cpu_slots=2", "+x=0,1",
    ]  # fmt: skip
    driver = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    until(lambda: len(list(folder.iterdir())) == 4)
    return driver, folder, [int(path.name) for path in folder.iterdir()]


def children() -> list[str]:
    """Worker processes of this one."""
    mine = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in mine if b"_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


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
