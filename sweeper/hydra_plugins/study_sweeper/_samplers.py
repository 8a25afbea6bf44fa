"""Samplers and pruners by name, that Optuna does not have as such."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.study_sweeper._errors import BadSearch


class Grid(optuna.samplers.RandomSampler):
    """Every point of the space is asked for in turn: there is none to propose.

    Optuna's own GridSampler works with `Study.optimize` alone.
    """


def is_grid(config: DictConfig) -> bool:
    """Whether every point is asked for: where the official plugin is, by the name that it has."""
    return str(config.get("_target_")).endswith(("_samplers.Grid", ".GridSampler"))


def nsgaiii(reference_points: Any = None, **options: Any) -> optuna.samplers.NSGAIIISampler:
    if reference_points is not None:
        options["reference_points"] = np.asarray(reference_points, dtype=float)
    return optuna.samplers.NSGAIIISampler(**options)


def auto(**options: Any) -> optuna.samplers.BaseSampler:
    """Optuna Hub's AutoSampler."""
    try:
        import optunahub  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise BadSearch(
            "hydra/sweeper/sampler=auto needs the package optunahub (pip install optunahub)."
        ) from None
    try:
        module = optunahub.load_module("samplers/auto_sampler")
    except Exception as error:
        raise BadSearch(
            f"hydra/sweeper/sampler=auto: Optuna Hub cannot be reached ({error}). "
            "hydra/sweeper/sampler=tpe needs no network."
        ) from error
    sampler: optuna.samplers.BaseSampler = module.AutoSampler(**options)
    return sampler


def sampler(config: DictConfig | None, *, num_trials: int, is_conditional: bool) -> Any:
    """The sampler, for a study that has so many trials already.

    A sampler that begins again with the same seed would propose again what it proposed then. Points
    of a quasi-random sequence are numbered in the study: there the seed must stay.
    """
    if config is None:
        raise BadSearch("hydra.sweeper.sampler=null: name one: hydra/sweeper/sampler=tpe.")
    options = _set(config)
    target = str(options["_target_"])
    if is_grid(config):
        return Grid(seed=options.get("seed"))
    if num_trials and options.get("seed") is not None and not target.endswith("QMCSampler"):
        options["seed"] = int(options["seed"]) + 7919 * num_trials
    if target.endswith("TPESampler"):
        if is_conditional and options.get("multivariate") is not False:
            options.setdefault("group", True)
        if options.get("group"):  # it is of the multivariate one alone
            options.setdefault("multivariate", True)
    return _built(options, "sampler")


def pruner(config: DictConfig | None) -> Any:
    """The pruner; null: none."""
    return optuna.pruners.NopPruner() if config is None else _built(_set(config), "pruner")


def _set(config: DictConfig) -> dict[str, Any]:
    """Without what is left to Optuna."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if value is not None}


def _built(options: Mapping[str, Any], what: str) -> Any:
    try:
        with warnings.catch_warnings():
            # It was asked for by name.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return instantiate(dict(options))
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, BadSearch):
            raise cause from None
        raise BadSearch(
            f"hydra.sweeper.{what}: {options.get('_target_')} cannot be built: {cause}"
        ) from error
