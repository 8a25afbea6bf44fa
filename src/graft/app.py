"""The command `graft`: Hydra composes, a typed configuration goes on. Behind it nobody knows Hydra.

    graft -m strategy=head_only,fine_tune optimizer.lr=1e-3,1e-4
      main             names the sweep after what was typed, hands over to Hydra, sets the exit code
      check_space      called by our sweeper with samples of what it will search
      prepare          called by our launcher with every job's configuration, before any job runs
      train_together   called by it in a worker, with an array of jobs
                       (of a search, each with the trial that may end it early)
      ended            called by it for each job that failed, however
      _job             one job by itself: a single run, or a launcher that is not ours

Exit codes: 0 every run completed, or was pruned by its search; 1 some did not; 2 the request cannot
be carried out (said before any training); 130 after Ctrl-C; 143 after SIGTERM.
"""

import atexit
import contextlib
import faulthandler
import importlib
import logging
import math
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from graft import composed, naming, tracking
from graft import progress as shown
from graft.collector import importing
from graft.config import RunConfig, from_dict
from graft.errors import BadRequest, ConfigError, GraftError, Pruned
from graft.refusals import in_words
from hydra_plugins.gpu_launcher import progress
from hydra_plugins.gpu_launcher.ends import NoResult, TimedOut, Untold
from hydra_plugins.gpu_launcher.plan import Plan, slot_names
from hydra_plugins.study_sweeper import trial
from hydra_plugins.study_sweeper.errors import SearchFailed

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
    global _is_main
    _is_main = True
    arguments = sys.argv[1:]
    if "--version" in arguments:
        return _print_version()
    with contextlib.suppress(AttributeError, OSError, ValueError):  # stderr is no file
        faulthandler.enable()  # where a native library crashed
    signal.signal(signal.SIGTERM, _on_sigterm)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else: nohup
        signal.signal(signal.SIGHUP, _on_sigterm)
    # Hydra then lets exceptions through to us instead of printing them and leaving with 1.
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    code = 1
    try:
        sys.argv = [sys.argv[0], *_with_names(arguments)]
        _look_up_without_copying()
        _hydra_main()
        code = 0
    except (NoResult, Untold):
        pass  # the launcher has said so
    except SearchFailed as error:
        print(error, file=sys.stderr)
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
    except Exception as error:
        if isinstance(error, OSError) and _driver is None and not wants_traceback:
            code = _explain(ConfigError(f"{error.filename}: {error.strerror}."))  # Hydra's folders
        else:
            log.exception("An error that Graft did not expect; please report it.")
    finally:
        if code and _driver is None and _multirun is not None:
            _remove_traces(_multirun, ())  # Hydra has made them before it composed the jobs
        code = _end(code)
    return code


def _look_up_without_copying() -> None:
    """Hydra copies its store of registered configurations for every look-up: 112 times for --help.

    That was 1.6 of 2.5 seconds there. What it takes out of the store it copies once more, so the
    store can be shared.
    """
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")
def _hydra_main(cfg: DictConfig) -> "sweep.Value":
    return _job(cfg)


def check_space(samples: Iterable[DictConfig]) -> None:
    """Refuse a search of what is not allowed, before its first trial: called by the sweeper.

    Args:
        samples: configurations of every choice, and of the ends of every range.

    Raises:
        BadRequest: everything that is wrong with their settings.
    """
    with importing():
        from graft.sweep.check import problems_of

    asked: list[sweep.Asked] = []
    problems: list[str] = []
    for one in samples:
        _ask(one, asked, problems)
    problems += problems_of(asked)
    if problems:
        raise ConfigError("\n".join(problems))


def prepare(jobs: Sequence[DictConfig]) -> Plan:
    """Check every job of a sweep and open its folder, before the first one runs.

    Called by the launcher, in the process that was started.

    Args:
        jobs: the jobs' composed configurations, Hydra's own node included.

    Returns:
        The jobs in arrays, each to be trained by one call of `train_together`, and the values of
        those that are finished already.

    Raises:
        BadRequest: everything that can be known to be wrong, of all jobs.
    """
    prepared = _begin(jobs, is_alone=True)
    # The driver of a search may have died before it had said so.
    for place in prepared.done if trial.is_of_search(jobs[0]) else ():
        if (own := trial.handle(jobs[place])) is not None:
            own.has_completed()
    return Plan(prepared.arrays, prepared.done, prepared.lengths)


