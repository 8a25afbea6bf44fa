"""The space of a search: Hydra's overrides <-> Optuna's distributions, one function each way.

lr=tag(log,interval(1e-5,1e-1))   -> FloatDistribution(1e-5, 0.1, log=True)
depth=range(1,4)                  -> IntDistribution(1, 3): Hydra's range leaves its end out
model=a,b                         -> CategoricalDistribution(("a", "b"))
epochs=10                         -> fixed
"""

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
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

if TYPE_CHECKING:
    from optuna.trial import Trial

# Optuna's choices; what else can be written as an override is a string here.
Value = None | bool | int | float | str

# Of a grid over a stepped float: what is left of 0.1 + 0.2 after this many digits is rounding.
DIGITS = 12
# A larger space counts as infinite.
MAX_FINITE = 10_000


@dataclass(frozen=True)
class Param:
    """One dimension.

    Attributes:
        key: as Hydra takes it, `+` included.
        name: what it is called in the study: the key without `+`.
        when: the values (as written in an override) that other parameters must have for this one to
            be part of a point.
    """

    key: str
    distribution: BaseDistribution
    when: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.key.lstrip("+")

    def override(self, value: Value) -> str:
        """What sets it to a value of its distribution."""
        return f"{self.key}={written(self.rounded(value))}"

    def rounded(self, value: Value) -> Value:
        if isinstance(value, float) and getattr(self.distribution, "step", None):
            return float(f"{value:.{DIGITS}g}")
        return value

    def suggested(self, trial: "Trial") -> Value:
        """The trial's value: proposed by the study's sampler, if it has none yet."""
        own = self.distribution
        if isinstance(own, FloatDistribution):
            found: Value = trial.suggest_float(
                self.name, own.low, own.high, step=own.step, log=own.log
            )
        elif isinstance(own, IntDistribution):
            found = trial.suggest_int(self.name, own.low, own.high, step=own.step, log=own.log)
        else:
            assert isinstance(own, CategoricalDistribution)
            found = trial.suggest_categorical(self.name, own.choices)
        return self.rounded(found)

    def values(self) -> list[Value] | None:
        """All that it can be; None: too many to be counted."""
        own = self.distribution
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
        return [self.rounded(own.low + i * own.step) for i in range(count)]

    def ends(self) -> list[Value]:
        """Values that show whether it can be composed: the bounds, or every choice."""
        own = self.distribution
        if isinstance(own, CategoricalDistribution):
            return list(own.choices)
        assert isinstance(own, (IntDistribution, FloatDistribution))
        return [own.low] if own.low == own.high else [own.low, own.high]


Point = dict[str, Value]


@dataclass(frozen=True)
class Space:
    """All dimensions, those that others depend on first; and what is the same for every point."""

    params: Sequence[Param]
    fixed: Sequence[str]

    def suggested(self, trial: "Trial") -> Point:
        """A point for a trial, dimension by dimension."""
        point: Point = {}
        for param in self.params:
            if _holds(param.when, point):
                point[param.name] = param.suggested(trial)
        return point

    def overrides(self, point: Mapping[str, Value]) -> list[str]:
        """What sets a point, without what is fixed."""
        return [p.override(point[p.name]) for p in self.params if p.name in point]

    def is_conditional(self) -> bool:
        return any(param.when for param in self.params)

    def points(self) -> Iterator[Point] | None:
        """Every point, in order; None: there are too many."""
        every = [param.values() for param in self.params]
        if not every or any(values is None for values in every):
            return None
        if math.prod(len(values) for values in every if values is not None) > MAX_FINITE:
            return None
        return self._points([values for values in every if values is not None])

    def _points(self, every: Sequence[Sequence[Value]]) -> Iterator[Point]:
        seen = set()
        for values in itertools.product(*every):
            point: Point = {}
            for param, value in zip(self.params, values, strict=True):
                if _holds(param.when, point):
                    point[param.name] = value
            if (key := identity(point)) not in seen:
                seen.add(key)
                yield point

    def checked(self, given: Mapping[str, Any], where: str) -> Point:
        """A point that somebody wrote down, its values as the distributions have them. What is left
        out is for the sampler to propose; what does not belong to it by the conditions is dropped.

        Raises:
            BadSearch: it has an unknown key, or a value out of range.
        """
        known = {param.name: param for param in self.params}
        point: Point = {}
        for key, value in given.items():
            name = key.lstrip("+")
            if name in known:
                point[name] = _within(known[name], value, where)
            elif _fixed_texts(self.fixed).get(name) not in _texts(value):
                raise BadSearch(
                    f"{where}: {key} is not searched. Searched: {', '.join(known) or 'nothing'}."
                )
        dropped: set[str] = set()
        for param in self.params:
            for other, wanted in param.when.items():
                if other in dropped or (other in point and written(point[other]) not in wanted):
                    dropped.add(param.name)
        return {name: value for name, value in point.items() if name not in dropped}


