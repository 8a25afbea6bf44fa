"""Running what is frozen: how many pictures at a time changes its speed, never its numbers."""

import functools
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from graft import lanes
from graft.backbones import build
from graft.config import Model
from graft.fit.learner import autocast
from graft.strategies import HeadOnly
from graft.trunk.cut import cut
from graft.trunk.rows import RowFormat, Stored
from graft.trunk.run import ON_CPU, ON_GPU, Frozen, Pace, Trunk

CPU = torch.device("cpu")
plainly = functools.partial(autocast, "float32", CPU)


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Watched(nn.Module):
    """Doubles; keeps the sizes that it was given, and whether gradients were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.weight = nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.sizes.append(len(x))
        return (x * self.weight,)


class Paced(Watched):
    """Takes so many seconds for a part of a size: by default a millisecond a picture."""

    def __init__(self, seconds: dict[int, float]) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        time.sleep(self.seconds.get(len(x), len(x) / 1000))
        return super().forward(x)


class Sized(Watched):
    """Other bits in parts of too few or too many pictures, as a kernel of a library may have."""

    def __init__(self, least: int = 0, largest: int = 1000) -> None:
        super().__init__()
        self.usual = range(least, largest + 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (out,) = super().forward(x)
        is_other = len(x) not in self.usual and bool(x.any())  # of zeros they cannot be seen
        return (torch.nextafter(out, out + 1) if is_other else out,)


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes for those who sleep, and for nobody who waits for a busy machine."""
    now = 100.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)


def frozen(module: nn.Module, sizes: Sequence[int] = (4,), must_be_equal: bool = True) -> Frozen:
    return Frozen(module, plainly, Pace(tuple(sizes), must_be_equal))


# --- parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "parts"),
    [
        # made-up pictures, as few and filled up to 4, tell whether that makes a difference
        (1, [1, 4, 1]), (3, [3, 4, 3]), (4, [4]), (5, [4, 1, 4, 1]), (6, [4, 2, 4, 2]), (8, [8]),
        (12, [8, 4]), (13, [8, 4, 1, 4, 1]), (17, [8, 8, 1, 4, 1]),
    ],
)  # fmt: skip
def test_what_is_left_over_is_tried_in_its_number_once(count: int, parts: list[int]) -> None:
    module, x = Watched(), pictures(count)
    one = frozen(module, (4, 8))
    one.pace.seconds = {4: 2.0, 8: 1.0}
    assert torch.equal(one(x)[0], 2 * x)
    assert module.sizes == parts
    module.sizes.clear()
    assert torch.equal(one(x)[0], 2 * x)
    assert sum(module.sizes) == count  # it made no difference, so it is done no more


def test_a_part_smaller_than_the_usual_one_is_filled_up_to_no_more_than_itself() -> None:
    module, x = Watched(), pictures(5)
    one = frozen(module, (4, 2))
    one.pace.seconds = {4: 2.0, 2: 1.0}
    assert torch.equal(one(x)[0], 2 * x)
    assert module.sizes == [2, 2, 1, 2, 1]


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_kernels_that_round_otherwise_for_few_pictures_change_nothing(num_lanes: int) -> None:
    module = Sized(least=4)
    one = Frozen(module, plainly, Pace((4, 8), must_be_equal=True, num_lanes=num_lanes))
    for count in (*range(1, 20), *range(1, 20)):
        x = pictures(count)
        assert torch.equal(one(x)[0], 2 * x)
    assert sum(n < 4 for n in module.sizes) == 3  # each was tried once


