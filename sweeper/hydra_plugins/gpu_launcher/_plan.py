"""See plan.py."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """Which jobs are to be run together, and which need not be run at all.

    Attributes:
        arrays: for each array of jobs that run together, their positions in the list that `prepare`
            was given, counted from 0. A job in none is an array of its own.
        done: position -> value of a job that has been run before; it is not run again.
        lengths: position -> how long a job takes, in any unit; 1 for a job that is not named. Long
            arrays are started first, and split first where slots would stay idle.
    """

    arrays: Sequence[Sequence[int]] = ()
    done: Mapping[int, Any] = field(default_factory=dict)
    lengths: Mapping[int, float] = field(default_factory=dict)


_slots: tuple[str, ...] = ()


def slot_names() -> tuple[str, ...]:
    """The slots of the launch that is being planned, such as "gpu 0"; none outside of one."""
    return _slots


@contextmanager
def planning(slots: Sequence[str]) -> Iterator[None]:
    """For the launcher: a launch is being planned in here."""
    global _slots
    before, _slots = _slots, tuple(slots)
    try:
        yield
    finally:
        _slots = before
