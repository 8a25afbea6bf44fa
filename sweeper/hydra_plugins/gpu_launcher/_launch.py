"""Overrides in, results out: of a whole batch, or as a feed gives them.

    feed -> compose -> prepare -> arrays -> queue -> executor -> report

The executor is the seam: it says where and when arrays run, and nothing else. What a job is stands
in _job.py, how an array runs in _array.py, what is retried in _queue.py, what is seen in _view.py:
the same for every executor.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

from hydra.core.utils import JobReturn, configure_log, filter_overrides, setup_globals
from hydra.errors import HydraException
from omegaconf import DictConfig

from hydra_plugins.gpu_launcher import _ahead
from hydra_plugins.gpu_launcher._array import Array, arrange, title
from hydra_plugins.gpu_launcher._child import GRACE_S
from hydra_plugins.gpu_launcher._function import function
from hydra_plugins.gpu_launcher._job import (
    MAX_LINES,
    Job,
    Returned,
    Work,
    done,
    exception,
    failed,
    in_words,
    log_file,
)
from hydra_plugins.gpu_launcher._queue import Failure, Queue
from hydra_plugins.gpu_launcher._view import View, view
from hydra_plugins.gpu_launcher.ends import Skipped
from hydra_plugins.gpu_launcher.feed import Feed
from hydra_plugins.gpu_launcher.plan import planning

log = logging.getLogger(__name__)


class Executor(Protocol):
    """Where jobs run: in this process, in worker processes that hold a slot, on a cluster."""

    @property
    def slot_names(self) -> Sequence[str]:
        """Places in which one array runs at a time."""
        ...

    @property
    def is_apart(self) -> bool:
        """Whether they are in other processes than this one."""
        ...

    def started(
        self, work: Work, view: View, num_jobs: int, first: Job | None
    ) -> AbstractContextManager[None]:
        """Entered before the jobs are planned: workers can start meanwhile. Leaves nothing behind.

        Args:
            view: to be told what runs, and what it says.
            num_jobs: at most so many will come.
            first: one of them, where that is known already.
        """
        ...

    def run(self, queue: Queue) -> Generator[tuple[Array, Sequence[JobReturn]], None, None]:
        """Run what the queue gives, each array with `_array.run`, whatever becomes of the others.

        While a result is looked at, more may be put into the queue. Closing the generator is the
        order to stop: no further array is started, those that run are ended.

        Yields:
            (array, a result for each of its jobs), once for each array, as soon as it has ended,
            in any order. A job that failed, in whatever way, has a result too: see `_job.failed`.
        """
        ...


@dataclass(frozen=True)
class Options:
    """What can be set of a launch: see `SlotsInlineLauncher`."""

    prepare: str | None = None
    ended: str | None = None
    fail_fast: bool = False
    max_retries: int = 0


def launch(
    overrides: Sequence[Sequence[str]],
    first_num: int,
    work: Work,
    executor: Executor,
    options: Options,
) -> list[JobReturn]:
    """Run one batch of jobs.

    Args:
        overrides: of each job, as Hydra's sweeper gives them.
        first_num: number of the first job.

    Returns:
        The results in the order of `overrides`.

    Raises:
        HydraException: a job cannot be composed, or `prepare` is not what it should be; no job has
            run.
        Exception: what `prepare` raised; no job has run.
    """
    jobs = [
        Job(num, label, tuple(own))
        for num, (label, own) in enumerate(
            zip(_labels(overrides), overrides, strict=True), first_num
        )
    ]
    batch = _Batch(jobs)
    _Launch(work, executor, options).run(batch, next(iter(jobs), None))
    results = batch.results
    for job in jobs:
        if job.num not in results:
            results[job.num] = failed(job, Skipped("skipped: fail_fast"))
    _summarize(jobs, results)
    return [results[job.num] for job in jobs]


def launch_from(feed: Feed, work: Work, executor: Executor, options: Options) -> None:
    """Run what `feed` gives, until it gives nothing and nothing runs.

    Raises:
        HydraException: one of the first jobs cannot be composed, or `prepare` is not what it should
            be; no job has run.
        Exception: what `prepare` raised of the first jobs; no job has run.
    """
    _Launch(work, executor, options, ahead=1).run(feed)


class _Batch:
    """A feed of jobs that are all known: everything at once."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._left = [(job.num, job.overrides, job.label) for job in jobs]
        self.num_jobs = len(jobs)
        self.results: dict[int, JobReturn] = {}

    def more(self, num_free: int) -> Sequence[tuple[int, Sequence[str], str]]:
        left, self._left = self._left, []
        return left

    def ended(self, num: int, result: JobReturn) -> None:
        self.results[num] = result


