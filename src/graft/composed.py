"""What a composed configuration says of its place in a sweep: in which keys runs differ, what this
one chose on each, and its name. Importing this makes the resolvers of conf/ known."""

from collections.abc import Sequence
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from graft import naming
from graft.config import OBJECTIVES


def _axes(cfg: DictConfig) -> list[str]:
    """Keys that tell the runs of a sweep apart, in the order in which they were typed."""
    axes = list(cfg.sweep.axes)
    if (sweeper := _sweeper(cfg)) is not None:
        axes += _leaves(sweeper.get("params") or {})
        if sweeper.get("replicates", 1) > 1:
            axes.append(sweeper["replicate_key"])
        if sweeper.get("custom_search_space") is not None:
            axes += [key for key in _overrides(cfg) if not naming.is_bookkeeping(key)]
    # A condition of a search may leave one out.
    given = _overrides(cfg)
    axes = [key for key in dict.fromkeys(axes) if key in given or _is_key(cfg, key)]
    return axes or [key for key in _overrides(cfg) if not naming.is_bookkeeping(key)]


def differing(jobs: Sequence[DictConfig], typed: DictConfig | None) -> list[str]:
    """Keys that do not have one value in all runs of the sweep.

    Args:
        typed: what Hydra composed before its sweeper set anything; None: not known here.
    """
    axes = list(jobs[0].sweep.axes)
    sweeper = _sweeper(jobs[0])
    if sweeper is None:
        return axes
    params = _leaves(sweeper.get("params") or {})
    more = [key for key, value in params.items() if _is_swept(key, value)]
    # What a function suggests is all that was not typed; elsewhere that is not known.
    if sweeper.get("custom_search_space") is not None and typed is not None:
        more += [key for job in jobs for key in _overrides(job) if key not in params]
    given = {} if typed is None else _overrides(typed)
    return list(dict.fromkeys([*axes, *(key for key in more if key not in given)]))


def _sweeper(cfg: DictConfig) -> Any:
    """Settings of the sweeper; None: it is a single run."""
    is_sweep = OmegaConf.select(cfg, "hydra.mode") == hydra.types.RunMode.MULTIRUN
    return (OmegaConf.select(cfg, "hydra.sweeper") or {}) if is_sweep else None


def _is_swept(key: str, value: Any) -> bool:
    if OmegaConf.is_list(value):  # choices, in a search
        return True
    (override,) = OverridesParser.create().parse_overrides([f"{key}={value}"])
    return override.is_sweep_override()


def _leaves(section: Any, prefix: str = "") -> dict[str, Any]:
    """What a section holds: `optimizer.lr` and its value, be it written in one line or in two."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        is_section = OmegaConf.is_dict(value)
        name = f"{prefix}{key}".lstrip("+")
        found |= _leaves(value, f"{name}.") if is_section else {name: value}
    return found


def _is_key(cfg: DictConfig, key: str) -> bool:
    return OmegaConf.select(cfg, key.replace("/", "."), default=_MISSING) is not _MISSING


_MISSING = object()


def _overrides(cfg: DictConfig) -> dict[str, str]:
    pairs = (o.lstrip("+").partition("=") for o in cfg.hydra.overrides.task)
    return {key: value for key, _, value in pairs}


def choices(cfg: DictConfig) -> dict[str, str]:
    """What this run chose on each axis, as it was typed."""
    given = _overrides(cfg)
    return {axis: given.get(axis, str(OmegaConf.select(cfg, axis))) for axis in _axes(cfg)}


def run_name(cfg: DictConfig) -> str:
    values = {key: _value(cfg, key, text) for key, text in choices(cfg).items()}
    return naming.run_name(values)


def _value(cfg: DictConfig, key: str, text: str) -> Any:
    """A plain value as composed (1e-3 is 0.001), an option of a group as it was typed."""
    value = OmegaConf.select(cfg, key)
    return text if value is None or OmegaConf.is_config(value) else value


OmegaConf.register_new_resolver(
    "graft_run_name", lambda *, _root_: run_name(_root_), replace=True, use_cache=False
)


def _objectives(names: Sequence[str] | None, metric: str) -> list[str]:
    """What a search looks for; see conf/hydra/sweeper/app/search.yaml."""
    return [str(name) for name in names or [metric]]


def _directions(names: Sequence[str] | None, metric: str) -> list[str]:
    # An unknown name is said when the first run is checked.
    words = {"max": "maximize", "min": "minimize"}
    return [words[OBJECTIVES.get(name, "max")] for name in _objectives(names, metric)]


OmegaConf.register_new_resolver("graft_objectives", _objectives, replace=True)
OmegaConf.register_new_resolver("graft_directions", _directions, replace=True)
