"""The class that Hydra builds for `hydra/launcher=slots_inline`; it keeps its settings, no more."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.gpu_launcher._composed import compose_once
from hydra_plugins.gpu_launcher._inline import InlineExecutor
from hydra_plugins.gpu_launcher._launch import launch


class SlotsLauncher(Launcher):
    """Runs a batch of jobs; a job that fails costs itself alone.

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
        executor = InlineExecutor(
            self.hydra_context, self.task_function, self.config, self.together
        )
        return launch(
            job_overrides,
            initial_job_idx,
            context=self.hydra_context,
            config=self.config,
            executor=executor,
            prepare=self.prepare,
            together=self.together,
            fail_fast=self.fail_fast,
        )
