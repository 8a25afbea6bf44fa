"""What a search learned, in words and as a table."""

from dataclasses import dataclass

from graft.record import without_password
from graft.report.search import STATES, Search, Trial, epochs_run, text_of

# Rows of the table: of one objective, and of a front.
NUM_BEST, MAX_ROWS = 5, 20


@dataclass(frozen=True)
class Row:
    """A trial in the table: its values, and its value of each of the columns; "" without."""

    number: int
    values: tuple[str, ...]
    params: tuple[str, ...]
    run: str
    is_best: bool


@dataclass(frozen=True)
class Table:
    """The best trial and the next ones, or the front.

    Attributes:
        columns: keys that at least one of the rows has.
        num_left_out: trials of the front that are not shown.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    num_left_out: int


def table(search: Search) -> Table:
    trials = search.winners
    if len(search.objectives) == 1:
        others = [t for t in search.measured if t.same_as is None and t.number not in search.best]
        trials = [*trials, *search.ordered(others)][:NUM_BEST]
    kept = trials[:MAX_ROWS]
    columns = [one.name for one in search.parameters]
    columns += [key for trial in kept for key in trial.params]
    columns = [c for c in dict.fromkeys(columns) if any(c in trial.params for trial in kept)]
    folders = {trial.number: trial.folder or "" for trial in search.trials}
    rows = tuple(
        Row(
            trial.number, tuple(map(shown, trial.values or ())),
            tuple(shown(trial.params[c]) if c in trial.params else "" for c in columns),
            folders[trial.number] or folders.get(_origin(trial), ""),
            trial.number in search.best,
        )
        for trial in kept
    )  # fmt: skip
    return Table(tuple(columns), rows, len(trials) - len(kept))


def _origin(trial: Trial) -> int:
    return trial.number if trial.same_as is None else trial.same_as


def tally(search: Search) -> str:
    """ "40 trials: 25 completed, 13 pruned, 2 failed; epochs run 214 of 400 (...)"."""
    own = [trial.state for trial in search.trials if trial.same_as is None]
    counts = [(own.count(state), state) for state in STATES]
    said = ", ".join(f"{count:,} {state}" for count, state in counts if count)
    text = f"{len(own):,} trial{'' if len(own) == 1 else 's'}: {said or 'none yet'}"
    repeated = len(search.trials) - len(own)
    if repeated:
        were = "was" if repeated == 1 else "were"
        text += f" ({repeated:,} more repeated an earlier point and {were} not run)"
    epochs = epochs_run(search)
    if epochs is not None:
        run, without = epochs
        text += f"; epochs run {run:,} of {without:,} ({1 - run / without:.0%} saved by pruning)"
    return text.replace("%", " %") + "."


def facts(search: Search) -> list[tuple[str, str]]:
    """How it searched: name and value."""
    aims = [f"{aim.name} ({aim.direction})" for aim in search.objectives]
    asked = f" (asked for {search.num_asked:,} trials)" if search.num_asked else ""
    found = {
        "objective" if len(aims) == 1 else "objectives": ", ".join(aims),
        "sampler": search.sampler,
        "pruner": search.pruner or "none",
        "ended": (search.stopped or "not yet") + ("" if search.stopped else asked),
        "study": f"{search.study} in {without_password(search.storage)}",
    }
    return list(found.items())


def caution(search: Search) -> str:
    """What choosing among many does to the figure of the chosen."""
    tried = [t for t in (*search.of("completed"), *search.of("pruned")) if t.same_as is None]
    if len(tried) < 2 or not search.winners:
        return ""
    return (
        f"Chosen among {len(tried):,} by the figures shown here, which are therefore a little too "
        "good, the more so the more trials there were. Test figures took no part"
    )


def tie(search: Search) -> str:
    """What decides between trials that are equally good; empty where there are none."""
    if len(search.objectives) > 1 or not search.winners:
        return ""
    best = search.winners[0].values
    if sum(trial.values == best for trial in search.measured if trial.same_as is None) < 2:
        return ""
    return (
        "Of equal trials the first is the best here; the answer above goes by the validation loss."
    )


def shown(value: object) -> str:
    """A value in a table: four digits do."""
    if not isinstance(value, float):
        return text_of(value)
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e9 else f"{value:.4g}"
