"""Order, batches and views: repeatable from the seed, whatever trains beside them."""

import numpy as np
import pytest
import torch

from graft.config import Flip, NoAugmentation, RandomCrop
from graft.data.augment import views
from graft.data.batches import batches, order

LABELS = np.array([0] * 90 + [1] * 10)


def test_an_epoch_sees_every_example_once() -> None:
    assert sorted(order(LABELS, seed=0, epoch=1)) == list(range(100))


def test_seed_and_epoch_decide_the_order() -> None:
    first = order(LABELS, seed=0, epoch=1)
    assert (first == order(LABELS, seed=0, epoch=1)).all()
    assert (first != order(LABELS, seed=0, epoch=2)).any()
    assert (first != order(LABELS, seed=1, epoch=1)).any()


def test_balanced_sampling_draws_each_class_equally_often() -> None:
    drawn = LABELS[order(np.tile(LABELS, 50), seed=0, epoch=1, is_balanced=True) % 100]
    assert len(drawn) == 5000 and abs(drawn.mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (3, 8, [3]), (1, 8, [1]), (3, 1, [1, 1, 1])],
)
def test_no_batch_of_one_is_left_over(count: int, size: int, sizes: list[int]) -> None:
    found = batches(np.arange(count), size)
    assert [len(batch) for batch in found] == sizes
    assert np.concatenate(found).tolist() == list(range(count))


@pytest.mark.parametrize("augmentation", [NoAugmentation(), Flip(), RandomCrop()], ids=repr)
def test_a_view_does_not_depend_on_its_batch(
    augmentation: NoAugmentation | Flip | RandomCrop,
) -> None:
    pictures = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    look = views(augmentation, seed=0, epoch=1, num_examples=6)
    together = look(pictures, np.arange(6))
    alone = torch.cat([look(pictures[i : i + 1], np.array([i])) for i in range(6)])
    assert torch.equal(together, alone) and together.dtype == torch.uint8


def test_a_flip_gives_the_picture_or_its_mirror_image() -> None:
    pictures = torch.randint(0, 256, (200, 3, 4, 4), dtype=torch.uint8)
    seen = views(Flip(), seed=3, epoch=1, num_examples=200)(pictures, np.arange(200))
    is_same = (seen == pictures).flatten(1).all(1)
    is_mirror = (seen == pictures.flip(-1)).flatten(1).all(1)
    assert (is_same | is_mirror).all() and 70 < int(is_mirror.sum()) < 130


def test_another_epoch_draws_other_views() -> None:
    pictures = torch.arange(50 * 48, dtype=torch.int64).remainder(256).to(torch.uint8)
    pictures = pictures.reshape(50, 3, 4, 4)
    first, second = (
        views(Flip(), seed=0, epoch=epoch, num_examples=50)(pictures, np.arange(50))
        for epoch in (1, 2)
    )
    assert not torch.equal(first, second)
