"""What Hydra builds for `hydra/launcher=slots` and the like; it keeps settings, no more."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.gpu_launcher._composed import compose_once
from hydra_plugins.gpu_launcher._function import function
from hydra_plugins.gpu_launcher._inline import InlineExecutor
from hydra_plugins.gpu_launcher._job import Together, Work
from hydra_plugins.gpu_launcher._launch import Executor, Options, launch, launch_from
from hydra_plugins.gpu_launcher.feed import Feed


class SlotsInlineLauncher(Launcher):
    """Runs a batch of jobs in this process; a job that fails costs itself alone.

    Args:
        prepare: dotted path of a function of the application, or None. It is called once a batch,
            before any job, with the sequence of the jobs' composed configurations (each with its
            `hydra` node) in the order asked; what it raises ends the launch. It returns None, a
            `plan.Plan`, or the plan's `arrays`.
        together: dotted path of a function of the application that runs an array of jobs in place
            of its main function, or None. It is called with the list of their composed
            configurations, in the process in which they run, and returns a list with the value of
            each job, or its exception.
        ended: dotted path of a function of the application, or None. It is called in this process
            for each job that failed, with its configuration, the exception, and the number of the
            retry that comes next; 0: none, it has failed for good.
        max_retries: how often a job that failed is run again.
        fail_fast: start nothing after the first job that failed for good.
    """

    def __init__(
        self,
        prepare: str | None = None,
        together: str | None = None,
        ended: str | None = None,
        max_retries: int = 0,
        fail_fast: bool = False,
    ) -> None:
        if max_retries < 0:
            raise HydraException(f"hydra.launcher.max_retries={max_retries}: 0 or more.")
        self.together = together
        self.options = Options(prepare, ended, fail_fast, max_retries)

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
            HydraException: some job cannot be composed, a function that is named cannot be called,
                or `prepare` returned what cannot be run.
            Exception: whatever `prepare` raised.
        """
        return launch(job_overrides, initial_job_idx, self._work(), self._executor(), self.options)

    def launch_from(self, feed: Feed) -> None:
        """Run jobs that are decided on while others run: see feed.py.

        Raises:
            HydraException, Exception: as `launch`, of the first jobs that the feed gives; a job
                that comes later and cannot be composed or prepared fails alone.
        """
        launch_from(feed, self._work(), self._executor(), self.options)

    def _work(self) -> Work:
        path = self.together
        together = Together(path, function("together", path)) if path is not None else None
        return Work(self.hydra_context, self.task_function, self.config, together)

    def _executor(self) -> Executor:
        return InlineExecutor()


class SlotsLauncher(SlotsInlineLauncher):
    """Runs a batch of jobs in worker processes, one a slot, each with a device of its own.

    Args:
        gpus: positions among the visible GPUs, or identifiers; None: all that are visible.
        per_gpu: how many jobs, or arrays of jobs, share a GPU.
        cpu_slots: how many slots without a GPU, instead; None: one, where no GPU is visible.
        timeout_s: a worker that gives no sign of life for so long is ended; None: never.
        warm_up: dotted path of a function without arguments that a worker calls first.
        get_ready: dotted path of a function that it then calls with the first job's configuration.
        settings: those of `SlotsInlineLauncher`.
    """

    def __init__(
        self,
        gpus: Sequence[int | str] | None = None,
        per_gpu: int = 1,
        cpu_slots: int | None = None,
        timeout_s: float | None = None,
        warm_up: str | None = None,
        get_ready: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if timeout_s is not None and timeout_s <= 0:
            raise HydraException(f"hydra.launcher.timeout_s={timeout_s}: more than 0, or null.")
        self.gpus, self.per_gpu, self.cpu_slots = gpus, per_gpu, cpu_slots
        self.timeout_s, self.warm_up, self.get_ready = timeout_s, warm_up, get_ready

    def _executor(self) -> Executor:
        from hydra_plugins.gpu_launcher._processes import ProcessExecutor
        from hydra_plugins.gpu_launcher._slots import slots

        gpus = None if self.gpus is None else list(self.gpus)
        found = slots(gpus, self.per_gpu, self.cpu_slots)
        return ProcessExecutor(found, self.timeout_s, self.warm_up, self.get_ready)


class SlotsRayLauncher(SlotsInlineLauncher):
    """Runs a batch of jobs on a Ray cluster, in actors that hold a slot each.

    Args:
        address: of the cluster, as `ray.init` takes it; None: one on this machine, for this launch.
        num_gpus: GPUs of a slot; None: 1 where the cluster has any, else 0.
        num_cpus: processors of a slot.
        slots: how many at most; None: as many as fit on the cluster.
        runtime_env: Ray's, for the slots.
        init: further arguments of `ray.init`, for a cluster of our own.
        timeout_s: a worker that gives no sign of life for so long is ended; None: never.
        warm_up: dotted path of a function without arguments that a worker calls first.
        settings: those of `SlotsInlineLauncher`.
    """

    def __init__(
        self,
        address: str | None = None,
        num_gpus: float | None = None,
        num_cpus: float = 1.0,
        slots: int | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        init: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        warm_up: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if timeout_s is not None and timeout_s <= 0:
            raise HydraException(f"hydra.launcher.timeout_s={timeout_s}: more than 0, or null.")
        from hydra_plugins.gpu_launcher._ray_cluster import Demand

        plain = (_plain(runtime_env), _plain(init))
        self.demand = Demand(address, num_gpus, num_cpus, slots, *plain)
        self.timeout_s, self.warm_up = timeout_s, warm_up

    def _executor(self) -> Executor:
        from hydra_plugins.gpu_launcher._ray import RayExecutor

        return RayExecutor(self.demand, self.timeout_s, self.warm_up)


def _plain(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings without anything of Hydra's, as other libraries take them."""
    found = OmegaConf.to_container(OmegaConf.create(dict(settings or {})), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
