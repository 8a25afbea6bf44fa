"""An MLflow store in a process of its own, so that training does not share Python with it.

MLflow takes seconds to import and to make its tables, and Python runs one thread at a time: in the
process that trains, every operation of a network would wait for it. Here each call of
`client.Store` travels through a pipe: the method's name and its arguments there, a plain value or a
`StoreError` back. The process ends when the pipe does, whatever became of this one.
"""

import atexit
import contextlib
import functools
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import IO, Any, cast

from graft.tracking.client import Store, StoreError, http_status, import_mlflow


class Gone(Exception):
    """The store's process has ended unasked."""


def open_store(uri: str) -> Store:
    """The store of a tracking URI: made, where it is missing, and used in another process.

    Raises:
        StoreError: as MLflow says.
        Gone: now or in any later call.
    """
    process = _take()
    try:
        process.call("open", uri)
    except StoreError:
        _spare.append(process)
        raise
    return cast(Store, _Remote(process))


def give_back(store: Store) -> None:
    """A store is needed no more; its process will open the next one."""
    _spare.append(cast(_Remote, store).process)


def warm_up() -> None:
    """Start the process for a store that will be opened soon; MLflow is imported meanwhile."""
    if not _spare:
        _spare.append(_Process())


_spare: list["_Process"] = []


def _take() -> "_Process":
    return _spare.pop() if _spare else _Process()


@atexit.register
def _end_unused() -> None:
    for process in _spare:
        process.end()


class _Remote:
    """Looks like a `Store`."""

    def __init__(self, process: "_Process") -> None:
        self.process = process

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(self.process.call, name)


class _Process:
    """The other process, seen from this one."""

    def __init__(self) -> None:
        # -P: no file that lies in the working directory is taken for a module.
        command = [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"]
        found = [path for path in sys.path if path]
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(found)},
            # Ctrl-C in the terminal is for the sweep: it ends in order, with this process's help.
            start_new_session=True,
        )

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """One call there; waits for its result."""
        to, back = self._child.stdin, self._child.stdout
        assert to is not None and back is not None
        try:
            pickle.dump((name, args, kwargs), to)
            to.flush()
            is_value, result = pickle.load(back)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            self.end()
            raise Gone("the process that talks to MLflow has ended") from error
        if is_value:
            return result
        raise result

    def end(self) -> None:
        self._child.kill()
        with contextlib.suppress(OSError):  # what was written, and not yet sent
            self._child.communicate()


# --- in the other process -------------------------------------------------------------------


def serve() -> None:
    """Answer calls until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Training goes first where both want a core.
    os.nice(10)
    calls = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # What anything prints must not get between the answers.
    os.dup2(2, 1)
    import_mlflow()
    store: Store | None = None
    while (call := _next(calls)) is not None:
        name, args, kwargs = call
        answer: tuple[bool, Any]
        try:
            if name == "open":
                store = Store(*args)
                answer = (True, None)
            else:
                answer = (True, getattr(store, name)(*args, **kwargs))
        except Exception as error:
            answer = (False, StoreError(str(error) or repr(error), http_status(error)))
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except OSError:
            return


def _next(calls: IO[bytes]) -> tuple[str, tuple[Any, ...], dict[str, Any]] | None:
    try:
        return cast(tuple[str, tuple[Any, ...], dict[str, Any]], pickle.load(calls))
    except (EOFError, OSError):
        return None
