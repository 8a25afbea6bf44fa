"""Strategies: which blocks of a backbone train.

A strategy answers that one question. What is frozen, where the trunk ends and which parameters
the optimizer sees are all derived from the answer, so they cannot disagree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from graft.errors import ConfigError


class Strategy(Protocol):
    """Anything with this one method; our own are below."""

    def trainable(self, blocks: Sequence[str]) -> frozenset[str]:
        """Names of the blocks that train, out of `blocks` (input to output, head last)."""
        ...


@dataclass(frozen=True)
class HeadOnly:
    """Train the new head; freeze the whole backbone."""

    def trainable(self, blocks: Sequence[str]) -> frozenset[str]:
        return frozenset(blocks[-1:])


@dataclass(frozen=True)
class FineTune:
    """Train the head and the last `depth` blocks of the backbone; freeze what comes before."""

    depth: int = 1

    def trainable(self, blocks: Sequence[str]) -> frozenset[str]:
        backbone = blocks[:-1]
        if not 1 <= self.depth <= len(backbone):
            raise ConfigError(
                f"strategy.depth={self.depth}, but this backbone has {len(backbone)} blocks "
                f"({', '.join(backbone)}). Use 1 to {len(backbone)}, or strategy=head_only."
            )
        return frozenset(blocks[-1 - self.depth :])


@dataclass(frozen=True)
class Full:
    """Train everything."""

    def trainable(self, blocks: Sequence[str]) -> frozenset[str]:
        return frozenset(blocks)