class Edged(Watched):
    """Other bits in the last places of a large part, where a kernel may treat a rest apart."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (out,) = super().forward(x)
        if len(x) > 4:
            out[-1:] = torch.nextafter(out[-1:], out[-1:] + 1)
        return (out,)


def test_a_size_is_held_against_the_usual_one_in_every_place() -> None:
    one, x = frozen(Edged(), (4, 8)), pictures(40)
    assert torch.equal(one.tried(x)[0], 2 * x)
    assert one.pace.seconds[8] == float("inf")


def test_black_pictures_tell_nothing_of_others() -> None:
    one = frozen(Sized(least=4))
    for x in (torch.zeros(3, 3, 8, 8), pictures(3)):
        assert torch.equal(one(x)[0], 2 * x)
    one = frozen(Sized(least=4), (4, 2))
    black, x = torch.zeros(16, 3, 8, 8), pictures(16)
    for each in (black, black, x, x):
        assert torch.equal(one.tried(each)[0], 2 * each)
    assert one.pace.seconds[2] == float("inf")


def test_what_is_made_up_draws_from_no_generator_of_others() -> None:
    state = torch.get_rng_state()
    frozen(Watched())(pictures(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_on_a_gpu_only_a_lone_picture_is_filled_up() -> None:
    """To two; there another number rounds otherwise anyway."""
    module = Sized(least=2)
    one = frozen(module, must_be_equal=False)
    for count, parts in ((1, [1, 2, 2]), (3, [3]), (5, [4, 2]), (6, [4, 2])):
        module.sizes.clear()
        x = pictures(count)
        assert torch.equal(one(x)[0], 2 * x)
        assert module.sizes == parts


@pytest.mark.parametrize("num_threads", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_real_kernels_that_round_otherwise_for_few_pictures_change_nothing(
    num_threads: str,
) -> None:
    """On one thread of a processor without AVX-512 they do, for 2 to 15 pictures."""
    env = os.environ | {"OMP_NUM_THREADS": num_threads}
    done = subprocess.run(
        [sys.executable, "-c", BY_COUNT], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [num_threads, "[]", "15", "0"]


BY_COUNT = """
import torch
from graft.backbones import build
from graft.config import Model
from graft.strategies import HeadOnly
from graft.trunk.cut import cut
from graft.trunk.run import Frozen, Pace