class _Launch:
    """What a launch keeps while it runs.

    Args:
        ahead: how many arrays are asked for before there is a slot for them. A slot then need not
            wait while results are looked at and the next job is decided on, which may take longer
            than a job. With one slot nothing runs meanwhile: there it is better to know them all.
    """

    def __init__(self, work: Work, executor: Executor, options: Options, ahead: int = 0) -> None:
        self._work, self._executor, self._options = work, executor, options
        self._told = _told(options)
        self._num_slots = len(executor.slot_names)
        is_eager = self._num_slots > 1 and not options.fail_fast
        self._ahead = ahead if is_eager else 0
        self._queue = Queue([], self._num_slots, options.max_retries, is_eager=is_eager)
        self._has_begun = False

    def run(self, feed: Feed, first: Job | None = None) -> None:
        config, executor = self._work.config, self._executor
        setup_globals()
        Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
        expected = self._num_slots if feed.num_jobs is None else feed.num_jobs
        self._view = view(expected, self._num_slots, is_apart=executor.is_apart)
        self._num_given = 0
        with executor.started(self._work, self._view, max(1, expected), first):
            _ahead.drop()
            self._fill(feed)
            with self._view:
                try:
                    self._loop(feed)
                except KeyboardInterrupt:
                    if executor.is_apart:  # the others have ended already
                        log.warning(
                            "Stopping: jobs have %.0f s to end in order. Ctrl-C again kills them.",
                            GRACE_S,
                        )
                    raise

    def _loop(self, feed: Feed) -> None:
        with closing(self._executor.run(self._queue)) as ended:
            for array, own in ended:
                num_final = self._settle(feed, array, own)
                if num_final and self._options.fail_fast:
                    return
                self._fill(feed)

    def _settle(self, feed: Feed, array: Array, own: Sequence[JobReturn]) -> int:
        """Take note of an array that has ended; how many of its jobs failed for good."""
        finished, failures = self._queue.settle(array, own)
        final = sum(1 for one in failures if not one.retry)
        if not finished and not failures:
            log.warning("%s: %s; they go on in two arrays", title(array), exception(own[0]))
        self._view.ends(array, num_ended=len(finished), num_failed=final)
        for failure in failures:
            _report(failure, self._work, self._told, self._options.max_retries)
        for job, result in finished:
            feed.ended(job.num, Returned(result, job, self._work))
        return final

    def _fill(self, feed: Feed) -> None:
        """Ask for jobs until every slot has something to do, or there is none."""
        while (num_free := self._num_slots + self._ahead - self._queue.num_open) > 0:
            jobs = [Job(num, label, tuple(own)) for num, own, label in feed.more(num_free)]
            if not jobs:
                break
            self._num_given += len(jobs)
            self._view.num_jobs = max(self._num_given, feed.num_jobs or 0)
            arrays, results = self._admitted(jobs)
            self._has_begun = True
            self._view.skip(len(results))
            self._queue.add(arrays, num_free)
            for job, result in results:
                feed.ended(job.num, Returned(result, job, self._work))

    def _admitted(self, jobs: Sequence[Job]) -> tuple[list[Array], list[tuple[Job, JobReturn]]]:
        """Arrays to run, and the results of jobs that need not or cannot be run.

        Before any job has run, one that cannot be run ends the launch. Later it fails, alone.
        """
        try:
            return self._planned(jobs)
        except Exception as error:
            if not self._has_begun:
                raise
            if len(jobs) == 1:
                _report(Failure(jobs[0], error), self._work, self._told, 0)
                return [], [(jobs[0], failed(jobs[0], error))]
        alone = [self._admitted([job]) for job in jobs]
        return [a for arrays, _ in alone for a in arrays], [r for _, found in alone for r in found]

    def _planned(self, jobs: Sequence[Job]) -> tuple[list[Array], list[tuple[Job, JobReturn]]]:
        _check(jobs, self._work)
        with planning(self._executor.slot_names):
            arrays, values = _planned(jobs, self._work, self._options)
        return arrays, [(job, done(job, values[job.num])) for job in jobs if job.num in values]


