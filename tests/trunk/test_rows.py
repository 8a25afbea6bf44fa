"""Rows: what comes back is what went in, bit for bit, and laid out as a fresh trunk's tensors."""

import json

import pytest
import torch

from graft.trunk.rows import NotRows, RowFormat, Stored, same_layout

SHAPES = {
    "a feature map": (5, 4, 3, 2),
    "a feature map of one pixel": (5, 4, 1, 1),
    "of one channel": (5, 1, 3, 2),
    "numbers": (5, 7),
    "tokens": (5, 3, 4),
    "one number": (5,),
}
TYPES = (torch.float32, torch.bfloat16, torch.float16)
KEPT: tuple[Stored, ...] = ("float32", "bfloat16")


def random(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def there_and_back(tensors: list[torch.Tensor], stored: Stored) -> tuple[torch.Tensor, ...]:
    format = RowFormat.of(tensors, stored, len(tensors[0]))
    rows = format.pack(tensors)
    assert rows.dtype == torch.uint8 and rows.shape == (len(tensors[0]), format.row_bytes)
    return format.unpack(torch.from_numpy(rows.numpy().copy()))  # as from a file


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_what_comes_back_is_what_went_in(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = random(shape, dtype)
    (back,) = there_and_back([tensor], "float32")
    assert_same(back, tensor)


def test_numbers_that_are_none_come_back_too() -> None:
    tensor = torch.tensor([[float("nan"), float("inf"), -0.0, 1e-42]])
    (back,) = there_and_back([tensor], "float32")
    assert torch.equal(back.view(torch.int32), tensor.view(torch.int32))


@pytest.mark.parametrize("is_channels_last", [True, False])
@pytest.mark.parametrize("shape", [(5, 4, 3, 2), (5, 4, 1, 1), (1, 4, 3, 3), (5, 1, 3, 2)])
def test_feature_maps_come_back_with_their_channels_last(
    shape: tuple[int, ...], is_channels_last: bool
) -> None:
    order = torch.channels_last if is_channels_last else torch.contiguous_format
    tensor = random(shape).contiguous(memory_format=order)
    (back,) = there_and_back([tensor], "float32")
    _, channels, height, width = shape
    assert back.stride() == (channels * height * width, 1, width * channels, channels)
    assert_same(back, tensor)


def test_several_tensors_come_back_each_as_it_was() -> None:
    tensors = [random(s, d) for s in SHAPES.values() for d in TYPES]
    for back, tensor in zip(there_and_back(tensors, "float32"), tensors, strict=True):
        assert_same(back, tensor)


def test_a_row_is_of_one_picture() -> None:
    tensors = [random((5, 4, 3, 2)), random((5, 7), torch.float16)]
    format = RowFormat.of(tensors, "float32", 5)
    rows, swapped = format.pack(tensors), [3, 0, 4, 1, 2]
    for back, tensor in zip(format.unpack(rows[swapped]), tensors, strict=True):
        assert_same(back, tensor[swapped])
    assert format.row_bytes == 4 * 24 + 2 * 7


# --- as a fresh trunk's tensors ---------------------------------------------------------------

# What a trunk may hand on: in other orders of memory, parts of larger tensors, repeated ones.
FRESH = {
    "plain": random((5, 4, 3, 2)),
    "channels last": random((5, 4, 3, 2)).contiguous(memory_format=torch.channels_last),
    "one pixel": random((5, 4, 1, 1)),
    "one pixel, channels last": random((5, 4, 1, 1)).contiguous(memory_format=torch.channels_last),
    "part of a feature map": random((5, 8, 6, 2))[:, ::2, 1:4],
    "repeated": random((5, 4, 1, 1)).expand(5, 4, 3, 2),
    "numbers": random((5, 7)),
    "a class token": random((5, 3, 7))[:, 0],
    "transposed numbers": random((7, 5)).T,
    "every second number": random((5, 14))[:, ::2],
    "tokens": random((5, 3, 4)),
    "transposed tokens": random((5, 4, 3)).transpose(1, 2),
    "tokens without the first": random((5, 4, 4))[:, 1:],
    "tokens, batch second": random((3, 5, 4)).transpose(0, 1),
    "two pictures": random((2, 4, 3, 2)),
    "bfloat16": random((5, 4, 3, 2), torch.bfloat16),
    "float16 tokens": random((5, 4, 3), torch.float16).transpose(1, 2),
}


@pytest.mark.parametrize("stored", KEPT)
@pytest.mark.parametrize("fresh", FRESH.values(), ids=FRESH)
def test_a_fresh_trunks_tensors_are_laid_out_as_stored_ones(
    fresh: torch.Tensor, stored: Stored
) -> None:
    (ours,) = same_layout([fresh], stored)
    (back,) = there_and_back([fresh], stored)
    assert_same(ours, back)
    assert ours.stride() == back.stride()


@pytest.mark.parametrize("stored", KEPT)
def test_several_of_them_too(stored: Stored) -> None:
    tensors = [t for t in FRESH.values() if len(t) == 5]
    for ours, back in zip(
        same_layout(tensors, stored), there_and_back(tensors, stored), strict=True
    ):
        assert_same(ours, back)
        assert ours.stride() == back.stride()


# --- half the bytes ---------------------------------------------------------------------------


def test_bfloat16_halves_a_row_and_is_rounding() -> None:
    tensors = [random((5, 4, 3, 2)), random((5, 7))]
    whole, half = (RowFormat.of(tensors, stored, len(tensors[0])).row_bytes for stored in KEPT)
    assert whole == 2 * half
    for back, tensor in zip(there_and_back(tensors, "bfloat16"), tensors, strict=True):
        assert_same(back, tensor.to(torch.bfloat16).to(torch.float32))
        assert not torch.equal(back, tensor)


def test_bfloat16_leaves_float16_as_it_is() -> None:
    tensor = random((5, 7), torch.float16)
    (back,) = there_and_back([tensor], "bfloat16")
    assert_same(back, tensor)


# --- what is not rows -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64, torch.complex64])
def test_other_numbers_than_floats_are_no_rows(dtype: torch.dtype) -> None:
    with pytest.raises(NotRows, match=rf"{str(dtype).removeprefix('torch.')} \(5, 7\)"):
        RowFormat.of([random((5, 3)), torch.ones(5, 7, dtype=dtype)], "float32", 5)


@pytest.mark.parametrize("shape", [(1, 7), (4, 7), (), (0, 7)])
@pytest.mark.parametrize("is_alone", [True, False])
def test_a_tensor_without_a_row_for_each_picture_is_no_rows(
    shape: tuple[int, ...], is_alone: bool
) -> None:
    tensors = [random(shape)] if is_alone else [random((5, 3)), random(shape)]
    with pytest.raises(NotRows, match="crosses"):
        RowFormat.of(tensors, "float32", 5)


# --- a format in a header ---------------------------------------------------------------------


@pytest.mark.parametrize("stored", KEPT)
def test_a_format_survives_json(stored: Stored) -> None:
    tensors = [random(s, d) for s in SHAPES.values() for d in TYPES]
    format = RowFormat.of(tensors, stored, len(tensors[0]))
    again = RowFormat.from_dict(json.loads(json.dumps(format.to_dict())))
    assert again == format and again.row_bytes == format.row_bytes
    for ours, back in zip(
        again.unpack(format.pack(tensors)), format.unpack(format.pack(tensors)), strict=True
    ):
        assert_same(ours, back)
