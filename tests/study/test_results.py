"""What a search leaves in its folder, and how it goes on with what it finds there."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hydra_plugins.study_sweeper import _results
from hydra_plugins.study_sweeper._asked import Asked
from hydra_plugins.study_sweeper._errors import BadSearch
from hydra_plugins.study_sweeper._space import space
from hydra_plugins.study_sweeper._study import check_same

X = ["x=interval(-1,1)"]


class Ran:
    """A task that remembers its jobs."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []

    def __call__(self, cfg: Any) -> float:
        self.jobs.append(OmegaConf.to_container(cfg))
        return float(cfg.x**2)


def square(cfg: Any) -> float:
    return float(cfg.x**2)


# --- files -----------------------------------------------------------------------------------


def test_the_best_is_written_as_the_official_sweeper_writes_it(search: Any) -> None:
    typed = ["x=0,1", "y=tag(log,interval(1e-3,1))", "name=a,b", "+flag=true,false", "seed=1"]
    found = search(lambda cfg: cfg.x + cfg.y, typed, "n_trials=3", "sampler.seed=1")
    best = found.study.best_trial
    expected = {"name": "optuna", "best_params": best.params, "best_value": best.value}
    text = (found.folder / "optimization_results.yaml").read_text()
    assert text == OmegaConf.to_yaml(OmegaConf.create(expected))