network = build(Model(name="efficientnet_lite0", weights="none"), 2, seed=0, image_size=32)
network.module.to(memory_format=torch.channels_last)
network.freeze(HeadOnly().trainable(list(network.blocks)))
network.eval()
trunk = cut(network.module).trunk
x = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
x = x.contiguous(memory_format=torch.channels_last)
plainly = lambda: torch.autocast("cpu", enabled=False)
(usual,) = Frozen(trunk, plainly, Pace((16,), True))(x)
one, stored = (Frozen(trunk, plainly, Pace((16,), True), is_for_storing=s) for s in (False, True))
counts = [n for n in (*range(1, 33), *range(1, 17)) if not torch.equal(one(x[:n])[0], usual[:n])]
counts += [n for n in range(1, 33) if not torch.equal(stored(x[:n])[0], usual[:n])]
print(torch.get_num_threads(), counts, len(one._is_short_equal), len(stored._is_short_equal))
"""


def test_no_gradients_are_kept() -> None:
    x = pictures(6).requires_grad_()
    for is_for_storing in (False, True):
        pace = Pace((4,), True)
        (out,) = Frozen(Watched(), plainly, pace, is_for_storing=is_for_storing)(x)
        assert not out.requires_grad
    (out,) = frozen(Watched())(x)
    (out * nn.Parameter(torch.ones(1))).sum().backward()  # a tail may train on it


def test_it_runs_at_the_precision_that_is_asked_for() -> None:
    class Product(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (x.flatten(1) @ torch.ones(192, 2),)

    half = functools.partial(autocast, "bfloat16", CPU)
    assert Frozen(Product(), half, Pace((4,), True))(pictures(6))[0].dtype == torch.bfloat16
    assert frozen(Product())(pictures(6))[0].dtype == torch.float32


def test_tensors_of_several_exits_come_one_after_the_other() -> None:
    class Exits(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], ...]:
            return (x + 1, x + 2), (x + 3,)

    x = pictures(6)
    out = frozen(Exits())(x)
    assert [torch.equal(tensor, x + i) for i, tensor in enumerate(out, start=1)] == [True] * 3


def test_several_inputs_are_cut_alike() -> None:
    class Difference(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (x - y,)

    x = pictures(9)
    assert torch.equal(frozen(Difference())(x, x.flip(0))[0], x - x.flip(0))


# --- which size -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_the_sizes_of_a_device_take_no_more_memory_than_training(
    monkeypatch: pytest.MonkeyPatch, num_lanes: int
) -> None:
    monkeypatch.setattr(lanes, "count", lambda device: num_lanes if device == CPU else 1)
    assert Pace.on(CPU, 64 * num_lanes).sizes == ON_CPU
    assert Pace.on(CPU, 32 * num_lanes).sizes == (16, 32, 8)
    assert Pace.on(CPU, 4).sizes == (16,)
    assert Pace.on(CPU, 32).must_be_equal and Pace.on(CPU, 32).num_lanes == num_lanes
    assert Pace.on(torch.device("cuda"), 32).sizes == ON_GPU
    assert Pace.on(torch.device("cuda"), 16).sizes == (64, 128, 32)
    assert not Pace.on(torch.device("cuda"), 32).must_be_equal


@pytest.mark.usefixtures("_clock")
def test_each_size_is_tried_once_then_the_fastest_is_taken() -> None:
    module = Paced({8: 0.001})
    one, x = frozen(module, (4, 8, 2)), pictures(16)
    assert one.pace.best == 4
    for _ in range(3):
        assert torch.equal(one.tried(x)[0], 2 * x)
    assert set(one.pace.seconds) == {4, 8, 2} and one.pace.next_untried(1000) is None
    assert one.pace.best == 8
    module.sizes.clear()
    one.tried(x)
    one(x)
    assert module.sizes == [8, 8, 8, 8]


@pytest.mark.usefixtures("_clock")
def test_the_first_part_does_not_count_as_it_sets_things_up() -> None:
    class SlowAtFirst(Paced):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if len(x) not in self.sizes:
                time.sleep(0.1)
            return super().forward(x)

    one = frozen(SlowAtFirst({8: 0.001}), (4, 8))
    for _ in range(2):
        one.tried(pictures(16))
    assert max(one.pace.seconds.values()) < 0.004 and one.pace.best == 8


def test_no_size_is_tried_before_the_usual_one_is() -> None:
    """Others are held against it; one that is ruled out is not the best of those known."""
    one, x = frozen(Sized(least=4), (16, 32, 2)), pictures(31)
    for _ in range(3):
        assert torch.equal(one.tried(x)[0], 2 * x) and torch.equal(one(x)[0], 2 * x)
    assert one.pace.seconds == {} and one.pace.best == 16
    one.pace.seconds = {2: float("inf")}
    assert one.pace.best == 16


def test_a_size_that_asks_for_more_pictures_holds_up_no_other() -> None:
    one = frozen(Watched(), (4, 64, 2))
    one.tried(pictures(20))
    assert set(one.pace.seconds) == {4, 2}


def test_all_sizes_are_tried_on_one_stretch_if_it_is_long_enough() -> None:
    module = Watched()
    one, x = frozen(module, (4, 8, 2)), pictures(50)
    assert torch.equal(one.tried(x)[0], 2 * x)
    assert set(one.pace.seconds) == {4, 8, 2}
    assert module.sizes[:3] == [4, 4, 4]


@pytest.mark.parametrize("count", [2, 9, 33, 64])
def test_parts_in_two_lanes_come_back_in_order(count: int) -> None:
    pace = Pace((4, 8, 2), must_be_equal=True, num_lanes=2)
    one, x = Frozen(Paced({}), plainly, pace, is_for_storing=True), pictures(count)
    for _ in range(3):
        assert torch.equal(one.tried(x)[0], 2 * x)
    (out,) = one(x)
    assert torch.equal(out, 2 * x) and out.is_inference()


def test_a_size_is_not_tried_on_too_few_pictures_to_measure_it() -> None:
    one = frozen(Watched(), (4, 8))
    for count in (7, 8, 15, 16):
        one.tried(pictures(count))
        assert set(one.pace.seconds) == {7: set(), 8: {4}, 15: {4}, 16: {4, 8}}[count]


def test_on_a_cpu_a_size_that_gives_other_bits_is_never_taken() -> None:
    """However fast it is."""
    module = Sized(largest=6)
    one, x = frozen(module, (4, 8, 2)), pictures(16)
    outs = [one.tried(x)[0] for _ in range(4)]
    assert all(torch.equal(out, 2 * x) for out in outs)
    assert one.pace.seconds[8] == float("inf") and one.pace.best in (2, 4)
    assert one.pace.difference == 0


def test_where_all_others_are_ruled_out_the_usual_size_is_left() -> None:
    one, x = frozen(Sized(largest=5), (4, 8, 6)), pictures(16)
    for _ in range(4):
        assert torch.equal(one.tried(x)[0], 2 * x)
    assert one.pace.best == 4


class Short(Watched):
    """Has no memory for more than eight at a time."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(x) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(x)


