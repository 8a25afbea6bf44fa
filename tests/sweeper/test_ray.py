"""A Ray cluster: the same jobs, whatever becomes of actors and nodes; files come home."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException

from hydra_plugins.gpu_launcher import _ray_host, _ray_slot, progress
from hydra_plugins.gpu_launcher._ray_files import (
    PIECE,
    File,
    Unsafe,
    changed,
    fetched,
    landing_place,
    read,
)
from hydra_plugins.gpu_launcher._ray_room import Share
from hydra_plugins.gpu_launcher._view import View

pytest.importorskip("ray")

Launch = Callable[..., Sequence[JobReturn]]


@pytest.fixture
def far(launch: Launch, ray_cluster: None) -> Launch:
    """`launch` on two slots, unless the settings say other."""

    def run(task: Callable[[Any], Any], jobs: Any, *settings: str, **options: Any) -> Any:
        two = "hydra.launcher.slots=2"
        return launch(task, jobs, two, *settings, launcher="slots_ray", **options)

    return run


def jobs(count: int) -> list[list[str]]:
    return [[f"a={i}"] for i in range(count)]


def outcomes(results: Sequence[JobReturn]) -> list[Any]:
    return [result._return_value for result in results]


# --- devices --------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_job_has_one_device_to_itself(far: Launch) -> None:
    def task(cfg: Any) -> Any:
        started = time.time()
        time.sleep(0.2)
        return os.environ["CUDA_VISIBLE_DEVICES"], started, time.time(), os.getpid()

    found = outcomes(far(task, jobs(16), "hydra.launcher.slots=null"))
    assert {device for device, *_ in found} <= set("0123")
    by_device = {d: sorted(one[1:3] for one in found if one[0] == d) for d in "0123"}
    for times in by_device.values():
        assert all(end <= start for (_, end), (start, _) in pairwise(times))
    # Workers stay for the next job.
    assert len({pid for *_, pid in found}) <= 4


@pytest.mark.slow
def test_a_slot_without_a_gpu_sees_none(far: Launch) -> None:
    def task(cfg: Any) -> Any:
        return os.environ["CUDA_VISIBLE_DEVICES"], progress.slot()

    (found,) = outcomes(far(task, jobs(1), "hydra.launcher.num_gpus=0"))
    assert found == ("", "ray 0")


@pytest.mark.parametrize(
    ("gpus", "cpus", "there", "count"),
    [
        (1, 1, {"GPU": 4, "CPU": 16}, 4),
        (1, 8, {"GPU": 4, "CPU": 16}, 2),
        (0.5, 1, {"GPU": 2, "CPU": 16}, 4),
        (0.1, 0, {"GPU": 1}, 10),
        (0.4, 1, {"GPU": 3, "CPU": 16}, 6),
        (2, 1, {"GPU": 3, "CPU": 16}, 1),
        (0, 0.5, {"CPU": 2}, 4),
        (1, 1, {"CPU": 2}, 0),
    ],
)
def test_slots_that_fit_on_a_node(
    gpus: float, cpus: float, there: dict[str, float], count: int
) -> None:
    assert Share(gpus, cpus).places(there) == count


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("slots=0", "hydra.launcher.slots=0: at least one"),
        ("num_gpus=5", "hydra.launcher.num_gpus=5, but no node of the Ray cluster has more than 4"),
        ("num_cpus=99", "hydra.launcher.num_cpus=99, but no node"),
        ("num_gpus=1.5", "hydra.launcher.num_gpus=1.5: 0 to 1, or a whole number"),
        ("timeout_s=0", "hydra.launcher.timeout_s=0"),
        ("address=auto", "connected to a Ray cluster already"),
    ],
)
def test_what_cannot_be_had_is_refused(far: Launch, setting: str, said: str) -> None:
    with pytest.raises(HydraException, match=said):
        far(lambda cfg: None, jobs(1), f"hydra.launcher.{setting}")


def test_without_ray_it_says_what_to_install(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HydraException, match=r"pip install graft-sweeps\[ray\]"):
        launch(lambda cfg: None, jobs(1), launcher="slots_ray")


# --- ends -----------------------------------------------------------------------------------


def test_a_job_that_dies_costs_itself_alone(far: Launch, capsys: Any) -> None:
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

    found = far(task, jobs(8))
    values = outcomes(found)
    assert [values[i] for i in (0, 5, 6, 7)] == [0, 5, 6, 7]
    assert isinstance(values[1], ValueError) and str(values[1]) == "one"
    assert "task" in {frame.name for frame in traceback.extract_tb(values[1].__traceback__)}
    assert "exit code 3" in str(values[2])
    assert "SIGKILL" in str(values[3]) and "memory" in str(values[3])
    assert "sys.exit('four')" in str(values[4])
    assert [r.status == JobStatus.COMPLETED for r in found] == [True] + [False] * 4 + [True] * 3
    said = capsys.readouterr().out
    assert "job 3 (a=3) failed: WorkerDied: its process was killed by signal 9 (SIGKILL)" in said
    assert "4 of 8 jobs failed" in said


@pytest.mark.slow
def test_an_actor_that_is_killed_costs_a_retry(far: Launch, tmp_path: Path, capfd: Any) -> None:
    def task(cfg: Any) -> Any:
        been = tmp_path / f"been {cfg.a}"
        if cfg.a == 1 and not been.exists():
            been.touch()
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        return cfg.a

    assert outcomes(far(task, jobs(4), "hydra.launcher.max_retries=1")) == [0, 1, 2, 3]
    out, error = capfd.readouterr()
    assert "job 1 (a=1) failed; tried again (1 of 1): WorkerDied: the actor" in out
    assert "raylet" not in out + error


@pytest.mark.slow
def test_a_worker_that_dies_while_idle_costs_nothing(far: Launch, tmp_path: Path) -> None:
    def task(cfg: Any) -> str:
        been = tmp_path / "been"
        if been.exists():
            return "fine"
        been.touch()
        threading.Timer(0.2, os._exit, [4]).start()  # while the retry waits
        raise ValueError("once")

    settings = ["hydra.launcher.slots=1", "hydra.launcher.max_retries=1"]
    assert outcomes(far(task, jobs(1), *settings)) == ["fine"]


@pytest.mark.slow
def test_what_cannot_travel_is_told_in_words(far: Launch) -> None:
    (error,) = outcomes(far(lambda cfg: (i for i in range(3)), jobs(1)))
    assert "cannot be pickled" in str(error)


@pytest.mark.slow
def test_a_silent_job_is_ended_and_one_that_logs_is_not(
    far: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def task(cfg: Any) -> Any:
        for step in range(8):
            time.sleep(0.5)
            if cfg.a == 1:
                progress.tell(None, step / 8, "at work")
        return cfg.a

    told: list[str] = []
    monkeypatch.setattr(View, "told", lambda self, num, share, text, array: told.append(text))
    silent, talking = outcomes(far(task, jobs(2), "hydra.launcher.timeout_s=2.5"))
    assert "no sign of life for 2.5 s" in str(silent)
    assert talking == 1
    assert len(told) == 8 and set(told) == {"at work"}


@pytest.mark.slow
def test_what_jobs_print_is_seen_once_with_its_slot(
    far: Launch, tmp_path: Path, capfd: Any
) -> None:
    def task(cfg: Any) -> None:
        print(f"hello from {cfg.a}")
        print(f"trouble in {cfg.a}", file=sys.stderr)
        (tmp_path / f"{cfg.a}.began").touch()
        deadline = time.monotonic() + 60  # or one slot may have both before the other is ready
        while len(list(tmp_path.glob("*.began"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)

    far(task, jobs(2))
    out, error = capfd.readouterr()
    slots = dict(re.findall(r"\[ray ([01])] hello from ([01])", out))
    assert len(slots) == 2 and out.count("hello") == 2
    assert error.count("trouble in 0") == error.count("trouble in 1") == 1
    assert "raylet" not in out + error and "pid=" not in out + error


@pytest.mark.slow
def test_fail_fast_ends_what_runs_in_order(far: Launch, tmp_path: Path) -> None:
    def task(cfg: Any) -> Any:
        if cfg.a == 0:
            time.sleep(1)
            raise ValueError("at once")
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            (tmp_path / f"saved {cfg.a}").touch()
            raise

    started = time.monotonic()
    found = outcomes(far(task, jobs(4), "hydra.launcher.fail_fast=true"))
    assert time.monotonic() - started < 20
    assert isinstance(found[0], ValueError)
    assert all("skipped" in str(one) for one in found[1:])
    assert [path.name for path in tmp_path.glob("saved*")] == ["saved 1"]


@pytest.mark.slow
def test_slots_that_never_get_ready_end_the_launch(
    far: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ray_slot, "RESTS_S", (0.1,))
    settings = ["hydra.launcher.warm_up=os.abort", "hydra.launcher.slots=1"]
    (error,) = outcomes(far(lambda cfg: None, jobs(1), *settings))
    assert "no worker gets ready: its process was ended by signal 6 (SIGABRT)" in str(error)


@pytest.mark.slow
def test_a_slot_waits_for_what_others_use(far: Launch) -> None:
    import ray

    class Other:
        def holds(self) -> bool:
            return True

    other: Any = ray.remote(num_gpus=4)(Other).remote()
    assert ray.get(other.holds.remote())
    threading.Timer(2, ray.kill, [other]).start()
    started = time.monotonic()
    assert outcomes(far(lambda cfg: cfg.a, jobs(2))) == [0, 1]
    assert time.monotonic() - started > 2


# --- the launcher is stopped ----------------------------------------------------------------

APP = """
import os, time, hydra
@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    (open(f"{cfg.folder}/{os.getpid()}", "w")).close()
    (open(f"{cfg.folder}/{os.getppid()}", "w")).close()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        open(f"{cfg.folder}/{os.getpid()}.saved", "w").close()
        raise
