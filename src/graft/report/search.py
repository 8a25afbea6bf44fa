"""What a search learned: `search.json`, which the sweeper leaves in the sweep's folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from graft.errors import RecordError
from graft.record import SEARCH, read_json, without_password

FORMAT = 1
STATES = ("completed", "pruned", "failed", "running", "waiting")

# What is larger is a number gone wrong, and no axis holds it.
_LARGEST = 1e100
_MOST = 1e9


@dataclass(frozen=True)
class Objective:
    """What was searched for the most, or the least, of."""

    name: str
    is_maximized: bool

    @property
    def direction(self) -> str:
        return "higher is better" if self.is_maximized else "lower is better"

    def is_better(self, a: float, b: float) -> bool:
        return a > b if self.is_maximized else a < b


@dataclass(frozen=True)
class Parameter:
    """A searched key.

    Attributes:
        choices: of a categorical one, as text; none for a number.
        ends: of a number's range.
    """

    name: str
    is_log: bool = False
    is_whole: bool = False
    choices: tuple[str, ...] = ()
    ends: tuple[float, float] = (0.0, 1.0)

    def place(self, trial: "Trial") -> float | None:
        """Where a trial is on this parameter's axis; None where it has none."""
        value = trial.params.get(self.name)
        if self.choices:
            text = text_of(value)
            is_there = self.name in trial.params and text in self.choices
            return float(self.choices.index(text)) if is_there else None
        if not isinstance(value, (int, float)) or not abs(value) < _LARGEST:
            return None
        return None if self.is_log and value <= 0 else float(value)


@dataclass(frozen=True)
class Trial:
    """One point of a study.

    Attributes:
        params: values by key, as suggested; a trial may lack some.
        values: one for each objective; None without.
        steps: (epoch, value of the first objective) pairs, in order.
        same_as: number of the trial whose value was taken over: nothing was run.
        folder: name of its run.
    """

    number: int
    state: str
    params: Mapping[str, object]
    values: tuple[float, ...] | None
    steps: tuple[tuple[int, float], ...]
    num_epochs: int
    reason: str | None
    same_as: int | None
    folder: str | None


@dataclass(frozen=True)
class Search:
    """A study, and how far it is.

    Attributes:
        num_asked: how many trials were asked for, where that was said.
        stopped: why it ended; None while it goes on.
        best: numbers of the best trial, or of the front of several objectives.
        importances: share of each parameter, one mapping for each objective; or none at all.
        command: what trains the best point once more.
        experiment: file of the same point.
    """

    study: str
    storage: str
    sampler: str
    pruner: str | None
    objectives: tuple[Objective, ...]
    num_asked: int | None
    stopped: str | None
    parameters: tuple[Parameter, ...]
    trials: tuple[Trial, ...]
    best: tuple[int, ...]
    importances: tuple[Mapping[str, float], ...]
    command: str | None
    experiment: str | None

    def of(self, state: str) -> list[Trial]:
        """Trials of a state. What repeats a point without a value was not run: it is of none."""
        own = [trial for trial in self.trials if trial.state == state]
        return [trial for trial in own if trial.same_as is None or trial.values is not None]

    @cached_property
    def measured(self) -> list[Trial]:
        """The completed trials that have values, by number."""
        return [trial for trial in self.of("completed") if trial.values is not None]

    @cached_property
    def winners(self) -> list[Trial]:
        """The best trial, or the front, by its first objective."""
        return self.ordered([trial for trial in self.measured if trial.number in self.best])

    def ordered(self, trials: Sequence[Trial]) -> list[Trial]:
        """The best in the first objective first."""
        sign = -1 if self.objectives[0].is_maximized else 1
        return sorted(trials, key=lambda trial: (sign * (trial.values or (0.0,))[0], trial.number))


def read(sweep: Path) -> Search | None:
    """The search in a sweep's folder; None where it was no search.

    Raises:
        RecordError: its file is damaged, or a newer version wrote it.
    """
    if not (sweep / SEARCH).exists():
        return None
    found = read_json(sweep / SEARCH)
    if found is None:
        raise RecordError(f"{SEARCH} is damaged")
    try:
        version = int(found["format"])
        if version <= FORMAT:
            return _search(found)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RecordError(f"{SEARCH} is damaged ({what})") from error
    raise RecordError(f"{SEARCH} was written by a newer version of Graft")


def best_so_far(search: Search, objective: int) -> list[tuple[int, float]]:
    """(number, value) of each trial that was better than all before it."""
    found: list[tuple[int, float]] = []
    for trial in search.measured:
        value = (trial.values or ())[objective]
        if not found or search.objectives[objective].is_better(value, found[-1][1]):
            found.append((trial.number, value))
    return found


