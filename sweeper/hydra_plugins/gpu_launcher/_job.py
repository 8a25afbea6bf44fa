"""One job: what an executor is given, what it runs, what comes out however the job ends."""

import logging
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

log = logging.getLogger(__name__)

# From 1.4 on, Hydra itself writes the traceback of a failed task into the job's file.
_HYDRA_LOGS_TRACEBACKS = not hydra.__version__.startswith("1.3.")

MAX_LINES = 5  # of one error's message, on the terminal


@dataclass(frozen=True)
class Job:
    """A job that is composed and waits to be run; plain data, so that it can travel.

    Attributes:
        num: Hydra's number of it, unique in the sweep.
        label: the overrides that tell it from the other jobs of its batch, for messages.
        config: the composed configuration with its `hydra` node.
    """

    num: int
    label: str
    config: DictConfig

    def __str__(self) -> str:
        return f"job {self.num} ({self.label})" if self.label else f"job {self.num}"


def run(job: Job, task: TaskFunction, context: HydraContext) -> JobReturn:
    """Run a job in this process. An exception, `sys.exit` included, ends this job alone.

    Returns:
        Hydra's result. After a failure its `return_value` raises the exception, which has kept
        its traceback but not the variables in it: they may hold a whole model.

    Raises:
        BaseException: what is meant to end the process, as KeyboardInterrupt is.
    """
    hydra_config = HydraConfig.instance().cfg
    try:
        result = _run(job, task, context)
    finally:
        # Hydra puts this back itself, save when the job's folder cannot even be named.
        HydraConfig.instance().cfg = hydra_config
    _forget_variables(exception(result))
    return result


def _run(job: Job, task: TaskFunction, context: HydraContext) -> JobReturn:
    handlers = logging.getLogger().handlers
    try:
        result = run_job(
            hydra_context=context,
            task_function=task,
            config=job.config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
    except SystemExit as exit_:
        error = RuntimeError(f"it called sys.exit({exit_.code!r}) instead of returning")
        error.__cause__ = exit_
        _log_traceback(job, error, otherwise=handlers)
        return failed(job, error)
    except Exception as early:  # before the task began: the job's folder, its log, its `env_set`
        _log_traceback(job, early, otherwise=())
        return failed(job, early)
    problem = exception(result)
    if problem is not None and not (_HYDRA_LOGS_TRACEBACKS and log_file(job)):
        _log_traceback(job, problem, otherwise=handlers)
    return result


def failed(job: Job, error: BaseException) -> JobReturn:
    """The result of a job whose task did not run to an end."""
    overrides = OmegaConf.to_container(job.config.hydra.overrides.task)
    assert isinstance(overrides, list)
    result = JobReturn(overrides=[str(one) for one in overrides], status=JobStatus.FAILED)
    result.return_value = error
    return result


def exception(result: JobReturn) -> BaseException | None:
    """What ended a job; None if it completed."""
    if result.status == JobStatus.COMPLETED:
        return None
    # The property `return_value` would raise it, and write to stderr.
    error: BaseException = result._return_value
    return error


def log_file(job: Job) -> Path | None:
    """The job's own log; None if its logging has no file, or the job did not get so far."""
    try:
        handlers = OmegaConf.select(job.config, "hydra.job_logging.handlers") or {}
        names = [handler.get("filename") for handler in handlers.values()]
    except OmegaConfBaseException:  # it stands in the job's folder, which could not be named
        return None
    return next((Path(name) for name in names if name and Path(name).is_file()), None)


def in_words(error: BaseException) -> str:
    """Type and message, shortened to a few lines."""
    lines = str(error).strip().splitlines()
    shown = lines[:MAX_LINES] + ["..."] * (len(lines) > MAX_LINES)
    return ": ".join([type(error).__name__, "\n".join(shown)]) if shown else type(error).__name__


def _log_traceback(job: Job, error: BaseException, otherwise: Sequence[logging.Handler]) -> None:
    """Write a traceback into the job's own log while its logging stands, else to `otherwise`.

    Not to the terminal as well: there the launcher says what happened in a line.
    """
    path = log_file(job)
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