def test_a_file_that_takes_long_is_written_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thousands of trials: most of the time is the search's own."""
    now = 0.0
    written: list[float] = []

    def slow(*_: Any) -> None:
        nonlocal now
        written.append(now)
        now += 2.0

    study = optuna.create_study()
    results = _results.Results(
        tmp_path, study, space(X), storage="", names=["value"], n_trials=None, sampler="",
        is_group=lambda key: False,
    )  # fmt: skip
    monkeypatch.setattr(_results, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(_results, "write_whole", slow)
    for _ in range(100):
        results.write()
        now += 0.5
    assert written == [0.0, 42.0]


def test_what_no_file_can_say_is_said_beside_the_best_point(search: Any) -> None:
    found = search(square, ["x=1,2", "~seed", "~where"], "n_trials=1")
    text = (found.folder / "experiment" / "best.yaml").read_text()
    assert "# No file can say this, give it as well: '~seed' '~where'\n" in text
    assert set(OmegaConf.create(text)) == {"x"}


@pytest.mark.slow
def test_the_searchs_file_tells_all_of_it(search: Any) -> None:
    typed = ["x=interval(0,1)", "y=tag(log,int(interval(1,8)))", "name=a,b", "seed=5"]
    found = search(lambda cfg: cfg.x + cfg.y, typed, "n_trials=8", "objectives=[loss]")
    told = found.search
    trials, importances = told.pop("trials"), told.pop("importances")
    best = found.study.best_trial
    assert shlex.split(told.pop("best_command"))[-4:] == [
        "seed=5",
        *(f"{key}={value}" for key, value in best.params.items()),
    ]
    assert told == {
        "format": 1,
        "study_name": "app/out",
        "storage": f"sqlite:///{found.folder / 'study.db'}",
        "sampler": "TPESampler",
        "pruner": "MedianPruner",
        "objectives": [{"name": "loss", "direction": "minimize"}],
        "n_trials": 8,
        "stopped": "its 8 trials are done",
        "params": {
            "x": {"kind": "float", "log": False, "low": 0.0, "high": 1.0},
            "y": {"kind": "int", "log": True, "low": 1, "high": 8},
            "name": {"kind": "categorical", "choices": ["a", "b"]},
        },
        "fixed": ["seed=5"],
        "best": [best.number],
        "best_experiment": "experiment/best.yaml",
    }
    assert set(importances[0]) == {"x", "y", "name"}
    assert sum(importances[0].values()) == pytest.approx(1)
    for number, (trial, point) in enumerate(zip(trials, found.points, strict=True)):
        assert trial.pop("seconds") > 0
        assert trial == {
            "number": number,
            "state": "completed",
            "params": point,
            "distributions": {},
            "values": [point["x"] + point["y"]],
            "reason": None,
            "steps": {},
            "same_as": None,
            "folder": str(number),
        }


def composed(conf: Path, overrides: Sequence[str], more: Path | None = None) -> Any:
    """A configuration as the application has it, with another folder of files."""
    searchpath = [f"hydra.searchpath=[file://{more}]"] if more else []
    with initialize_config_dir(str(conf), version_base="1.3"):
        return OmegaConf.to_container(compose("config", [*searchpath, *overrides]))


MORE = ["007", "a,b", "no", "${where}", "#1", "null", " "]
TYPED = [
    "x=1e-7,2",
    "y=range(0.1,0.4,0.1)",
    "group=one,deep",
    "++nested={a:1,b:[x y]}",
    "nested.sizes=[1,2],[3]",
    "where=null",
    "+new.key='5'",
    "+new.word=on",
]


NAMES = [r"it\'s a: b", *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]


@pytest.mark.parametrize("name", NAMES)
def test_the_best_as_an_experiment_and_as_a_command_is_the_same_configuration(
    search: Any, conf: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "points.yaml").write_text("- {x: 1e-7, y: 0.2, nested.sizes: [3], group: deep}\n")
    ran = Ran()
    settings = [f"enqueue={tmp_path / 'points.yaml'}", "n_trials=1"]
    found = search(ran, [*TYPED, f"name='{name}'"], *settings)
    overrides = [one for one in shlex.split(found.search["best_command"]) if "=" in one]
    assert composed(conf, overrides) == ran.jobs[0]
    assert composed(conf, ["+experiment=best"], found.folder) == ran.jobs[0]


@pytest.mark.slow
def test_the_experiment_says_what_it_is_and_how_it_is_used(search: Any) -> None:
    found = search(square, ["x=1,2", "group=two", "~y"], "objectives=[loss]", "n_trials=2")
    number, count = found.study.best_trial.number, len(found.trials)
    assert (found.folder / "experiment" / "best.yaml").read_text() == (
        "# @package _global_\n"
        "#\n"
        f"# The best of {count} trials (trial {number}): loss 1.\n"
        "#\n"
        f"#   --config-dir {found.folder} +experiment=best\n"
        "#\n"
        "# No file can say this, give it as well: '~y'\n"
        "defaults:\n"
        "- override /group: two\n"
        "\n"
        "x: 1\n"
    )


def test_an_application_with_experiments_has_the_best_as_one_of_them(
    search: Any, conf: Path
) -> None:
    text = (conf / "config.yaml").read_text()
    (conf / "config.yaml").write_text(text.replace("_self_]", "_self_, experiment: null]"))
    for folder in ("experiment", "extra"):
        (conf / folder).mkdir()
    (conf / "experiment" / "base.yaml").write_text(
        "# @package _global_\ndefaults: [override /group: two]\nname: base\nnested: {lr: 7}\n"
    )
    (conf / "extra" / "more.yaml").write_text("more: 1\n")
    ran = Ran()
    typed = ["experiment=base", "x=1,2", "group=one,deep", "+extra=more"]
    found = search(ran, typed, "n_trials=1")
    assert ran.jobs[0]["name"] == "base" and ran.jobs[0]["extra"] == {"more": 1}
    assert composed(conf, ["experiment=best"], found.folder) == ran.jobs[0]
    text = (found.folder / "experiment" / "best.yaml").read_text()
    assert f"#   --config-dir {found.folder} experiment=best\n" in text


def test_a_study_that_is_gone_is_made_anew_from_the_searchs_file(search: Any) -> None:
    jobs: list[Any] = []

    def task(cfg: Any) -> float:
        jobs.append(cfg)
        return 1 / int(cfg.x)

    typed = ["x=0,1,2", "name='a,b',c"]
    first = search(task, typed, "n_trials=3")
    before = first.search["trials"]
    (first.folder / "study.db").unlink()
    found = search(task, typed, "n_trials=4")
    assert len(jobs) == 4
    kept = ("number", "state", "params", "values", "reason", "folder", "same_as")
    for trial, was in zip(found.search["trials"], before, strict=False):
        assert [trial[key] for key in kept] == [was[key] for key in kept]


# --- refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        (["x=1"], [], "There is nothing to search: give a key a range"),
        (["x=interval(1,0)"], [], "x=interval(1,0): the interval is empty"),
        (["z=1,2"], [], "Could not override 'z'"),
        (["group=one,three"], [], "Could not find 'group/three'"),
        ([*X, "group=three"], [], "Could not find 'group/three'"),
        (["group=one,deep", "group.depth=1,2"], [], "Could not override 'group.depth'"),
        (X, ["n_trials=many"], "n_trials"),
        (X, ["hydra.sweeper.trials=3"], "trials"),
        (X, ["params=[1,2]"], "params"),
        (X, ['enqueue="x=5"'], "hydra.sweeper.enqueue: x=5 is not in the space, -1 to 1."),
        (X, ["conditions={y: {x: 1}}"], "hydra.sweeper.conditions: y is not searched"),
        (X, ["hydra/sweeper/sampler=grid"], "sampler=grid: the space is not finite"),
        (X, ["sampler=null"], "hydra.sweeper.sampler=null: name one: hydra/sweeper/sampler=tpe."),
        (X, ["storage=journal://a.log"], "a journal is journal:///and its path, with three slash"),
        (X, ["storage=nosuch://x"], "hydra.sweeper.storage=nosuch://x cannot be used"),
        (X, ["replicates=2", "replicate_key=nothing"], "nothing"),
        (["name=plain,b"], ["objectives=['${name}']"], "to minimize plain, this trial would be to"),
        ([*X, "name=b"], ["objectives=['${name}']"], "to minimize plain, this trial would be to"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(
    search: Any, tmp_path: Path, arguments: list[str], settings: list[str], said: str
) -> None:
    ran = Ran()
    with pytest.raises(Exception, match=re.escape(said)) as caught:
        search(ran, arguments, *settings)
    assert not isinstance(caught.value, (AssertionError, TypeError, AttributeError))
    assert ran.jobs == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_trials": 0}, "n_trials=0: a whole number, 1 or more."),
        ({"n_trials": True}, "n_trials=True: a whole number, 1 or more."),
        ({"n_jobs": 0}, "n_jobs=0: a whole number, 1 or more."),
        ({"patience": 0}, "patience=0: a whole number, 1 or more."),
        ({"together": 0}, "together=0: a whole number, 1 or more."),
        ({"replicates": 0}, "replicates=0: a whole number, 1 or more."),
        ({"max_failures": -1}, "max_failures=-1: a whole number, 0 or more."),
        ({"max_failure_rate": 1.5}, "max_failure_rate=1.5: from 0 to 1, or null."),
        ({"max_failure_rate": float("nan")}, "max_failure_rate=nan: from 0 to 1, or null."),
        ({"timeout_s": 0.0}, "timeout_s=0.0: more than 0, or null."),
        ({"timeout_s": float("nan")}, "timeout_s=nan: more than 0, or null."),
        ({"direction": "up"}, "direction=up: it is minimize or maximize, or a list of these."),
        ({"direction": ["minimize", 1]}, "direction=1: it is minimize or maximize"),
        ({"direction": []}, "direction is an empty list."),
        ({"direction": None}, "direction=none: it is minimize or maximize"),
        ({"objectives": ["a", "b"]}, "objectives names 2 values, hydra.sweeper.direction has 1."),
    ],
    ids=str,
)
def test_a_setting_out_of_its_bounds_is_refused_by_its_name(settings: Any, said: str) -> None:
    given = {"direction": "minimize", "n_trials": 20, "together": 1, "replicates": 1, **settings}
    with pytest.raises(BadSearch, match=re.escape(f"hydra.sweeper.{said}")):
        Asked.of(OmegaConf.create(given))


