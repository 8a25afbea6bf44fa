"""Tables of graft against the loops."""

from collections.abc import Callable, Sequence

from contenders import Loop, Round, Work
from measure import GraftSweep, Sample, Table, sample

Goals = tuple[float | None, float | None, float | None]


def against(title: str, work: Work, rounds: Sequence[Round], goals: Goals) -> Table:
    """Graft and the loops.

    Args:
        goals: times faster than the plain loop, so too as whole processes; than the tuned loop.
    """

    first, whole, tuned = goals
    rows = [
        _row("first picture to last epoch, s", rounds, _first_to_last_s, (first, tuned)),
        _row("start to last epoch, s", rounds, _start_to_last_s),
        _row("whole process, s", rounds, _whole_s, (whole, None)),
        _row("peak, MB", rounds, _peak_mb),
    ]
    head = ["", "plain", "tuned", "graft", "plain / graft", "goal", "", "tuned / graft", "goal", ""]
    return Table(title, head, rows, [f"{work.epochs} epochs; {work.scale}.", _accuracies(rounds)])


def _row(
    name: str,
    rounds: Sequence[Round],
    of: Callable[[Loop | GraftSweep], float],
    goals: tuple[float | None, float | None] = (None, None),
) -> list[object]:
    plain, tuned, ours = (
        sample([of(one) for one in contenders])
        for contenders in zip(*((r.plain, r.tuned, r.sweep) for r in rounds), strict=True)
    )
    cells: list[object] = [name, plain, tuned, ours]
    for loop, goal in zip((plain, tuned), goals, strict=True):
        ratio = loop.over(ours)
        cells += [ratio, *judged(ratio, goal)]
    return cells


def _first_to_last_s(one: Loop | GraftSweep) -> float:
    return one.first_to_last_s


def _start_to_last_s(one: Loop | GraftSweep) -> float:
    """A loop ends with its last epoch. Graft: with imports and the check of every picture, without
    what comes after the epochs."""
    return one.whole_s if isinstance(one, Loop) else one.before_s + one.first_to_last_s


def _whole_s(one: Loop | GraftSweep) -> float:
    return one.whole_s if isinstance(one, Loop) else one.process.seconds


def _peak_mb(one: Loop | GraftSweep) -> float:
    return one.process.peak_mb


def _accuracies(rounds: Sequence[Round]) -> str:
    """That the same is learned, roughly: after the epochs that the loops really trained."""
    of_loop = [run["val_accuracy"][-1] for run in rounds[0].plain.process.results]
    said = ", ".join(f"{value:.3f}" for value in of_loop)
    return f"Plain loop's validation accuracy after {rounds[0].plain.work.loop_epochs}: {said}."


def where(title: str, rounds: Sequence[Round]) -> Table:
    """The parts of graft's processes."""
    sweeps = [one.sweep for one in rounds]
    parts: dict[str, Callable[[GraftSweep], float]] = {
        "start: imports, composing, check of the pictures": lambda one: one.before_s,
        "prepare: networks built and cut": lambda one: one.spent("prepare"),
        "trunk: decoded, computed, stored": lambda one: one.spent("trunk"),
        "fit: epochs and validation": lambda one: one.spent("fit"),
        "test, checkpoints, predictions": lambda one: one.spent("test"),
        "figures, report, MLflow, end": _rest,
        "whole process": lambda one: one.process.seconds,
    }
    rows = [[name, sample([of(one) for one in sweeps])] for name, of in parts.items()]
    return Table(title, ["", "graft"], rows)


def _rest(one: GraftSweep) -> float:
    return one.process.seconds - one.before_s - one.spent("prepare", "trunk", "fit", "test")


def judged(found: Sample, goal: float | None, *, less: bool = False) -> list[str]:
    """The goal, and whether the median meets it."""
    if goal is None:
        return ["", ""]
    is_met = found.median <= goal if less else found.median >= goal
    return [f"{'<=' if less else '>='} {goal:g}", "met" if is_met else "NOT MET"]
