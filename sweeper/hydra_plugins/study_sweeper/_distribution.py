"""A sweep of Hydra's -> a distribution of Optuna's, and what can be a value of one.

lr=tag(log,interval(1e-5,1e-1))   -> FloatDistribution(1e-5, 0.1, log=True)
depth=range(1,4)                  -> IntDistribution(1, 3): Hydra's range leaves its end out
model=a,b                         -> CategoricalDistribution(("a", "b"))
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    RangeSweep,
    Sweep,
    Transformer,
)
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from hydra_plugins.study_sweeper._errors import BadSearch
from hydra_plugins.study_sweeper._text import Value, exactly, texts, written

# Of a grid over a stepped float: what is left of 0.1 + 0.2 after this many digits is rounding.
DIGITS = 12
# A larger space counts as infinite.
MAX_FINITE = 10_000


def rounded(own: BaseDistribution, value: Value) -> Value:
    """A value without the noise of a float's steps."""
    if isinstance(value, float) and getattr(own, "step", None):
        return float(f"{value:.{DIGITS}g}")
    return value


def values(own: BaseDistribution) -> list[Value] | None:
    """All that it can be; None: too many to be counted."""
    if isinstance(own, CategoricalDistribution):
        return list(own.choices)
    if own.single():  # type: ignore[no-untyped-call, unused-ignore]
        return [own.low]  # type: ignore[attr-defined]
    if isinstance(own, IntDistribution):
        count = (own.high - own.low) // own.step + 1
        return list(range(own.low, own.high + 1, own.step)) if count <= MAX_FINITE else None
    assert isinstance(own, FloatDistribution)
    if own.step is None:
        return None
    count = round((own.high - own.low) / own.step) + 1
    if count > MAX_FINITE:
        return None
    return [rounded(own, own.low + i * own.step) for i in range(count)]


def ends(own: BaseDistribution) -> list[Value]:
    """Values that show whether it can be composed: the bounds, or every choice."""
    if isinstance(own, CategoricalDistribution):
        return list(own.choices)
    assert isinstance(own, (IntDistribution, FloatDistribution))
    return [own.low] if own.low == own.high else [own.low, own.high]


def values_of(override: Override) -> list[Value] | None:
    """The values that an override names, one or several; None: too many to be counted.

    Raises:
        BadSearch: there is nothing in it, or it makes no sense.
    """
    if not override.is_sweep_override():
        return [_choice(override._value)]
    return values(distribution(override))


def distribution(override: Override) -> BaseDistribution:
    """Optuna's for a sweep of Hydra's.

    Raises:
        BadSearch: there is nothing in it, or it makes no sense.
    """
    sweep = override._value
    try:
        if isinstance(sweep, IntervalSweep):
            return _of_interval(sweep)
        if isinstance(sweep, RangeSweep):
            return _of_range(sweep)
        assert isinstance(sweep, (ChoiceSweep, Glob))
        return _of_choices(override)
    except ValueError as error:
        raise BadSearch(f"{override.input_line}: {error}.") from error


def _of_interval(sweep: IntervalSweep) -> BaseDistribution:
    low, high = sweep.start, sweep.end
    if low is None or high is None:
        raise ValueError("an interval needs two ends")
    is_log = _is_log(sweep.tags, low)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("an interval's ends are finite numbers")
    if low > high:
        raise ValueError(f"the interval is empty: {low:g} is above {high:g}")
    if "int" in sweep.tags or (isinstance(low, int) and isinstance(high, int)):
        if low != int(low) or high != int(high):
            raise ValueError("an interval of integers has integers as its ends")
        return IntDistribution(int(low), int(high), log=is_log)
    return FloatDistribution(float(low), float(high), log=is_log)


