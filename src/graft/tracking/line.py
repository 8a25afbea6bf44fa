"""One background thread that talks to MLflow, so that a run never waits for a server.

Jobs run in the order in which they are given. Whoever wants a result waits for a limited time; a
job that takes longer goes on alone. The thread is a daemon: it never keeps a process alive.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

from graft.aside import Aside, Gone
from graft.tracking import apart, client, places
from graft.tracking.client import Store

log = logging.getLogger("graft")

# After a failure the store is left alone for so long, unless someone insists.
PAUSE_S = 5.0
AGAIN_S = 2.0


class Line:
    """The line to one store.

    Args:
        uri: an absolute tracking URI.
        lock: a file; only one process at a time opens the store while holding it.
        hint: appended to the warning that the store is away: what to do later.
    """

    def __init__(self, uri: str, lock: Path, hint: str) -> None:
        self.uri = uri
        self.lock = lock
        self._hint = hint
        self._store: Store | None = None
        self._retry_at = 0.0
        self._is_away = False
        self._is_refused = False
        self._said: set[str] = set()
        self._late: _Job | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    @property
    def aside(self) -> Aside | None:
        """The process that talks to the store, once it does."""
        return None if self._store is None else apart.process_of(self._store)

    def post(self, work: Callable[[Store], object]) -> None:
        """Have `work` done some time. If it fails, it is not repeated."""
        self._jobs.put(_Job(work, is_urgent=False))

    def ask(self, work: Callable[[Store], object], wait_s: float) -> bool:
        """Have `work` done now, even if the store was away a moment ago; whether it succeeded.

        Waits `wait_s` at most, and hardly at all behind a job that was late before.
        """
        if self._late is not None and not self._late.done.is_set():
            wait_s = min(wait_s, 1.0)
        job = _Job(work, is_urgent=True)
        self._jobs.put(job)
        if not job.done.wait(wait_s):
            self._late = job
            where = places.mask(self.uri)
            self.say("late", f"MLflow at {where} took over {wait_s:.0f} s. {self._hint}")
        return job.succeeded

    def wait(self, wait_s: float) -> None:
        """Until everything given so far is done, or the time is over."""
        job = _Job(lambda store: None, is_urgent=False)
        self._jobs.put(job)
        job.done.wait(wait_s)

    def close(self) -> None:
        """Nothing more will be given: what was is still done, then the store's process is free.

        Hardly waits for it.
        """
        self._jobs.put(None)
        self._thread.join(1.0)

    def say(self, topic: str, text: str) -> None:
        """A warning; once a topic."""
        if topic not in self._said:
            self._said.add(topic)
            log.warning("%s", text)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._do(job)
            except Exception as error:
                self._fail(error)
                if self._is_worth_another(job, error):
                    self._jobs.put(job)
                    time.sleep(AGAIN_S)
                    continue
            job.done.set()
        if self._store is not None:
            apart.give_back(self._store)

    def _is_worth_another(self, job: "_Job", error: Exception) -> bool:
        """An urgent job is tried twice where the server is there and stumbled (500, 429)."""
        is_first, job.is_retried = not job.is_retried, True
        is_stumble = not (isinstance(error, places.Away) or client.is_rejection(error))
        return job.is_urgent and is_first and is_stumble and not self._is_refused

    def _do(self, job: "_Job") -> None:
        is_pausing = time.monotonic() < self._retry_at and not job.is_urgent
        if self._is_refused or is_pausing:
            return
        if self._store is None or self._is_away:
            places.check_reachable(self.uri)
        if self._store is None:
            with places.locked(self.lock):
                self._store = apart.open_store(self.uri)
        job.work(self._store)
        self._is_away = False
        job.succeeded = True

    def _fail(self, error: Exception) -> None:
        if isinstance(error, Gone):
            self._store = None  # opened anew, the next time
        why = places.describe(error, self.uri)
        place = places.mask(self.uri)
        if client.is_refusal(error):
            self._is_refused = True
            self.say("refused", f"MLflow at {place} refuses us ({why}). {self._hint}")
        elif client.is_rejection(error):
            self.say(why, f"MLflow at {place} did not take something: {why}")
        else:
            self._is_away = True
            self._retry_at = time.monotonic() + PAUSE_S
            verb = "cannot be reached" if isinstance(error, places.Away) else "failed"
            self.say("away", f"MLflow at {place} {verb} ({why}). {self._hint}")


class _Job:
    def __init__(self, work: Callable[[Store], object], is_urgent: bool) -> None:
        self.work = work
        self.is_urgent = is_urgent
        self.is_retried = False
        self.done = threading.Event()
        self.succeeded = False
