"""Jobs that are decided on while others run."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode

from hydra_plugins.gpu_launcher.plan import Plan

Run = Callable[..., None]


class Feed:
    """So many jobs, `a` being their number; remembers what it was asked and told."""

    def __init__(self, count: int, each: int = 1) -> None:
        self.count, self.each = count, each
        self.num_jobs: int | None = count
        self.asked: list[int] = []
        self.results: dict[int, JobReturn] = {}
        self.events: list[str] = []
        self._next = 0

    def overrides(self, num: int) -> list[str]:
        return [f"a={num}"]

    def more(self, num_free: int) -> Sequence[tuple[int, Sequence[str], str]]:
        self.asked.append(num_free)
        nums = range(self._next, min(self.count, self._next + num_free * self.each))
        self._next = nums.stop if nums else self._next
        self.events += [f"given {num}" for num in nums]
        return [(num, self.overrides(num), f"number {num}") for num in nums]

    def ended(self, num: int, result: JobReturn) -> None:
        self.events.append(f"ended {num}")
        self.results[num] = result

    @property
    def values(self) -> dict[int, Any]:
        return {num: result._return_value for num, result in sorted(self.results.items())}


@pytest.fixture
def feed_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    application = ModuleType("some_application")
    for function in (all_together, numbers, even_are_done):
        setattr(application, function.__name__, function)
    monkeypatch.setitem(sys.modules, "some_application", application)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text(
        f"a: 10\nhydra: {{sweep: {{dir: {tmp_path / 'out'}}}}}\n"
    )

    def run(feed: Any, task: Callable[[Any], Any], *settings: str, slots: int = 0) -> None:
        launcher = (
            ["hydra/launcher=slots", f"hydra.launcher.cpu_slots={slots}"]
            if slots
            else ["hydra/launcher=slots_inline"]
        )
        with initialize_config_dir(str(tmp_path / "conf"), job_name="app", version_base="1.3"):
            app = GlobalHydra.instance().hydra
            assert app is not None
            config = app.compose_config("config", [*launcher, *settings], RunMode.MULTIRUN)
            context = HydraContext(app.config_loader, Callbacks(config))
            chosen: Any = Plugins.instance().instantiate_launcher(context, task, config)
            chosen.launch_from(feed)

    yield run


def test_with_one_slot_each_job_is_asked_for_when_the_last_one_is_known(feed_to: Run) -> None:
    feed = Feed(3)
    feed_to(feed, lambda cfg: cfg.a * 2)
    assert feed.values == {0: 0, 1: 2, 2: 4}
    assert feed.events == ["given 0", "ended 0", "given 1", "ended 1", "given 2", "ended 2"]


def test_slots_are_filled_with_one_job_ahead_and_none_waits_for_the_slowest(
    feed_to: Run, tmp_path: Path
) -> None:
    def task(cfg: Any) -> float:
        deadline = time.monotonic() + 60  # the other worker may be ready much later
        while cfg.a == 0 and time.monotonic() < deadline:
            if len(list(tmp_path.glob("*.ended"))) == 5:
                time.sleep(0.5)  # till the last of them is told
                break
            time.sleep(0.05)
        (tmp_path / f"{cfg.a}.ended").touch()
        return time.time()

    feed = Feed(6)
    feed_to(feed, task, slots=2)
    assert feed.asked[0] == 3
    assert feed.events[:3] == ["given 0", "given 1", "given 2"]
    # All others have come and gone while the first one waited for them.
    assert feed.events[-1] == "ended 0" and len(feed.results) == 6


def test_jobs_asked_for_at_once_are_planned_together(feed_to: Run) -> None:
    feed = Feed(5, each=2)
    feed_to(
        feed, lambda cfg: -1, "hydra.launcher.prepare=some_application.all_together",
        "hydra.launcher.together=some_application.numbers",
    )  # fmt: skip
    assert feed.values == {0: (0, 2), 1: (1, 2), 2: (2, 2), 3: (3, 2), 4: (4, 1)}


def test_what_was_done_before_is_told_and_not_run(feed_to: Run) -> None:
    feed = Feed(4)
    feed_to(feed, lambda cfg: "run", "hydra.launcher.prepare=some_application.even_are_done")
    assert feed.values == {0: "known", 1: "run", 2: "known", 3: "run"}
    assert str(feed.results[0].output_dir).endswith("/0")  # type: ignore[attr-defined]


def test_one_of_the_first_jobs_that_cannot_be_composed_ends_the_launch(feed_to: Run) -> None:
    feed = Feed(2)
    feed.overrides = lambda num: ["b=1"]  # type: ignore[method-assign]
    with pytest.raises(HydraException, match="cannot be composed"):
        feed_to(feed, lambda cfg: 0)
    assert not feed.results


def test_a_later_one_fails_alone(feed_to: Run) -> None:
    feed = Feed(5, each=2)
    feed.overrides = lambda num: ["b=1"] if num == 3 else [f"a={num}"]  # type: ignore[method-assign]
    feed_to(feed, lambda cfg: cfg.a)
    assert isinstance(feed.values.pop(3), HydraException)
    assert {n: v for n, v in feed.values.items() if n != 3} == {0: 0, 1: 1, 2: 2, 4: 4}


@pytest.mark.slow
def test_a_job_that_is_killed_is_retried_and_told_once(feed_to: Run, tmp_path: Path) -> None:
    def task(cfg: Any) -> int:
        with (tmp_path / f"started {cfg.a}").open("a") as stream:
            stream.write("x")
        if cfg.a == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return int(cfg.a)

    feed = Feed(4)
    feed_to(feed, task, "hydra.launcher.max_retries=1", slots=2)
    assert sorted(feed.results) == [0, 1, 2, 3]
    assert "SIGKILL" in str(feed.values[1])
    assert (tmp_path / "started 1").read_text() == "xx"


@pytest.mark.slow
def test_fail_fast_asks_for_no_more(feed_to: Run) -> None:
    def task(cfg: Any) -> float:
        return 1 / cfg.a

    feed = Feed(50)
    feed_to(feed, task, "hydra.launcher.fail_fast=true", slots=2)
    assert len(feed.results) < 10 and "given 20" not in feed.events


def test_nothing_to_run_is_no_error(feed_to: Run) -> None:
    feed = Feed(0)
    feed.num_jobs = None
    feed_to(feed, lambda cfg: 0)
    assert feed.asked and not feed.results


# Functions that the launcher is given by their dotted paths.


def all_together(jobs: Sequence[Any]) -> list[list[int]]:
    return [list(range(len(jobs)))]


def numbers(jobs: Sequence[Any]) -> list[tuple[int, int]]:
    return [(job.a, len(jobs)) for job in jobs]


def even_are_done(jobs: Sequence[Any]) -> Plan:
    return Plan(done={i: "known" for i, job in enumerate(jobs) if job.a % 2 == 0})