def test_one_name_may_stand_for_a_list_of_one() -> None:
    given = {"direction": "minimize", "objectives": "loss", "n_trials": 20}
    assert Asked.of(OmegaConf.create(given)).goal == "minimize loss"


def test_a_dry_run_says_what_is_wrong_with_the_storage(search: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_text("no database" * 100)
    with pytest.raises(BadSearch, match=r"bad\.db cannot be used: file is not a database"):
        search(square, X, f"storage=sqlite:///{tmp_path / 'bad.db'}", "dry_run=true")


def test_a_dry_run_shows_the_search_and_makes_nothing(
    search: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = Ran()
    typed = ["group=one,deep", "group.depth=range(1,4)", "x=3"]
    settings = ["conditions={group.depth: {group: deep}}", "replicates=2", "dry_run=true"]
    search(ran, typed, *settings, 'enqueue="group=one"', "n_trials=9")
    said = capsys.readouterr().out
    assert ran.jobs == [] and not (tmp_path / "out").exists()
    for line in (
        "  group: CategoricalDistribution(choices=('one', 'deep'))",
        "  group.depth: IntDistribution(high=3, log=False, low=1, step=1), where group is deep",
        "  fixed: x=3",
        "  sampler TPESampler, pruner MedianPruner",
        "  minimize value; at most 9 trials of 2 jobs each",
        "  the space has 4 points",
        "  1 points to begin with",
        f"  study app/out in sqlite:///{tmp_path / 'out' / 'study.db'}: not begun",
    ):
        assert f"{line}\n" in said


# --- another start with other settings -------------------------------------------------------


def go_on(before: Sequence[str], now: Sequence[str], *bookkeeping: str) -> None:
    """Whether a study of some overrides may go on with others."""
    study = optuna.create_study(study_name="a")
    check_same(study, space(before), bookkeeping)
    study.ask()
    check_same(study, space(now), bookkeeping)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ([*X, "y=1"], [*X, "y=2"], "holds trials of other settings: they had y=1; now y=2."),
        (X, [*X, "y=2"], "they had none of these; now y=2."),
        ([*X, "y=1"], X, "they had y=1; now nothing stands for it."),
        ([*X, "y=1,2"], [*X, "y=1"], "they had none of these; now y=1."),
        ([*X, "wherever.y=1"], [*X, "wherever.y=2"], "they had wherever.y=1; now wherever.y=2."),
        (["x=1,2"], ["x=1,2,3"], "x: the study a has it as CategoricalDistribution(choices=(1, 2"),
        (["x=1,2"], ["x=2,1"], "trials of both cannot be compared"),
        (X, ["x=tag(log,interval(0.1,1))"], "trials of both cannot be compared"),
        (X, ["x=range(2)"], "trials of both cannot be compared"),
    ],
    ids=str,
)
def test_a_study_of_other_settings_is_not_gone_on_with(
    before: list[str], now: list[str], said: str
) -> None:
    with pytest.raises(BadSearch, match=re.escape(said)):
        go_on(before, now, "where")


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (["x=interval(0,1)"], ["x=interval(5,6)"]),
        (["x=range(3)"], ["x=range(0,9,2)"]),
        (["x=shuffle(a,b,c)"], ["x=shuffle(a,b,c)"]),
        ([*X, "y=1", "seed=2"], ["seed=2", "y=1", *X]),
        ([*X, "where.to=1", "+where@there=2", "~where.not"], [*X, "++where.to=3"]),
        ([*X, "hydra.verbose=true"], X),
    ],
    ids=str,
)
def test_a_study_goes_on_with_another_range_and_other_bookkeeping(
    before: list[str], now: list[str]
) -> None:
    go_on(before, now, "where")