def _labels(overrides: Sequence[Sequence[str]]) -> list[str]:
    """For each job the overrides that not every job has; all of them if none tells it apart."""
    shown = [filter_overrides(own) for own in overrides]
    shared = set(shown[0]).intersection(*shown[1:]) if len(shown) > 1 else set()
    return [" ".join([o for o in own if o not in shared] or own) for own in shown]


# --- before any job runs --------------------------------------------------------------------


def _check(jobs: Sequence[Job], work: Work) -> None:
    """Every job can be composed, or everything that is wrong with any of them is said."""
    problems = []
    is_known = getattr(work.context.config_loader, "has_composed", lambda overrides: False)
    for job in jobs:
        if is_known(job.overrides):
            continue
        try:
            work.composed(job)
        except Exception as error:
            problems.append((f"{job}: {in_words(error)}", error))
    if problems:
        raise _all_of(problems, len(jobs))


def _all_of(problems: Sequence[tuple[str, Exception]], num_jobs: int) -> HydraException:
    lines = [f"{len(problems)} of {num_jobs} jobs cannot be composed; none was started."]
    lines += [line for line, _ in problems[:MAX_LINES]]
    if len(problems) > MAX_LINES:
        lines.append(f"... and {len(problems) - MAX_LINES} more")
    error = HydraException("\n".join(lines))
    error.__cause__ = problems[0][1]
    return error


class _Configs(Sequence[DictConfig]):
    """The jobs' configurations, each composed when it is looked at: thousands take no memory."""

    def __init__(self, jobs: Sequence[Job], work: Work) -> None:
        self._jobs, self._work = jobs, work

    def __len__(self) -> int:
        return len(self._jobs)

    @overload
    def __getitem__(self, place: int) -> DictConfig: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[DictConfig]: ...
    def __getitem__(self, place: int | slice) -> DictConfig | Sequence[DictConfig]:
        if isinstance(place, slice):
            return _Configs(self._jobs[place], self._work)
        return self._work.composed(self._jobs[place])

    def __iter__(self) -> Iterator[DictConfig]:
        return (self._work.composed(job) for job in self._jobs)


def _planned(
    jobs: Sequence[Job], work: Work, options: Options
) -> tuple[list[Array], dict[int, Any]]:
    """Arrays to run, and the values of jobs that need not be, as `prepare` asks for them."""
    if options.prepare is None:
        return [[job] for job in jobs], {}
    asked = function("prepare", options.prepare)(_Configs(jobs, work))
    arrays, values = arrange(jobs, asked, options.prepare)
    if work.together is None and any(len(array) > 1 for array in arrays):
        raise HydraException(
            f"hydra.launcher.prepare={options.prepare} asks for jobs to be run together, but "
            "hydra.launcher.together is not set.\n"
            "Give the dotted path of the function that runs several jobs."
        )
    return arrays, values


# --- while they run -------------------------------------------------------------------------

Told = Callable[[DictConfig, BaseException, int], Any]


def _told(options: Options) -> Told | None:
    """The application's function that hears of failures."""
    return function("ended", options.ended) if options.ended is not None else None


def _report(failure: Failure, work: Work, told: Told | None, max_retries: int) -> None:
    config = _of_failed(failure.job, work)
    path = log_file(config) if config is not None else None
    where = f"\nLog: {os.path.relpath(path)}" if path else ""
    again = f"; tried again ({failure.retry} of {max_retries})" if failure.retry else ""
    log.error("%s failed%s: %s%s", failure.job, again, in_words(failure.error), where)
    if told is None or config is None:
        return
    try:
        told(config, failure.error, failure.retry)
    except Exception:
        log.exception("hydra.launcher.ended failed")


def _of_failed(job: Job, work: Work) -> DictConfig | None:
    """Its configuration, as far as there is one: that may be what it failed of."""
    for attempt in (work.placed, work.composed):
        with contextlib.suppress(Exception):
            return attempt(job)
    return None


def _summarize(jobs: Sequence[Job], results: dict[int, JobReturn]) -> None:
    """All failures in a line: Hydra's sweeper raises the first of them, and names no other."""
    errors = [(job, exception(results[job.num])) for job in jobs]
    failures = [f"{job}: {type(error).__name__}" for job, error in errors if error is not None]
    if failures:
        shown = [*failures[:20], *([f"and {len(failures) - 20} more"] if failures[20:] else [])]
        log.error("%d of %d jobs failed: %s", len(failures), len(jobs), "; ".join(shown))
