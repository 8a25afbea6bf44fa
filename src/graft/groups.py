"""Which runs of an array are trained at the same time: by what they share, and what they hold."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from graft import lanes, machine
from graft.config import RunConfig
from graft.fit.learner import autocast
from graft.fit.loop import can_stack
from graft.fit.recorded import LANES
from graft.network import Network
from graft.run import Run
from graft.supply import Supply
from graft.trunk.cut import Cut

# Runs that are trained side by side at most: what they hold in memory grows with their number.
MAX_SIDE_BY_SIDE = 64
# On a CPU, what a run that makes its steps beside those of another may add to memory. Larger ones
# gain little or lose: they are bound by the memory that their weights move through
# (docs/decisions/0016).
MAX_BESIDE_BYTES = 1 << 29
# On a GPU a step takes so many times what it keeps for the backward pass, gradients in between too.
SLACK = 1.5


@dataclass(frozen=True)
class Group:
    """Runs to train at the same time, behind the same epoch; so many of them make steps at once."""

    runs: Sequence[Run]
    num_lanes: int


def groups(runs: Sequence[Run], fed: Supply, own: Cut | None, network: Network) -> Iterator[Group]:
    """Runs of an array in groups, one to be trained after the other.

    Where they share something in each batch, or are one stack, as many as memory holds. Else as
    many as there are lanes: more would fight for the processor's cache.

    Args:
        runs: that know how many epochs they have behind them.
        fed: what feeds them.
        own: where their network is cut.
        network: of one of them, before its first step.
    """
    is_stack = own is not None and can_stack(own.tail, runs[0].config)
    num_lanes = 1 if is_stack or len(runs) == 1 else _lanes(runs, fed, own, network)
    shares = is_stack or (own is not None and not fed.is_complete)
    size = min(MAX_SIDE_BY_SIDE, _fitting(runs, fed, network)) if shares else num_lanes
    alike: dict[int, list[Run]] = {}
    for run in runs:
        alike.setdefault(run.epochs_done, []).append(run)
    for members in alike.values():
        for first in range(0, len(members), size):
            yield Group(members[first : first + size], num_lanes)


def _lanes(runs: Sequence[Run], fed: Supply, own: Cut | None, network: Network) -> int:
    device, held = torch.device(fed.config.device), _held_bytes(runs, network)
    tail = own.tail_of(network.module) if own else network.module
    if device.type == "cuda":
        # Half of what is free for what runs hold, as elsewhere, and half for their steps.
        half = machine.free_gpu_bytes(device) / 2
        is_small = LANES * held <= half
        return LANES if is_small and LANES * SLACK * _kept_bytes(tail, fed, network) <= half else 1
    found, room = lanes.count(device), min(MAX_BESIDE_BYTES, machine.available_bytes() // 4)
    left = room - held
    if found == 1 or left < 0:
        return 1
    return found if _kept_bytes(tail, fed, network) <= left else 1


def _fitting(runs: Sequence[Run], fed: Supply, network: Network) -> int:
    """How many runs half the free memory holds."""
    free = machine.free_bytes(torch.device(fed.config.device))
    return max(1, int(free / 2 / _held_bytes(runs, network)))


def _held_bytes(runs: Sequence[Run], network: Network) -> int:
    """What one more run holds: weights, gradients, two moments, the best epoch's weights."""
    counts = network.counts()
    # What is frozen is held once for all that are twins.
    are_twins = all(run.config.model == runs[0].config.model for run in runs)
    frozen = 0 if are_twins else counts["total"] - counts["trainable"]
    return 4 * (5 * counts["trainable"] + frozen)


def _kept_bytes(tail: nn.Module, fed: Supply, network: Network) -> int:
    """What a step keeps of its forward pass for the backward one, by that of a few pictures."""
    config: RunConfig = fed.config
    network.eval()  # what comes first is not to move batch norm's statistics
    batch = next(iter(fed.of(fed.examples.train[:4])))
    activations, count = fed.trunk(batch.inputs), len(batch.labels)

    def kept(num_pictures: int) -> int:
        found: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> None:
            # In place of the tensor itself: an operation that keeps its own output would else be
            # held by it, for ever, and with it on which stream weights were first used.
            found[tensor.untyped_storage().data_ptr()] = tensor.detach()

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing)
        with hooks, autocast(config.precision, torch.device(config.device)):
            # Copies, as what is a part of a tensor counts as all of it.
            tail(*(tensor[:num_pictures].clone() for tensor in activations))
        return sum(tensor.untyped_storage().nbytes() for tensor in found.values())

    # What does not grow with the pictures are weights, or copies of them in another precision.
    few = count // 2
    rest = kept(few) if few else 0
    return (kept(count) - rest) * config.batch_size // (count - few)
