"""What is left of a search in the sweep's folder, for people and for other programs.

search.json                 all of it: space, trials, best, importance of each parameter
optimization_results.yaml   the best point, as the official Optuna sweeper writes it
experiment/best.yaml        the best point as a configuration to compose with
"""

import json
import logging
import os
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import optuna
from omegaconf import OmegaConf
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hydra_plugins.study_sweeper._report import PRUNED
from hydra_plugins.study_sweeper._space import Param, Point, Space
from hydra_plugins.study_sweeper._study import fixed_of, objectives_of, section
from hydra_plugins.study_sweeper._text import as_read
from hydra_plugins.study_sweeper._trials import FOLDER, REASON, SAME_AS, counts, params_of

log = logging.getLogger(__name__)

FORMAT = 1
# While the search goes on; the study itself has each trial at once.
EVERY_S = 1.0
REST = 20.0  # so many times as long as it took is then left to the search: thousands take a while
SEARCH = "search.json"
RESULTS = "optimization_results.yaml"
EXPERIMENT = Path("experiment", "best.yaml")

_STATES = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def read(folder: Path) -> list[dict[str, Any]]:
    """The trials that a sweep's folder tells of; none where it tells of none."""
    try:
        found = json.loads((folder / SEARCH).read_text(encoding="utf-8"))
        return [dict(trial) for trial in found["trials"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read: %s", folder / SEARCH, error)
        return []


def told_of(folder: Path, study: optuna.Study) -> list[dict[str, Any]]:
    """The trials of a study that a sweep's folder tells of, of the same settings."""
    trials = read(folder)
    if not trials:
        return []
    found = json.loads((folder / SEARCH).read_text(encoding="utf-8"))
    if found.get("study_name") != study.study_name:
        return []
    if found.get("fixed", fixed_of(study)) != fixed_of(study):
        log.warning("%s tells of trials of other settings: they are left", folder / SEARCH)
        return []
    if not _has_objectives_of(study, found.get("objectives")):
        log.warning("%s tells of trials of other objectives: they are left", folder / SEARCH)
        return []
    return trials


def _has_objectives_of(study: optuna.Study, told: Any) -> bool:
    if told is None:
        return True
    names = objectives_of(study)
    directions = [direction.name.lower() for direction in study.directions]
    is_named = not names or [one["name"] for one in told] == names
    return is_named and [one["direction"] for one in told] == directions


def best_of(study: optuna.Study) -> list[FrozenTrial]:
    """The best trial; with several objectives the Pareto front; none if none completed."""
    trials = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    trials = [t for t in trials if counts(t)]
    if not trials:
        return []
    if len(study.directions) == 1:
        sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
        return [min(trials, key=lambda t: (sign * (t.value or 0.0), t.number))]
    return [t for t in study.best_trials if counts(t)]


class Results:
    """Writes the files of one search.

    Args:
        folder: of the sweep.
        storage: its address, without a password.
        names: of the objectives.
        is_group: whether a key names a config group.
        choices: the groups that the application's defaults have.
        bookkeeping: sections that say where or how fast, not what.
    """

    def __init__(
        self,
        folder: Path,
        study: optuna.Study,
        space: Space,
        *,
        storage: str,
        names: Sequence[str],
        n_trials: int | None,
        sampler: str,
        is_group: Callable[[str], bool],
        choices: Collection[str] = (),
        bookkeeping: Sequence[str] = (),
    ) -> None:
        self._folder, self._study, self._space = folder, study, space
        self._storage, self._names, self._n_trials = storage, names, n_trials
        self._sampler, self._is_group, self._bookkeeping = sampler, is_group, bookkeeping
        self._choices = choices
        self._due_at = float("-inf")

    def write(
        self, stopped: str | None = None, *, is_last: bool = False, is_due: bool = False
    ) -> list[FrozenTrial]:
        """Write what is known by now, if that is due; returns the best.

        Args:
            stopped: why the search has ended.
            is_last: whether the search is over: then the best point is written down as well.
            is_due: whatever the time of the last one.
        """
        began = time.monotonic()
        if began < self._due_at and not (is_last or is_due):
            return []
        self._due_at = began + EVERY_S
        best = best_of(self._study)
        is_one = len(best) > 0 and len(self._names) == 1
        values = {
            "format": FORMAT,
            "study_name": self._study.study_name,
            "storage": self._storage,
            "sampler": self._sampler,
            "pruner": _pruner(self._study),
            "objectives": [
                {"name": name, "direction": direction.name.lower()}
                for name, direction in zip(self._names, self._study.directions, strict=True)
            ],
            "n_trials": self._n_trials,
            "stopped": stopped,
            "params": {param.name: _described(param) for param in self._space.params},
            "fixed": fixed_of(self._study),
            "trials": [self._trial(trial) for trial in self._study.get_trials(deepcopy=False)],
            "best": [trial.number for trial in best],
            "importances": self._importances() if is_last else None,
            "best_command": shlex.join(self.command(best[0])) if is_one else None,
            "best_experiment": str(EXPERIMENT) if is_one and is_last else None,
        }
        write_whole(self._folder / SEARCH, json.dumps(values, indent=1, ensure_ascii=False))
        now = time.monotonic()
        self._due_at = max(self._due_at, now + REST * (now - began))
        if is_last and best:
            self._write_best(best)
        return best

    def command(self, trial: FrozenTrial) -> list[str]:
        """What runs the point of a trial again, alone."""
        typed = Path(sys.argv[0])
        if typed.name == "__main__.py":
            program = ["python", "-m", typed.parent.name]
        else:
            program = ["python", sys.argv[0]] if typed.suffix == ".py" else [typed.name]
        return [*program, *self._overrides(trial)]

    def _overrides(self, trial: FrozenTrial) -> list[str]:
        """What sets the point of a trial, and what was fixed with it."""
        left_out = {"hydra", *self._bookkeeping}
        fixed = [one for one in self._space.fixed if section(one) not in left_out]
        return [*fixed, *self._space.overrides(self._point(trial))]

    def _write_best(self, best: Sequence[FrozenTrial]) -> None:
        if len(self._names) == 1:
            found: dict[str, Any] = {
                "name": "optuna",
                "best_params": self._point(best[0]),
                "best_value": best[0].value,
            }
        else:
            solutions = [{"params": self._point(t), "values": list(t.values)} for t in best]
            found = {"name": "optuna", "solutions": solutions}
        write_whole(self._folder / RESULTS, OmegaConf.to_yaml(OmegaConf.create(found)))
        if len(self._names) == 1:
            (self._folder / EXPERIMENT).parent.mkdir(exist_ok=True)
            write_whole(self._folder / EXPERIMENT, self._experiment(best[0]))

    def _experiment(self, trial: FrozenTrial) -> str:
        """The point, and what was fixed with it, as a file of a group."""
        config: Any = OmegaConf.create()
        groups: list[Any] = []
        group = EXPERIMENT.parent.name
        overrides = self._overrides(trial)
        deleted = [line for line in overrides if line.startswith("~")]
        for line in overrides:
            if line in deleted:
                continue
            key, _, text = line.lstrip("+").partition("=")
            value = as_read(text)
            name = value if value is None or isinstance(value, list) else text
            if key == group:  # this file stands in for another one of its group
                groups.append(name)
            elif self._is_group(key.partition("@")[0]):
                groups.append({f"{'override ' if key in self._choices else ''}/{key}": name})
            else:
                OmegaConf.update(config, key, value, force_add=True)
        shown = ", ".join(f"{v:.5g}" for v in trial.values or ())
        num_trials = sum(map(counts, self._study.get_trials(deepcopy=False)))
        lines = [
            "# @package _global_",
            "#",
            f"# The best of {num_trials} trials (trial {trial.number}): {self._names[0]} {shown}.",
            "#",
            f"#   --config-dir {shlex.quote(str(self._folder))} "
            f"{'' if group in self._choices else '+'}{group}={EXPERIMENT.stem}",
        ]
        if deleted:
            lines += ["#", f"# No file can say this, give it as well: {shlex.join(deleted)}"]
        # What overrides stands last in a list of defaults.
        groups.sort(key=lambda one: isinstance(one, dict) and str(*one).startswith("override"))
        parts = [OmegaConf.to_yaml(OmegaConf.create({"defaults": groups}))] if groups else []
        parts += [OmegaConf.to_yaml(config)] if len(config) else []
        return "\n".join([*lines, *parts]).rstrip() + "\n"

    def _point(self, trial: FrozenTrial) -> Point:
        return self._space.of_trial(params_of(trial))

    def _trial(self, trial: FrozenTrial) -> dict[str, Any]:
        attrs = trial.user_attrs
        pruned = attrs.get(PRUNED) if trial.state == TrialState.PRUNED else None
        return {
            "number": trial.number,
            "state": _STATES[trial.state],
            "params": self._point(trial),
            "distributions": self._suggested(trial),
            "values": list(trial.values) if trial.state == TrialState.COMPLETE else None,
            "reason": pruned["reason"] if pruned else attrs.get(REASON),
            "steps": {str(step): value for step, value in trial.intermediate_values.items()},
            "seconds": trial.duration.total_seconds() if trial.duration else None,
            "same_as": attrs.get(SAME_AS),
            "folder": attrs.get(FOLDER),
        }

    def _suggested(self, trial: FrozenTrial) -> dict[str, str]:
        """The distributions, as Optuna writes them, of what the space has not."""
        return {
            key: distribution_to_json(distribution)
            for key, distribution in trial.distributions.items()
            if key not in self._space.by_name
        }

    def _importances(self) -> list[dict[str, float]] | None:
        """For each objective; None where there are too few trials to say."""
        found = []
        names = {name for trial in self._study.get_trials(deepcopy=False) for name in trial.params}
        if names == set(self._space.by_name) and len(names) == 1:
            return [{self._space.params[0].name: 1.0} for _ in self._names]
        for place, direction in enumerate(self._study.directions):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    shares = optuna.importance.get_param_importances(
                        self._study, target=_to_be_low(place, direction)
                    )
            except Exception as error:  # too few trials, all of one value, no common parameter
                log.debug("no importances: %s", error)
                return None
            if not shares or any(share != share for share in shares.values()):
                return None
            found.append({key: float(share) for key, share in shares.items()})
        return found


def _to_be_low(place: int, direction: StudyDirection) -> Callable[[FrozenTrial], float]:
    """One of the objectives: of a target of our own, Optuna asks what matters for low values."""
    sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0

    def value(trial: FrozenTrial) -> float:
        return sign * float(trial.values[place])

    return value


def _pruner(study: optuna.Study) -> str | None:
    name = type(study.pruner).__name__
    return None if name == "NopPruner" or len(study.directions) > 1 else name


def _described(param: Param) -> dict[str, Any]:
    own = param.distribution
    if isinstance(own, CategoricalDistribution):
        return {"kind": "categorical", "choices": list(own.choices)}
    assert isinstance(own, (IntDistribution, FloatDistribution))
    kind = "int" if isinstance(own, IntDistribution) else "float"
    return {"kind": kind, "log": own.log, "low": own.low, "high": own.high}


def write_whole(path: Path, text: str) -> None:
    """Whoever reads finds the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text if text.endswith("\n") else text + "\n")
        os.chmod(part, 0o644)
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)
