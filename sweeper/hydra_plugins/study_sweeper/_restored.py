"""Trials that a sweep's folder tells of, put into a study that is new."""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import json_to_distribution as from_json
from optuna.trial import FrozenTrial, TrialState

from hydra_plugins.study_sweeper._space import Space
from hydra_plugins.study_sweeper._trials import FOLDER, ONE_TOO_MANY, REASON, SAME_AS, SURPLUS

_RESTORING = "restoring"  # an attribute of the study


def restored(study: optuna.Study, space: Space, trials: Sequence[Mapping[str, Any]]) -> int:
    """Put trials that a sweep's folder tells of into a study, under the numbers that they had, by
    which their folders are called; how many.

    What cannot be put there leaves its number empty. One that was killed over this goes on.

    Args:
        trials: as `_results.read` gives them.
    """
    study.set_user_attr(_RESTORING, True)
    count = 0
    for told in trials[len(study.get_trials(deepcopy=False)) :]:
        try:
            trial = _trial(told, space)
            study.add_trial(trial)
            count += int(trial.state.is_finished())
        except (ValueError, KeyError, TypeError):
            empty = {SURPLUS: True, REASON: "its number was another trial's"}
            study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=empty))
    study.set_user_attr(_RESTORING, False)
    return count


def is_half_restored(study: optuna.Study) -> bool:
    """Whether one who put trials into a study was killed over it."""
    return bool(study.user_attrs.get(_RESTORING))


_STATES = {
    "completed": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def _trial(told: Mapping[str, Any], space: Space) -> FrozenTrial:
    """
    Raises:
        ValueError, KeyError: it is not of this space, or never had a point.
    """
    params = dict(told["params"])
    if not params:
        raise ValueError("it never had a point")
    state = _STATES.get(str(told["state"]), TrialState.WAITING)  # it ran, or waited
    # A function of the application may have suggested more than the space has.
    more = {key: from_json(text) for key, text in (told.get("distributions") or {}).items()}
    distributions = more | {param.name: param.distribution for param in space.params}
    attrs = {key: told[key] for key in (REASON, FOLDER, SAME_AS) if told.get(key) is not None}
    if attrs.get(REASON) == ONE_TOO_MANY:
        attrs[SURPLUS] = True
    return optuna.trial.create_trial(
        state=state,
        params=params,
        distributions={key: distributions[key] for key in params},
        values=told["values"] if state == TrialState.COMPLETE else None,
        intermediate_values={int(k): v for k, v in (told.get("steps") or {}).items()},
        user_attrs=attrs,
    )
