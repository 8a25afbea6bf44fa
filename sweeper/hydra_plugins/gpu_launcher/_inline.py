"""Executor: in this process, one array after the other."""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import sleep

from hydra.core.utils import JobReturn, configure_log

from hydra_plugins.gpu_launcher import progress
from hydra_plugins.gpu_launcher._array import Array, run
from hydra_plugins.gpu_launcher._job import Job, Work
from hydra_plugins.gpu_launcher._queue import Queue
from hydra_plugins.gpu_launcher._view import View


class InlineExecutor:
    """See `_launch.Executor`."""

    slot_names: Sequence[str] = ("this process",)
    is_apart = False

    def started(
        self, work: Work, view: View, num_jobs: int, first: Job | None
    ) -> AbstractContextManager[None]:
        self._work, self._view = work, view
        return nullcontext()

    def run(self, queue: Queue) -> Generator[tuple[Array, Sequence[JobReturn]], None, None]:
        work, config = self._work, self._work.config
        while len(queue):
            array = queue.take()
            if array is None:
                sleep(queue.due_in_s())
                continue
            self._view.begins(array, "")
            progress.use(self._view.teller(array))
            try:
                results = run(array, work)
            finally:
                progress.use(None)
                # The jobs turned the logging of this process to their own files.
                configure_log(config.hydra.hydra_logging, config.hydra.verbose)
            yield array, results
