"""Values <-> their text in an override, as Hydra's own parser reads it."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString, Sweep

# Optuna's choices; what else can be written as an override is a string here.
Value = None | bool | int | float | str


def written(value: Any) -> str:
    """A value as an override has it. A string is taken as typed, where Hydra takes it for one
    value (it may be a number, or a list); otherwise it comes in quotes."""
    return _written(value)


def exactly(value: Any) -> str:
    """The same, but that a string is the string itself, even if it looks like a number."""
    return _written(value, is_exact=True)


def _written(value: Any, *, is_exact: bool = False, is_nested: bool = False) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, tuple)):
        inside = (_written(one, is_exact=is_exact, is_nested=True) for one in value)
        return f"[{','.join(inside)}]"
    if isinstance(value, Mapping):
        pairs = (
            f"{key}:{_written(one, is_exact=is_exact, is_nested=True)}"
            for key, one in value.items()
        )
        return f"{{{','.join(pairs)}}}"
    if isinstance(value, QuotedString):
        return _typed(value.text, True, is_nested)
    return _typed(value, is_exact, is_nested) if isinstance(value, str) else str(value)


PARSER = OverridesParser.create()
_NO_VALUE = object()


@lru_cache(maxsize=50_000)
def _typed(text: str, is_exact: bool, is_nested: bool) -> str:
    """A string as it can be typed, in quotes where it needs them."""
    found = _unquoted(_parsed_value(f"[{text}]" if is_nested else text))
    if is_nested:
        found = found[0] if isinstance(found, list) and len(found) == 1 else _NO_VALUE
    is_one = found is not _NO_VALUE and not isinstance(found, Sweep)
    is_plain = found == text if is_exact else is_one
    return text if is_plain else QuotedString(text, Quote.single).with_quotes()


def _parsed_value(text: str) -> Any:
    """What Hydra takes a text for, `_NO_VALUE` for none."""
    try:
        return PARSER.parse_override(f"it={text}")._value
    except Exception:  # its parser raises what it likes
        return _NO_VALUE


def _unquoted(value: Any) -> Any:
    if isinstance(value, list):
        return [_unquoted(one) for one in value]
    return value.text if isinstance(value, QuotedString) else value


def as_read(text: str) -> Any:
    """What an override sets with a text that is one value."""
    return PARSER.parse_override(f"it={text}").value()


def texts(value: Any) -> list[str]:
    """What a choice may look like that somebody means by a value: they may write 1e-3 for 0.001,
    or a string with or without its quotes."""
    found = [written(value)]
    if isinstance(value, str) and (parsed := _parsed_value(value)) is not _NO_VALUE:
        found.append(exactly(parsed))
    return [*found, exactly(value)]


def plain(text: str) -> str:
    parsed = _parsed_value(text)
    return text if parsed is _NO_VALUE else exactly(parsed)
