"""Points to begin with: `hydra.sweeper.enqueue`.

"lr=1e-3,1e-2 model=a,b"    a grid, as overrides
points.yaml                 a list of points: [{lr: 1e-3, model: a}, ...]
outputs/<sweep>             the points of an earlier sweep
a list of these
"""

import contextlib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from hydra_plugins.study_sweeper import _results
from hydra_plugins.study_sweeper._distribution import values_of
from hydra_plugins.study_sweeper._errors import BadSearch
from hydra_plugins.study_sweeper._space import Point, Space, flat

_WHERE = "hydra.sweeper.enqueue"
# Overrides in a line: a blank within quotes or brackets ends none of them.
_INSIDE = r"""'(?:\\.|[^'\\])*' | "(?:\\.|[^"\\])*" | \[[^\]]*\] | \{[^}]*\} | \([^)]*\)"""
_WORD = re.compile(rf"(?:{_INSIDE} | \\. | \S)+", re.VERBOSE)


def points(asked: Any, space: Space) -> list[Point]:
    """The points, within the space.

    Raises:
        BadSearch: one is not within it, or there is nothing of that name.
    """
    if asked is None or asked == "":
        return []
    plain = OmegaConf.to_container(asked, resolve=True) if OmegaConf.is_config(asked) else asked
    found: list[Point] = []
    for one in plain if isinstance(plain, (list, tuple)) else [plain]:
        found += _of_one(one, space)
    return found


def _of_one(asked: Any, space: Space) -> list[Point]:
    if isinstance(asked, Mapping):
        return [space.checked(flat(asked, _names(space)), _WHERE)]
    text = str(asked)
    path = Path(text)
    is_dir = is_file = False
    with contextlib.suppress(OSError, ValueError):  # what overrides make no name of
        is_dir, is_file = path.is_dir(), path.is_file()
    if is_dir:
        return _of_folder(path, space)
    if is_file:
        return _of_file(path, space)
    if "=" in text:
        return _of_grid(text, space)
    raise BadSearch(
        f"{_WHERE}={text}: there is no such file or folder. Give overrides (lr=1e-3,1e-2), a YAML "
        "file of points, or the folder of an earlier sweep."
    )


def _of_grid(text: str, space: Space) -> list[Point]:
    try:
        overrides = OverridesParser.create().parse_overrides(_WORD.findall(text))
    except (HydraException, ValueError) as error:
        raise BadSearch(f"{_WHERE}={text}: {error}") from error
    axes = []
    for override in overrides:
        values = values_of(override)
        if values is None or override.is_delete():
            raise BadSearch(f"{_WHERE}: {override.input_line}: list the values.")
        axes.append([(str(override.get_key_element()), value) for value in values])
    return [space.checked(dict(pairs), _WHERE) for pairs in itertools.product(*axes)]


def _of_file(path: Path, space: Space) -> list[Point]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadSearch(f"{_WHERE}={path}: cannot be read: {error}") from error
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise BadSearch(f"{_WHERE}={path}: it must hold a list of points: - {{lr: 1e-3}}")
    # A file may also tell what a point is worth, or more: only its point is of use here.
    plain = [one["params"] if isinstance(one.get("params"), Mapping) else one for one in found]
    return [space.checked(flat(one, _names(space)), f"{_WHERE}={path}") for one in plain]


def _of_folder(path: Path, space: Space) -> list[Point]:
    """Of the trials of a search, else of the jobs of a sweep: where they are in this space."""
    given = [trial["params"] for trial in _results.read(path)]
    given = given or [_of_job(job) for job in sorted(path.glob("*/.hydra/overrides.yaml"))]
    given = given or [_of_name(run.parent.name) for run in sorted(path.glob("*/config.yaml"))]
    names = _names(space)
    found = []
    for one in given:
        point = {key: value for key, value in one.items() if key in names}
        try:
            if point:
                found.append(space.checked(point, _WHERE))
        except BadSearch:
            continue  # outside of this space
    if not found:
        raise BadSearch(f"{_WHERE}={path}: it holds no point of this space ({', '.join(names)}).")
    return found


def _of_job(path: Path) -> dict[str, Any]:
    lines = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    return _of_lines([str(line) for line in lines])


def _of_name(name: str) -> dict[str, Any]:
    """Of a folder that is named after its overrides: `strategy=head_only,optimizer.lr=0.001`."""
    return _of_lines(name.split(","))


def _of_lines(lines: Sequence[str]) -> dict[str, Any]:
    pairs = (line.lstrip("+~").partition("=") for line in lines)
    return {key: value for key, is_set, value in pairs if is_set}


def _names(space: Space) -> list[str]:
    return [param.name for param in space.params]
