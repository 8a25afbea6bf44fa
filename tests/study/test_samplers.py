"""Samplers and pruners by name: Optuna's but for two, with the options that were given."""

import sys
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from omegaconf import OmegaConf
from optuna import pruners, samplers
from optuna.distributions import BaseDistribution

from hydra_plugins.study_sweeper import _samplers, config
from hydra_plugins.study_sweeper._errors import BadSearch
from hydra_plugins.study_sweeper._pruners import MedianPruner, PercentilePruner
from hydra_plugins.study_sweeper._space import space

SPACE = ["x=interval(-1,1)", "nested.lr=tag(log,interval(1e-5,1))", "y=range(0,9)", "name=a,b,c"]
NUMBERS = SPACE[:3]  # what every sampler proposes itself

SAMPLERS = {
    "tpe": samplers.TPESampler,
    "gp": samplers.GPSampler,
    "cmaes": samplers.CmaEsSampler,
    "qmc": samplers.QMCSampler,
    "nsgaii": samplers.NSGAIISampler,
    "nsgaiii": samplers.NSGAIIISampler,
    "random": samplers.RandomSampler,
    "grid": _samplers.Grid,
}
PRUNERS = {
    "none": pruners.NopPruner,
    "median": MedianPruner,
    "percentile": PercentilePruner,
    "optuna_median": pruners.MedianPruner,
    "hyperband": pruners.HyperbandPruner,
    "asha": pruners.SuccessiveHalvingPruner,
    "patient": pruners.PatientPruner,
    "threshold": pruners.ThresholdPruner,
    "wilcoxon": pruners.WilcoxonPruner,
}


def value(params: Mapping[str, Any]) -> float:
    """The same of a point, for Hydra's jobs and for plain Optuna."""
    others = abs(params["nested.lr"] - 0.01) + abs(params["y"] - 4)
    return float(params["x"] ** 2 + others + {"a": 0, "b": 1, "c": 2}.get(params.get("name"), 0))


def task(cfg: Any) -> float:
    named = {"name": cfg.name} if cfg.name in "abc" else {}
    return value({"x": cfg.x, "nested.lr": cfg.nested.lr, "y": cfg.y, **named})


def planned(
    sampler: optuna.samplers.BaseSampler, num_trials: int, typed: list[str]
) -> list[dict[str, Any]]:
    """What plain Optuna proposes, one after the other."""
    distributions: dict[str, BaseDistribution] = {
        param.name: param.distribution for param in space(typed).params
    }
    study = optuna.create_study(sampler=sampler)
    for _ in range(num_trials):
        trial = study.ask(distributions)
        study.tell(trial, value(trial.params))
    return [trial.params for trial in study.trials]


# --- by name ---------------------------------------------------------------------------------


SLOW = [pytest.mark.slow]
OPTIONS = {"upper": 100.0}  # the threshold has no bound by itself


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_by_name_is_optunas(name: str) -> None:
    node = OmegaConf.structured(config._SAMPLERS[name])
    found = _samplers.sampler(node, num_trials=0, is_conditional=False)
    assert type(found) is SAMPLERS[name]


@pytest.mark.parametrize("name", PRUNERS)
def test_a_pruner_by_name_is_optunas_or_ours(name: str) -> None:
    node = OmegaConf.structured(config._PRUNERS[name])
    found = _samplers.pruner(OmegaConf.merge(node, OPTIONS if name == "threshold" else {}))
    assert type(found) is PRUNERS[name]


# Those that are searched with below need not be here, too.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "grid" else SLOW) for n in SAMPLERS]
)
def test_a_search_with_a_sampler_by_name_has_it(search: Any, name: str) -> None:
    typed = ["y=range(0,3)", "name=a,b"] if name == "grid" else SPACE
    found = search(task, typed, "n_trials=2", f"hydra/sweeper/sampler={name}")
    assert found.states == ["complete"] * 2
    assert found.search["sampler"] == SAMPLERS[name].__name__


@pytest.mark.slow
@pytest.mark.parametrize("name", PRUNERS)
def test_a_search_with_a_pruner_by_name_has_it(search: Any, name: str) -> None:
    more = ["pruner.upper=100"] if name == "threshold" else []
    found = search(task, NUMBERS, "n_trials=1", f"hydra/sweeper/pruner={name}", *more)
    assert found.states == ["complete"]
    assert found.search["pruner"] == (None if name == "none" else PRUNERS[name].__name__)


