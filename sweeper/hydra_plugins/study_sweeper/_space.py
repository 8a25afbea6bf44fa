"""The space of a search: its dimensions, which of them a point has, and what is fixed."""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from hydra_plugins.study_sweeper._distribution import (
    MAX_FINITE,
    distribution,
    ends,
    has_sweep,
    rounded,
    values,
    values_of,
    within,
)
from hydra_plugins.study_sweeper._errors import BadSearch
from hydra_plugins.study_sweeper._text import PARSER, Value, plain, texts, written

if TYPE_CHECKING:
    from optuna.trial import Trial


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
        return f"{self.key}={written(rounded(self.distribution, value))}"

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
        return rounded(own, found)

    def values(self) -> list[Value] | None:
        """All that it can be; None: too many to be counted."""
        return values(self.distribution)

    def holds(self, point: Mapping[str, Value]) -> bool:
        """Whether it is part of a point, those that it depends on being there."""
        return all(o in point and written(point[o]) in wanted for o, wanted in self.when.items())


Point = dict[str, Value]
Identity = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Space:
    """All dimensions, those that others depend on first; and what is the same for every point."""

    params: Sequence[Param]
    fixed: Sequence[str]

    @cached_property
    def by_name(self) -> dict[str, Param]:
        return {param.name: param for param in self.params}

    def suggested(self, trial: "Trial") -> Point:
        """A point for a trial, dimension by dimension."""
        return self._point(lambda param: param.suggested(trial))

    def of_trial(self, params: Mapping[str, Any]) -> Point:
        """A point as a study has it, without the noise of steps; with what is none of our own."""
        known = self.by_name
        return {
            name: rounded(known[name].distribution, value) if name in known else value
            for name, value in params.items()
        }

    def overrides(self, point: Mapping[str, Value]) -> list[str]:
        """What sets a point, without what is fixed; also what an application has added to it."""
        own = [param.override(point[param.name]) for param in self.params if param.name in point]
        return own + [f"{k}={written(v)}" for k, v in point.items() if k not in self.by_name]

    def is_conditional(self) -> bool:
        return any(param.when for param in self.params)

    def points(self) -> Iterator[Point] | None:
        """Every point, in order; None: there are too many."""
        every = [param.values() for param in self.params]
        counted = [one for one in every if one is not None]
        if not every or len(counted) < len(every) or math.prod(map(len, counted)) > MAX_FINITE:
            return None
        return self._points(counted)

    def samples(self) -> Iterator[Point]:
        """Points that show whether all can be composed: every choice, and the ends of every range,
        with the first of all others where these leave it in."""
        first = {param.name: ends(param.distribution)[0] for param in self.params}
        for param in self.params:
            for value in ends(param.distribution):
                chosen = {**first, **self._that_hold(param), param.name: value}
                yield self._point(lambda one, chosen=chosen: chosen[one.name])  # type: ignore[misc]

    def checked(self, given: Mapping[str, Any], where: str) -> Point:
        """A point that somebody wrote down, its values as the distributions have them. What is left
        out is for the sampler to propose; what does not belong to it by the conditions is dropped.

        Raises:
            BadSearch: it has an unknown key, or a value out of range.
        """
        point: Point = {}
        for key, value in given.items():
            name = key.lstrip("+")
            if name in self.by_name:
                own = self.by_name[name].distribution
                point[name] = within(own, value, f"{where}: {name}")
            elif _fixed_texts(self.fixed).get(name) not in texts(value):
                known = ", ".join(self.by_name) or "nothing"
                raise BadSearch(f"{where}: {key} is not searched. Searched: {known}.")
        dropped: set[str] = set()
        for param in self.params:
            for other, wanted in param.when.items():
                if other in dropped or (other in point and written(point[other]) not in wanted):
                    dropped.add(param.name)
        return {name: value for name, value in point.items() if name not in dropped}

    # --- inside ------------------------------------------------------------------------------

    def _point(self, value_of: Callable[[Param], Value]) -> Point:
        """A point, dimension by dimension; of each that the conditions leave in, its value."""
        point: Point = {}
        for param in self.params:
            if param.holds(point):
                point[param.name] = value_of(param)
        return point

    def _points(self, every: Sequence[Sequence[Value]]) -> Iterator[Point]:
        seen = set()
        for one in itertools.product(*every):
            chosen = dict(zip(self.by_name, one, strict=True))
            point = self._point(lambda param, chosen=chosen: chosen[param.name])  # type: ignore[misc]
            if (key := identity(point)) not in seen:
                seen.add(key)
                yield point

    def _that_hold(self, param: Param) -> Point:
        """Values of others with which a parameter is part of a point."""
        found: Point = {}
        for other, wanted in param.when.items():
            own = self.by_name[other]
            several = own.values() or ends(own.distribution)
            if fitting := [value for value in several if written(value) in wanted]:
                found |= {other: fitting[0], **self._that_hold(own)}
        return found


def identity(point: Mapping[str, Value]) -> Identity:
    """Equal for equal points."""
    return tuple(sorted((name, written(value)) for name, value in point.items()))


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
        elif has_sweep(override._value):
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
                when = found.setdefault(name, {})
                when[other] = wanted & when.get(other, wanted)
                if not when[other]:
                    raise BadSearch(
                        f"{where}: no {other} is all of these at once. One of several is "
                        f"{other}=a,b, in one line."
                    )
            elif other not in fixed:
                raise _no_condition(text, where, known)
    while more := {name for name, when in found.items() if never & set(when)} - never:
        never |= more
    return [param for param in params if param.name not in never], found


def _condition_texts(asked: Any) -> list[Any]:
    """{strategy: fine_tune} is "strategy=fine_tune", which a command line would have to quote."""
    if isinstance(asked, Mapping):
        wanted = {k: v if isinstance(v, (list, tuple)) else [v] for k, v in asked.items()}
        return [f"{k}={','.join(map(written, several))}" for k, several in wanted.items()]
    return list(asked) if isinstance(asked, (list, tuple)) else [asked]


def _condition(text: Any, where: str, known: Mapping[str, Any]) -> tuple[str, frozenset[str]]:
    """strategy=fine_tune,full -> the other key, and its values as text."""
    try:
        override = PARSER.parse_override(str(text))
        name = str(override.get_key_element()).lstrip("+")
        several = values_of(override)
    except Exception as error:
        raise _no_condition(text, where, known) from error
    if several is None or override.is_delete():
        raise _no_condition(text, where, known)
    return name, frozenset(map(written, several))


def _no_condition(text: Any, where: str, known: Mapping[str, Any]) -> BadSearch:
    return BadSearch(
        f"{where}={text}: name another searched key and its values: strategy=fine_tune. "
        f"Searched: {', '.join(known)}."
    )


def _fixed_texts(fixed: Sequence[str]) -> dict[str, str]:
    """key -> value, as conditions and points are compared with it."""
    pairs = (line.lstrip("+").partition("=") for line in fixed if not line.startswith("~"))
    return {key: plain(text) for key, _, text in pairs}


def _check_choices(param: Param, wanted: frozenset[str], where: str) -> None:
    several = param.values()
    known = {written(value) for value in several} if several is not None else wanted
    for text in sorted(wanted - known):
        shown = [written(value) for value in several or ()]
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
