"""What a job of a search says of itself while it runs.

    for epoch in range(1, 21):
        value = ...
        if report(value, epoch):
            break               # not worth going on
    return value

A job that is no part of a search, or of one with several objectives, is never told to stop. Nor is
one whose study cannot be reached from where it runs: that is said once, in its log.
"""

import logging
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    import optuna

    from hydra_plugins.study_sweeper._report import Handle

log = logging.getLogger(__name__)

SWEEPER = "hydra_plugins.study_sweeper.sweeper.StudySweeper"


def report(value: float, step: int, config: DictConfig | None = None) -> bool:
    """Say how good the job is by now; whether it should stop.

    Args:
        value: of what the search looks for.
        step: such as the epoch, 0 or more; of a step that was reported before, the first value
            counts.
        config: the job's, with its `hydra` node; None: of the job that Hydra runs here.
    """
    found = handle(config)
    return found is not None and found.report(step, value) is not None


def is_of_search(config: DictConfig | None = None) -> bool:
    """Whether a job is part of a search that may end it early."""
    hydra = _hydra(config)
    if hydra is None or OmegaConf.select(hydra, "sweeper._target_") != SWEEPER:
        return False
    mode = OmegaConf.select(hydra, "mode")
    pruner = str(OmegaConf.select(hydra, "sweeper.pruner._target_"))
    return getattr(mode, "name", mode) == "MULTIRUN" and not pruner.endswith("WilcoxonPruner")


def handle(config: DictConfig | None = None) -> "Handle | None":
    """The trial that a job belongs to; None if it belongs to none that can be pruned."""
    if not is_of_search(config):
        return None
    hydra = _hydra(config)
    assert hydra is not None
    from hydra_plugins.study_sweeper import _report, _storage

    cwd = Path(str(hydra.runtime.cwd))
    storage = _storage.address(hydra.sweeper.storage, cwd / str(hydra.sweep.dir), cwd)
    name = _report.study_name(hydra)
    try:
        study = _study(storage, name, hydra.sweeper.pruner)
    except Exception as error:
        _say_once(f"The search's study cannot be reached from here, nothing is pruned: {error}")
        return None
    if study is None:
        return None
    return _report.Handle(study, int(hydra.job.num), int(hydra.sweeper.replicates))


def _hydra(config: DictConfig | None) -> Any:
    if config is not None:
        return OmegaConf.select(config, "hydra")
    return HydraConfig.get() if HydraConfig.initialized() else None


_studies: dict[tuple[str, str], "optuna.Study | None"] = {}
# Until when one that could not be reached is left alone, and why it could not.
_lost: dict[tuple[str, str], tuple[float, str]] = {}


def _study(storage: Any, name: str, pruner: DictConfig) -> "optuna.Study | None":
    key = (str(storage), name)
    if key not in _studies:
        from hydra_plugins.study_sweeper import _report

        until, why = _lost.get(key, (0.0, ""))
        if time.monotonic() < until:
            raise RuntimeError(why)
        try:
            _studies[key] = _report.loaded(storage, name, pruner)
        except Exception as error:
            _lost[key] = time.monotonic() + _report.LOST_S, str(error)
            raise
    return _studies[key]


@lru_cache(maxsize=8)
def _say_once(text: str) -> None:
    log.warning("%s", text)