def identity(point: Mapping[str, Value]) -> tuple[tuple[str, str], ...]:
    """Equal for equal points."""
    return tuple(sorted((name, written(value)) for name, value in point.items()))


def written(value: Any) -> str:
    """A value as an override has it. A string is taken as typed, where Hydra takes it for one
    value (it may be a number, or a list); otherwise it comes in quotes."""
    return _written(value)


def _written(value: Any, *, is_exact: bool = False, is_nested: bool = False) -> str:
    """
    Args:
        is_exact: whether a string is the string itself, even if it looks like a number.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, tuple)):
        inside = (_written(one, is_exact=is_exact, is_nested=True) for one in value)
        return f"[{','.join(inside)}]"
    if isinstance(value, Mapping):
        pairs = (
            f"{key}:{_written(one, is_exact=is_exact, is_nested=True)}"
            for key, one in value.items()
        )
        return f"{{{','.join(pairs)}}}"
    if isinstance(value, QuotedString):
        return _typed(value.text, True, is_nested)
    return _typed(value, is_exact, is_nested) if isinstance(value, str) else str(value)


_PARSER = OverridesParser.create()
_NO_VALUE = object()


@lru_cache(maxsize=50_000)
def _typed(text: str, is_exact: bool, is_nested: bool) -> str:
    """A string as it can be typed, in quotes where it needs them."""
    found = _unquoted(_parsed_value(f"[{text}]" if is_nested else text))
    if is_nested:
        found = found[0] if isinstance(found, list) and len(found) == 1 else _NO_VALUE
    is_one = found is not _NO_VALUE and not isinstance(found, Sweep)
    is_plain = found == text if is_exact else is_one
    return text if is_plain else QuotedString(text, Quote.single).with_quotes()


def _parsed_value(text: str) -> Any:
    """What Hydra takes a text for, `_NO_VALUE` for none."""
    try:
        return _PARSER.parse_override(f"it={text}")._value
    except Exception:  # its parser raises what it likes
        return _NO_VALUE


def _unquoted(value: Any) -> Any:
    if isinstance(value, list):
        return [_unquoted(one) for one in value]
    return value.text if isinstance(value, QuotedString) else value


def as_read(text: str) -> Any:
    """What an override sets with a text that is one value."""
    return _PARSER.parse_override(f"it={text}").value()


def _texts(value: Any) -> list[str]:
    """What a choice may look like that somebody means by a value: they may write 1e-3 for 0.001,
    or a string with or without its quotes."""
    found = [written(value)]
    if isinstance(value, str) and (parsed := _parsed_value(value)) is not _NO_VALUE:
        found.append(_written(parsed, is_exact=True))
    return [*found, _written(value, is_exact=True)]


# --- from overrides -------------------------------------------------------------------------


def space(
    arguments: Sequence[str],
    params: Mapping[str, Any] | None = None,
    conditions: Mapping[str, Any] | None = None,
    parser: OverridesParser | None = None,
) -> Space:
    """What to search and what is fixed.

    Args:
        arguments: overrides, as typed.
        params: key -> the right side of an override, as in YAML; `arguments` come after them.
        conditions: see `SearchConf.conditions`.
        parser: of Hydra's, for those that look up groups (`glob`).

    Raises:
        BadSearch: an override cannot be searched, or nothing can.
    """
    parser = parser or OverridesParser.create()
    lines = [f"{key}={_right_side(key, value)}" for key, value in flat(params or {}).items()]
    chosen: dict[str, Param | str] = {}
    for override in _parsed(parser, [*lines, *arguments]):
        key = str(override.get_key_element())
        name = key.lstrip("+")
        chosen.pop(name, None)  # the last one counts
        if override.is_delete():
            chosen.pop(name.lstrip("~"), None)
        if override.is_sweep_override():
            chosen[name] = Param(key, distribution(override))
        elif _has_sweep(override._value):
            raise BadSearch(
                f"{override.input_line}: a range or choices within a list or a dictionary cannot "
                f"be searched; give them a key of their own: {name}.key=interval(0,1)."
            )
        else:
            chosen[name] = str(override.input_line)
    found = [one for one in chosen.values() if isinstance(one, Param)]
    fixed = [one for one in chosen.values() if isinstance(one, str)]
    return Space(_ordered(*_conditions(conditions, found, _fixed_texts(fixed))), fixed)


def flat(given: Mapping[Any, Any], whole: Collection[str] = (), prefix: str = "") -> dict[str, Any]:
    """{optimizer: {lr: 1e-3}} is optimizer.lr, too.

    Args:
        whole: keys whose values are dictionaries themselves.
    """
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in whole:
            found |= flat(value, whole, f"{name}.")
        else:
            found[name] = value
    return found


def values_of(override: Override) -> list[Value] | None:
    """The values that an override names, one or several; None: too many to be counted.

    Raises:
        BadSearch: there is nothing in it, or it makes no sense.
    """
    if not override.is_sweep_override():
        return [_choice(override._value)]
    return Param(str(override.get_key_element()), distribution(override)).values()


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
        if _has_sweep(value):
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
    return _written(value, is_exact=True)


def _has_sweep(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_has_sweep(one) for one in value)
    if isinstance(value, Mapping):
        return any(_has_sweep(one) for one in value.values())
    return isinstance(value, Sweep)


def _is_log(tags: set[str], low: float) -> bool:
    unknown = sorted(tags - {"log", "int"})
    if unknown:
        raise ValueError(f"the tag {unknown[0]} is not known here; log and int are")
    if "log" in tags and low <= 0:
        raise ValueError(f"with the tag log it begins above 0, not at {low:g}")
    return "log" in tags


def _right_side(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, (list, tuple)):
        return written(value)
    if not value:  # YAML's own list: choices
        raise BadSearch(f"hydra.sweeper.params.{key}: there is nothing to choose from.")
    return ",".join(written(one) for one in value)


def _parsed(parser: OverridesParser, lines: Sequence[str]) -> list[Override]:
    try:
        return list(parser.parse_overrides(list(lines)))
    except ValueError as error:  # a step of 0 comes from Python's own range
        raise BadSearch(f"{' '.join(lines)}: {error}.") from error


# --- conditions -----------------------------------------------------------------------------


def _conditions(
    given: Mapping[str, Any] | None, params: Sequence[Param], fixed: Mapping[str, str]
) -> tuple[list[Param], dict[str, dict[str, frozenset[str]]]]:
    """The parameters that can be part of a point, and the conditions that are not decided yet.

    Args:
        fixed: key -> text. A condition on one of these holds for all points, or for none.
    """
    known = {param.name: param for param in params}
    found: dict[str, dict[str, frozenset[str]]] = {}
    never: set[str] = set()
    for key, asked in (given or {}).items():
        name, where = str(key).lstrip("+"), f"hydra.sweeper.conditions.{key}"
        if name not in known and name not in fixed and asked is not None:
            raise BadSearch(
                f"hydra.sweeper.conditions: {key} is not searched. "
                f"Searched: {', '.join(known) or 'nothing'}."
            )
        for text in _condition_texts(asked):
            if text is None or name not in known:
                continue
            other, wanted = _condition(text, where, known)
            if other in fixed and fixed[other] not in wanted:
                never.add(name)
            elif other in known and other != name:
                _check_choices(known[other], wanted, where)
                found.setdefault(name, {})[other] = wanted
            elif other not in fixed:
                raise _no_condition(text, where, known)
    while more := {name for name, when in found.items() if never & set(when)} - never:
        never |= more
    return [param for param in params if param.name not in never], found


def _condition_texts(asked: Any) -> list[Any]:
    """{strategy: fine_tune} is "strategy=fine_tune", which a command line would have to quote."""
    if isinstance(asked, Mapping):
        several = {k: v if isinstance(v, (list, tuple)) else [v] for k, v in asked.items()}
        return [f"{k}={','.join(map(written, values))}" for k, values in several.items()]
    return list(asked) if isinstance(asked, (list, tuple)) else [asked]


def _condition(text: Any, where: str, known: Mapping[str, Any]) -> tuple[str, frozenset[str]]:
    """strategy=fine_tune,full -> the other key, and its values as text."""
    try:
        override = _PARSER.parse_override(str(text))
        name = str(override.get_key_element()).lstrip("+")
        values = values_of(override)
    except Exception as error:
        raise _no_condition(text, where, known) from error
    if values is None or override.is_delete():
        raise _no_condition(text, where, known)
    return name, frozenset(written(value) for value in values)


def _no_condition(text: Any, where: str, known: Mapping[str, Any]) -> BadSearch:
    return BadSearch(
        f"{where}={text}: name another searched key and its values: strategy=fine_tune. "
        f"Searched: {', '.join(known)}."
    )


def _fixed_texts(fixed: Sequence[str]) -> dict[str, str]:
    """key -> value, as conditions and points are compared with it."""
    pairs = (line.lstrip("+").partition("=") for line in fixed if not line.startswith("~"))
    return {key: _plain(text) for key, _, text in pairs}


def _plain(text: str) -> str:
    parsed = _parsed_value(text)
    return text if parsed is _NO_VALUE else _written(parsed, is_exact=True)


def _check_choices(param: Param, wanted: frozenset[str], where: str) -> None:
    values = param.values()
    known = {written(value) for value in values} if values is not None else wanted
    for text in sorted(wanted - known):
        shown = [written(value) for value in values or ()]
        if len(shown) > 20:
            shown = [*shown[:20], "..."]
        raise BadSearch(f"{where}: {param.name} is never {text}; it is one of {', '.join(shown)}.")


def _ordered(
    params: Sequence[Param], conditions: Mapping[str, Mapping[str, frozenset[str]]]
) -> list[Param]:
    """Those that others depend on first; otherwise as they were given."""
    left, placed = list(params), dict[str, Param]()
    while left:
        ready = [p for p in left if set(conditions.get(p.name, ())) <= set(placed)]
        if not ready:
            names = ", ".join(param.name for param in left)
            raise BadSearch(f"hydra.sweeper.conditions: {names} depend on each other.")
        first = ready[0]
        placed[first.name] = Param(first.key, first.distribution, conditions.get(first.name, {}))
        left.remove(first)
    return list(placed.values())


def _holds(when: Mapping[str, frozenset[str]], point: Mapping[str, Value]) -> bool:
    return all(other in point and written(point[other]) in values for other, values in when.items())


def _within(param: Param, value: Any, where: str) -> Value:
    """A value as its distribution has it."""
    own = param.distribution
    if isinstance(own, CategoricalDistribution):
        texts = _texts(value)
        same = [one for text in texts for one in own.choices if written(one) == text]
        same += [one for one in own.choices if one == value and _is_bool(one) == _is_bool(value)]
        if not same:
            choices = ", ".join(written(choice) for choice in own.choices)
            raise BadSearch(f"{where}: {param.name}={value}: it is one of {choices}.")
        return same[0]
    assert isinstance(own, (IntDistribution, FloatDistribution))
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadSearch(f"{where}: {param.name}={value} is not a number.") from None
    is_int = isinstance(own, IntDistribution)
    is_whole = not is_int or number.is_integer()
    kept = int(number) if is_int and is_whole else number
    if not is_whole or not own._contains(kept):
        raise BadSearch(
            f"{where}: {param.name}={value} is not in the space, {own.low:g} to {own.high:g}"
            f"{f' in steps of {own.step:g}' if own.step else ''}."
        )
    if own.step and not is_int:  # 0.1 + 0.2 is meant to be 0.3
        kept = own.low + round((kept - own.low) / own.step) * own.step
    return param.rounded(kept)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)