def test_nobody_is_told_that_what_he_asked_for_is_experimental(
    search: Any, recwarn: pytest.WarningsRecorder
) -> None:
    warnings.simplefilter("always")
    settings = ["hydra/sweeper/sampler=qmc", "hydra/sweeper/pruner=patient", "n_trials=2"]
    search(task, NUMBERS, *settings)
    assert [str(one.message) for one in recwarn if "xperimental" in str(one.category)] == []


def test_auto_without_its_package_says_what_to_install(
    search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optunahub", None)
    with pytest.raises(BadSearch) as caught:
        search(task, NUMBERS, "hydra/sweeper/sampler=auto")
    assert str(caught.value) == (
        "hydra/sweeper/sampler=auto needs the package optunahub (pip install optunahub)."
    )


# --- options ---------------------------------------------------------------------------------


def built(**options: Any) -> Any:
    return _samplers.sampler(OmegaConf.create(options), num_trials=0, is_conditional=False)


def test_an_option_from_the_command_line_arrives(
    search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {}

    class Remembered(samplers.TPESampler):
        def __init__(self, **options: Any) -> None:
            made.update(options)
            super().__init__(**options)

    monkeypatch.setattr(samplers, "TPESampler", Remembered)
    settings = ["sampler.n_startup_trials=3", "sampler.seed=7", "n_trials=1"]
    search(task, NUMBERS, *settings)
    # What was not set is left to Optuna.
    assert made == {"n_startup_trials": 3, "seed": 7}


@pytest.mark.slow
def test_startup_trials_of_the_command_line_are_those_of_the_search(search: Any) -> None:
    found = search(task, NUMBERS, "sampler.n_startup_trials=3", "sampler.seed=1", "n_trials=4")
    few = planned(samplers.TPESampler(n_startup_trials=3, seed=1), 4, NUMBERS)
    many = planned(samplers.TPESampler(n_startup_trials=10, seed=1), 4, NUMBERS)
    assert found.points == few != many


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("sampler.n_startup_trial=3", "n_startup_trial"),
        ("sampler.n_startup_trials=few", "few"),
        ("+hydra.sweeper.pruner.warmup=3", "warmup"),
        ("hydra/sweeper/sampler=tpee", "tpee"),
        ("hydra/sweeper/pruner=medium", "medium"),
    ],
)
def test_an_option_that_there_is_not_is_refused(
    search: Any, tmp_path: Any, setting: str, said: str
) -> None:
    with pytest.raises(Exception, match=said):
        search(task, NUMBERS, setting)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["hydra/sweeper/sampler=qmc", "sampler.qmc_type=sobel"], "sampler: optuna.samplers.QMC"),
        (["hydra/sweeper/pruner=threshold"], "pruner: optuna.pruners.ThresholdPruner cannot be bu"),
        (["hydra/sweeper/pruner=percentile", "pruner.percentile=101"], "cannot be built: perc"),
    ],
)
def test_an_option_that_optuna_refuses_is_named_before_anything_is_made(
    search: Any, tmp_path: Any, settings: list[str], said: str
) -> None:
    with pytest.raises(BadSearch, match=said):
        search(task, NUMBERS, *settings)
    assert not (tmp_path / "out").exists()


def test_tpe_is_multivariate_and_lies_about_what_runs_unless_told_otherwise() -> None:
    """Optuna's own defaults: what many slots need."""
    found = built(_target_="optuna.samplers.TPESampler")
    assert optuna.__version__ >= "5"
    assert found._constant_liar is True
    assert built(_target_="optuna.samplers.TPESampler", constant_liar=False)._constant_liar is False


@pytest.mark.parametrize(
    ("options", "is_conditional", "expected"),
    [
        ({}, False, (False, None)),
        ({}, True, (True, True)),
        ({"multivariate": False}, True, (False, False)),
        ({"group": False}, True, (False, None)),
        ({"group": True}, False, (True, True)),
    ],
)
def test_a_conditional_space_is_for_groups_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, options: Any, is_conditional: bool, expected: Any
) -> None:
    made: dict[str, Any] = {}
    real = samplers.TPESampler
    monkeypatch.setattr(samplers, "TPESampler", lambda **own: made.update(own) or real(**own))
    given = OmegaConf.create({"_target_": "optuna.samplers.TPESampler", **options})
    _samplers.sampler(given, num_trials=0, is_conditional=is_conditional)
    assert (made.get("group", False), made.get("multivariate")) == expected


