"""What a search is asked for, checked."""

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from hydra_plugins.study_sweeper._budget import Budget
from hydra_plugins.study_sweeper._errors import BadSearch

_DIRECTIONS = ("minimize", "maximize")


@dataclass(frozen=True)
class Asked:
    """See `config.SearchConf`.

    Attributes:
        names: of the objectives.
        given_names: the same, where the user gave any.
    """

    settings: DictConfig
    directions: Sequence[str]
    names: Sequence[str]
    given_names: Sequence[str]
    budget: Budget

    @classmethod
    def of(cls, settings: DictConfig) -> "Asked":
        """
        Raises:
            BadSearch: a setting makes no sense.
        """
        directions = _directions(settings)
        given_names = _given_names(settings)
        if given_names and len(given_names) != len(directions):
            raise BadSearch(
                f"hydra.sweeper.objectives names {len(given_names)} values, "
                f"hydra.sweeper.direction has {len(directions)}."
            )
        names = given_names or _default_names(len(directions))
        fields = ("n_trials", "patience", "n_jobs", "max_failures")
        limits = {key: _whole(settings, key, 0 if key == "max_failures" else 1) for key in fields}
        for key in ("together", "replicates"):
            _whole(settings, key, 1)
        timeout_s, rate = settings.get("timeout_s"), settings.get("max_failure_rate")
        if timeout_s is not None and not timeout_s > 0:
            raise BadSearch(f"hydra.sweeper.timeout_s={timeout_s}: more than 0, or null.")
        if rate is not None and not 0 <= rate <= 1:
            raise BadSearch(f"hydra.sweeper.max_failure_rate={rate}: from 0 to 1, or null.")
        budget = Budget(timeout_s=timeout_s, max_failure_rate=rate, **limits)
        return cls(settings, directions, names, given_names, budget)

    @property
    def goal(self) -> str:
        """What it looks for, in words: "minimize loss, maximize accuracy"."""
        pairs = zip(self.directions, self.names, strict=True)
        return ", ".join(f"{direction} {name}" for direction, name in pairs)

    def check_goal(self, job: DictConfig) -> None:
        """That a job looks for what the search looks for, where that depends on other settings.

        Raises:
            BadSearch: it does not.
        """
        own = Asked.of(job.hydra.sweeper).goal
        if own != self.goal:
            raise BadSearch(
                f"{' '.join(job.hydra.overrides.task)}: the search is to {self.goal}, this trial "
                f"would be to {own}. What decides that cannot be searched, and is set outside "
                "hydra.sweeper.params."
            )


def _directions(settings: DictConfig) -> list[str]:
    asked = settings.get("directions") or settings.get("direction")
    is_list = isinstance(asked, Sequence) and not isinstance(asked, str)
    several = list(asked) if is_list else [asked]
    found = [str(getattr(one, "name", one)).lower() for one in several]
    for one in found:
        if one not in _DIRECTIONS:
            raise BadSearch(
                f"hydra.sweeper.direction={one}: it is minimize or maximize, or a list of these."
            )
    if not found:
        raise BadSearch("hydra.sweeper.direction is an empty list.")
    return found


def _given_names(settings: DictConfig) -> list[str]:
    asked = settings.get("objectives") or ()
    return [asked] if isinstance(asked, str) else [str(name) for name in asked]


def _default_names(count: int) -> list[str]:
    return ["value"] if count == 1 else [f"value {place}" for place in range(count)]


def _whole(settings: DictConfig, key: str, least: int) -> int | None:
    value = settings.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadSearch(f"hydra.sweeper.{key}={value}: a whole number, {least} or more.")
    return value
