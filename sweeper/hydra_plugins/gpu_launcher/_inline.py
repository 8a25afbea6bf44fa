"""Executor: in this process, one job after the other."""

import logging
from collections.abc import Generator, Sequence

from hydra.core.utils import JobReturn, configure_log
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.gpu_launcher._job import Job, run

log = logging.getLogger(__name__)


class InlineExecutor:
    """See `_launch.Executor`."""

    def __init__(self, context: HydraContext, task: TaskFunction, config: DictConfig) -> None:
        self._context = context
        self._task = task
        self._config = config

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[int, JobReturn], None, None]:
        for position, job in enumerate(jobs):
            log.info("%d of %d: %s", position + 1, len(jobs), job)
            try:
                result = run(job, self._task, self._context)
            finally:
                # The job turned the logging of this process to its own file.
                configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
            yield position, result
