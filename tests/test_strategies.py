"""Strategies: which blocks train."""

import re

import pytest

from graft.errors import ConfigError
from graft.strategies import FineTune, Full, HeadOnly

BLOCKS = ("block1", "block2", "block3", "head")


def test_head_only_trains_the_head_and_nothing_else() -> None:
    assert HeadOnly().trainable(BLOCKS) == {"head"}


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(1, {"block3", "head"}), (2, {"block2", "block3", "head"}), (3, set(BLOCKS))],
)
def test_fine_tune_trains_the_head_and_the_last_blocks(depth: int, expected: set[str]) -> None:
    assert FineTune(depth).trainable(BLOCKS) == expected


def test_full_trains_everything() -> None:
    assert Full().trainable(BLOCKS) == set(BLOCKS)


@pytest.mark.parametrize("depth", [-1, 0, 4])
def test_a_depth_that_is_not_there_names_the_key_and_the_blocks(depth: int) -> None:
    expected = re.escape(
        f"strategy.depth={depth}, but this backbone has 3 blocks (block1, block2, block3)"
    )
    with pytest.raises(ConfigError, match=expected):
        FineTune(depth).trainable(BLOCKS)
