"""The process that talks to MLflow: what becomes of it, and of what it had to do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from graft.tracking import apart
from graft.tracking.client import StoreError


def test_a_store_whose_process_is_killed_is_opened_again(lab: Any, warnings_of: Any) -> None:
    sweep = lab.open()
    lab.begin(sweep, 0)
    sweep.wait(120)
    os.kill(pid_of(sweep), signal.SIGKILL)
    records = [lab.train(sweep, number) for number in range(2)]
    assert sweep.finish(records, None, None) is not None
    runs = lab.seen().runs()
    assert tuple(runs) == lab.titles[:2]
    assert all(len(lab.seen().curve(run, "val/loss")) == 3 for run in runs.values())
    assert "has ended" in warnings_of()[0]


def test_what_mlflow_raises_comes_back_with_its_status(tables: Path) -> None:
    store = apart.open_store(f"sqlite:///{tables}")
    with pytest.raises(StoreError, match=r"Run with id=.* not found") as caught:
        store.reopen("0" * 32)
    assert caught.value.status == 404
    assert store.find("0", {}) == []  # it still answers
    apart.give_back(store)


def test_it_gives_way_to_training(tables: Path) -> None:
    """Among the threads of its session, and, where Linux groups sessions, among those."""
    store = apart.open_store(f"sqlite:///{tables}")
    try:
        assert store.find("0", {}) == []
        pid = store.process.pid  # type: ignore[attr-defined]
        assert os.getpriority(os.PRIO_PROCESS, pid) == os.nice(0) + 10
        group = autogroup(pid)
        if group:  # empty in the first session of all, which no group has, and where none is made
            name, _, nice = group
            assert name not in autogroup("self") and nice == "10"
    finally:
        apart.give_back(store)


def autogroup(pid: int | str) -> list[str]:
    """The words of its group of sessions: name, "nice", value. None where Linux makes no groups."""
    file = Path(f"/proc/{pid}/autogroup")
    return file.read_text().split() if file.exists() else []


IMPORT = """
import sys
from graft.tracking.client import import_mlflow

import_mlflow()
print(*sorted({"pandas", "scipy"} & set(sys.modules)))
import scipy.special  # whoever needs it later has it
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
print(type(mlflow.search_runs()).__module__)
"""


def test_mlflow_is_imported_without_what_it_can_do_without(tables: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, f"sqlite:///{tables}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    needed, frame = done.stdout.splitlines()
    assert needed == "" and frame.startswith("pandas")


OPEN = """
import sys, time
from graft.tracking import apart
store = apart.open_store(sys.argv[1])
print(store.process.pid, flush=True)
time.sleep(60)
"""


def test_the_process_ends_with_the_one_that_started_it(tables: Path) -> None:
    command = [sys.executable, "-c", OPEN, f"sqlite:///{tables}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_there(pid)
        owner.kill()
    deadline = time.monotonic() + 10
    while is_there(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_there(pid)


@pytest.mark.slow
def test_ctrl_c_in_the_terminal_does_not_reach_it(tables: Path) -> None:
    command = [sys.executable, "-c", OPEN, f"sqlite:///{tables}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert os.getpgid(pid) != os.getpgid(owner.pid)
        owner.kill()


def pid_of(sweep: Any) -> int:
    return int(sweep._line._store.process.pid)


def is_there(pid: int) -> bool:
    """Whether a process lives; one that ended and was not waited for is over."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
