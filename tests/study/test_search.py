"""A search over the launchers: what it runs, when it ends, what it leaves."""

import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from hydra_plugins.study_sweeper import _budget, _search
from hydra_plugins.study_sweeper._errors import BadSearch, SearchFailed
from hydra_plugins.study_sweeper.trial import handle, report

X = ["x=interval(-1,1)"]


def square(cfg: Any) -> float:
    return float(cfg.x**2)


class Ran:
    """A task that remembers its jobs."""

    def __init__(self, task: Callable[[Any], Any] = square) -> None:
        self.task = task
        self.jobs: list[Any] = []

    def __call__(self, cfg: Any) -> Any:
        self.jobs.append(cfg)
        return self.task(cfg)

    def values(self, key: str) -> list[Any]:
        return [OmegaConf.select(cfg, key) for cfg in self.jobs]


Own = Callable[[str], Any]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Own:
    """Makes the application's module `own`, which settings can name: `own(text)`."""

    def make(text: str) -> Any:
        (tmp_path / "lib").mkdir()
        (tmp_path / "lib" / "own.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path / "lib")
        monkeypatch.delitem(sys.modules, "own", raising=False)
        return import_module("own")

    return make


# --- how many trials -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_number_of_trials_is_a_total_over_all_starts(search: Any) -> None:
    ran = Ran()
    for num_trials, expected in ((2, 2), (1, 2), (3, 3)):
        found = search(ran, X, f"n_trials={num_trials}")
        assert len(ran.jobs) == len(found.trials) == expected
    assert [trial.number for trial in found.trials] == [0, 1, 2]
    assert sorted(one.name for one in found.folder.iterdir() if one.name.isdigit()) == list("012")
    assert found.search["stopped"] == "its 3 trials are done"


def test_a_point_of_a_finite_space_is_run_once(
    search: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Failed or not, and however it is written."""
    ran = Ran(lambda cfg: 1 / (cfg.x - 2))
    typed = ["x=choice(1,2,1e0,3,1)"]
    for _ in range(2):
        found = search(ran, typed, "n_trials=6")
        assert sorted(ran.values("x")) == [1, 1.0, 2, 3]
        said = "all 4 points of the space have been evaluated"
        assert found.search["stopped"] == said and said in capsys.readouterr().out
    assert sorted(found.states) == ["complete"] * 3 + ["fail"]


def test_a_function_of_the_space_can_leave_points_out(
    search: Any, own: Own, capsys: pytest.CaptureFixture[str]
) -> None:
    own(
        "import optuna\n"
        "def more(cfg, trial):\n"
        "    if trial.params['x'] + trial.suggest_int('y', 0, 1) > 2:\n"
        "        raise optuna.TrialPruned('too large')\n"
    )
    ran = Ran()
    settings = ["custom_search_space=own.more", "hydra/sweeper/sampler=grid"]
    found = search(ran, ["x=1,2,3"], *settings, "n_trials=3")
    assert found.states[-1] == "pruned" and 3 not in ran.values("x")
    assert len(found.states) == 3 and len(ran.jobs) == found.states.count("complete")
    assert "trial 2 pruned: too large" in capsys.readouterr().out
    assert found.search["stopped"] == "its 3 trials are done"


def test_points_that_are_all_left_out_end_with_the_budget(
    search: Any, own: Own, capsys: pytest.CaptureFixture[str]
) -> None:
    own("import optuna\ndef more(cfg, trial): raise optuna.TrialPruned()")
    ran = Ran()
    for _ in range(2):  # the second finds the same, and is no other search
        with pytest.raises(SearchFailed, match="No trial completed"):
            search(ran, X, "custom_search_space=own.more", "n_trials=4")
    assert not ran.jobs
    assert capsys.readouterr().out.count("pruned: custom_search_space says so") == 4


@pytest.mark.slow
def test_a_sampler_with_nothing_new_to_propose_ends_the_search(search: Any, own: Own) -> None:
    own("def more(cfg, trial): trial.suggest_int('x', 1, 2)")
    ran = Ran()
    found = search(ran, [], "custom_search_space=own.more", "n_trials=5")
    assert sorted(ran.values("x")) == [1, 2]
    said = "the sampler proposes only points that have been evaluated"
    assert found.search["stopped"] == said


def test_an_application_can_refuse_a_space_before_its_first_trial(
    search: Any, own: Own, tmp_path: Path
) -> None:
    own("def check(samples):\n    raise ValueError(sorted({(cfg.x, cfg.y) for cfg in samples}))")
    ran = Ran()
    with pytest.raises(ValueError) as caught:
        search(ran, ["x=interval(0,1)", "y=1,2"], "check=own.check")
    assert caught.value.args == ([(0.0, 1), (0.0, 2), (1.0, 1)],)
    assert not ran.jobs and not (tmp_path / "out").exists()


def test_no_trial_begins_after_its_time(search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job takes a second, by the search's watch."""
    ran = Ran()
    watch = SimpleNamespace(monotonic=lambda: len(ran.jobs))
    monkeypatch.setattr(_search, "time", watch)
    found = search(ran, X, "n_trials=null", "timeout_s=2.5")
    assert len(ran.jobs) in (3, 4)  # one may have been asked for ahead
    assert found.search["stopped"] == "its 2.5 s are over"


def test_patience_counts_trials_without_a_better_one(search: Any) -> None:
    values = iter([-5, -3, -4, -1, -2, -2, 0, 0])
    found = search(lambda cfg: next(values), X, "n_trials=10", "patience=2", "direction=maximize")
    assert [trial.value for trial in found.trials] == [-5, -3, -4, -1, -2, -2]
    assert found.search["stopped"] == "2 trials in turn without a better one"


def test_patience_with_several_objectives_waits_for_the_front(search: Any) -> None:
    values = iter([(0, 9), (9, 0), (5, 5), (6, 6), (7, 7), (1, 1)])
    ran = Ran(lambda cfg: next(values))
    search(ran, X, "direction=[minimize,minimize]", "patience=2", "n_trials=6")
    assert len(ran.jobs) == 5


TOGETHER = """
sizes = []

def prepare(configs):
    sizes.append(len(configs))
    return [list(range(len(configs)))]

def together(configs):
    return [config.x**2 for config in configs]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "most"), [("n_jobs=null", 3), pytest.param("n_jobs=2", 2, marks=pytest.mark.slow)]
)
def test_trials_for_one_slot_are_asked_for_together(
    search: Any, own: Own, setting: str, most: int
) -> None:
    sizes = own(TOGETHER).sizes
    launcher = ["hydra.launcher.prepare=own.prepare", "hydra.launcher.together=own.together"]
    found = search(square, X, "n_trials=7", "together=3", setting, *launcher)
    assert sum(sizes) == 7 and max(sizes) == most
    assert [trial.value for trial in found.trials] == [one["x"] ** 2 for one in found.points]


# --- what a job is ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_has_its_point_and_what_is_fixed(search: Any) -> None:
    ran = Ran(lambda cfg: HydraConfig.get().job.num)
    typed = ["x=7", "group=one,deep", "+new=[1,2],{a: 'b c'}", r"name='it\'s','a,b'"]
    found = search(ran, typed, "n_trials=8", "hydra/sweeper/sampler=grid")
    assert set(ran.values("x")) == {7}
    assert [trial.value for trial in found.trials] == list(range(8))
    jobs = {
        (cfg.name, "depth" in cfg.group, json.dumps(OmegaConf.to_container(cfg.new)))
        for cfg in ran.jobs
    }
    assert jobs == {
        (name, is_deep, new)
        for name in ("it's", "a,b")
        for is_deep in (True, False)
        for new in ("[1, 2]", '{"a": "b c"}')
    }


def test_a_grid_goes_on_in_its_order_and_is_not_put_into_the_queue(search: Any) -> None:
    """A thousand trials that wait would be read with each look at the study."""
    ran = Ran(lambda cfg: len(optuna.load_study(study_name=None, storage=storage).trials))
    grid = ["x=range(3)", "y=0,1", "n_jobs=1", "hydra/sweeper/sampler=grid"]
    storage = f"sqlite:///{search(square, X, 'n_trials=1', 'dry_run=true').folder / 'study.db'}"
    for num_trials in (2, 5):
        found = search(ran, grid[:2], f"n_trials={num_trials}", *grid[2:])
    expected = [{"x": x, "y": y} for x in range(3) for y in range(2)][:5]
    assert found.points == expected and len(found.proposed) == 5
    assert [trial.value for trial in found.trials] == [1, 2, 3, 4, 5]
    assert found.search["stopped"] == "its 5 trials are done"


def test_a_function_may_suggest_more_at_each_point_of_a_grid(search: Any, own: Own) -> None:
    own("def more(cfg, trial): trial.suggest_float('nested.lr', 0, 1)")
    settings = ["custom_search_space=own.more", "hydra/sweeper/sampler=grid", "n_trials=4"]
    found = search(square, ["x=1,2,3"], *settings)
    assert [point["x"] for point in found.points][:3] == [1, 2, 3]
    assert len({point["nested.lr"] for point in found.points}) == 4


def test_a_glob_is_all_options_of_its_group(search: Any) -> None:
    ran = Ran()
    search(ran, ["group=glob(*,exclude=t*)"], "n_trials=9")
    assert sorted(ran.values("group.name")) == ["deep", "one"]


@pytest.mark.slow
def test_the_space_and_its_conditions_may_stand_in_yaml(search: Any, conf: Path) -> None:
    with (conf / "config.yaml").open("a") as stream:
        stream.write("""
  sweeper:
    params:
      group: one,deep
      group.depth: range(1,3)
      nested: {lr: "interval(0,1)"}
      name: [x, "y, z"]
      y: 3
    conditions: {group.depth: group=deep}
""")
    ran = Ran(lambda cfg: cfg.nested.lr)
    settings = ["n_trials=6", "sampler.seed=3", "hydra/sweeper/sampler=random"]
    found = search(ran, ["nested.lr=tag(log,interval(1e-3,1))"], *settings)
    for cfg, point in zip(ran.jobs, found.points, strict=True):
        assert cfg.y == 3 and cfg.name in ("x", "y, z") and 1e-3 <= cfg.nested.lr <= 1
        assert ("group.depth" in point) == (point["group"] == "deep")
        assert cfg.group.get("depth") == point.get("group.depth")
    assert {point["group"] for point in found.points} == {"one", "deep"}


def test_a_condition_makes_a_finite_space_smaller(search: Any) -> None:
    ran = Ran()
    typed = ["group=one,two,deep", "group.depth=range(1,4)"]
    found = search(ran, typed, "n_trials=20", "conditions={group.depth: {group: deep}}")
    depths = sorted((cfg.group.name, cfg.group.get("depth", 0)) for cfg in ran.jobs)
    assert depths == [("deep", 1), ("deep", 2), ("deep", 3), ("one", 0), ("two", 0)]
    assert found.search["stopped"] == "all 5 points of the space have been evaluated"


def test_points_to_begin_with_come_first_and_once(search: Any, tmp_path: Path) -> None:
    file = tmp_path / "points.yaml"
    file.write_text("- {x: 0.5}\n- {x: 0.25}\n")
    ran = Ran()
    search(ran, X, f'enqueue=["x=0.25,-1", {file}]', "n_trials=3")
    assert ran.values("x") == [0.25, -1.0, 0.5]
    search(ran, X, f'enqueue=["x=0.25,-1", {file}]', "n_trials=4")
    assert len(ran.jobs) == 4 and ran.values("x").count(0.25) == 1
    # Another search begins where this one has been.
    other = Ran()
    search(other, X, f"enqueue={tmp_path / 'out'}", "n_trials=4", folder="other")
    assert other.values("x") == ran.values("x")


@pytest.mark.slow
def test_a_point_that_is_half_said_is_completed(search: Any) -> None:
    ran = Ran()
    search(ran, [*X, "y=range(5)"], 'enqueue="x=0.125"', "n_trials=1")
    assert ran.values("x")[0] == 0.125 and ran.values("y")[0] in range(5)


# --- a function of the application that suggests more ----------------------------------------

HOOK = """
def more(cfg, trial):
    if trial.params["x"] > 0:
        trial.suggest_float("nested.lr", 0, trial.params["x"] + cfg.y)
    trial.suggest_categorical("+word", ["two words", "a,b", "it's", "plain"])

def again(cfg, trial):
    trial.suggest_float("y", 0, 1)

def broken(cfg, trial):
    raise RuntimeError("the hook is broken")
"""


def test_a_function_suggests_more(search: Any, own: Own) -> None:
    own(HOOK)
    ran = Ran()
    settings = ["custom_search_space=own.more", "hydra/sweeper/sampler=random", "sampler.seed=1"]
    found = search(ran, X, *settings, "n_trials=8")
    for cfg, point in zip(ran.jobs, found.points, strict=True):
        expected = {"x": cfg.x, "+word": cfg.word}
        assert point == (expected | {"nested.lr": cfg.nested.lr} if cfg.x > 0 else expected)
        assert cfg.word in ("two words", "a,b", "it's", "plain")
        assert 0 <= cfg.nested.lr <= cfg.x if cfg.x > 0 else cfg.nested.lr == 0.1
    assert {cfg.word for cfg in ran.jobs} > {"two words", "a,b"}
    assert found.results["best_params"] == min(found.points, key=lambda one: one["x"] ** 2)
    assert found.search["importances"] is None or len(found.search["importances"][0]) > 1


def test_a_study_that_is_gone_is_made_anew_with_what_a_function_has_suggested(
    search: Any, own: Own
) -> None:
    own(HOOK)
    ran = Ran()
    points = 'enqueue="x=0.5,-0.5,0.25"'  # more is suggested where x is above 0
    first = search(ran, X, "custom_search_space=own.more", "n_trials=3", points)
    before = first.points
    assert ["nested.lr" in point for point in before] == [True, False, True]
    # Of one that ran when the study was lost.
    told = first.search
    told["trials"][2]["state"] = "running"
    (first.folder / "search.json").write_text(json.dumps(told))
    (first.folder / "study.db").unlink()
    found = search(ran, X, "custom_search_space=own.more", "n_trials=4")
    assert found.points[:3] == before and len(ran.jobs) == 5
    again, known = ran.jobs[3], before[2]
    assert (again.x, again.word) == (known["x"], known["+word"])


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("own.nothing", X, "custom_search_space=own.nothing: there is no such function"),
        ("nowhere.more", X, "custom_search_space=nowhere.more: there is no such function"),
        ("own.again", [*X, "y=0"], "custom_search_space=own.again suggests y, which is fixed: y=0"),
        ("own.broken", X, "the hook is broken"),
    ],
)
def test_a_function_that_cannot_be_used_ends_the_search_before_a_job(
    search: Any, own: Own, tmp_path: Path, name: str, arguments: Sequence[str], said: str
) -> None:
    own(HOOK)
    ran = Ran()
    with pytest.raises(Exception, match=re.escape(said)):
        search(ran, arguments, f"custom_search_space={name}")
    assert ran.jobs == [] and not (tmp_path / "out").exists()


# --- several jobs of a trial -----------------------------------------------------------------


def test_a_trial_of_several_jobs_is_judged_by_their_mean(search: Any) -> None:
    ran = Ran(lambda cfg: cfg.x + [0, 3, 6][cfg.seed])
    found = search(ran, ["x=10,20"], "replicates=3", "n_trials=2")
    assert ran.values("seed") == [0, 1, 2] * 2
    assert [trial.value for trial in found.trials] == [one["x"] + 3 for one in found.points]
    assert [trial.user_attrs["values"] for trial in found.trials] == [
        [[one["x"] + more] for more in (0, 3, 6)] for one in found.points
    ]
    folders = {trial.number * 3 + job for trial in found.trials for job in range(3)}
    assert {int(one.name) for one in found.folder.iterdir() if one.name.isdigit()} == folders
    assert found.results == {"name": "optuna", "best_params": {"x": 10}, "best_value": 13.0}


def test_a_study_does_not_go_on_with_trials_of_other_jobs(search: Any) -> None:
    """They could not be compared, and would get the numbers and folders of its jobs."""
    ran = Ran()
    search(ran, X, "n_trials=2", "replicates=3")
    for settings in (["replicates=1"], ["replicates=3", "replicate_key=y"]):
        with pytest.raises(BadSearch, match=r"holds trials with hydra\.sweeper\.replicates=3 and"):
            search(ran, X, "n_trials=4", *settings)
    assert len(ran.jobs) == 6
    search(ran, X, "n_trials=3", "replicates=3")
    assert len(ran.jobs) == 9


def test_what_jobs_of_a_trial_differ_in_can_be_named(search: Any) -> None:
    ran = Ran(lambda cfg: cfg.fold)
    found = search(ran, ["x=1,2"], "replicates=2", "replicate_key=+fold", "n_trials=1")
    assert ran.values("fold") == [0, 1] and found.trials[0].value == 0.5


def test_a_trial_fails_with_any_of_its_jobs(search: Any) -> None:
    ran = Ran(lambda cfg: 1 / (cfg.seed - cfg.x))
    found = search(ran, ["x=1,5"], "replicates=3", "n_trials=2")
    reasons = {trial.params["x"]: trial.user_attrs.get("reason") for trial in found.trials}
    assert reasons == {1: "ZeroDivisionError: division by zero", 5: None}
    assert len(ran.jobs) == 6


def test_several_jobs_are_pruned_by_the_mean_of_what_they_report(search: Any) -> None:
    told: list[tuple[int, int, int]] = []

    def task(cfg: Any) -> float:
        for step in (1, 2):
            if report(cfg.x * step + [-5, 5][cfg.seed], step):
                told.append((cfg.x, cfg.seed, step))
                break
        return float(cfg.x)

    settings = ["hydra/sweeper/pruner=threshold", "pruner.upper=8", "replicates=2", "n_trials=2"]
    found = search(task, ["x=3,7"], *settings)
    trials = {trial.params["x"]: trial for trial in found.trials}
    assert trials[3].state.name == "COMPLETE" and trials[7].state.name == "PRUNED"
    assert trials[3].intermediate_values == {1: 3.0, 2: 6.0}
    assert trials[7].intermediate_values == {1: 7.0, 2: 14.0}
    assert told == [(7, 1, 2)]  # not the 11 of the second job's first step, nor its 8 before


def test_a_trial_is_pruned_unless_all_of_its_jobs_come_to_their_end(search: Any) -> None:
    """Its second job objects for both; `name` says which of them ends early."""
    jobs: list[Any] = []

    def task(cfg: Any) -> float:
        jobs.append(handle())
        jobs[-1].report(1, 9.0)
        if cfg.seed == 1:
            for place in {"none": (0, 1), "first": (1,), "second": (0,)}[cfg.name]:
                jobs[-2:][place].has_completed()
        return 1.0

    settings = ["hydra/sweeper/pruner=threshold", "pruner.upper=8", "replicates=2", "n_trials=3"]
    found = search(task, ["name=none,first,second"], *settings)
    states = {trial.params["name"]: trial.state.name for trial in found.trials}
    assert states == {"none": "COMPLETE", "first": "PRUNED", "second": "PRUNED"}


@pytest.mark.parametrize(
    ("points", "states"),
    [
        ("0,1", ["complete", "pruned"]),
        pytest.param("1,0", ["complete"] * 2, marks=pytest.mark.slow),
    ],
)
def test_seeds_in_turn_end_with_those_that_are_worse_than_the_best_trials(
    search: Any, points: str, states: list[str]
) -> None:
    ran = Ran(lambda cfg: cfg.x + 0.01 * cfg.seed)
    settings = ["hydra/sweeper/pruner=wilcoxon", "replicates=6", "n_trials=2"]
    found = search(ran, X, *settings, f'enqueue="x={points}"')
    assert found.states == states
    num_second = len(ran.jobs) - 6
    assert ran.values("seed") == [*range(6), *range(num_second)]
    if states[1] == "pruned":
        assert 2 < num_second < 6
        reason = f"worse than the best trial over the same {num_second} jobs"
        assert found.search["trials"][1]["reason"] == reason
    else:
        assert num_second == 6
        assert [trial.value for trial in found.trials] == pytest.approx([1.025, 0.025])


def test_that_a_pruner_of_seeds_has_none_to_compare_is_said(
    search: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    search(square, X, "hydra/sweeper/pruner=wilcoxon", "n_trials=1")
    said = "with hydra.sweeper.replicates=1 and 1 objectives it prunes nothing"
    assert said in capsys.readouterr().out


def test_seeds_in_turn_end_with_one_that_fails(search: Any) -> None:
    ran = Ran(lambda cfg: 1 / (cfg.seed - 1))
    with pytest.raises(SearchFailed, match="No trial completed"):
        search(ran, ["x=1,2"], "hydra/sweeper/pruner=wilcoxon", "replicates=4")
    assert ran.values("seed") == [0, 1] * 2


def test_several_objectives_with_seeds_in_turn_run_all_of_them(search: Any) -> None:
    settings = ["hydra/sweeper/pruner=wilcoxon", "replicates=2", "n_trials=2"]
    found = search(lambda cfg: [cfg.x, cfg.seed], X, *settings, "direction=[minimize,minimize]")
    assert [trial.values[1] for trial in found.trials] == [0.5, 0.5]


# --- pruning ---------------------------------------------------------------------------------


def curve(cfg: Any) -> float:
    for step in range(1, 6):
        if report(cfg.x + 1 / step, step):
            return -1.0
    return float(cfg.x)


def test_a_job_is_told_to_stop_and_its_trial_is_pruned(
    search: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the median, at its third report: the first ones say little."""
    ran = Ran(curve)
    settings = ["pruner.n_startup_trials=1", "n_trials=3", 'enqueue="x=0,1,0.5"', "max_failures=0"]
    found = search(ran, X, *settings)
    assert found.states == ["complete", "pruned", "pruned"]
    assert [len(trial.intermediate_values) for trial in found.trials] == [5, 3, 3]
    told = found.search["trials"][1]
    assert (told["state"], told["values"]) == ("pruned", None)
    assert told["steps"] == {"1": 2.0, "2": 1.5, "3": pytest.approx(4 / 3)}
    why = r"at best 1\.333 till then, where the median of 1 .* is 0\.3333 \(Median pruner\)"
    assert re.fullmatch(why, told["reason"])
    assert f"trial 1 pruned at 3: {told['reason']}" in capsys.readouterr().out
    assert found.results["best_params"] == {"x": 0.0}
    # It has ended: it counts, and does not run again.
    search(ran, X, *settings)
    assert len(ran.jobs) == 3


def test_a_job_that_raises_optunas_own_exception_is_pruned(search: Any) -> None:
    def task(cfg: Any) -> float:
        if cfg.x:
            raise optuna.TrialPruned("not worth it") if cfg.x > 1 else optuna.TrialPruned
        return 1.0

    found = search(task, ["x=0,1,2"], "max_failures=0")
    told = {trial.params["x"]: found.search["trials"][trial.number] for trial in found.trials}
    assert {x: (one["state"], one["reason"]) for x, one in told.items()} == {
        0: ("completed", None),
        1: ("pruned", "the job says so"),
        2: ("pruned", "not worth it"),
    }


@pytest.mark.parametrize(
    ("setting", "count"),
    [
        ("direction=[minimize,maximize]", 2),
        ("pruner=null", 1),
        pytest.param("hydra/sweeper/pruner=none", 1, marks=pytest.mark.slow),
    ],
)
def test_nobody_is_told_to_stop_where_nothing_is_pruned(
    search: Any, setting: str, count: int
) -> None:
    def task(cfg: Any) -> Any:
        assert not any(report(1e9 * cfg.x, step) for step in range(3))
        return [cfg.x] * count if count > 1 else cfg.x

    found = search(task, X, setting, "n_trials=7")
    assert found.states == ["complete"] * 7


def test_a_report_that_is_nothing_or_comes_again_changes_nothing(search: Any) -> None:
    def task(cfg: Any) -> float:
        assert not report(math.nan, 0)
        assert not report(1.0, 1)
        assert not report(99.0, 1)
        assert not report(np.float32(3), np.int64(2))  # type: ignore[arg-type]
        assert not report(math.inf, 3)
        return 1.0

    found = search(task, X, "n_trials=1")
    assert found.trials[0].intermediate_values == {1: 1.0, 2: 3.0, 3: math.inf}


def test_a_job_of_no_search_is_never_told_to_stop(search: Any, conf: Path) -> None:
    assert report(1.0, 1) is False
    with initialize_config_dir(str(conf), version_base="1.3"):
        config = compose("config", ["hydra/sweeper=search"], return_hydra_config=True)
        assert report(1.0, 1, config) is False


@pytest.mark.slow
def test_reports_arrive_where_jobs_change_their_folder(
    search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["pruner.n_startup_trials=1", "n_trials=2", 'enqueue="x=0,1"']
    more = ["storage=sqlite:///kept.db", "study_name=one", "hydra.job.chdir=true"]
    search(curve, X, *settings, *more)
    study = optuna.load_study(study_name="one", storage=f"sqlite:///{tmp_path / 'kept.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]


# --- several objectives ----------------------------------------------------------------------


def test_several_objectives_leave_their_front(search: Any) -> None:
    settings = ["direction=[minimize,maximize]", "objectives=[cost,gain]", "n_trials=6"]
    found = search(lambda cfg: (cfg.x, cfg.y + cfg.x), ["x=0,1,2", "y=0,1"], *settings)
    front = [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]]
    solutions = sorted(found.results["solutions"], key=lambda one: one["params"]["x"])
    assert found.results["name"] == "optuna" and set(found.results) == {"name", "solutions"}
    assert solutions == [
        {"params": {"x": x, "y": 1}, "values": values} for x, values in enumerate(front)
    ]
    told = found.search
    assert told["objectives"] == [
        {"name": "cost", "direction": "minimize"},
        {"name": "gain", "direction": "maximize"},
    ]
    assert sorted(told["trials"][number]["values"] for number in told["best"]) == front
    assert told["best_command"] is None and not (found.folder / "experiment").exists()
    assert told["pruner"] is None


def results_of(search: Any, returned: Sequence[Any], *settings: str) -> list[Any]:
    """The values of trials, or the reason of those that failed, for what their jobs return."""
    typed = [f"x=range({len(returned)})"]
    more = ["hydra/sweeper/sampler=grid", f"n_trials={len(returned)}", "enqueue=null"]
    found = search(lambda cfg: returned[cfg.x], typed, *settings, *more)
    return [
        one["values"] or one["reason"].removeprefix("NotAValue: ") for one in found.search["trials"]
    ]


@pytest.mark.slow
def test_what_is_no_value_fails_its_trial_with_words(search: Any) -> None:
    table = {
        "it returned nothing (None); the function must return its value": None,
        "it returned '0.5', not a number": "0.5",
        "it returned b'1', not a number": b"1",
        "it returned nan, which cannot be compared": math.nan,
        "it returned -inf, which cannot be compared": -math.inf,
        "it returned (1.0,), not a number": (1.0,),
        "it returned {1}, not a number": {1},
        "it returned {'loss': 1.0}, not a number": {"loss": 1.0},
        f"it returned 1{'0' * 76}..., not a number": 10**400,
        f"it returned '{'x' * 76}..., not a number": "x" * 200,
    }
    good = [2, True, np.float32(0.5), np.array(7)]
    found = results_of(search, [*good, *table.values()])
    assert found == [[2.0], [1.0], [0.5], [7.0], *table]


@pytest.mark.slow
def test_what_are_not_all_values_fails_its_trial_with_words(search: Any) -> None:
    good = [
        [1.0, 2],
        (1, 2),
        np.array([1.0, 2.0]),
        {"gain": 2, "cost": 1},
        iter([1, 2]),
    ]
    table = {
        "it returned 1.0, not a list of 2 values, one for each direction": 1.0,
        "it returned None, not a list of 2 values, one for each direction": None,
        "it returned 'ab', not a list of 2 values, one for each direction": "ab",
        "it returned {1, 2}, not a list of 2 values, one for each direction": {1, 2},
        "it returned 3 values for 2 directions": [1, 2, 3],
        "it returned 0 values for 2 directions": [],
        "it returned 1 values for 2 directions": np.array(7.0),
        "it returned nan, which cannot be compared": [1, math.nan],
        "it returned nothing (None); the function must return its value": [1, None],
        "it returned values of cost, size, not of cost, gain": {"cost": 1, "size": 2},
    }
    settings = ["directions=[minimize,maximize]", "objectives=[cost,gain]"]
    found = results_of(search, [*good, *table.values()], *settings)
    assert found == [*[[1.0, 2.0]] * len(good), *table]


# --- failures --------------------------------------------------------------------------------


def fail(cfg: Any) -> float:
    raise ValueError(f"no luck with {cfg.x}\nat all")


def test_an_exception_fails_its_trial_and_no_other(search: Any) -> None:
    found = search(lambda cfg: 1.0 if cfg.x != 2 else fail(cfg), ["x=1,2,3"], "n_trials=3")
    told = {trial.params["x"]: found.search["trials"][trial.number] for trial in found.trials}
    assert {x: (one["state"], one["reason"]) for x, one in told.items()} == {
        1: ("completed", None),
        2: ("failed", "ValueError: no luck with 2"),
        3: ("completed", None),
    }


def test_a_search_without_a_completed_trial_fails_with_a_line_for_each(
    search: Any, tmp_path: Path
) -> None:
    with pytest.raises(SearchFailed) as caught:
        search(fail, ["x=1,2", "name=a b"], "hydra/sweeper/sampler=grid")
    assert str(caught.value) == (
        "No trial completed.\n"
        "  trial 0 (x=1): ValueError: no luck with 1\n"
        "  trial 1 (x=2): ValueError: no luck with 2"
    )
    told = json.loads((tmp_path / "out" / "search.json").read_text())
    assert told["best"] == [] and len(told["trials"]) == 2
    assert not (tmp_path / "out" / "optimization_results.yaml").exists()


def test_a_search_whose_first_trials_all_fail_is_stopped(search: Any) -> None:
    ran = Ran(fail)
    with pytest.raises(SearchFailed, match="No trial completed"):
        search(ran, X, "n_trials=50")
    assert len(ran.jobs) in (10, 11)  # one may have been asked for ahead


def test_a_search_whose_first_trials_all_failed_goes_on_once_the_cause_is_mended(
    search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_budget, "HOPELESS", 2)
    broken, mended = Ran(fail), Ran()
    for _ in range(2):  # after the first start it is not mended yet
        with pytest.raises(SearchFailed, match="No trial completed"):
            search(broken, X, "n_trials=50", "n_jobs=1")
    assert len(broken.jobs) == 4
    found = search(mended, X, "n_trials=6", "n_jobs=1")
    assert len(mended.jobs) == 2 and found.states == ["fail"] * 4 + ["complete"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "num_jobs", "said"),
    [
        ("max_failures=1", 4, "2 trials failed, more than hydra.sweeper.max_failures=1"),
        ("max_failure_rate=0", 2, "1 of 2 trials failed, more than hydra.sweeper.max_failure_rat"),
        pytest.param("max_failure_rate=0.5", 5, None, marks=pytest.mark.slow),
    ],
)
def test_a_search_ends_with_more_failures_than_are_allowed(
    search: Any, setting: str, num_jobs: int, said: str | None
) -> None:
    ran = Ran(lambda cfg: 1.0 if cfg.x % 2 else fail(cfg))
    settings = [setting, "n_trials=5", 'enqueue="x=1,2,3,4,5"']
    if said is None:
        search(ran, ["x=range(1,9)"], *settings)
    else:
        with pytest.raises(SearchFailed, match=re.escape(said)) as caught:
            search(ran, ["x=range(1,9)"], *settings)
        assert "  trial 1 (x=2): ValueError: no luck with 2" in str(caught.value)
    assert len(ran.jobs) in (num_jobs, num_jobs + 1)  # one may have been asked for ahead


@pytest.mark.slow
def test_a_launcher_that_ends_a_search_early_fails_it(search: Any, tmp_path: Path) -> None:
    settings = ["hydra.launcher.fail_fast=true", "n_trials=4", 'enqueue="x=1,0"']
    with pytest.raises(SearchFailed, match=r"the launcher has ended it \(hydra\.launcher\.fail_"):
        search(lambda cfg: 1 / cfg.x, ["x=range(9)"], *settings)
    # It can be gone on with.
    found = search(lambda cfg: 1 / cfg.x, ["x=range(9)"], "n_trials=4")
    assert sorted(found.states) == ["complete", "complete", "complete", "fail"]


def test_the_last_trial_may_be_the_failure_that_is_too_much(search: Any, tmp_path: Path) -> None:
    settings = ["max_failure_rate=0", "n_trials=2", 'enqueue="x=1,0"']
    with pytest.raises(SearchFailed, match="1 of 2 trials failed"):
        search(lambda cfg: 1 / cfg.x, ["x=range(9)"], *settings)
    # What has been found is there all the same.
    assert (tmp_path / "out" / "optimization_results.yaml").exists()


# --- launchers -------------------------------------------------------------------------------


def test_a_launcher_without_slots_runs_batches(search: Any) -> None:
    ran = Ran(lambda cfg: 1 / (cfg.x - 1))
    found = search(ran, ["x=range(4)"], "n_trials=4", "n_jobs=2", launcher="basic")
    assert sorted(ran.values("x")) == [0, 1, 2, 3]
    assert sorted(found.states) == ["complete"] * 3 + ["fail"]
    folders = {trial.number: trial.user_attrs.get("folder") for trial in found.trials}
    assert folders == {number: str(number) for number in folders}
    search(ran, ["x=range(9)"], "n_trials=5", launcher="basic")
    assert len(ran.jobs) == 5


def meets(cfg: Any) -> float:
    """The first two jobs wait for each other."""
    hydra = HydraConfig.get()
    (Path(hydra.sweep.dir) / f"begun-{hydra.job.num}").touch()
    until = time.monotonic() + 60
    while cfg.x < 0.2 and len(list(Path(hydra.sweep.dir).glob("begun-*"))) < 2:
        assert time.monotonic() < until, "the other one has not begun"
        time.sleep(0.02)
    for step in (1, 2):
        if report(cfg.x, step):
            break
    return float(cfg.x)


def test_slots_search_side_by_side_and_prune(search: Any) -> None:
    points = [0, 0.1, 0.6, 0.7, 0.8, 0.9]
    settings = [f'enqueue="x={",".join(map(str, points))}"', "pruner.n_startup_trials=2"]
    more = ["hydra.launcher.cpu_slots=2", "n_trials=6", "pruner.n_warmup_steps=0"]
    found = search(meets, X, *settings, *more, launcher="slots")
    assert [one["x"] for one in found.points] == points
    # When the last one begins, at most one other still runs.
    assert found.states[:2] == ["complete"] * 2 and found.states[-1] == "pruned"
    for trial in found.trials:
        assert set(trial.intermediate_values.values()) == {trial.params["x"]}


def fails_with_some_seed(cfg: Any) -> float:
    if cfg.x == 2 and cfg.seed == 1:
        raise ValueError("no luck")
    return float(cfg.x + cfg.seed)


@pytest.mark.slow
def test_slots_share_the_jobs_of_a_trial(search: Any) -> None:
    settings = ["hydra.launcher.cpu_slots=2", "replicates=2", "n_trials=3"]
    found = search(fails_with_some_seed, ["x=1,2,3"], *settings, launcher="slots")
    told = {trial.params["x"]: found.search["trials"][trial.number] for trial in found.trials}
    assert {x: (one["values"], one["reason"]) for x, one in told.items()} == {
        1: ([1.5], None),
        2: (None, "ValueError: no luck"),
        3: ([3.5], None),
    }


@pytest.mark.slow
def test_one_slot_in_another_process_proposes_what_this_process_proposes(search: Any) -> None:
    settings = ["n_trials=14", "sampler.seed=1"]
    here = search(square, X, *settings)
    more = ["hydra.launcher.cpu_slots=1"]
    there = search(square, X, *settings, *more, launcher="slots", folder="there")
    assert there.points == here.points


def test_a_report_that_is_no_number_is_the_jobs_own_error(search: Any) -> None:
    def task(cfg: Any) -> float:
        report("high" if cfg.x == 1 else 1.0, -1 if cfg.x == 2 else 1)  # type: ignore[arg-type]
        return 0.0

    found = search(task, ["x=1,2,3"], "n_trials=3")
    own = [trial for trial in found.search["trials"] if trial["same_as"] is None]
    reasons = {trial["params"]["x"]: trial["reason"] for trial in own}
    assert "could not convert" in reasons[1] and "step=-1" in reasons[2] and reasons[3] is None
