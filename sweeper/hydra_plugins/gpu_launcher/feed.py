"""Jobs that are decided on while others run: what a sweeper gives to `launch_from`.

    launch(overrides, first)    jobs that are all known before the first of them runs
    launch_from(feed)           as a slot becomes free, the next jobs are asked for

Hydra's own interface has the first alone, with which a sweeper that learns from results has to wait
for a whole batch. A sweeper need not import this module: it gives an object with these methods.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from hydra.core.utils import JobReturn


class Next(NamedTuple):
    """A job that is to be run now.

    Attributes:
        num: Hydra's number of it, `hydra.job.num`; not that of another job of the launch.
        overrides: all of its own.
        label: a few words that tell it from others, for messages.
    """

    num: int
    overrides: Sequence[str]
    label: str


class Feed(Protocol):
    """Where a launch gets its jobs from, one call at a time, in the launcher's own thread."""

    @property
    def num_jobs(self) -> int | None:
        """How many there will be in all, for what a person sees; None: nobody knows."""
        ...

    def more(self, num_free: int) -> Sequence[tuple[int, Sequence[str], str]]:
        """Jobs that are to be run now, each as `Next` has it.

        Args:
            num_free: so many slots have nothing to do, or nothing to do next. There may be more
                jobs than that: they are planned together (`hydra.launcher.prepare`), and may become
                arrays.

        Returns:
            Nothing: there is none now. It is asked again after each job that ends; the launch is
            over when nothing runs any more.
        """
        ...

    def ended(self, num: int, result: JobReturn) -> None:
        """A job has ended for good, in whatever way."""
        ...
