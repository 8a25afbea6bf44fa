"""The options `hydra/sweeper=search`, and its samplers and pruners by name.

An option of a sampler or pruner that is left at null has Optuna's own default.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.config_source import ConfigLoadError
from omegaconf import MISSING

# --- samplers -------------------------------------------------------------------------------


@dataclass
class SamplerConf:
    _target_: str = MISSING
    # With one slot, the same seed proposes the same points.
    seed: int | None = None


@dataclass
class TPEConf(SamplerConf):
    _target_: str = "optuna.samplers.TPESampler"
    n_startup_trials: int | None = None  # that many at random
    n_ei_candidates: int | None = None
    multivariate: bool | None = None
    group: bool | None = None  # for conditional parameters; null: where there are any
    constant_liar: bool | None = None  # trials that still run count as bad: others look elsewhere


@dataclass
class GPConf(SamplerConf):
    _target_: str = "optuna.samplers.GPSampler"
    n_startup_trials: int | None = None
    deterministic_objective: bool | None = None


@dataclass
class CmaEsConf(SamplerConf):
    _target_: str = "optuna.samplers.CmaEsSampler"
    n_startup_trials: int | None = None
    x0: Any = None
    sigma0: float | None = None
    popsize: int | None = None
    consider_pruned_trials: bool | None = None
    use_separable_cma: bool | None = None
    with_margin: bool | None = None
    lr_adapt: bool | None = None


@dataclass
class QMCConf(SamplerConf):
    _target_: str = "optuna.samplers.QMCSampler"
    qmc_type: str | None = None  # sobol or halton
    scramble: bool | None = None


@dataclass
class NSGAIIConf(SamplerConf):
    _target_: str = "optuna.samplers.NSGAIISampler"
    population_size: int | None = None
    mutation: Any = None  # this one and `crossover`: an object's configuration
    mutation_prob: float | None = None
    crossover: Any = None
    crossover_prob: float | None = None
    swapping_prob: float | None = None


@dataclass
class NSGAIIIConf(NSGAIIConf):
    _target_: str = "hydra_plugins.study_sweeper._samplers.nsgaiii"
    dividing_parameter: int | None = None
    reference_points: Any = None  # a list of lists, each of a value for each objective


@dataclass
class RandomConf(SamplerConf):
    _target_: str = "optuna.samplers.RandomSampler"


@dataclass
class GridConf(SamplerConf):
    """Every point of a finite space, in order."""

    _target_: str = "hydra_plugins.study_sweeper._samplers.Grid"


@dataclass
class AutoConf(SamplerConf):
    """Optuna Hub's AutoSampler; needs optunahub, which fetches it."""

    _target_: str = "hydra_plugins.study_sweeper._samplers.auto"


# --- pruners --------------------------------------------------------------------------------


@dataclass
class NoneConf:
    _target_: str = "optuna.pruners.NopPruner"


@dataclass
class MedianConf:
    _target_: str = "hydra_plugins.study_sweeper._pruners.MedianPruner"
    # So many run to their ends before one is pruned. Optuna's own is 5; four at a time, that is 8.
    n_startup_trials: int | None = 4
    # Before a trial's report of this step it cannot be pruned. Optuna's own is 0; after one or two
    # epochs the median ends trials that would have won (docs/performance.md, "The search").
    n_warmup_steps: int | None = 3
    interval_steps: int | None = None
    n_min_trials: int | None = None
    look_ahead: bool | None = None  # true: who would win at its present pace goes on


@dataclass
class PercentileConf(MedianConf):
    _target_: str = "hydra_plugins.study_sweeper._pruners.PercentilePruner"
    percentile: float = 25.0  # the best so many per cent go on


@dataclass
class OptunaMedianConf:
    """Optuna's own: values of the same step are compared, and nobody looks ahead."""

    _target_: str = "optuna.pruners.MedianPruner"
    n_startup_trials: int | None = None
    n_warmup_steps: int | None = None
    interval_steps: int | None = None
    n_min_trials: int | None = None


@dataclass
class HyperbandConf:
    _target_: str = "optuna.pruners.HyperbandPruner"
    min_resource: int | None = None
    max_resource: Any = None
    reduction_factor: int | None = None
    bootstrap_count: int | None = None


@dataclass
class ASHAConf:
    _target_: str = "optuna.pruners.SuccessiveHalvingPruner"
    min_resource: Any = None
    reduction_factor: int | None = None
    min_early_stopping_rate: int | None = None
    bootstrap_count: int | None = None


