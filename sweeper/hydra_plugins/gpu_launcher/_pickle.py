"""Pickles of an application: functions of the script that was started go by value.

As cloudpickle makes them, with one difference: code keeps the name of its file. cloudpickle leaves
it out, for equal functions to be equal bytes; a traceback in a worker would then name no file.
"""

import io
from collections import ChainMap
from collections.abc import Callable
from types import CodeType
from typing import Any, ClassVar

import cloudpickle

_reduce: Callable[[CodeType], tuple[Any, ...]] = cloudpickle.Pickler.dispatch_table[CodeType]


def dumps(value: Any) -> bytes:
    """See above; `pickle.loads` reads it where this plugin is installed."""
    stream = io.BytesIO()
    _Pickler(stream).dump(value)
    return stream.getvalue()


def _reduced(code: CodeType) -> tuple[Any, ...]:
    build, arguments = _reduce(code)[:2]
    return _built, (build, arguments, code.co_filename)


def _built(build: Callable[..., CodeType], arguments: tuple[Any, ...], filename: str) -> CodeType:
    return build(*arguments).replace(co_filename=filename)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table: ClassVar[Any] = ChainMap(
        {CodeType: _reduced}, cloudpickle.Pickler.dispatch_table
    )
