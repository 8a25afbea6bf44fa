"""Jobs that run together: who asks for it, what each of them still has for itself."""

import gc
import os
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback

Launch = Callable[..., Sequence[JobReturn]]
ROOT = Path(__file__).resolve().parents[2]
A_1_TO_4 = [["a=1"], ["a=2"], ["a=3"], ["a=4"]]


class Application(ModuleType):
    """A module that the launcher finds by its name, as it finds the application of a user."""

    def __init__(self) -> None:
        super().__init__("some_application")
        self.answer: Any = None
        self.calls: list[list[int]] = []
        self.alone: list[int] = []

    def prepare(self, jobs: list[Any]) -> Any:
        return self.answer

    def together(self, jobs: list[Any]) -> Any:
        self.calls.append([job.a for job in jobs])
        return [10 * job.a for job in jobs]

    def task(self, cfg: Any) -> int:
        self.alone.append(cfg.a)
        return int(cfg.a)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Application:
    application = Application()
    monkeypatch.setitem(sys.modules, "some_application", application)
    return application


@pytest.fixture
def arrays(launch: Launch, app: Application) -> Launch:
    """Runs jobs in arrays: `arrays([[0, 2]], [["a=1"], ...], "key=value", together=function)`.

    By default, together they give ten times their `a`, and one alone gives its `a`.
    """

    def run(
        answer: Any,
        jobs: Sequence[Sequence[str]] = A_1_TO_4,
        *settings: str,
        together: Callable[[list[Any]], Any] | None = None,
        **options: Any,
    ) -> Sequence[JobReturn]:
        app.answer = answer
        if together is not None:
            app.together = together  # type: ignore[method-assign]
        ours = [f"hydra.launcher.{key}=some_application.{key}" for key in ("prepare", "together")]
        return launch(app.task, jobs, *ours, *settings, **options)

    return run


def values(results: Sequence[JobReturn]) -> list[Any]:
    """Of each job its value or its exception."""
    return [result._return_value for result in results]


# --- which jobs run together ------------------------------------------------------------------


def test_results_come_in_the_order_asked(arrays: Launch, app: Application) -> None:
    results = arrays([[0, 2], [3, 1]])
    assert app.calls == [[1, 3], [4, 2]]
    assert values(results) == [10, 20, 30, 40]
    assert [result.overrides for result in results] == A_1_TO_4


def test_a_job_that_is_in_no_array_goes_through_the_task(arrays: Launch, app: Application) -> None:
    assert values(arrays([[3, 1], [2]])) == [1, 20, 30, 40]
    assert app.calls == [[4, 2], [3]]
    assert app.alone == [1]


@pytest.mark.parametrize("answer", [None, [], [[]], [[0], [1]]])
def test_without_arrays_every_job_runs_alone(launch: Launch, app: Application, answer: Any) -> None:
    app.answer = answer
    results = launch(app.task, A_1_TO_4, "hydra.launcher.prepare=some_application.prepare")
    assert values(results) == app.alone == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("answer", "order"),
    [
        ([[2, 3], [0, 1]], ["jobs 2, 3", "jobs 0, 1"]),
        ([[1, 3]], ["job 0", "jobs 1, 3", "job 2"]),
        ([[3, 2], [0]], ["job 1", "jobs 3, 2", "job 0"]),
    ],
)
def test_arrays_keep_their_order_and_jobs_alone_come_before_later_ones(
    arrays: Launch, capsys: pytest.CaptureFixture[str], answer: Any, order: list[str]
) -> None:
    arrays(answer)
    lines = [line for line in capsys.readouterr().out.splitlines() if " of 4: " in line]
    started = [line.split(" of 4: ")[1] for line in lines]
    assert [line.split(" (")[0].split(" together")[0] for line in started] == order


def test_an_array_announces_its_jobs_in_a_line(
    arrays: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays([[0, 2]], [["a=1", "+b=0"], ["a=2", "+b=0"], ["a=3", "+b=0"]])
    said = capsys.readouterr().out
    assert "1-2 of 3: jobs 0, 2 together: a=1 | a=3\n" in said
    assert "3 of 3: job 1 (a=2)\n" in said


def test_numbers_start_where_the_sweeper_says_and_positions_at_0(arrays: Launch) -> None:
    def together(jobs: list[Any]) -> list[int]:
        return [job.hydra.job.num for job in jobs]

    assert values(arrays([[0, 1]], [["a=1"], ["a=1"]], first=7, together=together)) == [7, 8]


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([[0, 1], [1, 2]], "position 1 twice"),
        ([[2, 2]], "position 2 twice"),
        ([[0, 4]], "position 4, but there are 4 jobs"),
        ([[0, -1]], "position -1, but there are 4 jobs"),
        ([0, 1], r"\[0, 1\]"),
        ([["0", "1"]], r"\[\['0', '1'\]\]"),
        (0, "0"),
        ("01", "'01'"),
    ],
)
def test_wrong_positions_are_said_before_any_job(
    arrays: Launch, app: Application, answer: Any, said: str
) -> None:
    expected = rf"hydra\.launcher\.prepare=some_application\.prepare returned {said}\."
    with pytest.raises(HydraException, match=expected):
        arrays(answer)
    assert (app.calls, app.alone) == ([], [])


