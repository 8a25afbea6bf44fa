"""Jobs one after another in this process: what a failure costs, what comes before the first job."""

import gc
import os
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import HydraException

from hydra_plugins.gpu_launcher._array import Array
from hydra_plugins.gpu_launcher._inline import InlineExecutor
from hydra_plugins.gpu_launcher._queue import Queue

Launch = Callable[..., Sequence[JobReturn]]
ROOT = Path(__file__).resolve().parents[2]
A_1_2_3 = [["a=1"], ["a=2"], ["a=3"]]


def fails_at_2(cfg: Any) -> int:
    if cfg.a == 2:
        raise ValueError("two is not allowed")
    return int(cfg.a)


def statuses(results: Any) -> list[str]:
    return [result.status.name.lower() for result in results]


def error_of(result: JobReturn) -> Exception:
    with pytest.raises(Exception) as caught:
        _ = result.return_value
    return caught.value


# --- one after another -----------------------------------------------------------------------


def test_results_come_in_the_order_asked(launch: Launch) -> None:
    results = launch(lambda cfg: cfg.a, [["a=3"], ["a=1"], ["a=2"]])
    assert [result.return_value for result in results] == [3, 1, 2]


def test_results_come_in_the_order_asked_whatever_ends_first(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards = InlineExecutor.run

    def backwards(self: InlineExecutor, queue: Queue) -> Iterator[Any]:
        waiting: list[Array] = []
        while (array := queue.take()) is not None:
            waiting.append(array)
        return forwards(self, Queue(waiting[::-1]))

    monkeypatch.setattr(InlineExecutor, "run", backwards)
    ran: list[int] = []
    results = launch(lambda cfg: ran.append(cfg.a), A_1_2_3)
    assert ran == [3, 2, 1]
    assert [result.overrides for result in results] == A_1_2_3


def test_numbers_start_where_the_sweeper_says(launch: Launch, tmp_path: Path) -> None:
    results = launch(lambda _: HydraConfig.get().job.num, A_1_2_3, first=7)
    assert [result.return_value for result in results] == [7, 8, 9]
    assert [result.hydra_cfg.hydra.job.id for result in results] == ["7", "8", "9"]
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == ["7", "8", "9"]


def test_a_job_asked_twice_runs_twice(launch: Launch) -> None:
    ran: list[int] = []
    results = launch(lambda cfg: ran.append(cfg.a), [["a=1"], ["a=1"]])
    assert ran == [1, 1]
    assert statuses(results) == ["completed", "completed"]


def test_no_jobs_are_no_results(launch: Launch) -> None:
    assert list(launch(fails_at_2, [])) == []


# --- a job that fails ------------------------------------------------------------------------


def test_a_job_that_raises_costs_itself_alone(launch: Launch) -> None:
    results = launch(fails_at_2, A_1_2_3)
    assert statuses(results) == ["completed", "failed", "completed"]
    assert results[1].overrides == ["a=2"]
    assert repr(error_of(results[1])) == "ValueError('two is not allowed')"


def test_a_failure_is_reported_at_once(
    launch: Launch,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def task(cfg: Any) -> None:
        print(f"a={cfg.a} runs")
        fails_at_2(cfg)

    monkeypatch.chdir(tmp_path)
    launch(task, A_1_2_3)
    said = capsys.readouterr().out
    after = said[said.index("a=2 runs") : said.index("a=3 runs")]
    assert "job 1 (a=2) failed: ValueError: two is not allowed\nLog: out/1/app.log" in after


def test_the_last_line_names_every_failure(
    launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(lambda cfg: 1 // (cfg.a - 2) + [0, 0, 0][cfg.a], A_1_2_3)
    expected = "2 of 3 jobs failed: job 1 (a=2): ZeroDivisionError; job 2 (a=3): IndexError\n"
    assert capsys.readouterr().out.endswith(expected)


def test_a_sweep_without_failure_says_nothing_of_failures(
    launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(lambda cfg: cfg.a, A_1_2_3)
    assert "failed" not in capsys.readouterr().out


def test_the_traceback_stands_in_the_jobs_own_log_alone(
    launch: Launch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    launch(fails_at_2, A_1_2_3)
    written = (tmp_path / "out" / "1" / "app.log").read_text()
    assert written.count("Traceback") == 1
    assert "in fails_at_2" in written
    assert "Traceback" not in capsys.readouterr().out
    assert "Traceback" not in (tmp_path / "out" / "2" / "app.log").read_text()


def test_without_a_log_file_the_traceback_goes_where_the_log_goes(
    launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(fails_at_2, [["a=2"]], "hydra/job_logging=stdout")
    said = capsys.readouterr().out
    assert said.count("Traceback") == 1
    assert "Log:" not in said


def test_a_long_message_is_shortened(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    def task(cfg: Any) -> None:
        raise ValueError("\n".join(f"line {number}" for number in range(100)))

    launch(task, [["a=1"]])
    said = capsys.readouterr().out
    assert "line 4\n...\nLog:" in said
    assert "line 5" not in said


def test_messages_name_only_the_overrides_that_differ(
    launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(fails_at_2, [["a=1", "+b=0"], ["a=2", "+b=0", "hydra.verbose=false"]])
    assert "job 1 (a=2) failed" in capsys.readouterr().out


@pytest.mark.parametrize("code", [0, 3, None])
def test_a_job_that_exits_has_failed(launch: Launch, code: int | None, tmp_path: Path) -> None:
    results = launch(lambda cfg: sys.exit(code) if cfg.a == 2 else cfg.a, A_1_2_3)
    assert statuses(results) == ["completed", "failed", "completed"]
    assert f"sys.exit({code!r})" in str(error_of(results[1]))
    assert "Traceback" in (tmp_path / "out" / "1" / "app.log").read_text()


def test_a_folder_that_cannot_be_made_costs_its_job_alone(
    launch: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1").write_text("in the way")
    results = launch(lambda cfg: cfg.a, A_1_2_3)
    assert statuses(results) == ["completed", "failed", "completed"]
    assert isinstance(error_of(results[1]), FileExistsError)
    said = capsys.readouterr().out
    assert "job 1 (a=2) failed: FileExistsError" in said
    assert "Traceback" not in said
    assert "Log:" not in said


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("+hydra.job.env_set.KEY=${nothing}", "Interpolation key"),
        ("hydra.sweep.subdir=${nothing}", "Interpolation key"),
        ("hydra.job_logging.handlers.file=null", "Unable to configure handler 'file'"),
    ],
)
def test_hydra_settings_that_break_one_job_cost_it_alone(
    launch: Launch, broken: str, said: str
) -> None:
    results = launch(lambda cfg: cfg.a, [["a=1"], ["a=2", broken], ["a=3"]])
    assert statuses(results) == ["completed", "failed", "completed"]
    assert results[1].overrides == ["a=2"]
    assert said in str(error_of(results[1]))


def test_a_failed_job_leaves_the_process_as_it_was(launch: Launch) -> None:
    before = Path.cwd(), dict(os.environ), HydraConfig.instance().cfg
    settings = ["+hydra.job.env_set.KEY=value", "hydra.job.chdir=true"]
    launch(fails_at_2, [["a=2"], ["a=2", "hydra.sweep.subdir=${nothing}"]], *settings)
    assert (Path.cwd(), dict(os.environ), HydraConfig.instance().cfg) == before


def test_a_result_keeps_its_traceback_but_no_variables(launch: Launch) -> None:
    class Model:
        pass

    alive: list[weakref.ref[Model]] = []

    def train() -> None:
        model = Model()
        alive.append(weakref.ref(model))
        raise KeyError("first")

    def task(cfg: Any) -> None:
        model = Model()
        alive.append(weakref.ref(model))
        try:
            train()
        except KeyError as error:
            raise ValueError("second") from error

    results = launch(task, [["a=1"]])
    gc.collect()
    assert [model() for model in alive] == [None, None]
    printed = "".join(traceback.format_exception(error_of(results[0])))
    assert "in train" in printed
    assert "KeyError: 'first'" in printed


# --- stopping --------------------------------------------------------------------------------


def test_fail_fast_skips_what_is_left(launch: Launch) -> None:
    ran: list[int] = []

    def task(cfg: Any) -> None:
        ran.append(cfg.a)
        fails_at_2(cfg)

    results = launch(task, [*A_1_2_3, ["a=4"]], "hydra.launcher.fail_fast=true")
    assert ran == [1, 2]
    assert statuses(results) == ["completed", "failed", "failed", "failed"]
    assert [str(error_of(result)) for result in results[2:]] == ["skipped: fail_fast"] * 2
    assert [result.overrides for result in results] == [["a=1"], ["a=2"], ["a=3"], ["a=4"]]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, type("Terminated", (BaseException,), {})])
def test_what_is_meant_to_end_the_process_ends_it(
    launch: Launch, stop: type[BaseException]
) -> None:
    ran: list[int] = []

    def task(cfg: Any) -> None:
        ran.append(cfg.a)
        raise stop

    with pytest.raises(stop):
        launch(task, A_1_2_3)
    assert ran == [1]
    assert HydraConfig.instance().cfg is None


# --- before the first job --------------------------------------------------------------------

APPLICATION = """
asked = []
number = 5

def accept(jobs):
    asked.append([(job.a, job.hydra.job.num, list(job.hydra.overrides.task)) for job in jobs])

def refuse(jobs):
    raise LookupError("picture 12 is missing")
"""


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module that can be imported, as the application of a user is."""
    (tmp_path / "some_application.py").write_text(APPLICATION)
    monkeypatch.syspath_prepend(tmp_path)
    import some_application  # type: ignore[import-not-found]

    yield some_application
    del sys.modules["some_application"]


def test_prepare_sees_every_job_once_before_the_first(launch: Launch, application: Any) -> None:
    def task(cfg: Any) -> int:
        return len(application.asked)

    setting = "hydra.launcher.prepare=some_application.accept"
    results = launch(task, [["a=2"], ["a=1"]], setting, first=4)
    assert application.asked == [[(2, 4, ["a=2"]), (1, 5, ["a=1"])]]
    assert [result.return_value for result in results] == [1, 1]


def test_what_prepare_raises_ends_the_launch_before_any_job(
    launch: Launch, application: Any
) -> None:
    ran: list[int] = []
    with pytest.raises(LookupError, match="picture 12 is missing"):
        launch(
            lambda cfg: ran.append(cfg.a),
            A_1_2_3,
            "hydra.launcher.prepare=some_application.refuse",
        )
    assert ran == []


@pytest.mark.parametrize(
    "path", ["no_such_module.check", "some_application.chekc", "some_application.number", "check"]
)
def test_a_prepare_that_is_no_function_is_said_by_key(
    launch: Launch, application: Any, path: str
) -> None:
    with pytest.raises(HydraException, match=rf"hydra\.launcher\.prepare={path} cannot be used"):
        launch(fails_at_2, A_1_2_3, f"hydra.launcher.prepare={path}")


@pytest.mark.parametrize("path", ["os.system", "builtins.exec", "subprocess.run", "shutil.rmtree"])
def test_a_configuration_cannot_run_what_it_likes_as_prepare(launch: Launch, path: str) -> None:
    with pytest.raises(HydraException, match=r"is bl\w+listed"):
        launch(fails_at_2, A_1_2_3, f"hydra.launcher.prepare={path}")


def test_what_cannot_be_composed_is_said_before_the_first_job(launch: Launch) -> None:
    ran: list[int] = []
    with pytest.raises(HydraException) as caught:
        launch(lambda cfg: ran.append(cfg.a), [["a=1"], ["b=2"], ["a=3"], ["group=two"]])
    first, *lines = str(caught.value).splitlines()
    assert first == "2 of 4 jobs cannot be composed; none was started."
    assert lines[0].startswith("job 1 (b=2): ConfigCompositionException: Could not override 'b'")
    assert any(line.startswith("job 3 (group=two): MissingConfigException") for line in lines)
    assert ran == []


@pytest.mark.slow
def test_many_jobs_that_cannot_be_composed_are_a_few_lines(launch: Launch) -> None:
    with pytest.raises(HydraException, match=r"\.\.\. and 25 more") as caught:
        launch(fails_at_2, [[f"b={number}"] for number in range(30)])
    assert len(str(caught.value).splitlines()) < 35


# --- in somebody else's application ----------------------------------------------------------


@pytest.fixture
def example(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs the application of docs/launcher.md with the command that stands there."""
    text = (ROOT / "docs" / "launcher.md").read_text()
    (tmp_path / "app.py").write_text(text.split("```python\n")[1].split("```")[0])
    command = next(line.split() for line in text.splitlines() if line.startswith("    python app"))

    def run(axis: str) -> subprocess.CompletedProcess[str]:
        words = [axis if word.startswith("+x=") else word for word in command[1:]]
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


def test_the_documented_example_does_what_is_said_of_it(example: Any) -> None:
    done = example("+x=0,1,2")
    assert done.returncode == 1
    assert "job 0 (+x=0) failed: ZeroDivisionError: division by zero\nLog: multirun" in done.stdout
    assert "3 of 3: job 2 (+x=2)" in done.stdout
    assert "1 of 3 jobs failed: job 0 (+x=0): ZeroDivisionError" in done.stdout
    assert "ZeroDivisionError" in done.stderr


def test_the_documented_example_refuses_a_batch(example: Any) -> None:
    done = example("+x=0,-1")
    assert done.returncode == 1
    assert "x must not be negative" in done.stderr
    assert "1 of 2" not in done.stdout
