"""The command `graft`: Hydra composes, a typed configuration goes on. Nothing else knows Hydra.

    graft -m strategy=head_only,fine_tune optimizer.lr=1e-3,1e-4
      main      names the sweep after what was typed, hands over to Hydra, sets the exit code
      prepare   called by the launcher once, with every job's configuration, before any job runs
      _job      one job: its configuration becomes a RunConfig and is trained

Exit codes: 0 every run completed; 1 some did not; 2 the request cannot be carried out (said before
any training); 130 after Ctrl-C; 143 after SIGTERM.
"""

import contextlib
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from graft import naming, tracking
from graft.config import RunConfig, from_dict, keys, nearest
from graft.errors import BadRequest, ConfigError, GraftError

if TYPE_CHECKING:
    from graft import sweep

log = logging.getLogger("graft")


def conf_dir() -> str:
    """Where the YAML files are: beside the package in a wheel, at the root of a checkout."""
    here = Path(__file__).resolve().parent
    for place in (here / "conf", here.parents[1] / "conf"):
        if (place / "config.yaml").is_file():
            return str(place)
    raise RuntimeError(f"conf/ was not found beside {here}: the installation is incomplete.")


def main() -> int:
    """The command; see `__main__`. Returns the exit code."""
    arguments = sys.argv[1:]
    if "--version" in arguments:
        return _print_version()
    signal.signal(signal.SIGTERM, _on_sigterm)
    signal.signal(signal.SIGHUP, _on_sigterm)
    # Hydra then lets exceptions through to us instead of printing them and leaving with 1.
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    code = 1
    try:
        sys.argv = [sys.argv[0], *_with_names(arguments)]
        _hydra_main()
        code = 0
    except (GraftError, HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        code = _explain(error)
    except KeyboardInterrupt:
        code = 130
    except _Terminated as error:
        code = error.code
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 2
    except Exception:
        log.exception("An error that Graft did not expect; please report it.")
    finally:
        code = _finish(code)
    return code


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")
def _hydra_main(cfg: DictConfig) -> float:
    return _job(cfg)


def prepare(jobs: Sequence[DictConfig]) -> list[list[int]]:
    """Check every job of a sweep and open its folder, before the first one runs.

    Args:
        jobs: the jobs' composed configurations, Hydra's own node included.

    Returns:
        The jobs' positions in arrays, each to be trained by one call of `train_together`.

    Raises:
        BadRequest: everything that can be known to be wrong, of all jobs.
    """
    if any(job.tracking.uri != "off" for job in jobs):
        tracking.warm_up()
    from graft import sweep

    asked, problems = [], []
    for job in jobs:
        try:
            asked.append(_asked(job))
        except BadRequest as error:
            problems += [line for line in str(error).splitlines() if line not in problems]
    name = Path(sys.argv[0]).name
    started = ["python", "-m", "graft"] if name == "__main__.py" else [name]
    command = shlex.join([*started, *_as_typed])
    try:
        if problems:
            raise ConfigError("\n".join(problems))
        folder = sweep.prepare(asked, command=command)
    except BadRequest:
        _remove_traces(jobs)
        raise
    _prepared.append(folder)
    _known.update(one.name for one in asked)
    return sweep.arrays(asked)


def train_together(jobs: Sequence[DictConfig]) -> list[float | Exception]:
    """Train the jobs of one array, prepared before: called by the launcher.

    Returns:
        Of each the metric that selects, at its best epoch, or what ended it.
    """
    from graft import sweep

    return sweep.run_array([_asked(job) for job in jobs])


def _asked(job: DictConfig) -> "sweep.Asked":
    from graft import sweep

    return sweep.Asked(_run_name(job), _choices(job), typed(job))


def _remove_traces(jobs: Sequence[DictConfig]) -> None:
    """Remove what Hydra has made for a sweep that will not start: empty folders and its own files.

    A folder that holds anything else is left as it is.
    """
    for job in jobs:
        folder = Path(job.output_dir, job.sweep.name)
        log_file = folder / _run_name(job) / "train.log"
        for made in (log_file, folder / "multirun.yaml"):
            if made.is_file() and list(made.parent.iterdir()) == [made]:
                made.unlink()
        for empty in (log_file.parent, folder, folder.parent):
            with contextlib.suppress(OSError):
                empty.rmdir()


def typed(cfg: DictConfig) -> RunConfig:
    """The typed configuration of a composed one."""
    values = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(values, dict)
    values.pop("hydra", None)
    values.pop("experiment", None)
    plain = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    assert isinstance(plain, dict)
    return from_dict({str(key): value for key, value in plain.items()})


def _job(cfg: DictConfig) -> float:
    """One job; its value is the metric that selects, at the best epoch."""
    whole = HydraConfig.instance().cfg
    assert whole is not None
    merged = cfg.copy()
    with open_dict(merged):
        merged.hydra = cast(Any, whole).hydra
    name = _run_name(merged)
    if name not in _known:  # a single run, or a launcher other than ours
        prepare([merged])
    (outcome,) = train_together([merged])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


# --- names ----------------------------------------------------------------------------------

_as_typed: list[str] = []
_prepared: list[Path] = []
_known: set[str] = set()


def _with_names(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the sweep's name and axes added where they were left to us."""
    _as_typed[:] = arguments
    typed_overrides = [a for a in arguments if not a.startswith("-") and "=" in a]
    if any(a in arguments for a in ("--help", "-h", "--cfg", "-c", "--info", "-i")):
        return list(arguments)
    overrides = OverridesParser.create().parse_overrides(typed_overrides)
    _refuse_code(typed_overrides)
    swept = [o.get_key_element() for o in overrides if o.is_sweep_override()]
    for key in {"sweep.name", "output_dir"}.intersection(swept):
        raise ConfigError(f"{key} cannot be swept: one sweep has one folder. Give it one value.")
    fixed = {
        o.get_key_element(): o.get_value_element_as_str()
        for o in overrides
        if not o.is_sweep_override()
    }
    added = []
    is_sweep = bool(swept) or "experiment" in fixed
    if "sweep.name" not in fixed and is_sweep:
        added.append(f"sweep.name={naming.sweep_name(swept, fixed)}")
    if swept:
        added.append(f"sweep.axes=[{','.join(axis.lstrip('+~') for axis in swept)}]")
    return [*arguments, *added]


def _refuse_code(overrides: Sequence[str]) -> None:
    """Refuse settings of Hydra's own section that name code to run: Hydra calls them before us.

    Hydra keeps a list of what it does not call; functions that load files are not all on it.
    """
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        names_code = "_target_" in override or key in (
            "hydra.launcher.prepare",
            "hydra.launcher.together",
        )
        if key.startswith("hydra") and names_code:
            raise ConfigError(
                f"{key}={value} is not allowed: it names code to run. Choose an option instead, "
                "such as hydra/launcher=basic."
            )


def _axes(cfg: DictConfig) -> list[str]:
    """Keys that tell the runs of a sweep apart, in the order in which they were typed."""
    axes = list(cfg.sweep.axes)
    swept_in_yaml = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
    is_sweep = OmegaConf.select(cfg, "hydra.mode") == hydra.types.RunMode.MULTIRUN
    axes += [key for key in swept_in_yaml if is_sweep and key not in axes]
    return axes or [key for key in _overrides(cfg) if not naming.is_bookkeeping(key)]


def _overrides(cfg: DictConfig) -> dict[str, str]:
    pairs = (o.lstrip("+").partition("=") for o in cfg.hydra.overrides.task)
    return {key: value for key, _, value in pairs}


def _choices(cfg: DictConfig) -> dict[str, str]:
    """What this run chose on each axis, as it was typed."""
    given = _overrides(cfg)
    return {axis: given.get(axis, str(OmegaConf.select(cfg, axis))) for axis in _axes(cfg)}


def _run_name(cfg: DictConfig) -> str:
    values = {key: _value(cfg, key, text) for key, text in _choices(cfg).items()}
    return naming.run_name(values)


def _value(cfg: DictConfig, key: str, text: str) -> Any:
    """A plain value as composed (1e-3 is 0.001), an option of a group as it was typed."""
    value = OmegaConf.select(cfg, key)
    return text if value is None or OmegaConf.is_config(value) else value


OmegaConf.register_new_resolver(
    "graft_run_name", lambda *, _root_: _run_name(_root_), replace=True, use_cache=False
)


# --- how it ends ----------------------------------------------------------------------------


class _Terminated(BaseException):
    """SIGTERM or SIGHUP: unwinds like Ctrl-C, so that what is finished is kept and reported."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise _Terminated(number)


def _finish(code: int) -> int:
    """Table, report and MLflow for whatever the sweep has; the exit code."""
    if not _prepared:
        return code
    from graft import sweep

    is_complete = sweep.finish(_prepared[-1], is_interrupted=code >= 128)
    return code or int(not is_complete)


def _explain(error: Exception) -> int:
    """Say what is wrong in a few lines; 2 for a bad request, 1 for a run that failed."""
    if isinstance(error, GraftError) and not isinstance(error, BadRequest):
        return 1  # the run has said so itself
    for line in _words(error):
        print(line, file=sys.stderr)
    return 2


def _words(error: Exception) -> list[str]:
    """What Hydra or we say, without what only a developer of Hydra can use."""
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        key = unknown.group(1)
        return [
            f"graft: {key} is not a key of the configuration.{nearest(key, keys())} "
            "`graft --cfg job` lists them all."
        ]
    missing = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if missing:
        group, option = missing.groups()
        there = re.findall(r"^\t(?!provider)(\S+)$", text, flags=re.MULTILINE)
        return [
            f"graft: {group}={option} is not an option.{nearest(option, there)} "
            f"Options: {', '.join(there)}."
        ]
    lines = [line for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if not re.match(r"\s+(full_key|object_type)|See https", line)]
    return [f"graft: {kept[0]}" if kept else f"graft: {error!r}", *kept[1:40]]


def _print_version() -> int:
    from importlib.metadata import version

    print(f"graft {version('graft-sweeps')} (hydra {hydra.__version__})")
    return 0