@pytest.mark.slow
def test_a_refused_start_leaves_everything_as_it_was(search: Any) -> None:
    found = search(square, X, "n_trials=1")
    before = {one.name: one.read_bytes() for one in found.folder.iterdir() if one.is_file()}
    refused = [
        ([*X, "y=1"], "n_trials=2", "other settings: they had none of these; now y=1."),
        (X, "direction=maximize", "was made with hydra.sweeper.direction=minimize, now it is max"),
        (["x=1,2"], "n_trials=2", "trials of both cannot be compared"),
    ]
    for arguments, setting, said in refused:
        with pytest.raises(BadSearch, match=re.escape(said)):
            search(square, arguments, setting)
    kept = {name: (found.folder / name).read_bytes() for name in before if name != "study.db"}
    assert kept == {name: before[name] for name in kept}
    assert len(found.proposed) == 1


def test_trials_of_other_objectives_are_not_gone_on_with(search: Any) -> None:
    ran, two = Ran(), "direction=[minimize,minimize]"

    def task(cfg: Any) -> list[float]:
        return [ran(cfg), 0.0]

    found = search(task, X, two, "objectives=[cost,size]", "n_trials=1")
    said = "holds trials of other objectives: they had cost, size; now size, cost."
    with pytest.raises(BadSearch, match=re.escape(said)):
        search(task, X, two, "objectives=[size,cost]", "n_trials=2")
    search(task, X, two, "n_trials=1")  # without names it is the same
    assert len(ran.jobs) == 1
    (found.folder / "study.db").unlink()
    search(task, X, two, "objectives=[size,cost]", "n_trials=1")
    assert len(ran.jobs) == 2


def test_bookkeeping_is_no_part_of_the_best_command(search: Any) -> None:
    settings = ["bookkeeping=[where,nested]", "n_trials=1"]
    found = search(square, [*X, "where=there", "++nested.more=2", "y=3"], *settings)
    words = shlex.split(found.search["best_command"])
    assert [one.partition("=")[0] for one in words if "=" in one] == ["y", "x"]


def test_the_best_is_the_largest_where_that_is_asked_for(search: Any) -> None:
    found = search(lambda cfg: float(cfg.x), ["x=1,3,2"], "n_trials=3", "direction=maximize")
    assert found.results == {"name": "optuna", "best_params": {"x": 3}, "best_value": 3.0}
    best = found.search["trials"][found.search["best"][0]]
    assert best["params"] == {"x": 3} and found.search["best_command"].endswith(" x=3")
