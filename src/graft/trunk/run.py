"""Runs a frozen part of a network: without gradients, so many pictures at a time."""

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from graft import lanes, machine
from graft.trunk.rows import Stored, same_layout

Tensors = tuple[torch.Tensor, ...]

# Pictures at a time, the usual number first. On a CPU the activations of a small part stay in its
# cache; how small differs from network to network and from machine to machine.
ON_CPU, ON_GPU = (16, 32, 64, 8), (64, 128, 256, 32)
# Parts of a size that are run to try it, for each lane: the first one sets its kernels up.
TRIAL_PARTS = 3


@dataclass
class Pace:
    """How many pictures at a time: the fastest of a few, tried on work that has to be done anyway.

    Another number must not give other activations. On a CPU one that does, by a single bit, is
    ruled out; on a GPU, where kernels differ, the largest difference is kept, as a share of the
    largest value.
    """

    sizes: tuple[int, ...]
    must_be_equal: bool
    num_lanes: int = 1
    seconds: dict[int, float] = field(default_factory=dict)
    difference: float = 0.0

    @classmethod
    def on(cls, device: torch.device, batch_size: int) -> "Pace":
        """The sizes to try on a device: those that take no more memory than training does."""
        is_cpu, num_lanes = device.type == "cpu", lanes.count(device)
        usual, *others = ON_CPU if is_cpu else ON_GPU
        # Without gradients nothing is kept, layer by layer; on a GPU that allows for more.
        largest = batch_size // num_lanes if is_cpu else 8 * batch_size
        sizes = (usual, *(n for n in others if n <= largest))
        return cls(sizes, must_be_equal=is_cpu, num_lanes=num_lanes)

    @property
    def best(self) -> int:
        """The fastest size so far; before any trial the usual one."""
        known = {n: s for n, s in self.seconds.items() if n in self.sizes and math.isfinite(s)}
        return min(known, key=known.__getitem__) if known else self.sizes[0]

    def next_untried(self, count: int) -> int | None:
        """A size that so many pictures are enough to measure: two parts for each lane at least."""
        untried = [n for n in self.sizes if n not in self.seconds]
        if self.sizes[0] in untried:  # what others are held against comes first
            untried = untried[:1]
        return next((n for n in untried if 2 * n * self.num_lanes <= count), None)


