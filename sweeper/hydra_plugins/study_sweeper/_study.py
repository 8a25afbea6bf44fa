"""The study of a sweep: opened, held against what is asked for now, its queue."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility, distribution_to_json
from optuna.distributions import json_to_distribution as from_json
from optuna.study import StudyDirection

from hydra_plugins.study_sweeper._errors import BadSearch
from hydra_plugins.study_sweeper._space import Space, identity

# Attributes of the study.
_SPACE, _FIXED, _OBJECTIVES, _JOBS = "space", "fixed", "objectives", "jobs"


def created(
    name: str,
    storage: optuna.storages.BaseStorage,
    directions: Sequence[str],
    pruner: Any,
) -> tuple[optuna.Study, bool]:
    """The study, and whether it was made now.

    Raises:
        BadSearch: it has other objectives.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            directions=[StudyDirection[one.upper()] for one in directions],
            pruner=pruner,
        )
        is_new = True
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
        is_new = False
    found = [one.name.lower() for one in study.directions]
    if found != list(directions):
        raise BadSearch(
            f"The study {name} was made with hydra.sweeper.direction={','.join(found)}, now it is "
            f"{','.join(directions)}. Name another one: hydra.sweeper.study_name=..."
        )
    return study, is_new


def check_same(
    study: optuna.Study,
    space: Space,
    bookkeeping: Sequence[str] = (),
    names: Sequence[str] = (),
    jobs: str = "",
) -> None:
    """That a study can go on with a space, and note it in there.

    Args:
        bookkeeping: sections of the configuration that say where or how fast, and may change.
        names: of the objectives, where they were given.
        jobs: of each trial, as `jobs_of` has them. By them jobs have their numbers, too.

    Raises:
        BadSearch: its trials were of other settings or objectives, or had other jobs, or its
            choices were others.
    """
    known = {key: from_json(text) for key, text in study.user_attrs.get(_SPACE, {}).items()}
    for param in space.params:
        try:
            if param.name in known:
                check_distribution_compatibility(known[param.name], param.distribution)
        except ValueError as error:
            raise BadSearch(
                f"{param.key}: the study {study.study_name} has it as {known[param.name]}, "
                f"now it is {param.distribution}; trials of both cannot be compared. "
                "Name another study (hydra.sweeper.study_name=..., or another sweep), which may "
                "begin with the points of this one: hydra.sweeper.enqueue=<the sweep's folder>."
            ) from error
    before = study.user_attrs.get(_FIXED)
    now = sorted(one for one in space.fixed if section(one) not in {"hydra", *bookkeeping})
    if before is not None and before != now and study.get_trials(deepcopy=False):
        raise BadSearch(
            f"The study {study.study_name} holds trials of other settings: "
            f"{_changed(before, now)}. "
            "Name another study: hydra.sweeper.study_name=..., or another sweep."
        )
    had = objectives_of(study)
    if had and names and had != list(names) and study.get_trials(deepcopy=False):
        raise BadSearch(
            f"The study {study.study_name} holds trials of other objectives: they had "
            f"{', '.join(had)}; now {', '.join(names)}. "
            "Name another study: hydra.sweeper.study_name=..., or another sweep."
        )
    had_jobs = study.user_attrs.get(_JOBS) or jobs
    if had_jobs != jobs and study.get_trials(deepcopy=False):
        raise BadSearch(
            f"The study {study.study_name} holds trials with hydra.sweeper.{had_jobs}; now "
            f"hydra.sweeper.{jobs}. "
            "Name another study: hydra.sweeper.study_name=..., or another sweep."
        )
    texts = {p.name: distribution_to_json(p.distribution) for p in space.params}
    study.set_user_attr(_SPACE, texts)
    study.set_user_attr(_FIXED, now)
    study.set_user_attr(_OBJECTIVES, list(names) or had)
    study.set_user_attr(_JOBS, jobs)


def jobs_of(replicates: int, key: str) -> str:
    """By which jobs a trial is judged."""
    return f"replicates={replicates}" + (f" and replicate_key={key}" if replicates > 1 else "")


def fixed_of(study: optuna.Study) -> list[str]:
    """The overrides that all of its trials have, sorted."""
    return list(study.user_attrs.get(_FIXED) or ())


def objectives_of(study: optuna.Study) -> list[str]:
    """What its values are called; nothing where that was never said."""
    return list(study.user_attrs.get(_OBJECTIVES) or ())


def section(override: str) -> str:
    """The section of the configuration that an override sets something in."""
    return re.split(r"[./@=]", override.lstrip("+~"), maxsplit=1)[0]


def _changed(before: Sequence[str], now: Sequence[str]) -> str:
    gone, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    was = f"they had {', '.join(gone)}" if gone else "they had none of these"
    return f"{was}; now {', '.join(new) or 'nothing stands for it'}"


def enqueue(study: optuna.Study, points: Sequence[Mapping[str, Any]]) -> int:
    """Put points into the queue that no trial has yet; how many."""
    known = {
        identity(trial.system_attrs.get("fixed_params") or trial.params)
        for trial in study.get_trials(deepcopy=False)
    }
    count = 0
    for point in points:
        if identity(point) not in known:
            known.add(identity(point))
            study.enqueue_trial(dict(point))
            count += 1
    return count
