"""A batch of overrides in, results out, in the order asked.

    compose -> prepare -> arrays -> executor -> report

The executor is the seam: it says where and when arrays run, and nothing else. What a job is stands
in _job.py, how an array runs in _array.py: the same for every executor.
"""

import logging
import os
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from hydra.core.utils import JobReturn, configure_log, filter_overrides, setup_globals
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from hydra_plugins.gpu_launcher._array import Array, arrange
from hydra_plugins.gpu_launcher._function import function
from hydra_plugins.gpu_launcher._job import MAX_LINES, Job, exception, failed, in_words, log_file

log = logging.getLogger(__name__)


class Executor(Protocol):
    """Where jobs run: in this process, in worker processes that hold a slot, on a cluster."""

    def run(
        self, arrays: Sequence[Array]
    ) -> Generator[tuple[Array, Sequence[JobReturn]], None, None]:
        """Run all arrays, each with `_array.run`, each whatever becomes of the others.

        Closing the generator is the order to stop: no further array is started, those that run
        are ended, and nothing is left behind.

        Yields:
            (array, a result for each of its jobs), once for each array, as soon as it has ended,
            in any order. A job that failed, in whatever way, has a result too: see `_job.failed`.
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
    can_run_together: bool = False,
    fail_fast: bool = False,
) -> list[JobReturn]:
    """Run one batch of jobs.

    Args:
        overrides: of each job, as Hydra's sweeper gives them.
        first_num: number of the first job.
        context: composes the jobs.
        config: the sweep's own configuration.
        executor: runs the jobs.
        prepare: dotted path of the application's function; see `SlotsInlineLauncher`.
        can_run_together: whether `executor` has a function for arrays of two jobs or more.
        fail_fast: start nothing after the first job that failed; what is left over is failed as
            skipped.

    Returns:
        The results in the order of `overrides`.

    Raises:
        HydraException: a job cannot be composed, or `prepare` is not what it should be; no job has
            run.
        Exception: what `prepare` raised; no job has run.
    """
    setup_globals()
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    jobs = _compose(overrides, first_num, context, config)
    arrays = _arrange(jobs, prepare, can_run_together)
    results = _run(jobs, arrays, executor, fail_fast)
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
            problems.append((f"job {num} ({label}): {in_words(error)}", error))
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
    lines += [line for line, _ in problems[:MAX_LINES]]
    if len(problems) > MAX_LINES:
        lines.append(f"... and {len(problems) - MAX_LINES} more")
    error = HydraException("\n".join(lines))
    error.__cause__ = problems[0][1]
    return error


def _labels(overrides: Sequence[Sequence[str]]) -> list[str]:
    """For each job the overrides that not every job has; all of them if none tells it apart."""
    shown = [filter_overrides(own) for own in overrides]
    shared = set(shown[0]).intersection(*shown[1:]) if len(shown) > 1 else set()
    return [" ".join([o for o in own if o not in shared] or own) for own in shown]


def _arrange(jobs: Sequence[Job], prepare: str | None, can_run_together: bool) -> list[Array]:
    """The jobs as arrays, as the application's `prepare` asks for them."""
    if prepare is None:
        return [[job] for job in jobs]
    asked = function("prepare", prepare)([job.config for job in jobs])
    arrays = arrange(jobs, asked, prepare)
    if not can_run_together and any(len(array) > 1 for array in arrays):
        raise HydraException(
            f"hydra.launcher.prepare={prepare} asks for jobs to be run together, but "
            "hydra.launcher.together is not set.\n"
            "Give the dotted path of the function that runs several jobs."
        )
    return arrays


def _run(
    jobs: Sequence[Job], arrays: Sequence[Array], executor: Executor, fail_fast: bool
) -> list[JobReturn]:
    results: dict[int, JobReturn] = {}
    with closing(executor.run(arrays)) as ended:
        for array, own in ended:
            results.update(zip((job.num for job in array), own, strict=True))
            errors = [(job, exception(result)) for job, result in zip(array, own, strict=True)]
            failures = [_report(job, error) for job, error in errors if error is not None]
            for failure in failures:
                log.error("%s", failure)
            if failures and fail_fast:
                break
    for job in jobs:
        if job.num not in results:
            results[job.num] = failed(job, RuntimeError("skipped: fail_fast"))
    return [results[job.num] for job in jobs]


def _report(job: Job, error: BaseException) -> str:
    path = log_file(job)
    where = f"\nLog: {os.path.relpath(path)}" if path else ""
    return f"{job} failed: {in_words(error)}{where}"


def _summarize(jobs: Sequence[Job], results: Sequence[JobReturn]) -> None:
    """All failures in a line: Hydra's sweeper raises the first of them, and names no other."""
    errors = [(job, exception(result)) for job, result in zip(jobs, results, strict=True)]
    failures = [f"{job}: {type(error).__name__}" for job, error in errors if error is not None]
    if failures:
        log.error("%d of %d jobs failed: %s", len(failures), len(jobs), "; ".join(failures))
