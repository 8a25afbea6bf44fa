"""What tests of this folder have in common."""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import nn


@dataclass
class PlainNetwork:
    """A module as a learner's network: see `graft.fit.learner.Network`."""

    module: nn.Module

    def train(self) -> None:
        self.module.train()

    def eval(self) -> None:
        self.module.eval()

    def restore(self, path: Path) -> None:
        self.module.load_state_dict(load_file(path))
