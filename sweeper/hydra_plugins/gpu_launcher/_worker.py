"""The process in a slot: it gets arrays of jobs through a pipe and sends back what came out.

It is started in its slot's environment, before anything looks at devices, stays for the next
array, and ends when the pipe does: whoever started it may have been killed.
"""

import atexit
import contextlib
import faulthandler
import importlib
import logging
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.errors import HydraException
from tblib import pickling_support

from hydra_plugins.gpu_launcher import _ahead, _array, progress
from hydra_plugins.gpu_launcher._composed import compose_once
from hydra_plugins.gpu_launcher._job import Job, Work, essence, exception, failed, in_words
from hydra_plugins.gpu_launcher._pickle import dumps
from hydra_plugins.gpu_launcher.ends import Untold

# What a worker that was started ahead has to have called, and what every worker is told: a pickle.
Start = tuple[str | None, bytes]
# A message is one of these and a pickle.
READY, ALIVE, DONE, TOLD = b"r", b"a", b"d", b"t"
# Signs of life travel at most so often, and words of one job.
EVERY_S = 0.2


class Closed(Exception):
    """The launcher wants nothing more, or is no longer there."""


def start_of(
    work: Work,
    *,
    is_live: bool,
    warm_up: str | None,
    get_ready: str | None = None,
    first: Job | None = None,
) -> Start:
    """All that a process needs to run jobs. Functions of the script that was started go by value.

    `get_ready` is called with the configuration of the `first` job, if there are both.

    Must be called after the sweep's folder was named: the time in its name is kept with it.
    """
    start = {
        "warm_up": warm_up,
        "get_ready": get_ready if first else None,
        "first": first,
        "is_live": is_live,
        "work": work,
        "singletons": Singleton.get_state(),
    }
    try:
        return warm_up, dumps(start)
    except Exception as error:
        raise HydraException(
            f"The application cannot be sent to a worker process: {in_words(error)}\n"
            "Open files, locks and the like belong into modules, or into the function itself."
        ) from error


def main(file: int, parent: int, ahead: str | None = None) -> None:
    """Serve until the other end of the pipe is closed, or a signal says to stop.

    Args:
        file: the pipe's number.
        parent: the process at its other end.
        ahead: a function to call, by its dotted path, before anything is known of the jobs.
    """
    faulthandler.enable()  # a native library that crashes says where, in what the job prints
    # The terminal's Ctrl-C is for the launcher, which passes on an order of its own. A handler, for
    # what is ignored would be by all that jobs start, too.
    signal.signal(signal.SIGINT, _ignore)
    signal.signal(signal.SIGTERM, _stop)
    _ahead.forbid()  # what is imported here may be the application that started us
    pipe = Pipe(Connection(file))
    # The launcher must see the pipe end when this process does, whoever was started by a job.
    os.set_inheritable(file, False)
    os.register_at_fork(after_in_child=pipe.forget)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    logging.setLogRecordFactory(pipe.telling(logging.getLogRecordFactory()))
    # Told to stop, the job has had its chance to save what it has.
    with contextlib.suppress(Closed, KeyboardInterrupt):
        work = begun(pipe, ahead)
        pipe.send(READY)
        while True:
            array = cloudpickle.loads(pipe.receive())
            pipe.send(DONE, pickle.dumps(run(array, work)))
    _leave()


def begun(pipe: "Pipe", ahead: str | None) -> Work:
    """Make this process what the launcher's is; returns what its jobs have in common."""
    slot, start = pipe.receive_while(_warm_up, ahead) if ahead else (pipe.receive(), pipe.receive())
    told: Mapping[str, Any] = cloudpickle.loads(start)
    setup_globals()
    Singleton.set_state(told["singletons"])
    work: Work = told["work"]
    compose_once(work.context)
    progress.use(pipe.tell, is_live=told["is_live"], slot=cloudpickle.loads(slot))
    if not ahead and told["warm_up"] is not None:
        _warm_up(told["warm_up"])
    if told["get_ready"] is not None:
        pipe.send(ALIVE)  # to get ready may take as long as to get here
        _get_ready(told["get_ready"], work, told["first"])
    return work


def run(array: Sequence[Job], work: Work) -> list[bytes]:
    """Run an array; a pickled result for each of its jobs."""
    hydra = work.config.hydra
    configure_log(hydra.hydra_logging, hydra.verbose)
    results = _array.run(array, work)
    return [_told(job, result) for job, result in zip(array, results, strict=True)]