def epochs_run(search: Search) -> tuple[int, int] | None:
    """Epochs that completed and pruned trials ran, and how many without pruning.

    None where nothing was pruned, or where the trials do not say how long one is that is not.
    """
    pruned = [trial.num_epochs for trial in search.of("pruned") if trial.same_as is None]
    whole = [trial.num_epochs for trial in search.of("completed") if trial.same_as is None]
    if not pruned or len(set(whole)) != 1 or min(pruned) < 1 or max(pruned) > whole[0]:
        return None
    return sum(pruned) + sum(whole), whole[0] * (len(pruned) + len(whole))


def text_of(value: object) -> str:
    """A choice as it is typed: `true`, `null`."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- reading --------------------------------------------------------------------------------


def _search(found: Mapping[str, Any]) -> Search:
    objectives = tuple(_objective(one) for one in found["objectives"])
    if not objectives:
        raise ValueError("no objective")
    trials = [_trial(one, len(objectives)) for one in found["trials"]]
    importances = found.get("importances") or ()
    if importances and len(importances) != len(objectives):
        raise ValueError("importances of other objectives")
    command = _text(found.get("best_command"))
    return Search(
        study=str(found["study_name"]),
        storage=str(found["storage"]),
        sampler=str(found["sampler"]),
        pruner=_text(found.get("pruner")),
        objectives=objectives,
        num_asked=_whole_or_none(found.get("n_trials")),
        stopped=_text(found.get("stopped")),
        parameters=tuple(_parameter(*one) for one in found["params"].items()),
        trials=tuple(sorted(trials, key=lambda trial: trial.number)),
        best=tuple(_whole(number) for number in found["best"]),
        importances=tuple(_shares(one) for one in importances),
        command=without_password(command) if command else None,
        experiment=_text(found.get("best_experiment")),
    )


def _objective(found: Mapping[str, Any]) -> Objective:
    if found["direction"] not in ("maximize", "minimize"):
        raise ValueError(f"direction {found['direction']!r}")
    return Objective(str(found["name"]), found["direction"] == "maximize")


def _parameter(name: str, found: Mapping[str, Any]) -> Parameter:
    if found["kind"] == "categorical":
        return Parameter(name, choices=tuple(dict.fromkeys(text_of(c) for c in found["choices"])))
    low, high = float(found["low"]), float(found["high"])
    if not abs(low) < _LARGEST > abs(high) or low > high:
        raise ValueError(f"range of {name}")
    is_log = bool(found.get("log")) and low > 0
    return Parameter(name, is_log, found["kind"] == "int", ends=(low, high))


def _trial(found: Mapping[str, Any], num_values: int) -> Trial:
    if found["state"] not in STATES:
        raise ValueError(f"state {found['state']!r}")
    values = found.get("values")
    if values is not None and found["state"] == "completed" and len(values) != num_values:
        raise ValueError(f"trial {found['number']} has {len(values)} values")
    steps = sorted((_whole(epoch), _number(v)) for epoch, v in (found.get("steps") or {}).items())
    return Trial(
        number=_whole(found["number"]),
        state=found["state"],
        params={str(key): value for key, value in found["params"].items()},
        values=_values(values) if found["state"] == "completed" else None,
        steps=tuple((epoch, value) for epoch, value in steps if math.isfinite(value)),
        num_epochs=max((len(steps), *(epoch for epoch, _ in steps))),
        reason=_text(found.get("reason")),
        same_as=_whole_or_none(found.get("same_as")),
        folder=_text(found.get("folder")),
    )


def _values(found: Sequence[Any] | None) -> tuple[float, ...] | None:
    values = tuple(_number(value) for value in found or ())
    return values if values and all(map(math.isfinite, values)) else None


def _shares(found: Mapping[str, Any]) -> dict[str, float]:
    shares = {str(key): _number(value) for key, value in found.items()}
    return {key: max(share, 0.0) for key, share in shares.items() if math.isfinite(share)}


def _number(value: Any) -> float:
    number = math.nan if value is None else float(value)
    if 0 < abs(number) < 1 / _LARGEST:
        return 0.0
    return number if abs(number) < _LARGEST else math.nan


def _whole(value: Any) -> int:
    if not abs(int(value)) < _MOST:
        raise ValueError(f"a count of {str(value)[:20]}")
    return int(value)


def _whole_or_none(value: Any) -> int | None:
    return None if value is None else _whole(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