def _begin(jobs: Sequence[DictConfig], *, is_alone: bool) -> "sweep.Prepared":
    global _driver
    first = jobs[0]
    if first.tracking.uri != "off" and not first.sweep.dry_run:
        tracking.warm_up()
    with importing():
        from graft import sweep

    names: list[str] = []
    asked: list[sweep.Asked] = []
    problems: list[str] = []
    for job in jobs:
        names.append(composed.run_name(job))
        _ask(job, asked, problems)
    try:
        if problems:
            raise ConfigError("\n".join(problems))
        axes = tuple(composed.differing(jobs, _multirun))  # a file may have said so
        asked = [replace(one, config=_with_axes(one.config, axes)) for one in asked]
        if asked[0].config.sweep.dry_run:
            return _dry_run(asked, first, names)
        _driver, prepared = sweep.prepare(
            asked, command=_command(), driver=_driver, is_alone=is_alone
        )
    except BadRequest:
        _remove_traces(first, names)
        raise
    return prepared


def _with_axes(config: RunConfig, axes: tuple[str, ...]) -> RunConfig:
    return replace(config, sweep=replace(config.sweep, axes=axes))


def _dry_run(
    asked: "Sequence[sweep.Asked]", job: DictConfig, names: Sequence[str]
) -> "sweep.Prepared":
    """A dry run: every run counts as done."""
    from graft.sweep import Prepared, dry

    dry.show(asked, slot_names() or ["this process"])
    _remove_traces(job, names)
    return Prepared((), dict.fromkeys(range(len(asked)), math.nan))


def _command() -> str:
    """What was typed, so that it can be typed again."""
    name = Path(sys.argv[0]).name
    started = ["python", "-m", "graft"] if name == "__main__.py" else [name]
    return shlex.join([*started, *_as_typed])


def warm_up() -> None:
    """What a worker imports while the sweep is being planned: called by the launcher there."""
    with importing():
        importlib.import_module("graft.sweep.work")


def get_ready(job: DictConfig) -> None:
    """What a worker does next: called by the launcher there, with the first job."""
    from graft.sweep.work import get_ready as ready

    with importing():
        ready(typed(job))


def train_together(jobs: Sequence[DictConfig]) -> "list[sweep.Value | Exception]":
    """Train the jobs of one array, prepared before: called by the launcher, where they run.

    Returns:
        Of each the metric that selects, at its best epoch, or what `sweep.objectives` asks for; of
        a run that its search has pruned, the metric in its last epoch; or what ended it.
    """
    from graft.sweep.work import run_array

    # A single run has no number.
    numbers = {composed.run_name(job): OmegaConf.select(job, "hydra.job.num") for job in jobs}

    def told(name: str | None, share: float, text: str) -> None:
        progress.tell(None if name is None else numbers.get(name), share, text)

    asked = [_asked(job) for job in jobs]
    # Of a search: who may end a run early.
    trials = {one.name: trial.handle(job) for one, job in zip(asked, jobs, strict=True)}
    judges = {
        one.name: own.report
        for one in asked
        if (own := trials[one.name]) is not None and _is_judged(one.config)
    }
    with shown.by(told, is_live=progress.is_live()):
        outcomes = run_array(asked, slot=progress.slot(), judges=judges)
    for one, outcome in zip(asked, outcomes, strict=True):
        own = trials[one.name]
        if own is not None and not isinstance(outcome, Exception):
            own.has_completed()  # the last epoch, too, was reported
    return [one.value if isinstance(one, Pruned) else one for one in outcomes]


def _is_judged(config: RunConfig) -> bool:
    """Whether what a judge is told, the metric, is what a search looks for."""
    return config.sweep.objectives in ((), (config.metric,))


def ended(job: DictConfig, error: Exception, retry: int) -> None:
    """A job has failed; `retry` says which try comes next, 0: none. Called by the launcher."""
    if _driver is None:
        return
    status = "timed_out" if isinstance(error, TimedOut) else "failed"
    try:
        _driver.failed(_asked(job), status, str(error), is_final=not retry)
    except BadRequest:  # that is what it has failed of
        _driver.refused(composed.run_name(job), composed.choices(job), str(error))


def _ask(job: DictConfig, asked: "list[sweep.Asked]", problems: list[str]) -> None:
    """Add a job to one of these."""
    try:
        asked.append(_asked(job))
    except BadRequest as error:
        problems += [line for line in str(error).splitlines() if line not in problems]


def _asked(job: DictConfig) -> "sweep.Asked":
    from graft import sweep

    return sweep.Asked(composed.run_name(job), composed.choices(job), typed(job))