def _warm_up(path: str) -> None:
    """What goes wrong here will go wrong in a job again, and is then said."""
    with contextlib.suppress(Exception):
        _function("warm_up", path)()


def _get_ready(path: str, work: Work, first: Job) -> None:
    """As above."""
    with contextlib.suppress(Exception):
        _function("get_ready", path)(work.composed(first))


def _function(key: str, path: str) -> Callable[..., object]:
    """That there is no such function, no job will say."""
    module, _, name = path.rpartition(".")
    try:
        found: Callable[..., object] = getattr(importlib.import_module(module), name)
    except Exception as error:
        why = "a worker cannot import the script" if module == "__main__" else in_words(error)
        print(f"hydra.launcher.{key}={path} is not called: {why}", file=sys.stderr)
        raise
    return found


def _told(job: Job, result: JobReturn) -> bytes:
    """A result that can be read on the other side; of a failure, its traceback and causes too."""
    error = exception(result)
    if error is not None:
        pickling_support.install(error)  # a pickle loses them
    try:
        blob = bytes(cloudpickle.dumps(essence(result)))
        cloudpickle.loads(blob)  # some exceptions can be written, and not read
    except Exception as problem:
        words = in_words(error) if error else f"its result cannot be pickled ({in_words(problem)})"
        untold = Untold(words)
        if error is not None:
            trace = "".join(traceback.format_exception(error))
            untold.add_note(f"In the worker:\n{trace}")
        untold.is_final = getattr(error, "is_final", False)  # type: ignore[attr-defined]
        return bytes(cloudpickle.dumps(essence(failed(job, untold))))
    return blob


class Pipe:
    """This end of the pipe to the launcher."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()
        self._told_at: dict[int | None, float] = {}
        self._alive_at = 0.0

    def receive(self) -> bytes:
        try:
            return self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise Closed from error

    def receive_while(self, work: Callable[[str], None], what: str) -> tuple[bytes, bytes]:
        """The first two messages, and `work` done, of which they know nothing.

        They are taken out meanwhile: whoever sends would else wait once the pipe is full.
        """
        reader = ThreadPoolExecutor(1, "reader")
        first, second = (reader.submit(self.receive) for _ in range(2))
        reader.shutdown(wait=False)
        work(what)
        return first.result(), second.result()

    def send(self, kind: bytes, blob: bytes = b"") -> None:
        try:
            with self._lock:
                self._connection.send_bytes(kind + blob)
        except OSError as error:
            raise Closed from error

    def forget(self) -> None:
        """In a process that a job has forked: the worker alone speaks for itself."""
        self._lock = threading.Lock()  # a thread that is not here may have held it
        self._connection.close()
        if signal.getsignal(signal.SIGTERM) is _stop:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def tell(self, num: int | None, share: float, text: str = "") -> None:
        """See `progress.tell`."""
        now = time.monotonic()
        if share < 1 and now - self._told_at.get(num, 0.0) < EVERY_S:
            return
        self._told_at[num] = self._alive_at = now
        with contextlib.suppress(Closed):
            self.send(TOLD, pickle.dumps((num, float(share), str(text))))

    def telling(self, factory: Any) -> Any:
        """A factory of log records by which the launcher learns that something happens.

        Hydra replaces all handlers for every job; whoever logs makes a record.
        """

        def make(*args: Any, **kwargs: Any) -> Any:
            now = time.monotonic()
            if now - self._alive_at >= EVERY_S:
                self._alive_at = now
                with contextlib.suppress(Closed):
                    self.send(ALIVE)
            return factory(*args, **kwargs)

        return make


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end_with_parent(pid: int) -> None:
    """A job in the middle of its work does not look at the pipe: this thread does it for it.

    What jobs have started ends, too: the launcher would see to that, and is no longer there.
    """
    while os.getppid() == pid:
        time.sleep(0.5)
    _signal_started(signal.SIGKILL)
    os._exit(1)


def _leave() -> None:
    """End at once: taking large libraries apart takes Python up to a second.

    What has registered itself for the end (`atexit`) is called.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # The launcher kills what is left, unless it was killed itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _signal_started(signal.SIGTERM)
    os._exit(0)


def _signal_started(number: int) -> None:
    """To all processes of our session: `Process` has begun it."""
    with contextlib.suppress(OSError):
        os.killpg(os.getpid(), number)
