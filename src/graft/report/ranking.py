"""A sweep as it is reported: read once, ranked once, the winner compared with the others once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from graft.errors import RecordError
from graft.record import Record
from graft.report.intervals import Paired, paired, paired_with_each
from graft.report.results import results
from graft.report.select import ranked
from graft.report.sweep import Sweep, load


@dataclass(frozen=True)
class Against:
    """The winner minus another run; `p` is adjusted for how many it is compared with."""

    other: Record
    found: Paired
    p: float


@dataclass(frozen=True)
class Ranking:
    """Which run wins, and by how much. A comparison is made when it is first asked for.

    Attributes:
        order: the completed runs, best first; none where they cannot be compared.
        problem: why they cannot be; None where they can.
    """

    order: tuple[Record, ...]
    problem: str | None = None

    @property
    def runner_up(self) -> Record | None:
        """The next best run that differs in more than its seed; if none does, the next best."""
        if len(self.order) < 2:
            return None
        best, *others = self.order
        return next((one for one in others if _recipe(one) != _recipe(best)), others[0])

    @cached_property
    def on_val(self) -> tuple[Against, ...]:
        """The winner against every other run, in order: validation has chosen between all."""
        others = self.order[1:]
        if not others:
            return ()
        best, *predictions = (record.predictions.of("val") for record in self.order)
        try:
            found = paired_with_each(best, predictions)
        except RecordError:
            return ()
        return tuple(Against(one, pair, p) for one, (pair, p) in zip(others, found, strict=True))

    @cached_property
    def on_test(self) -> Paired | None:
        """The winner against the runner-up alone: test has chosen between none.

        None where they were not tested on the same examples.
        """
        other = self.runner_up
        if other is None:
            return None
        try:
            return paired(*(run.predictions.of("test") for run in (self.order[0], other)))
        except RecordError:
            return None


def _recipe(record: Record) -> dict[str, str]:
    return {key: value for key, value in record.info["choices"].items() if key != "seed"}


def ranking(records: Sequence[Record]) -> Ranking:
    """The ranking of runs, given in the order in which they were asked for."""
    try:
        return Ranking(tuple(ranked(records)))
    except RecordError as error:
        return Ranking((), str(error))


@dataclass(frozen=True)
class Compared:
    """What the page and the terminal say of a sweep.

    Attributes:
        rows: of results.csv.
    """

    sweep: Sweep
    rows: list[dict[str, object]]
    ranking: Ranking


def compared(path: Path) -> Compared:
    """Read a sweep's folder, and rank its runs.

    Raises:
        RecordError: it is none.
    """
    sweep = load(path)
    return Compared(sweep, results(sweep.records, sweep.asked), ranking(sweep.records))
