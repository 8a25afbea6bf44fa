"""Augmentation: what a run sees of a picture in an epoch.

A view is drawn for every example at once, from the seed and the epoch, before the batches are
formed: neither batch size nor company changes it.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from graft.config import Augmentation, Dihedral, Flip, NoAugmentation, RandomCrop
from graft.data.batches import VIEW, generator

# uint8 [B, 3, S, S] and positions [B] in the training set -> uint8 [B, 3, S, S]
Views = Callable[[torch.Tensor, NDArray[np.int64]], torch.Tensor]

# Every fixed view there is: uint8 [B, 3, S, S] -> the same, each picture by the same rule.
FIXED: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda x: x,
    "flipped": lambda x: x.flip(-1),
    "turned": lambda x: x.rot90(1, (-2, -1)),
    "upside down": lambda x: x.rot90(2, (-2, -1)),
    "turned back": lambda x: x.rot90(3, (-2, -1)),
    "flipped, turned": lambda x: x.flip(-1).rot90(1, (-2, -1)),
    "flipped, upside down": lambda x: x.flip(-2),
    "flipped, turned back": lambda x: x.flip(-1).rot90(3, (-2, -1)),
}
PLAIN = "plain"


def fixed_views(augmentation: Augmentation) -> tuple[str, ...] | None:
    """The views that an augmentation chooses from; None where there is no end of them."""
    if isinstance(augmentation, NoAugmentation):
        return (PLAIN,)
    if isinstance(augmentation, Flip):
        return (PLAIN, "flipped")
    return tuple(FIXED) if isinstance(augmentation, Dihedral) else None


def drawn(
    augmentation: Augmentation, *, seed: int, epoch: int, num_examples: int
) -> NDArray[np.int64]:
    """Which view each training example gets in an epoch: int64 [N], positions in `fixed_views`."""
    random = generator(seed, VIEW, epoch)
    if isinstance(augmentation, NoAugmentation):
        return np.zeros(num_examples, dtype=np.int64)
    if isinstance(augmentation, Flip):
        return (random.random(num_examples) < 0.5).astype(np.int64)
    return random.integers(len(FIXED), size=num_examples)


def views(augmentation: Augmentation, *, seed: int, epoch: int, num_examples: int) -> Views:
    """The views that one epoch draws, as a function of pictures and their positions."""
    names = fixed_views(augmentation)
    if names is not None:
        which = drawn(augmentation, seed=seed, epoch=epoch, num_examples=num_examples)
        return lambda pictures, examples: seen(pictures, names, which[examples])
    assert isinstance(augmentation, RandomCrop)
    random = generator(seed, VIEW, epoch)
    is_flipped = (random.random(num_examples) < 0.5).astype(np.int64)
    boxes = _boxes(random, num_examples, augmentation.min_area)
    return lambda pictures, examples: seen(
        crop(pictures, boxes[examples]), (PLAIN, "flipped"), is_flipped[examples]
    )


def seen(pictures: torch.Tensor, names: Sequence[str], which: NDArray[np.int64]) -> torch.Tensor:
    """[B, 3, S, S], each picture in its view, a position in `names`; the input is left alone."""
    out = pictures.clone()
    for view in np.unique(which):
        chosen = torch.from_numpy(np.flatnonzero(which == view)).to(pictures.device)
        if names[view] != PLAIN:
            out[chosen] = FIXED[names[view]](pictures[chosen])
    return out


def crop(pictures: torch.Tensor, boxes: NDArray[np.float64]) -> torch.Tensor:
    """[B, 3, S, S], each cut to its box [top, left, height, width] (fractions) and resized to S."""
    from torchvision.transforms.v2 import functional

    side = pictures.shape[-1]
    pixels = np.maximum(np.rint(boxes * side).astype(int), [0, 0, 1, 1])
    return torch.stack(
        [
            functional.resized_crop(picture, *box, [side, side], antialias=True)
            for picture, box in zip(pictures, pixels.tolist(), strict=True)
        ]
    )


def _boxes(random: np.random.Generator, count: int, min_area: float) -> NDArray[np.float64]:
    """[count, 4] boxes: area uniform in [min_area, 1], aspect 3:4 to 4:3, anywhere inside.

    Source: the "inception crop" of C. Szegedy et al., Going deeper with convolutions, CVPR 2015.
    """
    area = random.uniform(min_area, 1.0, count)
    aspect = np.exp(random.uniform(math.log(3 / 4), math.log(4 / 3), count))
    height = np.minimum(np.sqrt(area / aspect), 1.0)
    width = np.minimum(np.sqrt(area * aspect), 1.0)
    top, left = random.random(count) * (1 - height), random.random(count) * (1 - width)
    return np.stack([top, left, height, width], axis=1)
