"""One job: what an executor is given, what it runs, what comes out however the job ends."""

import copy
import logging
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.gpu_launcher._hydra_job import run_job

log = logging.getLogger(__name__)

# From 1.4 on, Hydra itself writes the traceback of a failed task into the job's file.
_HYDRA_LOGS_TRACEBACKS = not hydra.__version__.startswith("1.3.")

_FOLDERS = ("dir", "subdir")

MAX_LINES = 5  # of one error's message, on the terminal


@dataclass(frozen=True)
class Job:
    """A job that waits to be run; plain data, so that it can travel.

    Attributes:
        num: Hydra's number of it, unique in the sweep.
        label: the overrides that tell it from the other jobs of its batch, for messages.
        overrides: all of its own, as Hydra's sweeper gave them.
        is_in_array: whether the application asked for it to be run by its function for arrays, be
            it alone.
        length: how long it takes, in the application's unit.
    """

    num: int
    label: str
    overrides: tuple[str, ...]
    is_in_array: bool = False
    length: float = 1.0

    @property
    def of_task(self) -> list[str]:
        """Its overrides without those of Hydra's own section."""
        return [one for one in self.overrides if not re.match(r"[+~]*hydra[./]", one)]

    def __str__(self) -> str:
        return f"job {self.num} ({self.label})" if self.label else f"job {self.num}"


class Together(NamedTuple):
    """The application's function that runs arrays of jobs, and its dotted path, for messages."""

    path: str
    call: Callable[[list[DictConfig]], Any]


@dataclass(frozen=True)
class Work:
    """What the jobs of a launch have in common.

    Attributes:
        context: Hydra's: composes the jobs, and has the callbacks that are told of each.
        task: the application's function.
        config: the sweep's own configuration.
        together: runs arrays in place of `task`.
    """

    context: HydraContext
    task: TaskFunction
    config: DictConfig
    together: Together | None = None

    def composed(self, job: Job) -> DictConfig:
        """A job's configuration, its `hydra` node included: composed anew at each call.

        A sweep may have thousands of jobs: their overrides are kept, not their configurations.
        """
        loader = self.context.config_loader
        composed = loader.load_sweep_config(self.config, list(job.overrides))
        with open_dict(composed):
            composed.hydra.job.id = str(job.num)
            composed.hydra.job.num = job.num
        return composed

    def placed(self, job: Job) -> DictConfig:
        """The same, with the folder in which the job runs, as the job itself sees it.

        Raises:
            OmegaConfBaseException: the folder cannot be named.
        """
        composed = self.composed(job)
        with _as_hydra_config(composed) as config:
            sweep, subdir = (str(OmegaConf.select(config, f"hydra.sweep.{k}")) for k in _FOLDERS)
        runtime = composed.hydra.runtime
        with read_write(runtime), open_dict(runtime):
            runtime.output_dir = str(Path(sweep, subdir).absolute())
        return composed


@contextmanager
def _as_hydra_config(config: DictConfig) -> Iterator[DictConfig]:
    """What stands in `${hydra:...}` for a while."""
    instance = HydraConfig.instance()
    before = instance.cfg
    try:
        instance.set_config(config)
        yield cast(DictConfig, instance.cfg)
    finally:
        instance.cfg = before


def essence(result: JobReturn) -> dict[str, Any]:
    """What of a result has to travel: arguments of JobReturn.

    Without its configurations, which can be composed anywhere; and not as a JobReturn, for Hydra
    1.4 has ways of its own to pickle one, and puts an error's traceback back when it is asked.
    """
    return {
        "overrides": result.overrides,
        "working_dir": result.working_dir,
        "task_name": result.task_name,
        "status": result.status,
        "_return_value": result._return_value,
    }


