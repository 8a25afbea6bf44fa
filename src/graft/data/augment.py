"""Augmentation: what a run sees of a picture in an epoch.

A view is drawn for every example at once, from the seed and the epoch, before the batches are
formed: neither batch size nor company changes it.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from graft.config import Flip, NoAugmentation, RandomCrop
from graft.data.batches import VIEW, generator

# uint8 [B, 3, S, S] and positions [B] in the training set -> uint8 [B, 3, S, S]
Views = Callable[[torch.Tensor, NDArray[np.int64]], torch.Tensor]


def views(
    augmentation: NoAugmentation | Flip | RandomCrop, *, seed: int, epoch: int, num_examples: int
) -> Views:
    """The views that one epoch draws, as a function of pictures and their positions."""
    random = generator(seed, VIEW, epoch)
    if isinstance(augmentation, NoAugmentation):
        return lambda pictures, examples: pictures
    is_flipped = random.random(num_examples) < 0.5
    if isinstance(augmentation, Flip):
        return lambda pictures, examples: flip(pictures, is_flipped[examples])
    boxes = _boxes(random, num_examples, augmentation.min_area)
    return lambda pictures, examples: flip(crop(pictures, boxes[examples]), is_flipped[examples])


def flip(pictures: torch.Tensor, is_flipped: NDArray[np.bool_]) -> torch.Tensor:
    """[B, 3, S, S] with the chosen pictures mirrored left to right; the input is left alone."""
    mask = torch.from_numpy(is_flipped).to(pictures.device)[:, None, None, None]
    return torch.where(mask, pictures.flip(-1), pictures)


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
