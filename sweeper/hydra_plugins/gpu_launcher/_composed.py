"""A sweep of thousands of jobs composed in seconds: Hydra composes what differs in structure, and
jobs that differ in plain values are copies.

    overrides -> groups: a template, composed by Hydra's own loader and kept
              -> values: set in a copy of it; see _template.py

Hydra alone composes every job from its files, and twice: its sweeper to see whether that is
possible, a launcher to run it. No job's configuration is kept here, however often it is asked for.
Files, and the variables that a defaults list names, are read once for a template: to change them
while a sweep runs changes other combinations only.
"""

import copy
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import hydra
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobRuntime
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.gpu_launcher._template import Template, at, same

log = logging.getLogger(__name__)

# Of Hydra. What is done here follows its inside; 1.4, for one, completes a job otherwise.
_VERSIONS = "1.3."

MAX_TEMPLATES = 64
_MAX_PARSED = 4096


def compose_once(context: HydraContext) -> None:
    """Let `context` compose once what jobs have in common; with another Hydra, leave it alone."""
    loader = context.config_loader
    if hydra.__version__.startswith(_VERSIONS) and type(loader) is ConfigLoaderImpl:
        context.config_loader = _Composer(loader)  # type: ignore[assignment]


class _Composer:
    """A config loader whose jobs are equal to those of Hydra's own, and errors are Hydra's own."""

    def __init__(self, loader: ConfigLoaderImpl) -> None:
        self._loader = loader
        self._templates: _Templates | None = None
        self._is_exact: bool | None = None
        self._sound: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __reduce__(self) -> Any:
        """In another process: the plain loader."""
        return copy.copy, (self._loader,)

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: Sequence[str]
    ) -> DictConfig:
        """See `ConfigLoader`; a new configuration at each call."""
        composed = self._composed(master_config, list(sweep_overrides))
        self._sound.add(hash(tuple(sweep_overrides)))
        return composed

    def has_composed(self, sweep_overrides: Sequence[str]) -> bool:
        """Whether a job with these overrides was composed before: Hydra's sweeper tries all."""
        return hash(tuple(sweep_overrides)) in self._sound

    def _composed(self, master_config: DictConfig, own: list[str]) -> DictConfig:
        copied = None if self._is_exact is False else self._copy(master_config, own)
        if copied is not None and self._is_exact:
            return copied
        composed = self._loader.load_sweep_config(master_config, own)
        # The first job is made both ways: nobody has promised that Hydra will stay as it is.
        if copied is not None:
            self._is_exact = same(copied, composed)
        return composed

    def _copy(self, master: DictConfig, overrides: list[str]) -> DictConfig | None:
        """The job by the short way, or None: Hydra's own then composes it, or says what is wrong.

        Every error counts as a doubt, for the words and the cause are Hydra's to give.
        """
        try:
            basis = _basis(master)
            if self._templates is None or self._templates.basis != basis:
                self._templates = _Templates(self._loader, master, basis)
            return self._templates.job(master, overrides)
        except Exception as doubt:
            log.debug("Hydra itself composes %s: %r", overrides, doubt)
            return None


def _basis(master: DictConfig) -> tuple[Any, ...]:
    """All that decides, beside its overrides, what a job of the sweep is."""
    fixed = OmegaConf.to_container(at(master, "hydra.overrides.hydra"))
    assert isinstance(fixed, list)
    name = JobRuntime.instance().get("name")
    return at(master, "hydra.job").config_name, tuple(fixed), name, version.getbase()


class _Templates:
    """Those of one sweep; the least recently used make room."""

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig, basis: tuple[Any, ...]):
        self.basis = basis
        config_name, fixed, *_ = basis
        _, repository = loader._parse_overrides_and_create_caching_repo(config_name, list(fixed))
        self._is_group = lru_cache(_MAX_PARSED)(repository.group_exists)
        self._parse = OverridesParser.create().parse_override
        self._parse_once = lru_cache(_MAX_PARSED)(self._parse)
        self._template = lru_cache(MAX_TEMPLATES)(
            lambda groups: Template(loader.load_sweep_config(master, list(groups)))
        )

    def job(self, master: DictConfig, lines: Sequence[str]) -> DictConfig:
        """A new configuration, equal to Hydra's.

        Raises:
            Exception: it may not be equal, or the overrides are wrong.
        """
        overrides = [self._parsed(line) for line in lines]
        decide = [self._decides_structure(override) for override in overrides]
        groups = tuple(line for line, decides in zip(lines, decide, strict=True) if decides)
        values = [one for one, decides in zip(overrides, decide, strict=True) if not decides]
        config = self._template(groups).job(values, overrides)
        OmegaConf.copy_cache(from_config=master, to_config=config)
        return config

    def _parsed(self, line: str) -> Override:
        # Functions need not give the same twice (shuffle), packages may be warned of.
        return self._parse(line) if "(" in line or "@" in line else self._parse_once(line)

    def _decides_structure(self, override: Override) -> bool:
        """As Hydra tells choices for the defaults list, which no value can change, from values."""
        return self._is_group(override.key_or_group) and not isinstance(override.value(), dict)