def test_patience_has_a_pruner_within() -> None:
    given = {
        "_target_": "optuna.pruners.PatientPruner",
        "patience": 2,
        "wrapped_pruner": {"_target_": "optuna.pruners.PercentilePruner", "percentile": 10.0},
    }
    found = _samplers.pruner(OmegaConf.create(given))
    assert isinstance(found._wrapped_pruner, pruners.PercentilePruner)


# --- the same points as plain Optuna ---------------------------------------------------------


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("name", "options", "num_trials"),
    [
        ("tpe", {}, 13),
        pytest.param("tpe", {"multivariate": False, "n_startup_trials": 3}, 6, marks=SLOW),
        pytest.param("gp", {"n_startup_trials": 3}, 5, marks=SLOW),
        ("cmaes", {"n_startup_trials": 2, "popsize": 4}, 9),
        ("qmc", {}, 5),
        pytest.param("qmc", {"scramble": True, "qmc_type": "halton"}, 5, marks=SLOW),
        ("random", {}, 4),
        ("nsgaii", {"population_size": 2}, 6),
    ],
    ids=lambda given: given if isinstance(given, str) else None,
)
def test_the_same_seed_proposes_the_same_points_as_plain_optuna(
    search: Any, name: str, options: dict[str, Any], num_trials: int
) -> None:
    typed = NUMBERS if name in ("cmaes", "qmc") else SPACE
    set_ = [f"sampler.{key}={one}" for key, one in options.items()]
    settings = [f"hydra/sweeper/sampler={name}", "sampler.seed=3", *set_, f"n_trials={num_trials}"]
    found = search(task, typed, *settings)
    # A point that is proposed again is not run again, and told as it was; others come after it.
    expected = planned(SAMPLERS[name](seed=3, **options), num_trials, typed)
    assert [trial.params for trial in found.proposed][:num_trials] == expected
    assert found.search["sampler"] == SAMPLERS[name].__name__


def test_points_to_begin_with_change_nothing_of_what_is_proposed_after_them(search: Any) -> None:
    settings = ["sampler.seed=3", "sampler.n_startup_trials=3", "n_trials=5"]
    found = search(task, NUMBERS, *settings, 'enqueue="y=1,2 x=0"')
    distributions = {param.name: param.distribution for param in space(NUMBERS).params}
    study = optuna.create_study(sampler=samplers.TPESampler(seed=3, n_startup_trials=3))
    for y in (1, 2):
        study.enqueue_trial({"x": 0.0, "y": y})
    for _ in range(5):
        trial = study.ask(distributions)
        study.tell(trial, value(trial.params))
    assert found.points == [trial.params for trial in study.trials]


# --- a second start --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["tpe", *(pytest.param(n, marks=SLOW) for n in ("random", "nsgaii", "cmaes"))]
)
def test_a_second_start_does_not_propose_the_first_points_again(search: Any, name: str) -> None:
    settings = [f"hydra/sweeper/sampler={name}", "sampler.seed=1"]
    first = search(task, NUMBERS, *settings, "n_trials=2").points
    both = search(task, NUMBERS, *settings, "n_trials=4").points
    assert both[:2] == first
    assert len({one["x"] for one in both}) == 4


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_second_start_goes_on_with_the_same_quasi_random_sequence(search: Any) -> None:
    settings = ["hydra/sweeper/sampler=qmc", "sampler.seed=1"]
    search(task, NUMBERS, *settings, "n_trials=2")
    both = search(task, NUMBERS, *settings, "n_trials=4").points
    # The first point is at random, the others are numbered in the study.
    whole = planned(samplers.QMCSampler(seed=1), 4, NUMBERS)
    assert both[1:] == whole[1:]


@pytest.mark.slow
def test_a_second_start_with_a_seed_is_repeatable(search: Any) -> None:
    def both(folder: str) -> list[dict[str, Any]]:
        for num_trials in (2, 4):
            found = search(task, NUMBERS, "sampler.seed=1", f"n_trials={num_trials}", folder=folder)
        return list(found.points)

    assert both("a") == both("b")
