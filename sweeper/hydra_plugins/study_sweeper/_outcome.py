"""What a job has come to: its values, or why it has none, and where its folder is."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, cast

import optuna
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf


class NotAValue(ValueError):
    """A job returned what cannot be compared."""


def outcome(
    result: JobReturn, num_objectives: int, names: Sequence[str]
) -> list[float] | BaseException:
    """The values of a job, or why it has none."""
    if result.status != JobStatus.COMPLETED:
        error = result._return_value
        return error if isinstance(error, BaseException) else RuntimeError(str(error))
    try:
        return _values(result._return_value, num_objectives, names)
    except NotAValue as error:
        return error


def _values(returned: Any, num_objectives: int, names: Sequence[str]) -> list[float]:
    if num_objectives == 1:
        return [_value(returned)]
    if isinstance(returned, Mapping):
        if names and set(returned) != set(names):
            raise NotAValue(
                f"it returned values of {', '.join(map(str, returned))}, not of {', '.join(names)}"
            )
        returned = [returned[name] for name in names or returned]
    # What has no order cannot be meant: it may be an array.
    if isinstance(returned, (str, bytes, Set)) or not isinstance(returned, Iterable):
        raise NotAValue(
            f"it returned {_short(returned)}, not a list of {num_objectives} values, one for each "
            "direction"
        )
    try:
        found = list(returned)
    except TypeError:  # an array without axes
        found = [returned]
    if len(found) != num_objectives:
        raise NotAValue(f"it returned {len(found)} values for {num_objectives} directions")
    return [_value(one) for one in found]


def _value(returned: Any) -> float:
    if returned is None:
        raise NotAValue("it returned nothing (None); the function must return its value")
    if isinstance(returned, (str, bytes)):
        raise NotAValue(f"it returned {_short(returned)}, not a number")
    try:
        value = float(returned)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise NotAValue(f"it returned {_short(returned)}, not a number") from None
    if not math.isfinite(value):
        raise NotAValue(f"it returned {value}, which cannot be compared")
    return value


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # of a whole number with thousands of digits, for one
        text = f"one {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def folder_of(result: JobReturn, sweep_dir: Path) -> str | None:
    """The job's folder, from the sweep's."""
    try:
        found = getattr(result, "output_dir", None)
        if found is None:
            found = OmegaConf.select(cast(Any, result.hydra_cfg), "hydra.runtime.output_dir")
        return None if found is None else os.path.relpath(str(found), sweep_dir)
    except Exception:  # what names it may be what the job failed of
        return None


def is_pruning(error: BaseException) -> bool:
    """Optuna's own exception, as an objective of Optuna's raises it."""
    return isinstance(error, optuna.exceptions.TrialPruned)


def in_words(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