def _of_range(sweep: RangeSweep) -> BaseDistribution:
    start, stop, step = sweep.start, sweep.stop, sweep.step
    if start is None or stop is None or not step:
        raise ValueError("a range needs a start, an end and a step that is not 0")
    if not all(math.isfinite(one) for one in (start, stop, step)):
        raise ValueError("a range's start, end and step are finite numbers")
    count = math.ceil((stop - start) / step - 1e-9)
    if count < 1:
        raise ValueError(f"the range is empty: its end, {stop:g}, is left out")
    last = start + (count - 1) * step
    low, high = min(start, last), max(start, last)
    is_log = _is_log(sweep.tags, low)
    if is_log and abs(step) != 1:
        raise ValueError("a range with the tag log has a step of 1; use an interval")
    is_int = all(one == int(one) for one in (start, stop, step))
    if "int" in sweep.tags and not is_int:
        raise ValueError("a range of integers has integers as its start, end and step")
    if "int" in sweep.tags or all(isinstance(one, int) for one in (start, stop, step)):
        return IntDistribution(int(low), int(high), log=is_log, step=int(abs(step)))
    if is_log:
        raise ValueError("a range with the tag log has integers; use an interval")
    low, high = (float(f"{one:.{DIGITS}g}") for one in (low, high))
    return FloatDistribution(low, high, step=float(abs(step)))


def _of_choices(override: Override) -> BaseDistribution:
    sweep = override._value
    # Not Hydra's iterator: it shuffles anew at each start, and a study's choices have an order.
    is_listed = isinstance(sweep, ChoiceSweep)
    values = sweep.list if is_listed else override.sweep_iterator(Transformer.identity)  # type: ignore[union-attr]
    by_text: dict[str, Value] = {}
    for value in values:
        if has_sweep(value):
            raise ValueError("a range among choices cannot be searched")
        choice = _choice(value)
        by_text.setdefault(written(choice), choice)
    if not by_text:
        raise ValueError("there is nothing to choose from")
    # 1, 1.0 and true are equal to Python, and to Optuna.
    count = Counter(by_text.values())
    return CategoricalDistribution([c if count[c] == 1 else t for t, c in by_text.items()])


def _choice(value: Any) -> Value:
    """What Hydra has read, as one of Optuna's choices."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return exactly(value)


def has_sweep(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(has_sweep(one) for one in value)
    if isinstance(value, Mapping):
        return any(has_sweep(one) for one in value.values())
    return isinstance(value, Sweep)


def _is_log(tags: set[str], low: float) -> bool:
    unknown = sorted(tags - {"log", "int"})
    if unknown:
        raise ValueError(f"the tag {unknown[0]} is not known here; log and int are")
    if "log" in tags and low <= 0:
        raise ValueError(f"with the tag log it begins above 0, not at {low:g}")
    return "log" in tags


def within(own: BaseDistribution, value: Any, where: str) -> Value:
    """A value that somebody wrote down, as its distribution has it.

    Args:
        where: it stands, and its key, for messages.

    Raises:
        BadSearch: it is not within.
    """
    if isinstance(own, CategoricalDistribution):
        same = [one for text in texts(value) for one in own.choices if written(one) == text]
        same += [one for one in own.choices if one == value and _is_bool(one) == _is_bool(value)]
        if not same:
            choices = ", ".join(written(choice) for choice in own.choices)
            raise BadSearch(f"{where}={value}: it is one of {choices}.")
        return same[0]
    assert isinstance(own, (IntDistribution, FloatDistribution))
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadSearch(f"{where}={value} is not a number.") from None
    is_int = isinstance(own, IntDistribution)
    is_whole = not is_int or number.is_integer()
    kept = int(number) if is_int and is_whole else number
    if not is_whole or not own._contains(kept):
        raise BadSearch(
            f"{where}={value} is not in the space, {own.low:g} to {own.high:g}"
            f"{f' in steps of {own.step:g}' if own.step else ''}."
        )
    if own.step and not is_int:  # 0.1 + 0.2 is meant to be 0.3
        kept = own.low + round((kept - own.low) / own.step) * own.step
    return rounded(own, kept)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)
