"""The networks of an array's runs: built once, and shared as far as their runs freeze them."""

from collections.abc import Sequence

import torch

from graft import backbones, machine
from graft.backbones import Network
from graft.config import RunConfig
from graft.run import Run

# A network is kept for the next array if so many of its size are free.
SHARE_KEPT = 50


def _num_outputs(classes: Sequence[str]) -> int:
    """One logit for two classes, else one a class."""
    return 1 if len(classes) == 2 else len(classes)


def build_network(config: RunConfig, classes: Sequence[str], device: torch.device) -> Network:
    """The run's network on its device, frozen as its strategy says."""
    network = _built(config, classes, device)
    network.freeze(config.strategy.trainable(list(network.blocks)))
    return network


def _built(config: RunConfig, classes: Sequence[str], device: torch.device) -> Network:
    assert config.image_size is not None
    network = backbones.build(
        config.model, _num_outputs(classes), seed=config.seed, image_size=config.image_size
    )
    # Convolutions work on channels-last tensors; in the other order each one converts and, on two
    # cores, ran at half the speed at best (docs/decisions/0006).
    network.module.to(device).to(memory_format=torch.channels_last)
    return network


class Kept:
    """The network that an array built last, of first values, for those that begin with it too.

    Arrays of a sweep differ most often in their strategy; to read weights and to draw the first
    values of a head can take longer than an epoch on stored activations.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._network: Network | None = None

    def network(self, config: RunConfig, classes: Sequence[str], device: torch.device) -> Network:
        """As `build_network` makes it."""
        stamp = backbones.stamp(config.model)
        key = (config.model, len(classes), config.seed, config.image_size, device, stamp)
        if key != self._key:
            self._network = self._key = None  # before another takes memory, or cannot be built
            self._network, self._key = _built(config, classes, device), key
        assert self._network is not None
        found = self._network
        if SHARE_KEPT * 4 * found.counts()["total"] > machine.free_bytes(device):
            self._network = self._key = None
        else:
            found = found.twin()  # of all: till now everything trains
        found.freeze(config.strategy.trainable(list(found.blocks)))
        return found


class Networks:
    """A network for each run of an array: that of the first is built, and has twins.

    One of them is always ahead, of the first values, whatever has become of the others.
    """

    def __init__(self, first: Network, runs: Sequence[Run]) -> None:
        self._model, self._ahead = runs[0].config.model, first
        self._left = sum(run.config.model == self._model for run in runs)

    def of(self, config: RunConfig, classes: Sequence[str], device: torch.device) -> Network:
        if config.model != self._model:  # of another dropout, or its head begins otherwise
            return build_network(config, classes, device)
        found, self._left = self._ahead, self._left - 1
        if self._left:
            self._ahead = found.twin()
        return found
