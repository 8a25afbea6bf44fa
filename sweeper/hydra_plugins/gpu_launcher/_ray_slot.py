"""A slot on a Ray cluster, seen from the launcher: what is asked of its actor, and what it says.

An actor is asked one thing at a time, and whatever it answers decides what is asked next: that is
the conversation below. The launcher waits for the answers of all slots at once.
"""

import contextlib
import logging
import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.utils import JobReturn

from hydra_plugins.gpu_launcher._array import Array, title
from hydra_plugins.gpu_launcher._child import result_of
from hydra_plugins.gpu_launcher._job import failed
from hydra_plugins.gpu_launcher._processes import RESTS_S
from hydra_plugins.gpu_launcher._ray_host import COMPLAINED, ENDED, LEFT, SAID, Event
from hydra_plugins.gpu_launcher._ray_luggage import Luggage, Request, Talk
from hydra_plugins.gpu_launcher._ray_place import Place
from hydra_plugins.gpu_launcher._view import View
from hydra_plugins.gpu_launcher._worker import ALIVE, DONE, READY, TOLD
from hydra_plugins.gpu_launcher.ends import NoResult, TimedOut, WorkerDied

log = logging.getLogger(__name__)

# An actor that has nothing to say answers after so long all the same.
POLL_S = 1.0
# One that is to end a worker, and does not, is ended with it.
LAST_S = 15.0
# One that cannot be reached may have a network that comes back. Ray finds out sooner, as a rule,
# whether its node is lost.
REACH_S = 60.0

Ended = tuple[Array, Sequence[JobReturn]]


