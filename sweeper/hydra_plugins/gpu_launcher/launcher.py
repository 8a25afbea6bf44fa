"""What Hydra builds for `hydra/launcher=slots` and `slots_inline`; it keeps settings, no more."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.gpu_launcher._array import Together
from hydra_plugins.gpu_launcher._composed import compose_once
from hydra_plugins.gpu_launcher._function import function
from hydra_plugins.gpu_launcher._inline import InlineExecutor
from hydra_plugins.gpu_launcher._launch import Executor, launch


class SlotsInlineLauncher(Launcher):
    """Runs a batch of jobs in this process; a job that fails costs itself alone.

    Args:
        prepare: dotted path of a function of the application, or None. It is called once a batch,
            before any job, with the list of the jobs' composed configurations (each with its
            `hydra` node) in the order asked; what it raises ends the launch. It returns None, or
            the arrays: for each the positions, in that list, of jobs that are to be run together.
        together: dotted path of a function of the application that runs an array of two jobs or
            more, or None. It is called with the list of their composed configurations, in this
            process, and returns a list with the value of each job, or its exception.
        fail_fast: start nothing after the first job that failed.
    """

    def __init__(
        self, prepare: str | None = None, together: str | None = None, fail_fast: bool = False
    ) -> None:
        self.prepare = prepare
        self.together = together
        self.fail_fast = fail_fast

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        compose_once(hydra_context)
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs; their results in the order asked.

        Args:
            job_overrides: the overrides of each job.
            initial_job_idx: the number of the first one.

        Raises:
            HydraException: some job cannot be composed, `prepare` or `together` cannot be called,
                or `prepare` returned what cannot be run.
            Exception: whatever `prepare` raised.
        """
        path = self.together
        together = Together(path, function("together", path)) if path is not None else None
        return launch(
            job_overrides,
            initial_job_idx,
            context=self.hydra_context,
            config=self.config,
            executor=self._executor(together),
            prepare=self.prepare,
            can_run_together=together is not None,
            fail_fast=self.fail_fast,
        )

    def _executor(self, together: Together | None) -> Executor:
        return InlineExecutor(self.hydra_context, self.task_function, self.config, together)


class SlotsLauncher(SlotsInlineLauncher):
    """Runs a batch of jobs in worker processes, one a slot, each with a device of its own.

    Args:
        gpus: positions among the visible GPUs, or identifiers; None: all that are visible.
        per_gpu: how many jobs, or arrays of jobs, share a GPU.
        cpu_slots: how many slots without a GPU, instead; None: one, where no GPU is visible.
        timeout_s: a worker that logs nothing for so long is ended; None: never.
        settings: those of `SlotsInlineLauncher`.
    """

    def __init__(
        self,
        gpus: Sequence[int | str] | None = None,
        per_gpu: int = 1,
        cpu_slots: int | None = None,
        timeout_s: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.gpus, self.per_gpu, self.cpu_slots = gpus, per_gpu, cpu_slots
        self.timeout_s = timeout_s

    def _executor(self, together: Together | None) -> Executor:
        from hydra_plugins.gpu_launcher._processes import ProcessExecutor
        from hydra_plugins.gpu_launcher._slots import slots

        gpus = None if self.gpus is None else list(self.gpus)
        return ProcessExecutor(
            self.hydra_context,
            self.task_function,
            self.config,
            together,
            slots=slots(gpus, self.per_gpu, self.cpu_slots),
            timeout_s=self.timeout_s,
        )
