"""Numbers as a person reads them, and the sentences that follow from them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graft.metrics import confusion
from graft.record import Predictions, Record, is_complete
from graft.report.intervals import CLEAR, Estimate, Paired, Repeated, accuracy
from graft.report.ranking import Ranking
from graft.report.select import have_one_loss, selection, val_loss
from graft.report.sweep import Sweep

SPLITS = {"val": "validation", "test": "test"}
MINUS, NOTHING = "\N{MINUS SIGN}", "\N{EN DASH}"


@dataclass(frozen=True)
class Answer:
    """What the sweep says, in one sentence.

    Attributes:
        lead: how it begins, the winner's label; nothing without one.
        claim: how it goes on.
        run: the winner's folder; nothing without one.
    """

    lead: str
    claim: str
    run: str = ""

    def __str__(self) -> str:
        return f"{self.lead} {self.claim}".strip()


def answer(sweep: Sweep, ranking: Ranking) -> Answer:
    """The first sentence of the report."""
    if ranking.problem is not None:
        return Answer("", f"These runs cannot be ranked: {ranking.problem}.")
    if not ranking.order:
        return Answer("", f"No run completed: {tally(sweep)}.")
    best = ranking.order[0]
    verb = "wins on" if len(ranking.order) > 1 else "is the only completed run; on"
    return Answer(Labels(sweep).of(best), f"{verb} {_claim(best)}.", best.name)


def details(sweep: Sweep, ranking: Ranking) -> list[str]:
    """The sentences below it; none without a winner."""
    if not ranking.order:
        return []
    found = [*_against(ranking, Labels(sweep)), *_baseline(ranking.order[0])]
    if not is_complete(_statuses(sweep)):
        found.append(f"Not every run completed: {tally(sweep)}.")
    return found


class Labels:
    """Short names of runs, from what they chose: `fine_tune, lr=0.001`."""

    def __init__(self, sweep: Sweep) -> None:
        self._choices = {run["run"]: run["choices"] for run in sweep.asked}
        last = [axis.rpartition(".")[2] for axis in sweep.axes]
        self._short = {
            axis: word if last.count(word) == 1 else axis
            for axis, word in zip(sweep.axes, last, strict=True)
        }
        self._values = {
            axis: shortened([choice[axis] for choice in self._choices.values() if axis in choice])
            for axis in sweep.axes
        }

    def value(self, axis: str, value: str) -> str:
        """A choice on an axis, as it is shown."""
        return self._values.get(axis, {}).get(value, value)

    def of(self, record: Record) -> str:
        return self.named(record.name)

    def named(self, run: str) -> str:
        return self.choice(self._choices.get(run, {})) or run

    def choice(self, choices: Mapping[str, str]) -> str:
        return ", ".join(
            self.value(key, value)
            if key in ("strategy", "model")
            else f"{self._short.get(key, key)}={self.value(key, value)}"
            for key, value in choices.items()
            if key in self._short
        )


def tally(sweep: Sweep) -> str:
    """ "3 completed, 1 diverged", in the order of how they went."""
    statuses = _statuses(sweep)
    said = [
        f"{statuses.count(status)} {status.replace('_', ' ')}"
        for status in sorted(set(statuses), key=lambda s: (s != "completed", s != "pruned", s))
    ]
    return ", ".join(said) or "none was asked for"


def _statuses(sweep: Sweep) -> list[str]:
    found = {record.name: str(record.info["status"]) for record in sweep.records}
    return [found.get(run["run"], "skipped") for run in sweep.asked]


def majority(predictions: Predictions) -> tuple[str, Estimate]:
    """The most frequent class, and how often naming it always would be right."""
    members = confusion(predictions).sum(axis=1)
    most = int(members.argmax())
    return predictions.classes[most], Estimate(int(members[most]), int(members.sum()))


def verdict(p: float) -> str:
    return "clear" if p < CLEAR else "not distinguishable"


# --- numbers --------------------------------------------------------------------------------


def shortened(values: Sequence[str]) -> dict[str, str]:
    """Numbers that nobody has typed, such as 0.014567370961716473, with as few digits as tell them
    apart; all other values as they are."""
    long = [value for value in dict.fromkeys(values) if _num_digits(value) > TYPED]
    for digits in range(SHOWN_DIGITS, 18):
        short = {value: f"{float(value):.{digits}g}" for value in long}
        if len({short.get(value, value) for value in values}) == len(set(values)):
            return short
    return {}


# More digits than a person types, and as many as are shown of those.
TYPED, SHOWN_DIGITS = 6, 4


def _num_digits(text: str) -> int:
    """Significant digits of a number; 0: it is none."""
    try:
        value = float(text)
    except ValueError:
        return 0
    return len(text.lower().partition("e")[0].replace(".", "").strip("-0")) if value else 0


def number(value: float | None, digits: int = 3) -> str:
    return NOTHING if value is None or value != value else f"{value:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{MINUS if value < 0 else '+'}{text}"


def estimate(found: Estimate | None) -> str:
    if found is None:
        return NOTHING
    return f"{found.value:.3f} ({bounds(found)})"


def bounds(found: Estimate) -> str:
    """The ends of its interval: two digits, unless that would show a narrow one as a point."""
    low, high = found.low, found.high
    digits = 2 if high - low >= 0.05 else 3
    return f"{low:.{digits}f} to {high:.{digits}f}"


def difference(found: Paired | Repeated) -> str:
    value = found.mean if isinstance(found, Repeated) else found.difference
    return f"{signed(value)} ({signed(found.low)} to {signed(found.high)})"


def p_value(p: float) -> str:
    if p < 0.001:
        return "p < 0.001"
    digits = 3 if p < 0.1 else 2
    # What is shown and what is called clear must agree.
    while (round(p, digits) < CLEAR) != (p < CLEAR):
        digits += 1
    return f"p = {p:.{digits}f}"


def count(value: int | float | None) -> str:
    return NOTHING if value is None else f"{int(value):,}"


def seconds(value: float | None) -> str:
    if value is None:
        return NOTHING
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


# --- inside ---------------------------------------------------------------------------------


def _claim(best: Record) -> str:
    metric = best.info["metric"]
    val, test = (accuracy(best.predictions.of(split)) for split in SPLITS)
    by = "" if metric == "val_accuracy" else f" by {metric} = {number(selection(best))}"
    said = f"validation{by}: accuracy {estimate(val)}"
    return f"{said}; test {estimate(test)}" if test else said


def _against(ranking: Ranking, names: Labels) -> list[str]:
    """The winner against the next one, on both splits."""
    order, other, said = ranking.order, ranking.runner_up, []
    if other is None:
        return []
    for one in ranking.on_val:
        if one.other is other:
            said.append(_paired(one.found, "validation", one.p, len(ranking.on_val)))
    if ranking.on_test is not None:
        said.append(_paired(ranking.on_test, "test", ranking.on_test.p, 1))
    who = "the runner-up" if other is order[1] else "the best run of another choice"
    lead = f"Against {who}, {names.of(other)}, the accuracy differs by"
    lines = [f"{lead} {'; '.join(said)}."] if said else []
    return lines + _tied(order, names)


def _paired(found: Paired, split: str, p: float, count: int) -> str:
    adjusted = f" (adjusted for {count} comparisons)" if count > 1 else ""
    on = f"{difference(found)} on {found.total:,} {split} examples"
    return f"{on}, McNemar {p_value(p)}{adjusted}: {verdict(p)}"


def _tied(order: Sequence[Record], names: Labels) -> list[str]:
    best, value = order[0], selection(order[0])
    tied = list(itertools.takewhile(lambda other: selection(other) == value, order[1:]))
    if not tied or best.info["metric"] == "val_loss":
        return []
    is_lower = have_one_loss([best, *tied]) and val_loss(best) < val_loss(tied[0])
    by = "the lower validation loss" if is_lower else "the order asked"
    shown = "; ".join(names.of(run) for run in tied[:3]) + ("; ..." if len(tied) > 3 else "")
    return [f"{best.info['metric']} is the same for {shown}; {by} decided."]


def _baseline(best: Record) -> list[str]:
    """How much of the accuracy comes for nothing."""
    val = best.predictions.of("val")
    found = accuracy(val)
    if found is None:
        return []
    name, share = majority(val)
    line = f"Always answering {name} would be right for {share.value:.3f} of validation"
    if found.low > share.value:
        return [f"{line}."]
    # Who selects by another metric may want that: most answers of a rare class cost accuracy.
    how = "is right less often" if found.high < share.value else "is not distinguishable from that"
    return [f"{line}: the winner {how}."]
