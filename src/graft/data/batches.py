"""Which examples make up each batch of an epoch: order, balance, size.

Everything here is a pure function of the run's seed and the epoch, so that a run is the same alone
or in company, undisturbed or continued.
"""

import numpy as np
from numpy.typing import NDArray

# Streams of random numbers that a seed feeds; independent of each other.
ORDER, VIEW = 1, 2


def generator(seed: int, stream: int, epoch: int) -> np.random.Generator:
    """The random numbers of one stream in one epoch (Philox, counter-based)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, stream, epoch))))


def order(
    labels: NDArray[np.int64], *, seed: int, epoch: int, is_balanced: bool = False
) -> NDArray[np.int64]:
    """Positions of the training examples in the order of one epoch.

    Args:
        labels: [N] classes of the training examples.
        seed: the run's seed.
        epoch: 1-based.
        is_balanced: draw with replacement, each class equally often on average; otherwise every
            example comes exactly once.

    Returns:
        int64 [N], positions in `labels`.
    """
    random = generator(seed, ORDER, epoch)
    if not is_balanced:
        return random.permutation(len(labels))
    counts = np.bincount(labels)
    chance = 1.0 / counts[labels]
    return random.choice(len(labels), size=len(labels), p=chance / chance.sum())


def batches(examples: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """`examples` [N] cut into batches of `size`; none has a single example if it can be helped.

    A last batch of one joins the batch before it: batch norm cannot train on one value per channel,
    and kernels for a batch of one round differently.
    """
    starts = list(range(0, len(examples), size))
    if size > 1 and len(starts) > 1 and len(examples) - starts[-1] == 1:
        starts.pop()
    ends = [*starts[1:], len(examples)]
    return [examples[a:b] for a, b in zip(starts, ends, strict=True)]
