"""Arrays: jobs that run together, by one call of the application's function.

Each of them has a job's whole life in Hydra all the same, one after the other. The first that gets
as far as its task makes the call for all; each then takes its own outcome.
"""

import copy
import operator
import reprlib
from collections.abc import Callable, Sequence
from functools import cached_property, wraps
from heapq import merge
from types import TracebackType
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.gpu_launcher import _job
from hydra_plugins.gpu_launcher._job import Job

Array = Sequence[Job]  # one or more; one alone goes through Hydra's task function


class Together(NamedTuple):
    """The application's function that runs several jobs, and its dotted path, for messages."""

    path: str
    call: Callable[[list[DictConfig]], Any]


def arrange(jobs: Sequence[Job], asked: object, prepare: str) -> list[Array]:
    """The jobs as arrays, in the order in which they are run.

    The arrays keep the order in which they were asked for; a job that is in none comes before the
    first of them that begins with a later job.

    Args:
        jobs: all jobs.
        asked: what the application's function `prepare` returned: None, or for each array the
            positions of its jobs.
        prepare: its dotted path, for messages.

    Raises:
        HydraException: `asked` is something else, or has a position twice or out of range.
    """
    arrays = [] if asked is None else _positions(asked, prepare)
    named: set[int] = set()
    for position in (one for array in arrays for one in array):
        if position in named:
            raise _wrong(prepare, f"position {position} twice")
        if not 0 <= position < len(jobs):
            raise _wrong(prepare, f"position {position}, but there are {len(jobs)} jobs")
        named.add(position)
    alone = [[position] for position in range(len(jobs)) if position not in named]
    order = merge(arrays, alone, key=operator.itemgetter(0))
    return [[jobs[position] for position in array] for array in order]


def _positions(asked: Any, prepare: str) -> list[list[int]]:
    try:
        arrays = [[operator.index(one) for one in array] for array in asked]
    except TypeError as error:
        raise _wrong(prepare, reprlib.repr(asked)) from error
    return [array for array in arrays if array]


def _wrong(prepare: str, what: str) -> HydraException:
    return HydraException(
        f"hydra.launcher.prepare={prepare} returned {what}.\n"
        "It may return None, or for each array of jobs that run together the list of their "
        "positions, counted from 0; each at most once."
    )


def title(array: Array) -> str:
    """An array in a line, for messages."""
    if len(array) == 1:
        return str(array[0])
    together = f"jobs {', '.join(str(job.num) for job in array)} together"
    labels = [job.label for job in array]
    return f"{together}: {' | '.join(labels)}" if any(labels) else together


def run(
    array: Array, task: TaskFunction, together: Together | None, context: HydraContext
) -> list[JobReturn]:
    """Run an array in this process. An exception, `sys.exit` included, ends jobs of it alone.

    Args:
        array: the jobs.
        task: runs a job that is alone.
        together: the application's function that runs two jobs or more.
        context: Hydra's, whose callbacks are told of each job.

    Returns:
        A result for each job: see `_job.run`.

    Raises:
        BaseException: what is meant to end the process, as KeyboardInterrupt is.
    """
    if len(array) == 1:
        return [_job.run(array[0], task, context)]
    assert together is not None
    call = _Call(together, array)
    return [_job.run(job, call.task(place, task), context) for place, job in enumerate(array)]


class _Call:
    """The one call for an array: made when its first outcome is asked for."""

    def __init__(self, together: Together, array: Array) -> None:
        self._together = together
        self._array = array

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
            values = [error] * len(self._array)
        return [(v, v.__traceback__ if isinstance(v, BaseException) else None) for v in values]

    def _values(self) -> list[Any]:
        jobs = [copy.deepcopy(job.config) for job in self._array]
        values = self._together.call(jobs)
        if isinstance(values, list) and len(values) == len(jobs):
            return values
        what = f"a list of {len(values)}" if isinstance(values, list) else type(values).__name__
        raise HydraException(
            f"hydra.launcher.together={self._together.path} returned {what} for {len(jobs)} jobs.\n"
            "It must return a list with one value or exception for each of them, in order."
        )
