"""The process in a slot: it gets arrays of jobs through a pipe and sends back what came out.

It is started in its slot's environment, before anything looks at devices, stays for the next
array, and ends when the pipe does: whoever started it may have been killed.
"""

import contextlib
import logging
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, setup_globals

from hydra_plugins.gpu_launcher import _array
from hydra_plugins.gpu_launcher._job import exception, failed, in_words

# A message is one of these and a pickle.
ALIVE, DONE = b"a", b"d"
# Signs of life travel at most so often.
EVERY_S = 1.0


class Untold(RuntimeError):
    """What a job raised or returned, in words: it cannot be pickled, or not be read elsewhere."""


def main(file: int) -> None:
    """Serve until the other end of the pipe is closed, or a signal says to stop."""
    # The terminal's Ctrl-C is for the launcher, which passes on an order of its own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    pipe = _Pipe(Connection(file))
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    start = cloudpickle.loads(pipe.receive())
    setup_globals()
    Singleton.set_state(start["singletons"])
    logging.setLogRecordFactory(pipe.telling(logging.getLogRecordFactory()))
    # Told to stop, the job has had its chance to save what it has.
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            configure_log(*start["logging"])
            array = cloudpickle.loads(pipe.receive())
            results = _array.run(array, start["task"], start["together"], start["context"])
            told = [_told(job, result) for job, result in zip(array, results, strict=True)]
            pipe.send(DONE, pickle.dumps(told))
    sys.exit(0)


def _told(job: Any, result: JobReturn) -> bytes:
    """A result that can be read on the other side, with its traceback, which a pickle loses."""
    error = exception(result)
    if error is not None:
        trace = "".join(traceback.format_exception(error))
        error.add_note(f"In the worker:\n{trace}")
    try:
        blob = bytes(cloudpickle.dumps(result))
        cloudpickle.loads(blob)  # some exceptions can be written, and not read
    except Exception as problem:
        words = in_words(error) if error else f"its result cannot be pickled ({in_words(problem)})"
        return bytes(cloudpickle.dumps(failed(job, Untold(words))))
    return blob


class _Pipe:
    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock, self._told_at = connection, threading.Lock(), 0.0

    def receive(self) -> bytes:
        return self._connection.recv_bytes()

    def send(self, kind: bytes, blob: bytes = b"") -> None:
        with self._lock:
            self._connection.send_bytes(kind + blob)

    def telling(self, factory: Any) -> Any:
        """A factory of log records by which the launcher learns that something happens.

        Hydra replaces all handlers for every job; whoever logs makes a record.
        """

        def make(*args: Any, **kwargs: Any) -> Any:
            now = time.monotonic()
            if now - self._told_at >= EVERY_S:
                self._told_at = now
                with contextlib.suppress(OSError):
                    self.send(ALIVE)
            return factory(*args, **kwargs)

        return make


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end_with_parent(pid: int) -> None:
    """A job in the middle of its work does not look at the pipe: this thread does it for it."""
    while os.getppid() == pid:
        time.sleep(1.0)
    os._exit(1)
