"""The space of a search: Hydra's overrides <-> Optuna's distributions, one function each way.

lr=tag(log,interval(1e-5,1e-1))   -> FloatDistribution(1e-5, 0.1, log=True)
depth=range(1,4)                  -> IntDistribution(1, 3): Hydra's range leaves its end out
model=a,b                         -> CategoricalDistribution(("a", "b"))
epochs=10                         -> fixed
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    RangeSweep,
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
        out is for the sampler to propose.

        Raises:
            BadSearch: it has an unknown key, or a value out of range.
        """
        known = {param.name: param for param in self.params}
        point: Point = {}
        for key, value in given.items():
            param = known.get(key.lstrip("+"))
            if param is None:
                if f"{key}={written(value)}" in self.fixed:
                    continue
                raise BadSearch(
                    f"{where}: {key} is not searched. Searched: {', '.join(known) or 'nothing'}."
                )
            point[param.name] = _within(param, value, where)
        return point


def identity(point: Mapping[str, Value]) -> tuple[tuple[str, str], ...]:
    """Equal for equal points."""
    return tuple(sorted((name, written(value)) for name, value in point.items()))


def written(value: Any) -> str:
    """A value as an override has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


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
    lines = [f"{key}={_right_side(value)}" for key, value in (params or {}).items()]
    chosen: dict[str, Param | str] = {}
    for override in _parsed(parser, [*lines, *arguments]):
        key = str(override.get_key_element())
        name = key.lstrip("+")
        chosen.pop(name, None)  # the last one counts
        if override.is_sweep_override():
            chosen[name] = Param(key, distribution(override))
        else:
            chosen[name] = str(override.input_line)
    found = [one for one in chosen.values() if isinstance(one, Param)]
    fixed = [one for one in chosen.values() if isinstance(one, str)]
    return Space(_ordered(found, _conditions(conditions, found)), fixed)


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
    count = math.ceil((stop - start) / step - 1e-9)
    if count < 1:
        raise ValueError(f"the range is empty: its end, {stop:g}, is left out")
    last = start + (count - 1) * step
    low, high = min(start, last), max(start, last)
    is_log = _is_log(sweep.tags, low)
    if is_log and abs(step) != 1:
        raise ValueError("a range with the tag log has a step of 1; use an interval")
    if all(isinstance(one, int) for one in (start, stop, step)) or "int" in sweep.tags:
        return IntDistribution(int(low), int(high), log=is_log, step=int(abs(step)))
    if is_log:
        return FloatDistribution(float(low), float(high), log=True)
    low, high = (float(f"{one:.{DIGITS}g}") for one in (low, high))
    return FloatDistribution(low, high, step=float(abs(step)))


def _of_choices(override: Override) -> BaseDistribution:
    texts = [str(one) for one in override.sweep_string_iterator()]
    choices = list(dict.fromkeys(_value(text) for text in texts))
    if not choices:
        raise ValueError("there is nothing to choose from")
    # 1, 1.0 and true are equal to Python, and to Optuna.
    if len(choices) < len(dict.fromkeys(texts)):
        choices = list(dict.fromkeys(texts))
    return CategoricalDistribution(choices)


def _is_log(tags: set[str], low: float) -> bool:
    unknown = sorted(tags - {"log", "int"})
    if unknown:
        raise ValueError(f"the tag {unknown[0]} is not known here; log and int are")
    if "log" in tags and low <= 0:
        raise ValueError(f"with the tag log it begins above 0, not at {low:g}")
    return "log" in tags


def _value(text: str) -> Value:
    """A plain value where its text can be had back from it; else the text."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if math.isfinite(value) and "_" not in text else text
    return text


def _right_side(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):  # YAML's own list: choices
        return ",".join(_right_side(one) for one in value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_right_side(one)}" for key, one in value.items()) + "}"
    return written(value)


def _parsed(parser: OverridesParser, lines: Sequence[str]) -> list[Override]:
    try:
        return list(parser.parse_overrides(list(lines)))
    except ValueError as error:  # a step of 0 comes from Python's own range
        raise BadSearch(f"{' '.join(lines)}: {error}.") from error


# --- conditions -----------------------------------------------------------------------------


def _conditions(
    given: Mapping[str, Any] | None, params: Sequence[Param]
) -> dict[str, dict[str, frozenset[str]]]:
    known = {param.name: param for param in params}
    found: dict[str, dict[str, frozenset[str]]] = {}
    for key, asked in (given or {}).items():
        name = str(key).lstrip("+")
        if name not in known:
            raise BadSearch(
                f"hydra.sweeper.conditions: {key} is not searched. "
                f"Searched: {', '.join(known) or 'nothing'}."
            )
        for text in [asked] if isinstance(asked, str) else list(asked):
            other, is_set, values = str(text).partition("=")
            if not is_set or other.lstrip("+") not in known or other.lstrip("+") == name:
                raise BadSearch(
                    f"hydra.sweeper.conditions.{key}={text}: name another searched key and "
                    f"its values: strategy=fine_tune. Searched: {', '.join(known)}."
                )
            wanted = frozenset(one.strip() for one in values.split(","))
            _check_choices(known[other.lstrip("+")], wanted, f"hydra.sweeper.conditions.{key}")
            found.setdefault(name, {})[other.lstrip("+")] = wanted
    return found


def _check_choices(param: Param, wanted: frozenset[str], where: str) -> None:
    values = param.values()
    known = {written(value) for value in values} if values is not None else wanted
    for text in sorted(wanted - known):
        raise BadSearch(
            f"{where}: {param.name} is never {text}; it is one of {', '.join(sorted(known))}."
        )


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
        same = [choice for choice in own.choices if written(choice) == written(value)]
        same += [choice for choice in own.choices if choice == value]
        if not same:
            choices = ", ".join(written(choice) for choice in own.choices)
            raise BadSearch(f"{where}: {param.name}={value}: it is one of {choices}.")
        return same[0]
    assert isinstance(own, (IntDistribution, FloatDistribution))
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadSearch(f"{where}: {param.name}={value} is not a number.") from None
    is_whole = not isinstance(own, IntDistribution) or number == int(number)
    kept = int(number) if isinstance(own, IntDistribution) and is_whole else number
    if not is_whole or not own._contains(kept):
        raise BadSearch(
            f"{where}: {param.name}={value} is not in the space, {own.low:g} to {own.high:g}"
            f"{f' in steps of {own.step:g}' if own.step else ''}."
        )
    return kept
