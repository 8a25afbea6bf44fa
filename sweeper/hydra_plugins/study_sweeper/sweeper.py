"""What Hydra builds for `hydra/sweeper=search`; Optuna is imported when a search begins."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.study_sweeper._errors import BadSearch

if TYPE_CHECKING:
    from hydra_plugins.study_sweeper._asked import Asked
    from hydra_plugins.study_sweeper._space import Space

log = logging.getLogger(__name__)


class StudySweeper(Sweeper):
    """Searches with an Optuna study.

    Args:
        settings: see `config.SearchConf`.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = OmegaConf.create(settings, flags={"allow_objects": True})
        self.launcher: Launcher | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search to the end of the budget.

        Args:
            arguments: overrides, as typed.

        Raises:
            BadSearch: it cannot be carried out; said before any job runs.
            SearchFailed: no trial completed, or more failed than are allowed.
        """
        from hydra_plugins.study_sweeper import _asked, _samplers, _space, _sweep

        context, config, launcher = self.hydra_context, self.config, self.launcher
        assert context is not None and config is not None and launcher is not None
        settings = self.settings
        asked = _asked.Asked.of(settings)
        space = _space.space(
            arguments,
            _mapping(settings, "params"),
            _mapping(settings, "conditions"),
            OverridesParser.create(config_loader=context.config_loader),
        )
        custom = _custom(settings.get("custom_search_space"), config, space.fixed)
        if not space.params and custom is None:
            raise BadSearch(
                "There is nothing to search: give a key a range, such as "
                "'optimizer.lr=tag(log,interval(1e-5,1e-1))', or choices, model=a,b."
            )
        _check_samples(_composed(space, context, config, asked), settings.get("check"))
        _samplers.pruner(settings.pruner)
        _samplers.sampler(settings.sampler, num_trials=0, is_conditional=False)
        _sweep.run(
            asked, space, custom, launcher=launcher, config=config, is_group=_is_group(context)
        )


def _mapping(settings: DictConfig, key: str) -> dict[str, Any]:
    found = OmegaConf.to_container(OmegaConf.create(settings.get(key) or {}))
    if not isinstance(found, Mapping):
        raise BadSearch(f"hydra.sweeper.{key}: a mapping, key: value.")
    return {str(name): value for name, value in found.items()}


def _is_group(context: HydraContext) -> Callable[[str], bool]:
    loader = context.config_loader

    def is_group(key: str) -> bool:
        return bool(loader.list_groups(key) or loader.get_group_options(key))

    return is_group


def _composed(
    space: "Space", context: HydraContext, config: DictConfig, asked: "Asked"
) -> Iterator[DictConfig]:
    """Jobs' configurations, with every choice and the ends of every range.

    Raises:
        HydraException: the configuration has no such key, or no such option.
        BadSearch: one of them would look for something else.
    """
    lines = dict.fromkeys((*space.fixed, *space.overrides(point)) for point in space.samples())
    for line in lines:
        composed = context.config_loader.load_sweep_config(config, list(line))
        asked.check_goal(composed)
        yield composed


def _check_samples(samples: Iterator[DictConfig], path: str | None) -> None:
    """Each can be composed, and is what the application's own check allows.

    Args:
        path: of that check.

    Raises:
        Exception: what it has raised.
    """
    if path is not None:
        _function("check", path)(samples)
    for _ in samples:
        pass  # what was not looked at can be composed, too


def _custom(
    path: str | None, config: DictConfig, fixed: Sequence[str]
) -> Callable[..., dict[str, Any]] | None:
    """The application's own part of the space."""
    if path is None:
        return None
    function = _function("custom_search_space", path)
    known = {line.lstrip("+").partition("=")[0]: line for line in fixed}

    def suggested(trial: Any, point: Mapping[str, Any]) -> dict[str, Any]:
        function(config, trial)
        found = {key: value for key, value in trial.params.items() if key not in point}
        for key in found:
            if key.lstrip("+") in known:
                raise BadSearch(
                    f"hydra.sweeper.custom_search_space={path} suggests {key}, which is fixed: "
                    f"{known[key.lstrip('+')]}."
                )
        return found

    return suggested


def _function(key: str, path: str) -> Callable[..., Any]:
    try:
        found: Callable[..., Any] = get_method(path)
    except Exception as error:
        raise BadSearch(f"hydra.sweeper.{key}={path}: there is no such function.") from error
    return found
