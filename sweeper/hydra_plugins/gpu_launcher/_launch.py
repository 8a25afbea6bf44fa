"""A batch of overrides in, results out, in the order asked.

    compose -> prepare -> executor -> report

The executor is the seam: it says where and when jobs run, and nothing else. What a job is
stands in _job.py and is the same for every executor.
"""

import logging
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from hydra.core.utils import JobReturn, configure_log, filter_overrides, setup_globals
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from hydra_plugins.gpu_launcher._job import Job, exception, failed, log_file

log = logging.getLogger(__name__)

_MAX_LINES = 5  # of one error's message, on the terminal


class Executor(Protocol):
    """Where jobs run: in this process, in worker processes that hold a slot, on a cluster."""

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[int, JobReturn], None, None]:
        """Run all jobs, each whatever becomes of the others.

        Closing the generator is the order to stop: no further job is started, those that run
        are ended, and nothing is left behind.

        Yields:
            (position in `jobs`, result), once for each job, as soon as it has ended, in any
            order. A job that failed, in whatever way, has a result too: see `_job.failed`.
        """
        ...


def launch(
    overrides: Sequence[Sequence[str]],
    first_num: int,
    *,
    context: HydraContext,
    config: DictConfig,
    executor: Executor,
    prepare: str | None = None,
    fail_fast: bool = False,
) -> list[JobReturn]:
    """Run one batch of jobs.

    Args:
        overrides: of each job, as Hydra's sweeper gives them.
        first_num: number of the first job.
        context: composes the jobs.
        config: the sweep's own configuration.
        executor: runs the jobs.
        prepare: dotted path of the application's function; see `SlotsLauncher`.
        fail_fast: stop after the first job that fails; what is left over is failed as skipped.

    Returns:
        The results in the order of `overrides`.

    Raises:
        HydraException: a job cannot be composed, or `prepare` is not a function; no job has run.
        Exception: what `prepare` raised; no job has run.
    """
    setup_globals()
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    jobs = _compose(overrides, first_num, context, config)
    if prepare is not None:
        _function(prepare)([job.config for job in jobs])
    results = _run(jobs, executor, fail_fast)
    _summarize(jobs, results)
    return results


def _compose(
    overrides: Sequence[Sequence[str]], first_num: int, context: HydraContext, config: DictConfig
) -> list[Job]:
    """All jobs, or everything that is wrong with any of them."""
    jobs, problems = [], []
    for num, (label, own) in enumerate(zip(_labels(overrides), overrides, strict=True), first_num):
        try:
            composed = context.config_loader.load_sweep_config(config, list(own))
        except Exception as error:
            problems.append((f"job {num} ({label}): {_in_words(error)}", error))
            continue
        with open_dict(composed):
            composed.hydra.job.id = str(num)
            composed.hydra.job.num = num
        jobs.append(Job(num, label, composed))
    if problems:
        raise _all_of(problems, len(overrides))
    return jobs


def _all_of(problems: Sequence[tuple[str, Exception]], num_jobs: int) -> HydraException:
    lines = [f"{len(problems)} of {num_jobs} jobs cannot be composed; none was started."]
    lines += [line for line, _ in problems[:_MAX_LINES]]
    if len(problems) > _MAX_LINES:
        lines.append(f"... and {len(problems) - _MAX_LINES} more")
    error = HydraException("\n".join(lines))
    error.__cause__ = problems[0][1]
    return error


def _labels(overrides: Sequence[Sequence[str]]) -> list[str]:
    """For each job the overrides that not every job has; all of them if none tells it apart."""
    shown = [filter_overrides(own) for own in overrides]
    shared = set(shown[0]).intersection(*shown[1:]) if len(shown) > 1 else set()
    return [" ".join([o for o in own if o not in shared] or own) for own in shown]


def _function(path: str) -> Callable[[list[DictConfig]], Any]:
    """The application's function of this name.

    Looked up by `instantiate`, because that refuses targets which would let a configuration run
    what it likes (`os.system`, `builtins.exec`); `hydra.utils.get_method` does not.
    """
    from hydra.utils import instantiate

    try:
        function: Callable[[list[DictConfig]], Any] = instantiate(
            {"_target_": path, "_partial_": True}
        ).func
    except Exception as error:
        raise HydraException(
            f"hydra.launcher.prepare={path} cannot be used: {_in_words(error.__cause__ or error)}\n"
            "Give the dotted path of a function, as in my_package.my_module.my_function."
        ) from error
    return function


def _run(jobs: Sequence[Job], executor: Executor, fail_fast: bool) -> list[JobReturn]:
    results: dict[int, JobReturn] = {}
    with closing(executor.run(jobs)) as ended:
        for position, result in ended:
            results[position] = result
            error = exception(result)
            if error is not None:
                log.error("%s", _report(jobs[position], error))
                if fail_fast:
                    break
    for position, job in enumerate(jobs):
        if position not in results:
            results[position] = failed(job, RuntimeError("skipped: fail_fast"))
    return [results[position] for position in range(len(jobs))]


def _report(job: Job, error: BaseException) -> str:
    path = log_file(job)
    where = f"\nLog: {os.path.relpath(path)}" if path else ""
    return f"{job} failed: {_in_words(error)}{where}"


def _summarize(jobs: Sequence[Job], results: Sequence[JobReturn]) -> None:
    """All failures in a line: Hydra's sweeper raises the first of them, and names no other."""
    errors = [(job, exception(result)) for job, result in zip(jobs, results, strict=True)]
    failures = [f"{job}: {type(error).__name__}" for job, error in errors if error is not None]
    if failures:
        log.error("%d of %d jobs failed: %s", len(failures), len(jobs), "; ".join(failures))


def _in_words(error: BaseException) -> str:
    """Type and message, shortened to a few lines."""
    lines = str(error).strip().splitlines()
    shown = lines[:_MAX_LINES] + ["..."] * (len(lines) > _MAX_LINES)
    return ": ".join([type(error).__name__, "\n".join(shown)]) if shown else type(error).__name__