def test_a_size_that_memory_does_not_hold_is_never_taken_again() -> None:
    module = Short()
    made = frozen(module, sizes=(4, 8, 16), must_be_equal=False)
    for _ in range(2):
        (out,) = made.tried(pictures(100))
        assert torch.equal(out, 2 * pictures(100))
    assert made.pace.seconds[16] == float("inf") and made.pace.best in (4, 8)


def test_where_it_does_not_hold_the_usual_size_that_is_said() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        frozen(Short(), sizes=(16, 4), must_be_equal=False).tried(pictures(100))


def test_on_a_gpu_the_largest_difference_is_kept_as_a_share() -> None:
    class Off(Watched):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            (out,) = super().forward(x)
            return (out + (0.25 if len(x) > 4 else 0.0),)

    one = frozen(Off(), (4, 8), must_be_equal=False)
    x = pictures(16).clamp(-2, 2)
    for _ in range(2):
        one.tried(x)
    assert one.pace.difference == pytest.approx(0.25 / float(2 * x[:4].abs().max()))
    assert one.pace.seconds[8] != float("inf")


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "efficientnet_lite0"])
def test_how_many_pictures_at_a_time_changes_no_bit_of_a_real_network(name: str) -> None:
    network = build(Model(name=name, weights="none"), 2, seed=0, image_size=32)
    network.module.to(memory_format=torch.channels_last)
    x = torch.randn(33, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    for part in network.module.modules():
        if isinstance(part, nn.BatchNorm2d):  # else what is random fades to zeros
            part.momentum = 1.0
    with torch.no_grad():
        network.module.train()(x)
    network.freeze(HeadOnly().trainable(list(network.blocks)))
    found = cut(network.module)
    assert found is not None
    network.eval()
    (usual,) = frozen(found.trunk, (16,))(x)
    assert len(usual.unique(dim=0)) == 33
    for size in (2, 3, 7, 8, 32):
        one = frozen(found.trunk, (16, size))
        for _ in range(2):  # the usual size is tried, then this one, which may be ruled out
            assert torch.equal(one.tried(torch.cat((x, x)))[0], torch.cat((usual, usual)))
        assert set(one.pace.seconds) == {16, size}
        one.pace.seconds[16] = 1e9  # this one is the best, if it may be
        assert torch.equal(one(x)[0], usual)
    one = frozen(found.trunk, (16,))
    for count in (1, 2, 3, 8, 15, 17, 18, 31, 1):
        assert torch.equal(one(x[:count])[0], usual[:count])


# --- what is left of a trunk ------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_trunk_gives_what_the_store_would_give_back(stored: Stored) -> None:
    x = pictures(6)
    (ours,) = Trunk(frozen(Watched()), stored)((x,))
    format = RowFormat.of([2 * x], stored, 6)
    (theirs,) = format.unpack(format.pack([2 * x]))
    assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()
    assert torch.equal(ours, 2 * x) is (stored == "float32")


def test_where_nothing_is_left_a_trunk_hands_on_what_it_is_given() -> None:
    inputs = (pictures(2), pictures(3))
    trunk = Trunk(None, "bfloat16")
    assert trunk.is_empty and trunk(inputs) is inputs
    assert not Trunk(frozen(Watched()), "float32").is_empty
