"""An MLflow store in a process of its own, so that training does not share Python with it."""

import atexit
import functools
from collections.abc import Callable
from typing import Any, cast

from graft.aside import Aside
from graft.tracking.client import Store, StoreError


def open_store(uri: str) -> Store:
    """The store of a tracking URI: made, where it is missing, and used in another process.

    Raises:
        StoreError: as MLflow says.
        graft.aside.Gone: the process has ended; now or in any later call.
    """
    process = _spare.pop() if _spare else _start()
    try:
        process.call("graft.tracking.client:open_here", uri)
    except StoreError:
        _spare.append(process)
        raise
    return cast(Store, _Remote(process))


def process_of(store: Store) -> Aside:
    """Where a store is."""
    return cast(_Remote, store).process


def give_back(store: Store) -> None:
    """A store is needed no more; its process will open the next one."""
    _spare.append(process_of(store))


def warm_up() -> None:
    """Start the process for a store that will be opened soon; MLflow is imported meanwhile."""
    if not _spare:
        _spare.append(_start())


_spare: list[Aside] = []


def _start() -> Aside:
    return Aside("graft.tracking.client:import_mlflow")


@atexit.register
def _end_unused() -> None:
    for process in _spare:
        process.end()


class _Remote:
    """Looks like a `Store`."""

    def __init__(self, process: Aside) -> None:
        self.process = process

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(self.process.call, "graft.tracking.client:call_here", name)
