"""For launchers that take a whole batch and give it back when all of it is done: Hydra's own, and
those of others. Ours have `launch_from`, with which no slot waits."""

import logging
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.study_sweeper._search import Search

log = logging.getLogger(__name__)


def run(search: Search, launcher: Launcher, n_jobs: int) -> None:
    """Batches of `n_jobs` trials, one after the other."""
    search.together = 1  # they do not train together what is asked for at once
    while jobs := search.more(n_jobs):
        while jobs:
            first = jobs[0][0]
            # A launcher numbers its jobs from the first one on.
            batch = [job for place, job in enumerate(jobs) if job[0] == first + place]
            jobs = jobs[len(batch) :]
            try:
                results = launcher.launch([list(job[1]) for job in batch], initial_job_idx=first)
            except Exception as error:
                log.warning("the launcher failed: %s", error)
                results = [_failed(error) for _ in batch]
            for (num, *_), result in zip(batch, results, strict=True):
                search.ended(num, result)


def num_jobs(config: DictConfig) -> int:
    """How many jobs a launcher runs at once, as far as its settings tell."""
    for key in ("hydra.launcher.n_jobs", "hydra.launcher.joblib.n_jobs"):
        found: Any = OmegaConf.select(config, key)
        if isinstance(found, int) and found > 0:
            return found
    return 1


def _failed(error: Exception) -> JobReturn:
    result = JobReturn(status=JobStatus.FAILED)
    result.return_value = error
    return result
