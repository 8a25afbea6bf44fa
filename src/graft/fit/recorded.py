"""Steps on a GPU that are asked for once: recorded as a CUDA graph, then replayed.

A step of a small tail takes a GPU less time than it takes Python to ask for its hundreds of
kernels, one by one. Recorded, they are asked for at once. They are the same kernels on the same
numbers, so a recorded step changes no bit.

Nor does it where the steps of two runs are made side by side, each run's in a lane of its own, a
CUDA stream. While one's optimizer waits for memory another's convolutions compute, and what
either leaves idle between two kernels is taken.
"""

import functools
import logging
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from graft.collector import without_collector
from graft.errors import RunError

log = logging.getLogger("graft")

# Steps of a kind that are asked for kernel by kernel before one is recorded: the first ones set up
# what later ones find, an optimizer's state above all.
ASKED_FIRST = 3
# Lanes of a GPU: four were hardly faster than two (docs/decisions/0019).
LANES = 2
# Steps that a run is asked for before the first of them is done: so many batches are held.
AHEAD = 4

Step = Callable[..., None]


class Recorder:
    """Runs a step on batches; on a GPU in a lane, and from its fourth time on as one launch.

    Args:
        device: of all tensors.
        is_on: False: nothing is recorded.
    """

    def __init__(self, device: torch.device, *, is_on: bool) -> None:
        self._device = device
        self._is_on = is_on and device.type == "cuda"
        self._lane, self._is_beside = 0, False
        self._open: deque[tuple[torch.cuda.Event, tuple[torch.Tensor, ...]]] = deque()
        self.forget()

    @contextmanager
    def lane(self, *inputs: torch.Tensor) -> Iterator[None]:
        """All that a step asks of the device belongs in here, and its batch is named.

        It begins when all is done that was asked for before, but for what other lanes do.
        """
        if self._device.type != "cuda":
            yield
            return
        own, current = _stream(self._device, self._lane), torch.cuda.current_stream(self._device)
        own.wait_stream(current)
        try:
            with torch.cuda.stream(own):
                yield
        finally:
            if self._is_beside:
                self._go_on(inputs)
            else:
                current.wait_stream(own)

    def run(self, step: Step, *inputs: torch.Tensor) -> None:
        """The step on a batch, in the lane.

        Args:
            step: the same each time. What it reads and writes besides `inputs` has to stay where it
                is in memory, and nothing in it may wait for the device. Its Python runs when it is
                recorded, and not when it is replayed. Random numbers of the device are those that
                it would have drawn.

        Raises:
            RunError: recording went wrong in a way that PyTorch does not recover from.
        """
        if not self._is_on:
            step(*inputs)
            return
        kind = tuple((t.shape, t.stride(), t.dtype) for t in inputs)
        if kind not in self._recordings and self._asked[kind] == ASKED_FIRST:
            self._record(kind, step, inputs)
        if kind in self._recordings:
            self._recordings[kind].replay(inputs)
            return
        self._asked[kind] += 1
        step(*inputs)

    def wait(self) -> None:
        """What is asked for next begins when the lane has done all that it was asked for."""
        if self._is_beside:
            torch.cuda.current_stream(self._device).wait_stream(_stream(self._device, self._lane))
            self._open.clear()

    def forget(self) -> None:
        """Give memory back; another step may come next."""
        self._asked: Counter[object] = Counter()
        self._recordings: dict[object, _Recording] = {}
        # One memory for all: they run one after the other, and what a step leaves in it (gradients)
        # is not looked at by the next. Never that of earlier recordings, which is on its way out.
        self._pool = torch.cuda.graph_pool_handle() if self._is_on else None

    @staticmethod
    @contextmanager
    def in_lanes(recorders: "Sequence[Recorder]", num_lanes: int) -> Iterator[None]:
        """From before any step on, recorders of one device take turns, or make steps side by side.

        Side by side, `wait` before looking at what steps have made. Those of a lane take turns, and
        share memory: what lies between forward and backward is there once, and not once for each.
        """
        for number, recorder in enumerate(recorders):
            recorder._lane = number % num_lanes
            recorder._is_beside = num_lanes > 1 and recorder._device.type == "cuda"
            recorder._pool = recorders[recorder._lane]._pool
        try:
            yield
        finally:
            # Whatever came: what uses the same memory next must not overtake what is on its way.
            for recorder in recorders:
                recorder.wait()

    # --- inside ---------------------------------------------------------------------------

    def _go_on(self, inputs: tuple[torch.Tensor, ...]) -> None:
        """Without waiting for a step, but not too far; till it is done its batch is held, whose
        memory would else be given to the next."""
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(_stream(self._device, self._lane))
        self._open.append((done, inputs))
        if len(self._open) > AHEAD:
            self._open.popleft()[0].synchronize()

    def _record(self, kind: object, step: Step, inputs: tuple[torch.Tensor, ...]) -> None:
        """Recording runs nothing. What cannot be recorded is asked for as before."""
        try:
            self._recordings[kind] = _Recording(step, inputs, self._device, self._pool)
        except RuntimeError as error:  # out of memory is one, too
            log.debug("  steps are not recorded: %s", error, exc_info=True)
            traceback.clear_frames(error.__traceback__)  # they hold what the step had made
            self._is_on = False
            self.forget()


class _Recording:
    """A CUDA graph of a step, and the tensors that it reads a batch from."""

    def __init__(
        self, step: Step, inputs: tuple[torch.Tensor, ...], device: torch.device, pool: Any
    ) -> None:
        self._inputs = [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device) for t in inputs
        ]
        self._take(inputs)
        self._graph = torch.cuda.CUDAGraph()
        failed: Exception | None = None
        # What is collected might be another recording: a device that records does not let it go.
        with without_collector():
            # Other threads, which fetch the next batches, may go on with what they do.
            self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                step(*self._inputs)
            except Exception as error:
                failed = error
            try:
                self._graph.capture_end()
            except RuntimeError as error:
                # The step is recorded; to make it ready takes memory that is not PyTorch's own.
                if failed is None and "out of memory" in str(error):
                    raise
                raise RunError(
                    f"This step cannot be recorded as a CUDA graph: {failed or error}. "
                    "Run it with cuda_graphs=false, and please report this."
                ) from (failed or error)
        try:
            if failed is not None:
                raise failed
        finally:
            del failed  # it holds this frame, and with it the recording

    def replay(self, inputs: tuple[torch.Tensor, ...]) -> None:
        self._take(inputs)
        self._graph.replay()

    def _take(self, inputs: tuple[torch.Tensor, ...]) -> None:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)


@functools.cache
def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
