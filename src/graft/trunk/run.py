"""Runs a frozen part of a network: without gradients, so many pictures at a time."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from graft.trunk.rows import Stored, same_layout

Tensors = tuple[torch.Tensor, ...]

# Pictures at a time, the usual number first. On a CPU the activations of a small part stay in its
# cache; how small differs from network to network and from machine to machine.
ON_CPU, ON_GPU = (16, 32, 64, 8), (64, 128, 256, 32)


@dataclass
class Pace:
    """How many pictures at a time: the fastest of a few, tried on work that has to be done anyway.

    Another number must not give other activations. On a CPU one that does, by a single bit, is
    ruled out; on a GPU, where kernels differ, the largest difference is kept, as a share of the
    largest value.
    """

    sizes: tuple[int, ...]
    must_be_equal: bool
    seconds: dict[int, float] = field(default_factory=dict)
    difference: float = 0.0

    @classmethod
    def on(cls, device: torch.device, batch_size: int) -> "Pace":
        """The sizes to try on a device: those that take no more memory than training does."""
        is_cpu = device.type == "cpu"
        usual, *others = ON_CPU if is_cpu else ON_GPU
        # Without gradients nothing is kept, layer by layer; on a GPU that allows for more.
        largest = batch_size if is_cpu else 8 * batch_size
        return cls((usual, *(n for n in others if n <= largest)), must_be_equal=is_cpu)

    @property
    def best(self) -> int:
        """The fastest size so far; before any trial the usual one."""
        known = {size: s for size, s in self.seconds.items() if size in self.sizes}
        return min(known, key=known.__getitem__) if known else self.sizes[0]

    def next_untried(self) -> int | None:
        return next((size for size in self.sizes if size not in self.seconds), None)


class Frozen:
    """A frozen part of a network, run in parts of `pace.best` pictures.

    Args:
        module: tensors [B, ...] -> a tuple of tensors, or a tuple of such tuples.
        autocast: makes the context that sets the precision.
        pace: shared with whoever measures.
        is_for_storing: what comes out is not fed to anything that trains: a little faster.
    """

    def __init__(
        self,
        module: nn.Module,
        autocast: Callable[[], torch.autocast],
        pace: Pace,
        *,
        is_for_storing: bool = False,
    ) -> None:
        self.module, self._autocast, self.pace = module, autocast, pace
        self._mode = torch.inference_mode if is_for_storing else torch.no_grad

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        """Tensors [B, ...], of several exits one after the other."""
        return self._run(inputs, self.pace.best)

    def tried(self, *inputs: torch.Tensor) -> Tensors:
        """The same, with a size that is not tried yet, if there is one; it is measured.

        The quickest part counts: the first one of a size pays for setting its kernels up.
        """
        size, usual = self.pace.next_untried(), self.pace.sizes[0]
        if size is None or len(inputs[0]) < 2 * size:
            return self(*inputs)
        seconds: list[float] = []
        out = self._run(inputs, size, seconds)
        self.pace.seconds[size] = min(seconds) / size
        if size == usual or self._agrees(out, self._run([t[:usual] for t in inputs], usual)):
            return out
        self.pace.seconds[size] = float("inf")
        return self._run(inputs, usual)

    def _agrees(self, out: Tensors, usual: Tensors) -> bool:
        for ours, theirs in zip(out, usual, strict=True):
            part = ours[: len(theirs)]
            if torch.equal(part, theirs):
                continue
            if self.pace.must_be_equal:
                return False
            share = float((part - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
            self.pace.difference = max(self.pace.difference, share)
        return True

    def _run(
        self, inputs: Sequence[torch.Tensor], size: int, seconds: list[float] | None = None
    ) -> Tensors:
        if len(inputs[0]) == 1:  # kernels for a batch of one round differently
            doubled = self._run([torch.cat((t, t)) for t in inputs], 2, seconds)
            return tuple(tensor[:1] for tensor in doubled)
        parts = []
        with self._mode(), self._autocast():
            for start, stop in _parts(len(inputs[0]), size):
                started = time.perf_counter()
                parts.append(_flattened(self.module(*(t[start:stop] for t in inputs))))
                if seconds is not None:
                    _wait(parts[-1])
                    seconds.append((time.perf_counter() - started) * size / (stop - start))
        return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))


class Trunk:
    """What is left of the trunk to run for every batch, once for all runs of an array.

    Args:
        frozen: None where nothing is left: the batch has the activations.
        stored: the type in which activations are seen, stored or not.
    """

    def __init__(self, frozen: Frozen | None, stored: Stored) -> None:
        self._frozen, self._stored = frozen, stored

    @property
    def is_empty(self) -> bool:
        """Whether it returns what it is given."""
        return self._frozen is None

    def __call__(self, inputs: Tensors) -> Tensors:
        if self._frozen is None:
            return inputs
        return same_layout(self._frozen(*inputs), self._stored)


def _flattened(values: Sequence[torch.Tensor | Tensors]) -> Tensors:
    out: list[torch.Tensor] = []
    for value in values:
        out += [value] if isinstance(value, torch.Tensor) else value
    return tuple(out)


def _parts(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of about `size`, none of a single picture unless that is all there is: kernels for a
    batch of one round differently."""
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    yield from zip(starts, [*starts[1:], count], strict=True)


def _wait(tensors: Tensors) -> None:
    for tensor in tensors:
        if tensor.device.type == "cuda":
            torch.cuda.synchronize(tensor.device)
