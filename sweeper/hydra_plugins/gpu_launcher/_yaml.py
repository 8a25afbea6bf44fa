"""`OmegaConf.to_yaml` for many configurations that are nearly the same, ten times as fast.

Every value is written by OmegaConf's own writer, at its place: under its key, as deep as it stands.
What it wrote is kept for the next configuration; here it is only put together.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import yaml
from omegaconf import Container, OmegaConf
from omegaconf._utils import get_omega_conf_dumper

_KEPT = 8192
_STEP = "  "
_PLAIN = (str, int, float, bool, type(None))


class _Unusual(Exception):
    """Left to OmegaConf: keys that are no text or too long for a line, bytes, paths."""


def to_yaml(config: Container) -> str:
    """What `OmegaConf.to_yaml` returns, byte for byte."""
    try:
        content = OmegaConf.to_container(config, enum_to_str=True)
        if isinstance(content, list):
            return "".join(_of_list(content, 0)) or "[]\n"
        if isinstance(content, dict):
            return "".join(_of_dict(content, 0)) or "{}\n"
    except _Unusual:
        pass
    return OmegaConf.to_yaml(config)


def _of_dict(content: dict[Any, Any], depth: int) -> Iterator[str]:
    """Its lines, indented by so many steps."""
    for key, value in content.items():
        if type(key) is not str:
            raise _Unusual
        if not value or not isinstance(value, (dict, list)):
            yield _pair(depth, key, *_plain(value))
            continue
        yield _head(depth, key)
        yield from _of_list(value, depth) if isinstance(value, list) else _of_dict(value, depth + 1)


def _of_list(content: list[Any], depth: int) -> Iterator[str]:
    for value in content:
        if not value or not isinstance(value, (dict, list)):
            yield _item(depth, *_plain(value))
            continue
        # The item's mark stands where its first line would be indented.
        lines = (
            _of_list(value, depth + 1) if isinstance(value, list) else _of_dict(value, depth + 1)
        )
        yield f"{_STEP * depth}- {''.join(lines)[len(_STEP) * (depth + 1) :]}"


def _plain(value: Any) -> tuple[Any, str]:
    """A value without others in it, and what tells it from those that it equals: 0.0 and -0.0."""
    if type(value) in (dict, list):  # empty ones
        return None, repr(value)
    if type(value) not in _PLAIN:
        raise _Unusual
    return value, repr(value) if type(value) is float else ""


@lru_cache(_KEPT, typed=True)
def _pair(depth: int, key: str, value: Any, shown: str) -> str:
    return _lines(depth, {key: _value(value, shown)})


@lru_cache(_KEPT, typed=True)
def _item(depth: int, value: Any, shown: str) -> str:
    return _lines(depth + 1, [_value(value, shown)])


@lru_cache(_KEPT)
def _head(depth: int, key: str) -> str:
    """The line above what stands under a key."""
    head, newline, rest = _lines(depth, {key: {"a": 0}}).partition("\n")
    if not head.endswith(":") or rest != f"{_STEP * (depth + 1)}a: 0\n":
        raise _Unusual
    return head + newline


def _value(value: Any, shown: str) -> Any:
    return {"{}": {}, "[]": []}.get(shown, value)


def _lines(depth: int, content: Any) -> str:
    """As OmegaConf writes it below so many keys."""
    for _ in range(depth):
        content = {"a": content}
    text: str = yaml.dump(
        content,
        default_flow_style=False,
        allow_unicode=True,
        sort_keys=False,
        Dumper=get_omega_conf_dumper(),
    )
    return text.split("\n", depth)[depth]
