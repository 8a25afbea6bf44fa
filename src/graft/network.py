"""A network with a new head, and which of its blocks train."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graft import weights
from graft.catalog import Backbone
from graft.errors import ConfigError, WeightsError
from graft.weights import WeightsSource

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Network:
    """A network with a new head, and which of its blocks train.

    Attributes:
        module: normalised float32 [B, 3, S, S] -> logits [B, num_outputs].
        blocks: modules of each block, input to output, "head" last. Every parameter belongs to
            exactly one block, those that no module of a block holds too: see `parameters`.
        source: where the weights came from.
        backbone: what is known of it as plain data.
        trainable: the blocks that train; all until `freeze` says otherwise.
    """

    module: "nn.Module"
    blocks: "Mapping[str, tuple[nn.Module, ...]]"
    source: WeightsSource
    backbone: Backbone
    trainable: frozenset[str] = frozenset()

    def freeze(self, trainable: frozenset[str]) -> None:
        """Let these blocks train and no others, and put each into its mode.

        Raises:
            ConfigError: nothing would train, or there is no such block.
        """
        unknown = sorted(trainable - self.blocks.keys())
        if unknown or not trainable:
            what = f"a block named {unknown[0]}" if unknown else "no block at all"
            raise ConfigError(
                f"strategy wants to train {what}. Blocks of {self.backbone.name}: "
                f"{', '.join(self.blocks)}."
            )
        self.trainable = trainable
        for block in self.blocks:
            for parameter in self.parameters(block):
                parameter.requires_grad_(block in trainable)
        self.module.eval()
        self.train()

    def train(self) -> None:
        """Train mode for what trains. A frozen block stays in eval mode, whole: its batch-norm
        statistics don't move, and nothing in it is dropped."""
        self._set(is_training=True)

    def eval(self) -> None:
        self._set(is_training=False)

    def _set(self, *, is_training: bool) -> None:
        """What is frozen is left as it is: to look at all of a network takes milliseconds."""
        for block in self.trainable:
            for module in self.blocks[block]:
                module.train(is_training)

    def parameters(self, block: str) -> "Iterator[nn.Parameter]":
        """The parameters of one block."""
        for name, parameter in self.module.named_parameters():
            if weights.is_under(name, self.backbone.blocks[block]):
                yield parameter

    def twin(self) -> "Network":
        """Another network of the same values, as long as this one has not trained.

        What trains is copied. What is frozen is shared: nobody changes it.
        """
        frozen = [m for block in self.blocks.keys() - self.trainable for m in self.blocks[block]]
        shared = [
            *(p for p in self.module.parameters() if not p.requires_grad),
            *(buffer for module in frozen for buffer in module.buffers()),
            self.source,
            self.backbone,
        ]
        return copy.deepcopy(self, {id(one): one for one in shared})

    def counts(self) -> dict[str, int]:
        """Number of parameters, "total" and "trainable"."""
        parameters = list(self.module.parameters())
        return {
            "total": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        }

    def restore(self, path: Path) -> None:
        """Take every tensor from a checkpoint of this very network, head included.

        Raises:
            WeightsError: it cannot be read, or is of another network or number of classes.
        """
        found = weights.match(self.module.state_dict(), weights.read(path))
        if found.missing or found.unexpected or found.misshapen:
            raise WeightsError(f"{path} is not a checkpoint of this network: {found}")
        values = weights.as_float32(found.usable, path, copy=False)  # they are copied next
        self.module.load_state_dict(values, strict=False)
