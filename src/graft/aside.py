"""Functions of ours, called in another process: what would hold up training in this one.

Python runs one thread of a process at a time. Drawing a figure, or importing MLflow, takes turns
with the loop that tells PyTorch what to compute next; in another process it takes a spare core.
Calls travel through a pipe, one at a time, as the function's name and its arguments. The process
ends when the pipe does, whatever became of this one.
"""

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast


class Gone(Exception):
    """The other process has ended unasked."""


class Busy(Exception):
    """The other process has been at something else for too long."""


class Failed(Exception):
    """What a function raised there, in words: an exception that is neither Python's nor ours."""


class Aside:
    """The other process, seen from this one.

    Args:
        first: a function without arguments that it calls at once: imports, mostly.
        is_awaited: training waits for what it does: it yields less.
    """

    def __init__(self, first: str = "", *, is_awaited: bool = False) -> None:
        # -P: no file that lies in the working directory is taken for a module.
        code = f"from {__name__} import _serve; _serve({first!r}, {is_awaited})"
        command = [sys.executable, "-P", "-c", code]
        found = [path or os.getcwd() for path in sys.path]
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(found)},
            # Ctrl-C in the terminal is for the sweep: it ends in order, with this process's help.
            start_new_session=True,
        )
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        return self._child.pid

    def call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """Call a function there, as "package.module:name", and wait for what it returns.

        Arguments and results are pickled. Calls of several threads take turns.

        Raises:
            Gone: the process has ended.
            Exception: what the function raised.
        """
        return self.call_soon(-1, function, *args, **kwargs)

    def call_soon(self, patience_s: float, function: str, *args: Any, **kwargs: Any) -> Any:
        """`call`, unless other threads' calls take longer.

        Raises:
            Busy: it was not called.
        """
        if not self._lock.acquire(timeout=patience_s):
            raise Busy("the other process is busy")
        try:
            return self._call(function, args, kwargs)
        finally:
            self._lock.release()

    def _call(self, function: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        to, back = self._child.stdin, self._child.stdout
        assert to is not None and back is not None
        try:
            pickle.dump((function, args, kwargs), to)
            to.flush()
            is_value, result = pickle.load(back)
        # ValueError: another thread has ended it, and closed the pipe.
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            self.end()
            raise Gone(f"the process for {function.partition(':')[0]} has ended") from error
        if is_value:
            return result
        raise result

    def end(self) -> None:
        """End it now."""
        self._child.kill()
        # What was written, and not yet sent; or another thread ends it, too.
        with contextlib.suppress(OSError, ValueError):
            self._child.communicate()


# --- in the other process -------------------------------------------------------------------


def _serve(first: str, is_awaited: bool) -> None:
    """Answer calls until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _give_way(is_awaited)
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What anything prints must not get between the answers.
    os.dup2(2, 1)
    if first:
        _find(first)()
    while (call := _next(calls)) is not None:
        function, args, kwargs = call
        answer: tuple[bool, Any]
        try:
            answer = (True, _find(function)(*args, **kwargs))
        except Exception as error:
            answer = (False, _plain(error))
        try:
            pickle.dump(answer, answers, protocol=5)  # an array goes into the pipe as it lies
            answers.flush()
        except OSError:
            break
    # Whoever reads what the sweep prints would else wait until Python has tidied up here.
    sys.stderr.flush()
    os._exit(0)


def _give_way(is_awaited: bool) -> None:
    """Training goes first where both want a core."""
    os.nice(10)
    if is_awaited:
        return
    # Linux shares processors out among sessions first, where it groups them (sched(7), autogroup):
    # within our own, being nice is being nice to nobody.
    for _ in range(20):
        try:
            Path("/proc/self/autogroup").write_text("10")
        except BlockingIOError:  # somebody else has just done the same
            time.sleep(0.1)
        except OSError:  # there are no such groups
            return
        else:
            return


def _find(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    return cast(Callable[..., Any], getattr(importlib.import_module(module), name))


def _next(calls: IO[bytes]) -> tuple[str, tuple[Any, ...], dict[str, Any]] | None:
    try:
        return cast(tuple[str, tuple[Any, ...], dict[str, Any]], pickle.load(calls))
    except (EOFError, OSError):
        return None


def _plain(error: Exception) -> Exception:
    """An exception that can be read without importing what raised it."""
    if type(error).__module__.partition(".")[0] in ("builtins", "graft"):
        return error
    return Failed(str(error) or repr(error))
