"""Where to store activations: by what fits, and by what it costs.

Arithmetic only: no network, no disk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# What is stored also serves later sweeps: it is judged as if it were read in so many epochs.
MIN_EPOCHS = 10


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
        num_seen: pictures that pass through it in an epoch if nothing is stored: once for all runs
            that train side by side.
        epochs: of the longest run.
        read_s: seconds to read a stored byte.
    """

    num_rows: int
    num_seen: int
    epochs: int
    read_s: float = 1e-9


@dataclass(frozen=True)
class Choice:
    """`candidate` is None where nothing is to be stored. `why` says so, or why not the end."""

    candidate: Candidate | None
    why: str = ""


def fits(row_bytes: int, work: Work, room_bytes: int) -> bool:
    return row_bytes * work.num_rows <= room_bytes


def choose(candidates: Sequence[Candidate], work: Work, room_bytes: int) -> Choice:
    """The candidate that costs least of those that fit; none, if the trunk is cheaper than that.

    Args:
        candidates: in the order of the trunk; the last one is its end.
        room_bytes: what may be stored.
    """
    end = candidates[-1]
    needs = (
        f"at {end.name} {gigabytes(end.row_bytes * work.num_rows)} would be stored, "
        f"{gigabytes(room_bytes)} may be"
    )
    fitting = [one for one in candidates if fits(one.row_bytes, work, room_bytes)]
    if not fitting:
        return Choice(None, needs)
    best = min(fitting, key=lambda one: cost_s(one, work))
    if cost_s(best, work) > _epochs(work) * work.num_seen * (end.before_s + end.after_s):
        return Choice(None, f"{needs}; what fits would save no time")
    return Choice(best) if best is end else Choice(best, f"stored at {best.name}: {needs}")


def cost_s(one: Candidate, work: Work) -> float:
    """Seconds to store a candidate, and to go on from there in every epoch."""
    again = one.after_s + one.row_bytes * work.read_s
    return work.num_rows * one.before_s + _epochs(work) * work.num_seen * again


def _epochs(work: Work) -> int:
    return max(work.epochs, MIN_EPOCHS)


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count < 1e11 else f"{count / 1e9:,.0f} GB"