@dataclass
class PatientConf:
    """Prunes what `wrapped_pruner` would, once it has not got better for `patience` steps."""

    _target_: str = "optuna.pruners.PatientPruner"
    patience: int = 3
    min_delta: float | None = None
    wrapped_pruner: Any = field(default_factory=lambda: {"_target_": "optuna.pruners.MedianPruner"})


@dataclass
class ThresholdConf:
    _target_: str = "optuna.pruners.ThresholdPruner"
    lower: float | None = None
    upper: float | None = None
    n_warmup_steps: int | None = None
    interval_steps: int | None = None


@dataclass
class WilcoxonConf:
    """For `replicates`: they run one after the other, and a trial ends when the seeds that it has
    had are worse than the same seeds of the best trial."""

    _target_: str = "optuna.pruners.WilcoxonPruner"
    p_threshold: float | None = None
    n_startup_steps: int | None = None


# --- the sweeper ----------------------------------------------------------------------------


@dataclass
class SearchConf:
    _target_: str = "hydra_plugins.study_sweeper.sweeper.StudySweeper"
    _recursive_: bool = False
    defaults: list[Any] = field(
        default_factory=lambda: [
            "_self_",
            {"sampler": "tpe"},
            {"pruner": "median"},
            # An application's own settings: hydra/sweeper/app/search.yaml among its files.
            {"optional app@_here_": "search"},
        ]
    )
    sampler: Any = MISSING
    pruner: Any = MISSING

    # minimize or maximize; a list where the application returns several values.
    direction: Any = "minimize"
    directions: Any = None  # another word for it
    # What the values are called in tables and figures.
    objectives: Any = None

    # The space: key -> as on the command line, where more can be given.
    params: Any = None
    # key -> {other: value or values}, or "other=value": the key is part of a point only where all
    # of that holds.
    conditions: Any = None
    # Dotted path of a function (cfg, trial) that suggests more, as in the official plugin.
    custom_search_space: str | None = None
    # Dotted path of a function that is given, before the first trial, the configurations of every
    # choice and of the ends of every range, one by one, and raises where one is not allowed.
    check: str | None = None
    # Points to begin with: overrides with their values ("lr=1e-3,1e-2 model=a"), a YAML file of
    # points, the folder of an earlier sweep; or a list of these.
    enqueue: Any = None

    # Budgets; whichever is used up first.
    n_trials: int | None = 20  # in all, those of earlier starts included
    timeout_s: float | None = None  # of this start: no trial begins later
    patience: int | None = None  # so many trials in turn without a better one

    # How many trials at a time; null: one a slot of the launcher (1 with a launcher without slots).
    n_jobs: int | None = None
    # How many are asked for at once for each free slot: for an application that trains them
    # together.
    together: int = 1
    # A point is judged by the mean over so many jobs, with 0, 1, 2... for `replicate_key`.
    replicates: int = 1
    replicate_key: str = "seed"

    # Stop when more than so many trials, or such a share of them, have failed; null: never.
    max_failures: int | None = None
    max_failure_rate: float | None = None

    # Optuna's: an address, or an object's configuration. null: a SQLite file in the sweep's folder.
    storage: Any = None
    # null: the name of the application and of the sweep's folder.
    study_name: str | None = None
    # Sections of the application's configuration that say where or how fast, not what: another
    # start may set them otherwise.
    bookkeeping: list[str] = field(default_factory=list)
    # Say what would be done, and do nothing.
    dry_run: bool = False


_SAMPLERS = {
    "tpe": TPEConf,
    "gp": GPConf,
    "cmaes": CmaEsConf,
    "qmc": QMCConf,
    "nsgaii": NSGAIIConf,
    "nsgaiii": NSGAIIIConf,
    "random": RandomConf,
    "grid": GridConf,
    "auto": AutoConf,
}
_PRUNERS = {
    "none": NoneConf,
    "median": MedianConf,
    "percentile": PercentileConf,
    "optuna_median": OptunaMedianConf,
    "hyperband": HyperbandConf,
    "asha": ASHAConf,
    "patient": PatientConf,
    "threshold": ThresholdConf,
    "wilcoxon": WilcoxonConf,
}


def _store(group: str, name: str, node: type) -> None:
    """Unless it is there: the official Optuna sweeper has samplers of the same names, which are as
    good for us, while ours would break it."""
    store = ConfigStore.instance()
    try:
        store.load(f"{group}/{name}.yaml")
    except ConfigLoadError:
        store.store(group=group, name=name, node=node, provider="study_sweeper")


_store("hydra/sweeper", "search", SearchConf)
for name, node in _SAMPLERS.items():
    _store("hydra/sweeper/sampler", name, node)
for name, node in _PRUNERS.items():
    _store("hydra/sweeper/pruner", name, node)