main()
"""


class Cluster:
    """Three nodes with a processor each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        # Names of sockets must be short; pytest's folders are not.
        self._folder = tempfile.mkdtemp(prefix="ray-")
        os.environ["RAY_TMPDIR"] = self._folder
        Path(self._folder, "ray").mkdir()
        small = {"num_cpus": 1, "object_store_memory": 80 << 20}
        head = {**small, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._cluster.add_node(**small) for _ in range(2)]
        self.address = str(self._cluster.address)

    def lose_one(self) -> None:
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()
        del os.environ["RAY_TMPDIR"]
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture
def short_folder() -> Iterator[str]:
    """For a cluster whose launcher is killed, and cannot remove its own."""
    folder = tempfile.mkdtemp(prefix="ray-")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


def driver(folder: Path, app: str, *arguments: str) -> "subprocess.Popen[str]":
    (folder / "app.py").write_text(app)
    command = [sys.executable, "app.py", "-m", "hydra/launcher=slots_ray", *arguments]
    out, error = subprocess.PIPE, subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=out, stderr=error, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("is_own", [True, False])
@pytest.mark.parametrize(("sent", "is_in_order"), [(signal.SIGINT, True), (signal.SIGKILL, False)])
def test_no_process_outlives_the_launcher(
    tmp_path: Path, short_folder: str, nodes: Cluster, sent: signal.Signals,
    is_in_order: bool, is_own: bool,
) -> None:  # fmt: skip
    folder = tmp_path / "pids"
    folder.mkdir()
    own = f"hydra.launcher.init={{num_cpus: 2, _temp_dir: {short_folder}}}"
    where = own if is_own else f"hydra.launcher.address={nodes.address}"
    with driver(tmp_path, APP, f"+folder={folder}", "hydra.launcher.slots=2", where, "+x=0,1") as d:
        until(lambda: len(list(folder.iterdir())) == 4)
        pids = [int(path.name) for path in folder.iterdir()]
        d.send_signal(sent)
        d.communicate(timeout=30)
    until(lambda: not any(is_there(pid) for pid in pids))
    assert len(list(folder.glob("*.saved"))) == (2 if is_in_order else 0)