def test_arrays_without_a_function_to_run_them_are_said_before_any_job(
    arrays: Launch, app: Application
) -> None:
    with pytest.raises(HydraException, match=r"but hydra\.launcher\.together is not set"):
        arrays([[1, 2]], A_1_TO_4, "hydra.launcher.together=null")
    assert app.alone == []


@pytest.mark.parametrize("path", ["some_application.togehter", "no_such_module.f", "os.system"])
def test_a_function_that_cannot_be_used_is_said_before_any_job(
    arrays: Launch, app: Application, path: str
) -> None:
    with pytest.raises(HydraException, match=rf"hydra\.launcher\.together={path} cannot be used"):
        arrays(None, A_1_TO_4, f"hydra.launcher.together={path}")
    assert app.alone == []


# --- each job's own life ----------------------------------------------------------------------


class Witness(Callback):
    """Notes what Hydra tells of each job."""

    seen: list[tuple[str, int, list[str], str, str | None]] = []  # noqa: RUF012

    def _note(self, event: str, config: Any) -> None:
        job, own = config.hydra.job, HydraConfig.get()
        assert own.job.num == job.num
        folder = Path(own.runtime.output_dir).name
        overrides = list(own.overrides.task)
        self.seen.append((event, job.num, overrides, folder, os.environ.get("KEY")))

    def on_job_start(self, config: Any, *, task_function: Any, **kwargs: Any) -> None:
        assert task_function.__name__ == "task"
        self._note("start", config)

    def on_job_end(self, config: Any, job_return: JobReturn, **kwargs: Any) -> None:
        self._note(job_return.status.name.lower(), config)


def test_each_job_has_its_folder_its_settings_and_its_callbacks(
    arrays: Launch, app: Application, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Witness, "seen", [])
    monkeypatch.setattr(app, "Witness", Witness, raising=False)
    arrays(
        [[0, 1]],
        [["a=1"], ["a=2"]],
        "+hydra.callbacks.witness._target_=some_application.Witness",
        "+hydra.job.env_set.KEY=of job ${hydra.job.num}",
        together=lambda jobs: [1, ValueError("two")],
    )
    # Hydra makes `env_set` hold from the callback's start to the task's end.
    assert Witness.seen == [
        ("start", 0, ["a=1"], "0", "of job 0"),
        ("completed", 0, ["a=1"], "0", None),
        ("start", 1, ["a=2"], "1", "of job 1"),
        ("failed", 1, ["a=2"], "1", None),
    ]
    for num in (0, 1):
        folder = tmp_path / "out" / str(num)
        assert (folder / "app.log").is_file()
        assert f"a={num + 1}" in (folder / ".hydra" / "overrides.yaml").read_text()


def test_results_hold_each_jobs_own_configuration(arrays: Launch) -> None:
    def together(jobs: list[Any]) -> list[None]:
        jobs[1].a = 5
        return [None, None]

    results = arrays([[0, 1]], [["a=1"], ["a=2"]], together=together)
    assert [result.cfg.a for result in results] == [1, 2]
    assert [result.hydra_cfg.hydra.job.num for result in results] == [0, 1]


# --- failures ---------------------------------------------------------------------------------