def _remove_traces(job: DictConfig, names: Sequence[str]) -> None:
    """Remove what Hydra has made for a sweep that will not start: empty folders and its own files.

    A folder that holds anything else is left as it is, but for Hydra's copy of the configuration:
    it has any password in it, and nobody reads it.
    """
    folder = Path(job.output_dir, job.sweep.name)
    made = [folder / name / "train.log" for name in names]
    with contextlib.suppress(OSError):
        (folder / "multirun.yaml").unlink()
    for file in (*made, folder / ".lock"):
        with contextlib.suppress(OSError):
            if list(file.parent.iterdir()) == [file]:
                file.unlink()
    for empty in (*(file.parent for file in made), folder, folder.parent):
        with contextlib.suppress(OSError):
            empty.rmdir()


def typed(cfg: DictConfig) -> RunConfig:
    """The typed configuration of a composed one."""
    kept = [str(key) for key in cfg if key not in ("hydra", "experiment")]
    return from_dict({key: _plain(cfg[key]) for key in kept})


def _plain(node: Any) -> Any:
    """A part of a configuration without interpolations, which may lead to other parts."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _job(cfg: DictConfig) -> "sweep.Value":
    """One job; see `train_together` for its value."""
    whole = HydraConfig.instance().cfg
    assert whole is not None
    merged = cfg.copy()
    with open_dict(merged):
        merged.hydra = cast(Any, whole).hydra
    # A single run, or a launcher other than ours.
    prepared = _begin([merged], is_alone=False)
    if merged.sweep.dry_run:
        return prepared.done[0]
    try:
        (outcome,) = train_together([merged])
        if isinstance(outcome, Exception):
            ended(merged, outcome, 0)
            log.error("  %s", outcome)
            raise outcome
        return outcome
    finally:
        if not _is_main and _driver is not None:
            _driver.leave()


# --- names ----------------------------------------------------------------------------------

_as_typed: list[str] = []
# Of the sweep that this process drives; in a worker there is none.
_driver: "sweep.Driver | None" = None
# Whether `main` will finish the sweep; a job that another launcher runs elsewhere is on its own.
_is_main = False
_multirun: DictConfig | None = None


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
        # Not as its name, which an experiment may give: an override would be above that.
        added.append(f"sweep.default_name={naming.sweep_name(swept, fixed)}")
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
            "hydra.sweeper.check",
        )
        if key.startswith("hydra") and names_code:
            raise ConfigError(
                f"{key}={value} is not allowed: it names code to run. Choose an option instead, "
                "such as hydra/launcher=basic."
            )


# --- how it ends ----------------------------------------------------------------------------


class _Terminated(BaseException):
    """SIGTERM or SIGHUP: unwinds like Ctrl-C, so that what is finished is kept and reported."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise _Terminated(number)


class Remember(Callback):
    """Remembers what the multirun is called: launchers of others start the jobs elsewhere."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _multirun
        _multirun = config


def _end(code: int) -> int:
    """`_finish`, whatever becomes of it; who stops that, too, waits for nothing more."""
    try:
        return _finish(code)
    except KeyboardInterrupt:
        code = 130
    except _Terminated as error:
        code = error.code
    except Exception:
        log.exception("An error that Graft did not expect; please report it.")
        return code or 1
    atexit._clear()  # figures would still be drawn
    return code


def _finish(code: int) -> int:
    """Table, report and MLflow for whatever the sweep has; the exit code."""
    try:
        driver = _driver or _of_multirun(code)
    except ConfigError as error:  # another process drives it, and will report it
        said = _explain(error)
        return code or said
    if driver is None:
        return code
    is_complete = driver.finish(is_interrupted=code >= 128)
    return code or int(not is_complete)


def _of_multirun(code: int) -> "sweep.Driver | None":
    """The driver that ends a sweep whose jobs ran elsewhere, each with a driver of its own."""
    if _multirun is None or _multirun.sweep.dry_run or code == 2:
        return None
    folder = Path(_multirun.output_dir, _multirun.sweep.name).absolute()
    if not (folder / "sweep.json").is_file():
        return None
    from graft.sweep import Driver

    driver = Driver(folder, is_alone=False, wait_s=0.0)
    with contextlib.suppress(BadRequest):  # what is swept may have no value here
        driver.follow(typed(_multirun))
    return driver


def _explain(error: Exception) -> int:
    """Say what is wrong in a few lines; 2 for a bad request, 1 for a run that failed."""
    if isinstance(error, GraftError) and not isinstance(error, BadRequest):
        return 1  # the run has said so itself
    for line in in_words(error, Path(conf_dir())):
        print(line, file=sys.stderr)
    return 2


def _print_version() -> int:
    from importlib.metadata import version

    print(f"graft {version('graft-sweeps')} (hydra {hydra.__version__})")
    return 0
