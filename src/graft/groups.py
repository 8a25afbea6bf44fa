"""Which runs of an array are trained at the same time: by what they share, and what they hold."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from graft import lanes, machine
from graft.config import RunConfig
from graft.data.pictures import available_bytes
from graft.fit.learner import autocast
from graft.fit.loop import can_stack
from graft.network import Network
from graft.run import Run
from graft.supply import Supply
from graft.trunk.cut import Cut

# Runs that are trained side by side at most: what they hold in memory grows with their number.
MAX_SIDE_BY_SIDE = 64
# What a run that makes its steps beside those of another may add to memory. Larger ones gain little
# or lose: they are bound by the memory that their weights move through (docs/decisions/0016).
MAX_BESIDE_BYTES = 1 << 29


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
    found = lanes.count(torch.device(fed.config.device))
    left = MAX_BESIDE_BYTES - _held_bytes(runs, network)
    if found == 1 or left < 0:
        return 1
    tail = own.tail_of(network.module) if own else network.module
    return found if _kept_bytes(tail, fed, network) <= left else 1


def _fitting(runs: Sequence[Run], fed: Supply, network: Network) -> int:
    """How many runs half the free memory holds."""
    if fed.config.device.startswith("cuda"):
        free = machine.free_gpu_bytes(torch.device(fed.config.device))
    else:
        free = available_bytes()
    return max(1, int(free / 2 / _held_bytes(runs, network)))


def _held_bytes(runs: Sequence[Run], network: Network) -> int:
    """What one more run holds: weights, gradients, two moments, the best epoch's weights."""
    counts = network.counts()
    # What is frozen is held once for all that are twins.
    are_twins = all(run.config.model == runs[0].config.model for run in runs)
    frozen = 0 if are_twins else counts["total"] - counts["trainable"]
    return 4 * (5 * counts["trainable"] + frozen)


def _kept_bytes(tail: nn.Module, fed: Supply, network: Network) -> int:
    """What a step keeps of its forward pass for the backward one, by that of two pictures."""
    config: RunConfig = fed.config
    network.eval()  # what comes first is not to move batch norm's statistics
    inputs = next(iter(fed.of(fed.examples.train[:2]))).inputs
    ours = {p.untyped_storage().data_ptr() for p in tail.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, autocast(config.precision, torch.device(config.device)):
        out = tail(*fed.trunk(inputs))  # holds what is kept, till it is counted
    del out
    return sum(kept.values()) * config.batch_size // 2
