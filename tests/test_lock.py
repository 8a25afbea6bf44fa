"""Locks between processes: one holder, or several that share; free when their holder is gone."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from graft import lock
from graft.lock import Lock, Locked

HOLDS = """
import sys, time
from pathlib import Path
from graft.lock import Lock
Lock(Path(sys.argv[1])).acquire(shared=sys.argv[2] == "shared")
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def held_elsewhere(path: Path, how: str = "alone") -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDS, str(path), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_who_holds_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with held_elsewhere(path) as process:
        with pytest.raises(Locked) as caught:
            Lock(path).acquire()
        error = caught.value
        assert (error.pid, error.host) == (process.pid, socket.gethostname())
        assert error.since is not None and 0 <= time.time() - error.since < 60
        assert str(error).startswith(f"process {process.pid} on {socket.gethostname()}, since ")


def test_it_is_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    path, own = tmp_path / ".lock", Lock(tmp_path / ".lock")
    with held_elsewhere(path) as process:
        threading.Timer(1.0, os.kill, (process.pid, signal.SIGKILL)).start()
        assert own.acquire(wait_s=10)
    assert own.is_held
    own.release()
    assert not own.acquire(wait_s=10), "nothing was to be waited for"


def test_a_wait_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with held_elsewhere(path):
        started = time.monotonic()
        with pytest.raises(Locked):
            Lock(path).acquire(wait_s=0.5)
        assert 0.5 <= time.monotonic() - started < 10


def test_who_only_looks_keeps_nobody_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look is to share it for a moment: just then another may come, who waits for nobody."""
    path, taken = tmp_path / ".lock", lock._is_taken
    path.touch()

    def at_that_moment(file: int, shared: bool) -> bool:
        monkeypatch.setattr(lock, "_is_taken", taken)
        looking = os.open(path, os.O_RDONLY)
        assert taken(looking, shared=True)
        threading.Timer(0.01, os.close, (looking,)).start()
        return taken(file, shared)

    monkeypatch.setattr(lock, "_is_taken", at_that_moment)
    own = Lock(path)
    own.acquire()
    assert own.is_held
    own.release()


def test_it_is_shared_by_those_who_share_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with held_elsewhere(path, "shared"):
        with pytest.raises(Locked):
            Lock(path).acquire()
        other = Lock(path)
        other.acquire(shared=True)
        assert other.is_held
        other.release()


def test_one_process_may_not_hold_it_twice(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with Lock(path), pytest.raises(Locked, match=f"process {os.getpid()} on"):
        Lock(path).acquire()
    with Lock(path) as again:
        assert again.is_held
    assert not again.is_held


def test_what_was_left_of_another_holder_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    for said in ("", "{", '{"pid": 1}', "x" * 5000):
        path.write_text(said)
        with Lock(path), pytest.raises(Locked, match=f"process {os.getpid()} on"):
            Lock(path).acquire()


def test_who_says_nothing_is_another_process(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with Lock(path):
        path.write_text("")
        with pytest.raises(Locked) as caught:
            Lock(path).acquire()
    assert str(caught.value) == "another process" and caught.value.pid is None


def test_a_folder_that_is_not_there_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Lock(tmp_path / "none" / ".lock").acquire()


def test_a_system_without_locks_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    with Lock(tmp_path / ".lock") as one, Lock(tmp_path / ".lock") as other:
        assert one.is_held and other.is_held
