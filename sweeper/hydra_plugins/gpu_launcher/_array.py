"""Arrays: jobs that run together, by one call of the application's function.

Each of them has a job's whole life in Hydra all the same, one after the other. The first that gets
as far as its task makes the call for all; each then takes its own outcome.
"""

import copy
import operator
import reprlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, wraps
from heapq import merge
from types import TracebackType
from typing import Any

from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import TaskFunction
from omegaconf import DictConfig

from hydra_plugins.gpu_launcher import _job
from hydra_plugins.gpu_launcher._job import Job, Together, Work
from hydra_plugins.gpu_launcher.plan import Plan

Array = Sequence[Job]  # one or more


def arrange(jobs: Sequence[Job], asked: Any, prepare: str) -> tuple[list[Array], dict[int, Any]]:
    """The jobs that are to be run, as arrays, in the order in which they are run.

    The arrays keep the order in which they were asked for; a job that is in none comes before the
    first of them that begins with a later job.

    Args:
        jobs: all jobs.
        asked: what the application's function `prepare` returned: None, a `Plan`, or the `arrays`
            of one.
        prepare: its dotted path, for messages.

    Returns:
        (arrays, number of a job -> its value, of those that are not to be run)

    Raises:
        HydraException: `asked` is something else, or has a position twice or out of range.
    """
    plan = asked if isinstance(asked, Plan) else Plan(() if asked is None else asked)
    arrays = _positions(plan.arrays, prepare)
    named: set[int] = set()
    for position in [*(one for array in arrays for one in array), *plan.done]:
        if position in named:
            raise _wrong(prepare, f"position {position} twice")
        if not 0 <= position < len(jobs):
            raise _wrong(prepare, f"position {position}, but there are {len(jobs)} jobs")
        named.add(position)
    together = {position for array in arrays for position in array}
    alone = [[position] for position in range(len(jobs)) if position not in named]
    found: list[Array] = [
        [
            replace(
                jobs[position],
                is_in_array=position in together,
                length=float(plan.lengths.get(position, 1.0)),
            )
            for position in array
        ]
        for array in merge(arrays, alone, key=operator.itemgetter(0))
    ]
    return found, {jobs[position].num: value for position, value in plan.done.items()}


def _positions(asked: Any, prepare: str) -> list[list[int]]:
    try:
        arrays = [[operator.index(one) for one in array] for array in asked]
    except TypeError as error:
        raise _wrong(prepare, reprlib.repr(asked)) from error
    return [array for array in arrays if array]


def _wrong(prepare: str, what: str) -> HydraException:
    return HydraException(
        f"hydra.launcher.prepare={prepare} returned {what}.\n"
        "It may return None, a Plan (hydra_plugins.gpu_launcher.plan), or for each array of jobs "
        "that run together the list of their positions, counted from 0; each at most once."
    )


def length(array: Array) -> float:
    """How long it takes, in the application's unit."""
    return sum(job.length for job in array)


def title(array: Array) -> str:
    """An array in a line, for messages."""
    if len(array) == 1:
        return str(array[0])
    together = f"jobs {', '.join(str(job.num) for job in array)} together"
    labels = [job.label for job in array]
    return f"{together}: {' | '.join(labels)}" if any(labels) else together


def run(array: Array, work: Work) -> list[JobReturn]:
    """Run an array in this process. An exception, `sys.exit` included, ends jobs of it alone.

    Returns:
        A result for each job: see `_job.run`.

    Raises:
        BaseException: what is meant to end the process, as KeyboardInterrupt is.
    """
    try:
        configs = [work.composed(job) for job in array]
    except Exception as error:  # it could be before: a file has changed, or a variable
        return [_job.failed(job, error) for job in array]
    if work.together is None or not array[0].is_in_array:
        (job,), (config,) = array, configs
        return [_job.run(job, config, work.task, work.context)]
    call = _Call(work.together, configs)
    return [
        _job.run(job, config, call.task(place, work.task), work.context)
        for place, (job, config) in enumerate(zip(array, configs, strict=True))
    ]


class _Call:
    """The one call for an array: made when its first outcome is asked for."""

    def __init__(self, together: Together, configs: Sequence[DictConfig]) -> None:
        self._together, self._configs = together, configs

    def task(self, place: int, task: TaskFunction) -> TaskFunction:
        """What a job of the array runs: to a callback it looks like the application's task."""

        @wraps(task)
        def outcome(_: DictConfig) -> Any:
            value, trace = self._outcomes[place]
            if isinstance(value, BaseException):
                # Several jobs may share it: without `trace`, each would add its own lines to it.
                raise value.with_traceback(trace)
            return value

        return outcome

    @cached_property
    def _outcomes(self) -> list[tuple[Any, TracebackType | None]]:
        try:
            values = self._values()
        except (Exception, SystemExit) as error:
            values = [error] * len(self._configs)
        return [(v, v.__traceback__ if isinstance(v, BaseException) else None) for v in values]

    def _values(self) -> list[Any]:
        jobs = [copy.deepcopy(config) for config in self._configs]
        values = self._together.call(jobs)
        if isinstance(values, list) and len(values) == len(jobs):
            return values
        what = f"a list of {len(values)}" if isinstance(values, list) else type(values).__name__
        raise HydraException(
            f"hydra.launcher.together={self._together.path} returned {what} for {len(jobs)} jobs.\n"
            "It must return a list with one value or exception for each of them, in order."
        )
