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

    Else a large library is gone through again and again while it is made, with all that is there:
    that was a seventh of importing PyTorch, a fifth of MLflow.
    """
    there = len(sys.modules)
    with without_collector():
        yield
    if len(sys.modules) > there:  # garbage that there is now stays, too
        gc.freeze()
