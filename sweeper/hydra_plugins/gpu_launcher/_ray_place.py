"""Where the launcher runs and where an actor does; the one is made to look like the other."""

import importlib
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """Where the launcher runs.

    Attributes:
        directory: its working directory; None: that of the actor is to be kept.
        path: where it finds modules.
        sweep: the sweep's folder as it is configured, perhaps relative.
        marker: name of a file that the launcher has written there.
    """

    directory: str | None
    path: tuple[str, ...]
    sweep: str
    marker: str


@dataclass(frozen=True)
class Place:
    """Where an actor runs.

    Attributes:
        node: Ray's name of it.
        in_words: for people.
        is_home: whether it sees the launcher's sweep folder.
    """

    node: str
    in_words: str
    is_home: bool


def settle(home: Home) -> None:
    """Make this process, and what it starts, look like the launcher's as far as that is possible.

    A launcher's own working directory need not exist here. Relative paths, those of the sweep
    among them, then begin in one that is made, for all slots of a node the same.
    """
    if home.directory is not None:
        try:
            Path(home.directory).mkdir(parents=True, exist_ok=True)
            os.chdir(home.directory)
        except OSError:
            made = Path(tempfile.gettempdir(), home.marker.lstrip("."))
            made.mkdir(exist_ok=True)
            os.chdir(made)
    sys.path[:] = _without_rays(dict.fromkeys([*sys.path, *filter(os.path.exists, home.path)]))
    if os.environ.get("PYTHONBREAKPOINT", "").startswith("ray."):
        del os.environ["PYTHONBREAKPOINT"]


def _without_rays(paths: Iterable[str]) -> list[str]:
    """Ray brings its own copies of some packages, which are not meant for jobs.

    What its `runtime_env` brings is: it lies elsewhere, perhaps in a folder "ray", too.
    """
    ray = Path(str(importlib.import_module("ray").__file__)).resolve().parent
    return [path for path in paths if not Path(path).resolve().is_relative_to(ray)]