def until(is_so: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("address", ["auto", "127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_said_soon(tmp_path: Path, address: str) -> None:
    with driver(tmp_path, APP, f"hydra.launcher.address={address}", "+x=0") as d:
        _, error = d.communicate(timeout=60)
    assert f"hydra.launcher.address={address} cannot be used" in error


SLOW_APP = """
import os, time, hydra
@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    open(f"{cfg.folder}/{cfg.x} on {os.environ['RAY_RAYLET_PID']}", "w").close()
    time.sleep(2)
    return cfg.x
main()
"""


@pytest.mark.slow
def test_a_node_that_is_lost_costs_a_retry_and_nothing_else(tmp_path: Path, nodes: Cluster) -> None:
    folder = tmp_path / "ran"
    folder.mkdir()
    settings = [f"hydra.launcher.address={nodes.address}", "hydra.launcher.max_retries=1"]
    with driver(tmp_path, SLOW_APP, f"+folder={folder}", *settings, "+x=range(6)") as d:
        until(lambda: len(list(folder.iterdir())) >= 3)
        nodes.lose_one()
        out, error = d.communicate(timeout=90)
    assert d.returncode == 0, out + error
    assert out.count("failed; tried again (1 of 1): WorkerDied: its node was lost") == 1
    ran = [path.name.split()[0] for path in folder.iterdir()]
    assert {*ran} == set("012345") and len(ran) == 7
    assert "raylet" not in out + error


# --- files ----------------------------------------------------------------------------------

FILES_APP = """
import logging, os, pathlib, hydra
from hydra.core.hydra_config import HydraConfig
@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    logging.getLogger("app").info("at work on %s", cfg.x)
    folder = pathlib.Path(HydraConfig.get().runtime.output_dir)
    (folder / "deep").mkdir()
    (folder / "deep" / "numbers").write_bytes(bytes(range(256)) * cfg.size)
    (folder / "link").symlink_to("/etc/passwd")
    (folder.parent / f"beside {cfg.x}").write_text(os.getcwd())
    if cfg.x == 1:
        os._exit(3)
main()
"""


@pytest.mark.slow
def test_what_jobs_wrote_elsewhere_is_brought_home(tmp_path: Path, nodes: Cluster) -> None:
    # Slots with a working directory of their own see nothing of the sweep's folder, which is a
    # relative path, as if the node had another file system.
    (tmp_path / "code").mkdir()
    size = 2 * PIECE // 256 + 1
    settings = [
        f"hydra.launcher.address={nodes.address}", "hydra.sweep.dir=out", f"+size={size}",
        f"+hydra.launcher.runtime_env.working_dir={tmp_path / 'code'}", "+x=0,1",
    ]  # fmt: skip
    with driver(tmp_path, FILES_APP, *settings) as d:
        out, error = d.communicate(timeout=90)
    assert "exit code 3" in out, out + error
    home = tmp_path / "out"
    for x in (0, 1):
        assert "at work" in (home / f"{x}" / "app.log").read_text()
        assert (home / f"{x}" / "deep" / "numbers").read_bytes() == bytes(range(256)) * size
        assert (home / f"{x}" / ".hydra" / "config.yaml").is_file()
        assert (home / f"beside {x}").read_text() != str(tmp_path)
        assert not (home / f"{x}" / "link").is_symlink()
    assert not list(home.rglob(".*.part")) and not list(home.glob(".ray-*"))


@pytest.mark.slow
def test_modules_that_a_runtime_env_brings_are_found(tmp_path: Path, nodes: Cluster) -> None:
    """Ray keeps its copies of them below a folder "ray"."""
    for name in ("code", "more"):
        (tmp_path / name / f"lent_{name}").mkdir(parents=True)
        (tmp_path / name / f"lent_{name}" / "__init__.py").write_text(f"WORD = '{name}'\n")
    app = (
        "import hydra\n@hydra.main(version_base='1.3', config_path=None)\ndef main(cfg):\n"
        "    import sys, lent_code, lent_more\n"
        "    print('lent', lent_code.WORD, lent_more.WORD)\n"
        "    print('of Ray', [one for one in sys.path if '/ray/thirdparty_files' in one])\nmain()\n"
    )
    brought = (
        f"{{working_dir: {tmp_path / 'code'}, py_modules: [{tmp_path / 'more' / 'lent_more'}]}}"
    )
    settings = [f"hydra.launcher.address={nodes.address}", f"hydra.launcher.runtime_env={brought}"]
    with driver(tmp_path, app, *settings, "hydra.sweep.dir=out", "+x=0") as d:
        out, error = d.communicate(timeout=90)
    assert "lent code more" in out and "of Ray []" in out, out + error


def test_what_is_asked_twice_of_an_actor_loses_no_event() -> None:
    ear = _ray_host._Ear()
    for number in range(4):
        ear.said(str(number), "ray 0", is_error=False)
    for seen in (0, 2, 0):  # the last was sent first, and heard again by nobody
        ear.forget(seen)
    assert [blob for _, blob in ear.events] == [b"2", b"3"]
    ear.forget(3)
    assert [blob for _, blob in ear.events] == [b"3"]


def test_files_come_home_whole_with_mode_and_time(tmp_path: Path) -> None:
    there, home = tmp_path / "there", tmp_path / "home"
    (there / "a").mkdir(parents=True)
    (there / "a" / "run.sh").write_text("echo")
    (there / "a" / "run.sh").chmod(0o750)
    (there / "empty").touch()
    os.utime(there / "empty", (1000, 1000))
    home.mkdir()
    files = changed([str(there)], 0)
    assert brought(files, home) == []
    assert (home / "a" / "run.sh").read_text() == "echo"
    assert (home / "a" / "run.sh").stat().st_mode & 0o777 == 0o750
    assert (home / "empty").stat().st_mtime == 1000
    assert changed([str(there)], time.time_ns() + 2 * 10**9) == []


def brought(files: Sequence[File], home: Path) -> list[tuple[File, Exception]]:
    fetching = fetched(files, {file.folder: home for file in files})
    try:
        pieces = next(fetching)
        while True:
            pieces = fetching.send(read(pieces))
    except StopIteration as over:
        failures: list[tuple[File, Exception]] = over.value
        return failures


def test_a_file_that_goes_meanwhile_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "home").mkdir()
    gone = File(str(tmp_path / "there"), "gone", 5, 0o600, 0, 0)
    (tmp_path / "there" / "stays").write_text("here")
    brought([gone, *changed([str(tmp_path / "there")], 0)], tmp_path / "home")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["stays"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "linked/x"])
def test_no_file_lands_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "linked").symlink_to(tmp_path)
    with pytest.raises(Unsafe):
        landing_place(home, name)
    assert brought([File(str(tmp_path), name, 0, 0o600, 0, 0)], home)
    assert not (tmp_path / "x").exists()