def test_a_job_of_an_array_fails_alone(
    arrays: Launch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def diverge(step: int) -> None:
        raise FloatingPointError(f"step {step}: the loss is nan")

    def together(jobs: list[Any]) -> list[Any]:
        try:
            diverge(5)
        except FloatingPointError as error:
            return [1, error, 3]
        return []

    first, second, third = values(arrays([[0, 1, 2]], A_1_TO_4[:3], together=together))
    assert (first, third) == (1, 3)
    assert repr(second) == "FloatingPointError('step 5: the loss is nan')"
    said = capsys.readouterr().out
    assert "job 1 (a=2) failed: FloatingPointError: step 5: the loss is nan\nLog: " in said
    assert "1 of 3 jobs failed: job 1 (a=2): FloatingPointError" in said
    assert "in diverge" in (tmp_path / "out" / "1" / "app.log").read_text()
    assert "Traceback" not in (tmp_path / "out" / "2" / "app.log").read_text()


def test_a_call_that_raises_fails_its_own_array(arrays: Launch, tmp_path: Path) -> None:
    def together(jobs: list[Any]) -> list[int]:
        if jobs[0].a == 1:
            raise MemoryError("too many")
        return [0, 0]

    results = values(arrays([[0, 1, 2]], [*A_1_TO_4, ["a=5"]], together=together))
    assert [repr(value) for value in results[:3]] == ["MemoryError('too many')"] * 3
    assert results[3:] == [4, 5]
    for num in (0, 1, 2):  # each has the traceback once, with its own lines only
        written = (tmp_path / "out" / str(num) / "app.log").read_text()
        assert written.count("Traceback") == written.count("in outcome") == 1
        assert "in together" in written


def test_a_call_that_exits_fails_its_own_array(arrays: Launch, app: Application) -> None:
    def together(jobs: list[Any]) -> None:
        app.calls.append([job.a for job in jobs])
        sys.exit(3)

    results = values(arrays([[0, 1]], A_1_TO_4[:3], together=together))
    assert app.calls == [[1, 2]]
    assert ["sys.exit(3)" in str(value) for value in results[:2]] == [True, True]
    assert results[2] == 3


@pytest.mark.parametrize(
    ("returned", "said"), [([1], "a list of 1"), (None, "NoneType"), ((1, 2), "tuple"), (1, "int")]
)
def test_a_wrong_return_fails_the_array_and_is_said_by_key(
    arrays: Launch, returned: Any, said: str
) -> None:
    results = values(arrays([[0, 1]], A_1_TO_4[:3], together=lambda jobs: returned))
    expected = f"hydra.launcher.together=some_application.together returned {said} for 2 jobs."
    assert [str(value).startswith(expected) for value in results] == [True, True, False]
    assert results[2] == 3


@pytest.mark.parametrize("num", [0, 1])
def test_a_job_that_cannot_be_started_costs_itself_alone(
    arrays: Launch, app: Application, tmp_path: Path, num: int
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / str(num)).write_text("in the way")
    results = values(arrays([[0, 1, 2]], A_1_TO_4[:3]))
    assert isinstance(results.pop(num), FileExistsError)
    assert results == [10, 20, 30][:num] + [10, 20, 30][num + 1 :]
    assert app.calls == [[1, 2, 3]]


def test_a_failed_array_keeps_its_tracebacks_but_no_variables(arrays: Launch) -> None:
    class Model:
        pass

    alive: list[weakref.ref[Model]] = []

    def together(jobs: list[Any]) -> list[Any]:
        model = Model()
        alive.append(weakref.ref(model))
        raise ValueError("one of them")

    results = values(arrays([[0, 1]], A_1_TO_4[:2], together=together))
    gc.collect()
    assert [model() for model in alive] == [None]
    assert "in together" in "".join(traceback.format_exception(results[1]))


def test_ctrl_c_ends_the_sweep(arrays: Launch, app: Application) -> None:
    def together(jobs: list[Any]) -> list[Any]:
        app.calls.append([job.a for job in jobs])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        arrays([[0, 1], [2, 3]], together=together)
    assert app.calls == [[1, 2]]
    assert HydraConfig.instance().cfg is None


def test_fail_fast_starts_no_further_array_and_keeps_what_has_run(arrays: Launch) -> None:
    def together(jobs: list[Any]) -> list[Any]:
        return [ValueError("the first"), *(job.a for job in jobs[1:])]

    setting = "hydra.launcher.fail_fast=true"
    results = values(arrays([[0, 2], [1, 3]], A_1_TO_4, setting, together=together))
    assert results[2] == 3
    said = [str(results[num]) for num in (0, 1, 3)]
    assert said == ["the first", "skipped: fail_fast", "skipped: fail_fast"]


# --- in somebody else's application -----------------------------------------------------------


def test_the_documented_example_does_what_is_said_of_it(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "launcher.md").read_text()
    (tmp_path / "pairs.py").write_text(text.split("```python\n")[2].split("```")[0])
    command = next(line.split() for line in text.splitlines() if line.startswith("    python pair"))
    done = subprocess.run(
        [sys.executable, *command[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "1-2 of 3: jobs 0, 2 together: +x=0 | +x=2\n" in done.stdout
    assert "3 of 3: job 1 (+x=1)\n" in done.stdout
    assert "1 of 3 jobs failed: job 0 (+x=0): ZeroDivisionError" in done.stdout
    assert "ZeroDivisionError" in done.stderr