class RaySlot:
    """A slot; its actor is replaced when it is lost.

    Args:
        hire: makes an actor.

    Attributes:
        array: what it runs, if anything.
        answer: the Ray reference that is waited for; None: nobody is there to be asked.
        place: where its actor is, once it is anywhere.
        is_ready: whether its worker takes arrays.
        why: what its last failure was.
    """

    def __init__(
        self, name: str, ray: Any, hire: Callable[[str], Any], view: View, luggage: Luggage
    ) -> None:
        self.name, self._ray, self._hire = name, ray, hire
        self._view, self._luggage = view, luggage
        self.array: Array = ()
        self.why = ""
        self.answer: Any = None
        self._num_failed = 0
        self._is_leaving = False
        self._engage()

    def _engage(self) -> None:
        self.place: Place | None = None
        self.is_ready = False
        self._results: Sequence[JobReturn] | None = None
        self._ended: Ended | None = None
        self._verdict: NoResult | None = None
        self.heard_at = self._verdict_at = time.monotonic()
        self._unreached_at: float | None = None
        self._num_begun = self._num_seen = 0
        self._actor = self._hire(self.name)
        self._talk = self._conversation()
        self._ask(next(self._talk))

    @property
    def is_left_out(self) -> bool:
        """Whether no worker gets ready here, however often it is tried."""
        return self._num_failed > len(RESTS_S)

    @property
    def is_idle(self) -> bool:
        return self.is_ready and not self.array and self._verdict is None

    def begin(self, array: Array) -> None:
        self.array, self.heard_at = array, time.monotonic()
        self._num_begun += 1
        self._hand_over()

    def take(self) -> Ended | None:
        """Hear the answer that has come; an array that has ended by it."""
        errors = self._ray.exceptions
        try:
            reply = self._ray.get(self.answer)
        except errors.ActorUnavailableError:
            return self._ask_again()
        except errors.RayError as error:
            return self._lost(in_words(error))
        self._unreached_at = None
        try:
            self._ask(self._talk.send(reply))
        except StopIteration:
            self.kill()
        ended, self._ended = self._ended, None
        return ended

    def check(self, timeout_s: float | None) -> Ended | None:
        """End a worker that has been silent for too long; its array, if even that has no effect."""
        now = time.monotonic()
        if self._verdict is not None:
            return self._lost("it did not end") if now - self._verdict_at > LAST_S else None
        if timeout_s is None or self.is_idle or self.place is None or self._results is not None:
            return None
        if now - self.heard_at >= timeout_s:
            self._verdict = TimedOut(f"it gave no sign of life for {timeout_s:g} s")
            self._verdict_at = now
            self._actor.kill.remote()
        return None

    def leave(self) -> None:
        """Nothing more will come: end what runs, in order. It is over when `answer` is None."""
        if self.place is None:
            self.kill()
        elif self.answer is not None:
            self._is_leaving = True
            self._actor.hurry.remote()

    def kill(self) -> None:
        """End the actor; Ray frees what it held."""
        self.answer = None
        with contextlib.suppress(Exception):
            self._ray.kill(self._actor)

    # --- what is said ------------------------------------------------------------------------

    def _ask(self, request: Request) -> None:
        self._request = request
        method, *arguments = request
        self.answer = getattr(self._actor, method).remote(*arguments)

    def _ask_again(self) -> Ended | None:
        """Whether the last question was heard, nobody knows; all can be asked twice."""
        now = time.monotonic()
        self._unreached_at = self._unreached_at or now
        if now - self._unreached_at > REACH_S:
            return self._lost("its node cannot be reached")
        time.sleep(0.1)
        self._hand_over()
        self._ask(self._request)
        return None

    def _hand_over(self) -> None:
        """Once or more: the actor begins an array once."""
        if self.array and self.is_ready:
            self._actor.begin.remote(self._num_begun, list(self.array))

    def _conversation(self) -> Talk:
        """Ask, and be sent the answers."""
        self.place = yield ("place",)
        log.info("%s: %s", self.name, self.place.in_words)
        self.heard_at = time.monotonic()
        while not self._is_leaving:
            words = self._understood((yield ("heard", self._num_seen, POLL_S)))
            if self._results is not None:
                yield from self._luggage.brought_home(self.array, self.place)
                self._settle()
            if words is not None and not self._is_leaving:
                yield from self._another_worker(words)
        self._understood((yield ("leave", self._num_seen)))
        if self.array:
            yield from self._luggage.brought_home(self.array, self.place)

    def _understood(self, events: Sequence[Event]) -> str | None:
        """Take note of what a worker has said; if it has ended, how, in words."""
        words = None
        self._num_seen += len(events)
        for kind, blob in events:
            if kind in (SAID, COMPLAINED):
                self._view.said(blob.decode(), self.name, is_error=kind == COMPLAINED)
                continue
            self.heard_at = time.monotonic()
            if kind == READY:
                self.is_ready, self._num_failed = True, 0
                self._hand_over()  # it has taken the place of one that died before it began
            elif kind == TOLD:
                num, share, text = pickle.loads(blob)
                self._view.told(num, share, text, self.array)
            elif kind == DONE:
                pairs = zip(self.array, pickle.loads(blob), strict=True)
                self._results = [result_of(job, own) for job, own in pairs]
            elif kind in (ENDED, LEFT):
                words = blob.decode()
                if kind == ENDED:
                    self._results = self._failed(words)
            else:
                assert kind == ALIVE
        return words

    def _failed(self, words: str) -> list[JobReturn]:
        why = self._verdict or WorkerDied(words)
        return [failed(job, why) for job in self.array]

    def _settle(self) -> None:
        assert self._results is not None
        self._ended = self.array, self._results
        self.array, self._results = (), None

    def _another_worker(self, words: str) -> Talk:
        """One that was ready has died of what it was given; one that was not, of something else."""
        rest_s = 0.0
        if not self.is_ready:
            self._count(words)
            rest_s = RESTS_S[min(self._num_failed, len(RESTS_S)) - 1]
        self.is_ready, self._verdict = False, None
        if self.is_left_out:
            self._is_leaving = True
            return
        yield "again", rest_s
        self.heard_at = time.monotonic()

    # --- when it goes wrong ------------------------------------------------------------------

    def _lost(self, words: str) -> Ended | None:
        """Its actor has ended, or is ended here; another takes its place."""
        if self.array:
            if self._results is None:
                self._results = self._failed(words)
            else:
                log.error("%s: files are not brought home: %s", title(self.array), words)
            self._settle()
        ended, self._ended = self._ended, None
        if not self.is_ready:
            self._count(words)
        self.kill()
        if not (self.is_left_out or self._is_leaving):
            self._engage()
        return ended

    def _count(self, words: str) -> None:
        """A worker, or an actor, that did not get ready."""
        self._num_failed += 1
        self.why = words
        what = "is left out" if self.is_left_out else "another is started"
        log.warning("%s: no worker gets ready, %s: %s", self.name, what, words)


def in_words(error: BaseException) -> str:
    """Why Ray has no answer."""
    text = str(error)
    kind = type(error).__name__
    if kind == "RuntimeEnvSetupError":
        return f"hydra.launcher.runtime_env cannot be set up: {_last_line(text)}"
    if "OutOfMemory" in kind or "memory on the node" in text:
        return "Ray has ended it: its node was out of memory"
    if "worker process has died" in text:
        return "the actor that holds its slot was killed or has crashed, possibly out of memory"
    if "node has died" in text or "node was" in text:
        return "its node was lost"
    return f"the actor that holds its slot failed: {_last_line(text)}"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "nobody says why"