class Returned(JobReturn):
    """Hydra's result of a job, its two configurations composed when somebody asks for them.

    A sweeper keeps the results of all its jobs; with their configurations, those of 10,000 jobs
    would take gigabytes.
    """

    def __init__(self, result: JobReturn, job: Job, work: Work) -> None:
        self._job, self._work = job, work
        super().__init__(**essence(result))

    @property
    def cfg(self) -> DictConfig:
        """What the application's function was given."""
        config = self._work.composed(self._job)
        with read_write(config), open_dict(config):
            del config["hydra"]
        return config

    @cfg.setter
    def cfg(self, value: DictConfig | None) -> None:
        pass

    @property
    def output_dir(self) -> str:
        """The job's own folder, absolute."""
        return str(self._work.placed(self._job).hydra.runtime.output_dir)

    @property
    def hydra_cfg(self) -> DictConfig:
        """All of the job's configuration, as `HydraConfig` had it."""
        with _as_hydra_config(self._work.placed(self._job)) as config:
            return copy.deepcopy(config)

    @hydra_cfg.setter
    def hydra_cfg(self, value: DictConfig | None) -> None:
        pass


def run(job: Job, config: DictConfig, task: TaskFunction, context: HydraContext) -> JobReturn:
    """Run a job in this process. An exception, `sys.exit` included, ends this job alone.

    Args:
        config: composed.

    Returns:
        Hydra's result. After a failure its `return_value` raises the exception, which has kept
        its traceback but not the variables in it: they may hold a whole model.

    Raises:
        BaseException: what is meant to end the process, as KeyboardInterrupt is.
    """
    hydra_config = HydraConfig.instance().cfg
    try:
        result = _run(job, config, task, context)
    finally:
        # Hydra puts this back itself, save when the job's folder cannot even be named.
        HydraConfig.instance().cfg = hydra_config
    _forget_variables(exception(result))
    return result


def _run(job: Job, config: DictConfig, task: TaskFunction, context: HydraContext) -> JobReturn:
    handlers = logging.getLogger().handlers
    try:
        result = run_job(config, task, context)
    except SystemExit as exit_:
        error = RuntimeError(f"it called sys.exit({exit_.code!r}) instead of returning")
        error.__cause__ = exit_
        _log_traceback(config, error, otherwise=handlers)
        return failed(job, error)
    except Exception as early:  # before the task began: the job's folder, its log, its `env_set`
        _log_traceback(config, early, otherwise=())
        return failed(job, early)
    problem = exception(result)
    if problem is not None and not (_HYDRA_LOGS_TRACEBACKS and log_file(config)):
        _log_traceback(config, problem, otherwise=handlers)
    return result


def failed(job: Job, error: BaseException) -> JobReturn:
    """The result of a job whose task did not run to an end."""
    result = JobReturn(overrides=job.of_task, status=JobStatus.FAILED)
    result.return_value = error
    return result


def done(job: Job, value: Any) -> JobReturn:
    """The result of a job that was run before."""
    result = JobReturn(overrides=job.of_task, status=JobStatus.COMPLETED)
    result.return_value = value
    return result


def exception(result: JobReturn) -> BaseException | None:
    """What ended a job; None if it completed."""
    if result.status == JobStatus.COMPLETED:
        return None
    # The property `return_value` would raise it, and write to stderr.
    error: BaseException = result._return_value
    return error


def log_file(config: DictConfig) -> Path | None:
    """The job's own log; None if its logging has no file, or the job did not get so far."""
    try:
        handlers = OmegaConf.select(config, "hydra.job_logging.handlers") or {}
        names = [handler.get("filename") for handler in handlers.values() if handler]
    except OmegaConfBaseException:  # it stands in the job's folder, which could not be named
        return None
    return next((Path(name) for name in names if name and Path(name).is_file()), None)


def in_words(error: BaseException) -> str:
    """Type and message, shortened to a few lines."""
    lines = str(error).strip().splitlines()
    shown = lines[:MAX_LINES] + ["..."] * (len(lines) > MAX_LINES)
    return ": ".join([type(error).__name__, "\n".join(shown)]) if shown else type(error).__name__


def _log_traceback(
    config: DictConfig, error: BaseException, otherwise: Sequence[logging.Handler]
) -> None:
    """Write a traceback into the job's own log while its logging stands, else to `otherwise`.

    Not to the terminal as well: there the launcher says what happened in a line.
    """
    path = log_file(config)
    files = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.FileHandler) and path == Path(handler.baseFilename)
    ]
    info = (type(error), error, error.__traceback__)
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, "The job failed", (), info)
    for handler in files or otherwise:
        handler.handle(record)


def _forget_variables(error: BaseException | None) -> None:
    """Release the variables of a traceback; the lines of code that it names stay."""
    waiting, seen = [error], set[int]()
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        waiting += [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
