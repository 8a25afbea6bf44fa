"""Searches as people start them: a small application, its driver and its jobs in processes."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

APP = '''
import json
import os
import random
import signal
import time

import hydra
from hydra.core.hydra_config import HydraConfig

from hydra_plugins.study_sweeper.trial import report

RETURNS = {
    "not_a_number": float("nan"), "infinite": float("inf"), "nothing": None, "text": "good",
    "huge": 10**5000, "list": [1.0, 2.0], "mapping": {"loss": 1.0},
}


def note(kind, num):
    """A line in a file that all write to; a line is written whole."""
    line = json.dumps({"kind": kind, "num": num, "at": time.time(), "pid": os.getpid()}) + "\\n"
    file = os.open(os.environ["SEARCH_NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode())
    os.close(file)


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg):
    num = HydraConfig.get().job.num
    note("began", num)
    if num < len(cfg.weird):
        return RETURNS[cfg.weird[num]]
    seconds = cfg.seconds
    if cfg.longest:
        seconds = random.Random(num).uniform(cfg.seconds, cfg.longest)
    if num in cfg.slow:
        seconds = 10.0
    for epoch in range(1, cfg.epochs + 1):
        time.sleep(seconds / cfg.epochs)
        if num in cfg.die:
            os.kill(os.getpid(), signal.SIGKILL)
        if num in cfg.fail:
            raise ValueError(f"no luck with {num}")
        value = (cfg.x - 0.3) ** 2 + 1 / epoch + (1 if num in cfg.bad else 0)
        if cfg.reports and report(value, epoch):
            break
    note("ended", num)
    return value


if __name__ == "__main__":
    main()
'''

CONFIG = """
x: 0.5
n: 0
how: a
epochs: 2
seconds: 0.1  # a job takes
longest: null  # or from `seconds` to this
reports: true
slow: []  # numbers of jobs that take 10 s
bad: []  # numbers of jobs whose values are bad
die: []
fail: []
weird: []  # what the first jobs return
"""


@dataclass(frozen=True)
class Note:
    """What a job wrote down of itself."""

    kind: str
    num: int
    at: float
    pid: int


@dataclass(frozen=True)
class Ended:
    """A search that has ended: its exit code, and all that it printed."""

    code: int
    said: str
    seconds: float


class App:
    """An application in a folder of its own."""

    name = "app"

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self._tag = uuid.uuid4().hex
        self._drivers: list[subprocess.Popen[str]] = []
        (folder / "app.py").write_text(APP)
        (folder / "config.yaml").write_text(CONFIG)

    @property
    def database(self) -> str:
        return f"sqlite:///{self.out / 'study.db'}"

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        """A search of 12 trials in two slots, none pruned, unless the overrides say other."""
        usual = ["hydra/sweeper=search", "hydra/launcher=slots", "hydra.launcher.cpu_slots=2",
                 f"hydra.sweep.dir={self.out}", "hydra.sweeper.n_trials=12",
                 "hydra/sweeper/pruner=none", "hydra.sweeper.bookkeeping=[seconds,die,fail]",
                 "x=interval(0,1)"]  # fmt: skip
        given = {one.partition("=")[0] for one in overrides}
        driver = subprocess.Popen(
            [sys.executable, "app.py", "-m",
             *(one for one in usual if one.partition("=")[0] not in given), *overrides],
            cwd=self.folder, env=self._environment(), text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._drivers.append(driver)
        return driver

    def run(self, *overrides: str, timeout_s: float = 120) -> Ended:
        began = time.monotonic()
        driver = self.start(*overrides)
        said, _ = driver.communicate(timeout=timeout_s)
        return Ended(driver.returncode, said, time.monotonic() - began)

    def end(self) -> None:
        """Nothing that a test started outlives it."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        for driver in self._drivers:
            driver.wait()
            if driver.stdout is not None:
                driver.stdout.close()

    def processes(self) -> list[int]:
        """All that are alive of those that were started, and of those that they started."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                is_ours = self._tag.encode() in (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if is_ours and state != "Z":
                found.append(int(entry.name))
        return found

    def is_quiet(self, within_s: float = 5.0) -> bool:
        """Whether none of the processes is left."""
        return wait_until(lambda: not self.processes(), within_s)

    def notes(self, kind: str | None = None) -> list[Note]:
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [Note(**json.loads(line)) for line in lines]
        return [note for note in found if kind is None or note.kind == kind]

    def nums(self, kind: str) -> list[int]:
        return [note.num for note in self.notes(kind)]

    def study(self, storage: str | None = None, name: str = "app/out") -> optuna.Study:
        return optuna.load_study(study_name=name, storage=storage or self.database)

    def trials(self, storage: str | None = None, name: str = "app/out") -> list[FrozenTrial]:
        return self.study(storage, name).get_trials(deepcopy=False)

    def search(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads((self.out / "search.json").read_text())
        return found

    def _environment(self) -> dict[str, str]:
        temporary = self.folder / "temporary"
        temporary.mkdir(exist_ok=True)
        environment = {**os.environ, "SEARCH_TAG": self._tag, "TMPDIR": str(temporary),
                       "SEARCH_NOTES": str(self.folder / "notes")}  # fmt: skip
        environment.pop("HYDRA_FULL_ERROR", None)
        return environment


def wait_until(is_so: Callable[[], object], within_s: float = 60.0) -> bool:
    deadline = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture
def until() -> Callable[..., bool]:
    return wait_until


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """An application that can be searched: `app.run("hydra.sweeper.n_trials=4")`."""
    one = App(tmp_path)
    yield one
    one.end()


@pytest.fixture
def ended_whole() -> Callable[..., None]:
    """That trials are as many as asked for: each has ended, none is there twice."""

    def check(trials: list[FrozenTrial], count: int) -> None:
        counted = [t for t in trials if not {"same_as", "surplus"} & set(t.user_attrs)]
        states = {t.number: t.state.name for t in trials}
        assert len(counted) == count, states
        assert all(t.state.is_finished() for t in counted), states
        assert not any(t.state == TrialState.RUNNING for t in trials), states

    return check
