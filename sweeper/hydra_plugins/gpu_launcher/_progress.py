"""See progress.py. One launch at a time runs in a process, so this is the process's."""

from collections.abc import Callable

# The number of a job, or None for all that run in this process; the share that is done; words.
Teller = Callable[[int | None, float, str], None]

_teller: Teller | None = None
_is_live = False
_slot = ""


def tell(num: int | None, share: float, text: str = "") -> None:
    """Say how far a job is.

    Args:
        num: Hydra's number of the job, `hydra.job.num`; None: every job that runs in this process.
        share: how much of it is done, 0 to 1.
        text: a few words, such as a metric.
    """
    if _teller is not None:
        _teller(num, share, text)


def is_live() -> bool:
    """Whether what is told is shown on a terminal: the job need not print it as well."""
    return _is_live


def slot() -> str:
    """The name of the slot in which this process runs jobs, such as "gpu 0"; else empty."""
    return _slot


def use(teller: Teller | None, *, is_live: bool = False, slot: str = "") -> None:
    """For the launcher: where everything goes from now on."""
    global _teller, _is_live, _slot
    _teller, _is_live, _slot = teller, is_live, slot
