"""Where to store activations: by what it costs, and by what fits.

Arithmetic only: no network, no disk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# What is stored also serves later sweeps. So storing may take this many times as long as not
# storing, in one sweep alone.
PATIENCE = 2.0


@dataclass(frozen=True)
class Candidate:
    """A place in the trunk at which activations could be stored.

    Attributes:
        name: in the network's own names.
        row_bytes: of one picture there.
        before_s, after_s: a picture's seconds from the input to there, from there to the end.
    """

    name: str
    row_bytes: int
    before_s: float
    after_s: float


@dataclass(frozen=True)
class Work:
    """What a sweep asks of a trunk.

    Attributes:
        num_rows: pictures to store, each view of one counted.
        num_seen: pictures that pass through it if nothing is stored: those of every epoch, once
            for all runs that train side by side.
        read_s: seconds to read a stored byte.
    """

    num_rows: int
    num_seen: int
    read_s: float = 1e-9


@dataclass(frozen=True)
class Choice:
    """`candidate` is None where nothing is to be stored; `why` says so, or why not the last."""

    candidate: Candidate | None
    why: str = ""


def choose(candidates: Sequence[Candidate], work: Work, room_bytes: int) -> Choice:
    """The candidate that costs least of those that fit.

    Args:
        candidates: in the order of the trunk; the last one is its end.
        room_bytes: what may be stored.
    """
    end = candidates[-1]
    fitting = [one for one in candidates if one.row_bytes * work.num_rows <= room_bytes]
    needs = f"{end.name} would take {gigabytes(end.row_bytes * work.num_rows)}"
    may = f"{gigabytes(room_bytes)} may be used"
    if not fitting:
        return Choice(None, f"{needs}, {may}")
    best = min(fitting, key=lambda one: cost_s(one, work))
    live_s = work.num_seen * (end.before_s + end.after_s)
    if cost_s(best, work) > PATIENCE * live_s:
        return Choice(None, "storing would take longer than it saves")
    if best is end:
        return Choice(best)
    why = "it is smaller" if end in fitting else f"{needs}, {may}"
    return Choice(best, f"stored at {best.name}: {why}")


def cost_s(one: Candidate, work: Work) -> float:
    """Seconds to store a candidate, and to go on from there in every epoch."""
    again = work.num_seen * (one.after_s + one.row_bytes * work.read_s)
    return work.num_rows * one.before_s + again


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count < 1e11 else f"{count / 1e9:,.0f} GB"
