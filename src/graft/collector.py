"""Work that Python's collector of cyclic garbage must not, or need not, interrupt."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Nothing is collected in here, in any thread."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def importing() -> Iterator[None]:
    """What is imported in here stays: nothing is collected, nor looked at by later collections.

    A library of ten thousand functions is gone through several times while it is imported, and each
    time that all is gone through. That was a seventh of importing PyTorch, a fifth of MLflow.
    """
    there = len(sys.modules)
    with without_collector():
        yield
    if len(sys.modules) > there:  # garbage that there is now stays, too
        gc.freeze()
