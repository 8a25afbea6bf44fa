"""Who decodes: threads, or processes where threads would only wait for each other.

Pillow lets other threads run while it unpacks and scales, but not while Python reads the header,
compares the digest and copies the pixels: about a quarter of the time for a small photograph. So
threads get ahead up to some four cores; 16 decoded 1,400 made JPEGs of 178 x 218 a second, where 16
processes decoded 7,700 (docs/performance.md).
"""

import importlib
import os
import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

from graft.aside import Aside, Gone

# From so many workers, and for so many files, processes are worth their start.
PROCESSES_FROM, MANY = 8, 2_000
# Files for which a process is asked at a time.
AT_A_TIME = 16

Found = TypeVar("Found")


class Decoders:
    """Threads, each with a process where that is worth while.

    Args:
        name: of the threads.
        workers: None: one per core; 0: in the calling thread.
        num_files: that there are to do in all.
    """

    def __init__(self, name: str, workers: int | None, num_files: int) -> None:
        count = num_cores() if workers is None else workers
        are_processes = count >= PROCESSES_FROM and num_files >= MANY
        self.at_a_time = AT_A_TIME if are_processes else 1
        self._threads = ThreadPoolExecutor(count, name) if count else None
        self._idle: queue.SimpleQueue[Aside | None] | None = None
        self._processes: list[Aside] = []
        if are_processes:
            self._idle = queue.SimpleQueue()
            for _ in range(count):
                self._idle.put(self._started())

    def submit(self, work: Callable[..., Found], *arguments: Any) -> "Future[Found]":
        """`work(*arguments)`, soon, in one of the threads: it has `call` do what takes long."""
        if self._threads is not None:
            return self._threads.submit(work, *arguments)
        done: Future[Found] = Future()
        try:
            done.set_result(work(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done

    def call(self, function: Callable[..., Found], *arguments: Any) -> Found:
        """What a function of a module returns, computed in a process that is free, or here."""
        idle = self._idle
        if idle is None:
            return function(*arguments)
        process = idle.get()
        try:
            if process is not None:
                name = f"{function.__module__}:{function.__name__}"
                found: Found = process.call(name, *arguments)
                return found
        except Gone:
            # It was killed, or a picture has broken a library: another takes its place, and this
            # is done here, where the error is at least seen.
            process = self._started() if self._idle is idle else None
        finally:
            idle.put(process)
        return function(*arguments)

    def end_processes(self) -> None:
        """They are not needed any more; threads go on."""
        idle, self._idle = self._idle, None
        for process in self._processes:
            process.end()
        self._processes.clear()
        if idle is not None:
            idle.put(None)  # for whoever waits for one: it goes from hand to hand

    def close(self) -> None:
        """End all; what has not begun is dropped."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        self.end_processes()
        if self._threads is not None:
            self._threads.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _started(self) -> Aside:
        self._processes.append(Aside(f"{__name__}:_ready", is_awaited=True))
        return self._processes[-1]


def _ready() -> None:
    """What a process does first: import what decodes."""
    importlib.import_module("graft.data.decode")


def num_cores() -> int:
    """Cores that this process may use; a container or a launcher may grant only some."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