class Frozen:
    """A frozen part of a network, run in parts of `pace.best` pictures.

    Args:
        module: tensors [B, ...] -> a tuple of tensors, or a tuple of such tuples.
        autocast: makes the context that sets the precision.
        pace: shared with whoever measures.
        is_for_storing: what comes out is not fed to anything that trains: a little faster.

    Pictures come in other numbers than the store was filled with: the last batch of an epoch, the
    rest of a fill that was interrupted. Kernels may round otherwise for a few pictures (one
    picture nearly everywhere; 2 to 15 on one thread of a processor without AVX-512), so a short
    part is filled up with its own pictures, unless it was found to make no difference. To find
    that out pays in training, where the last batch of every epoch is short.
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
        # How many pictures a short part has -> whether they come out as from a whole one.
        self._is_short_equal: dict[int, bool] = {}
        self._mode = torch.inference_mode if is_for_storing else torch.no_grad
        self._finds_out = not is_for_storing

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        """Tensors [B, ...], of several exits one after the other."""
        return self._run(inputs, self.pace.best)

    def tried(self, *inputs: torch.Tensor) -> Tensors:
        """The same; sizes that are not tried yet are measured on the first of the pictures."""
        outs, at, count = [], 0, len(inputs[0])
        while (size := self.pace.next_untried(count - at)) is not None:
            turn = size * self.pace.num_lanes
            stop = at + turn * min(TRIAL_PARTS, (count - at) // turn)
            outs.append(self._tried([t[at:stop] for t in inputs], size))
            at = stop
        if at < count:
            outs.append(self(*(t[at:] for t in inputs)))
        return self._joined(outs)

    def _tried(self, inputs: Sequence[torch.Tensor], size: int) -> Tensors:
        try:
            return self._measured(inputs, size)
        except torch.OutOfMemoryError as error:
            if size == self.pace.sizes[0]:
                raise
            machine.return_gpu_memory(error)
        self.pace.seconds[size] = float("inf")
        return self._run(inputs, self.pace.sizes[0])

    def _measured(self, inputs: Sequence[torch.Tensor], size: int) -> Tensors:
        usual, first = self.pace.sizes[0], size * self.pace.num_lanes
        outs = [self._run([t[:first] for t in inputs], size)]  # sets its kernels up
        _wait(outs[0])
        started = time.perf_counter()
        outs.append(self._run([t[first:] for t in inputs], size))
        _wait(outs[-1])
        self.pace.seconds[size] = (time.perf_counter() - started) / (len(inputs[0]) - first)
        out = self._joined(outs)
        first_ones = [t[: max(usual, size)] for t in inputs]  # every place in a part
        if size == usual or self._agrees(out, first_ones):
            return out
        self.pace.seconds[size] = float("inf")
        return self._run(inputs, usual)

    def _agrees(self, out: Tensors, inputs: Sequence[torch.Tensor]) -> bool:
        """Whether these pictures, the first ones, come out as they do in the usual size."""
        if self.pace.must_be_equal and all(bool((t == t[:1]).all()) for t in inputs):
            return False  # of black pictures everything is equal: that says nothing
        for ours, theirs in zip(out, self._run(inputs, self.pace.sizes[0]), strict=True):
            part = ours[: len(theirs)]
            if torch.equal(part, theirs):
                continue
            if self.pace.must_be_equal:
                return False
            share = float((part - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
            self.pace.difference = max(self.pace.difference, share)
        return True

    def _run(self, inputs: Sequence[torch.Tensor], size: int) -> Tensors:
        usual = self.pace.sizes[0]
        # On a GPU sizes differ by a bit anyway; but a kernel for one picture is another one.
        least = min(size, usual) if self.pace.must_be_equal else 2
        part = functools.partial(self._part, inputs, least)
        ranges = list(_parts(len(inputs[0]), size, usual))
        return self._joined(lanes.each(part, ranges, self.pace.num_lanes))

    def _part(self, inputs: Sequence[torch.Tensor], least: int, range_: tuple[int, int]) -> Tensors:
        part = [t[slice(*range_)] for t in inputs]
        count = len(part[0])
        if count >= least:
            return self._out(part)
        if self._finds_out and count not in self._is_short_equal:
            # Not on these pictures: of black ones, say, everything is equal.
            made_up = [_random_like(t) for t in part]
            pairs = zip(self._out(made_up), self._filled_up(made_up, least), strict=True)
            self._is_short_equal[count] = all(torch.equal(*pair) for pair in pairs)
        is_equal = self._is_short_equal.get(count, False)
        return self._out(part) if is_equal else self._filled_up(part, least)

    def _filled_up(self, part: Sequence[torch.Tensor], least: int) -> Tensors:
        count = len(part[0])
        again = torch.arange(least, device=part[0].device) % count
        return tuple(tensor[:count] for tensor in self._out([t[again] for t in part]))

    def _out(self, part: Sequence[torch.Tensor]) -> Tensors:
        with self._mode(), self._autocast():  # they are of the thread that runs this
            return _flattened(self.module(*part))

    def _joined(self, parts: Sequence[Tensors]) -> Tensors:
        with self._mode():
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


def _parts(count: int, size: int, usual: int) -> Iterator[tuple[int, int]]:
    """Ranges of `size`; what is left over in the usual size, as far as it goes."""
    start = 0
    while start < count:
        left = count - start
        stop = start + min(left, size if left >= size else usual)
        yield start, stop
        start = stop


def _random_like(tensor: torch.Tensor) -> torch.Tensor:
    """Made up, in the same layout, by a generator that nobody else draws from."""
    random = torch.Generator(tensor.device).manual_seed(0)
    return torch.empty_like(tensor).normal_(generator=random)


def _wait(tensors: Tensors) -> None:
    for tensor in tensors:
        if tensor.device.type == "cuda":
            torch.cuda.synchronize(tensor.device)
