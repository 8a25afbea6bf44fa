"""What is wrong with a command, in a few lines: Hydra's errors and ours as a person reads them."""

import re
from pathlib import Path

from hydra.errors import OverrideParseException

from graft.config import keys, nearest

_MOST_LINES = 40


def in_words(error: Exception, conf: Path) -> list[str]:
    """What Hydra or we say, without what only a developer of Hydra can use.

    Args:
        conf: the folder of the YAML files.
    """
    text = str(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, text)
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return [_no_key(unknown.group(1), conf)]
    if missing := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, option = missing.groups()
        there = re.findall(r"^\t(?!provider|_)(\S+)$", text, flags=re.MULTILINE)
        return [
            f"graft: {group}={option} is not an option.{nearest(option, there)} "
            f"Options: {', '.join(there)}."
        ]
    kept = _kept(text)
    return [f"graft: {kept[0]}" if kept else f"graft: {error!r}", *kept[1:_MOST_LINES]]


def _unreadable(override: str, text: str) -> list[str]:
    """What to type instead of what Hydra's grammar does not know."""
    if override.endswith(","):
        return [f"graft: {override} ends with a comma. A list is typed without spaces: key=a,b."]
    key, equals, value = override.partition("=")
    if not equals:
        return [
            f"graft: {override} is not key=value. A value with a space in it is quoted, and so "
            "are those with other signs: \"key='a value'\"."
        ]
    said = [line for line in _kept(text) if not line.startswith(("Error parsing", "Lexer", " "))]
    quoted = f"\"{key}='{value}'\"" if "'" not in value else f"'{key}=\"{value}\"'"
    return [
        f"graft: {override} cannot be read.",
        *said[:_MOST_LINES],
        f"A value with signs of its own needs quotes within quotes: {quoted}.",
    ]


def _no_key(key: str, conf: Path) -> str:
    owners = _options_with(key, conf)
    if owners:
        return (
            f"graft: {key} belongs to {' and '.join(owners)}. Choose "
            f"{'one of these' if len(owners) > 1 else 'that'}, and no other "
            f"{key.partition('.')[0]} beside it."
        )
    return (
        f"graft: {key} is not a key of the configuration.{nearest(key, keys())} "
        "`graft --cfg job` lists them all."
    )


def _options_with(key: str, conf: Path) -> list[str]:
    """Of a key that some options of its group have: those, as they are typed."""
    group, _, name = key.partition(".")
    files = sorted((conf / group).glob("[!_]*.yaml")) if key in keys() else []
    has = re.compile(rf"^{re.escape(name)}:", re.MULTILINE)
    return [f"{group}={file.stem}" for file in files if has.search(file.read_text("utf-8"))]


def _kept(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    return [line for line in lines if not re.match(r"\s+(full_key|object_type)|See https", line)]
