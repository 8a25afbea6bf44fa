"""Executor: in this process, one array after the other."""

import logging
from collections.abc import Generator, Sequence

from hydra.core.utils import JobReturn, configure_log
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.gpu_launcher._array import Array, Together, run, title

log = logging.getLogger(__name__)


class InlineExecutor:
    """See `_launch.Executor`."""

    def __init__(
        self,
        context: HydraContext,
        task: TaskFunction,
        config: DictConfig,
        together: Together | None = None,
    ) -> None:
        self._context = context
        self._task = task
        self._config = config
        self._together = together

    def run(
        self, arrays: Sequence[Array]
    ) -> Generator[tuple[Array, Sequence[JobReturn]], None, None]:
        first, total = 1, sum(len(array) for array in arrays)
        for array in arrays:
            last = first + len(array) - 1
            count = f"{first}-{last}" if last > first else f"{first}"
            log.info("%s of %d: %s", count, total, title(array))
            first = last + 1
            try:
                results = run(array, self._task, self._together, self._context)
            finally:
                # The jobs turned the logging of this process to their own files.
                configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
            yield array, results
