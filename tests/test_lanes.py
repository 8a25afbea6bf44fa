"""Work side by side on a CPU: in its order, with its errors, and with no bit changed."""

import functools
import subprocess
import sys
import threading
import time
from collections.abc import Generator

import pytest
import torch

from graft import lanes
from graft.lanes import AHEAD, Lanes, each, one_ahead

CPU = torch.device("cpu")


# --- how many ---------------------------------------------------------------------------------


def _counted(*threads: int, **env: str) -> list[str]:
    """By a process with so many threads, one number after the other."""
    code = f"""
import graft, torch
from graft import lanes
for threads in {threads}:
    torch.set_num_threads(threads)
    print(lanes.count(torch.device("cpu")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_there_are_two_where_threads_are_shared_out_and_sleep() -> None:
    """Who limits PyTorch to one thread gets no second one."""
    assert _counted(2, 16, 1) == ["2", "2", "1"]


def test_threads_that_spin_have_no_company() -> None:
    assert _counted(2, OMP_WAIT_POLICY="active") == ["1"]


def test_a_gpu_has_one() -> None:
    assert lanes.count(torch.device("cuda")) == 1


# --- inputs, one lane or several --------------------------------------------------------------


def _meet(number: int, gate: threading.Barrier) -> int:
    gate.wait(timeout=20)
    return number * number


def test_each_keeps_the_order_and_two_run_at_once() -> None:
    gate = threading.Barrier(2)  # nobody passes alone
    squared = each(functools.partial(_meet, gate=gate), range(8), 2)
    assert squared == [n * n for n in range(8)]


def test_one_lane_is_the_callers_own_thread() -> None:
    own = threading.get_ident()
    assert each(lambda _: threading.get_ident(), range(3), 1) == [own] * 3
    with Lanes(1) as one:
        seen: list[int] = []
        one.do(5, lambda: seen.append(threading.get_ident()))
        assert seen == [own]  # at once
        one.wait()


def test_what_one_raises_comes_out() -> None:
    def fails(number: int) -> int:
        if number == 3:
            raise OSError("number 3")
        return number

    with pytest.raises(OSError, match="number 3"):
        each(fails, range(8), 2)
    assert each(fails, range(3), 2) == [0, 1, 2]  # the threads are still there


def _counts_in_lanes() -> list[int]:
    found: list[int] = []
    with Lanes(2) as two:
        for lane in range(2):
            two.do(lane, lambda: found.append(torch.get_num_threads()))
        two.wait()
    return found


def test_nothing_goes_on_after_what_one_raises() -> None:
    """Files that are half written, say, while the process is about to end."""
    begun, ended = [], []

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise KeyboardInterrupt
        time.sleep(0.3)
        ended.append(number)

    with pytest.raises(KeyboardInterrupt):
        each(work, range(20), 2)
    assert set(begun) == {0, *ended} and len(begun) < 20
    time.sleep(0.4)
    assert set(begun) == {0, *ended}


def test_lanes_know_as_many_threads_as_the_caller() -> None:
    usual = torch.get_num_threads()
    try:
        for count in (3, 2):
            torch.set_num_threads(count)
            assert each(lambda _: torch.get_num_threads(), range(2), 2) == [count] * 2
            assert _counts_in_lanes() == [count] * 2 and torch.get_num_threads() == count
    finally:
        torch.set_num_threads(usual)


# --- each lane its own work -------------------------------------------------------------------


def test_a_lane_does_its_work_in_order_and_beside_the_other() -> None:
    gate, done = threading.Barrier(2), {0: list[int](), 1: list[int]()}

    def work(lane: int, number: int) -> None:
        gate.wait(timeout=20)
        time.sleep(0.002 * ((number + lane) % 3))
        done[lane].append(number)

    with Lanes(2) as two:
        for number in range(20):
            for lane in range(2):
                two.do(lane, functools.partial(work, lane, number))
        two.wait()
        assert done == {0: list(range(20)), 1: list(range(20))}


def test_numbers_go_round() -> None:
    seen: list[int] = []
    with Lanes(2) as two:
        for number in range(6):
            two.do(number, lambda: seen.append(threading.get_ident()))
        two.wait()
    assert len(set(seen)) == 2 and len(seen) == 6


def test_what_waits_is_limited() -> None:
    """A batch that waits is held in memory."""
    go, begun = threading.Event(), list[int]()

    def work(number: int) -> None:
        begun.append(number)
        go.wait(timeout=20)

    given = list[int]()

    def give(two: Lanes) -> None:
        for number in range(AHEAD + 3):
            two.do(0, functools.partial(work, number))
            given.append(number)

    with Lanes(2) as two:
        giver = threading.Thread(target=give, args=(two,))
        giver.start()
        deadline = time.monotonic() + 20
        while len(given) < AHEAD and time.monotonic() < deadline:
            time.sleep(0.01)
        giver.join(timeout=0.3)
        assert giver.is_alive() and len(given) == AHEAD and begun == [0]
        go.set()
        giver.join(timeout=20)
        two.wait()
    assert begun == list(range(AHEAD + 3))


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_what_a_lane_raises_is_not_lost(num_lanes: int) -> None:
    def fails() -> None:
        raise OSError("the disk is gone")

    with Lanes(num_lanes) as some, pytest.raises(OSError, match="the disk is gone"):
        some.do(0, fails)
        some.wait()


def test_on_an_error_what_has_not_begun_is_dropped_and_what_has_is_waited_for() -> None:
    done: list[tuple[int, int]] = []
    begun, go = threading.Barrier(3), threading.Event()

    def work(lane: int, number: int) -> None:
        begun.wait(timeout=20)
        go.wait(timeout=20)
        done.append((lane, number))

    with pytest.raises(KeyboardInterrupt), Lanes(2) as two:
        for lane in range(2):
            for number in range(3):
                two.do(lane, functools.partial(work, lane, number))
        begun.wait(timeout=20)
        threading.Timer(0.5, go.set).start()  # both are told to drop what waits before one ends
        raise KeyboardInterrupt
    assert sorted(done) == [(0, 0), (1, 0)]


# --- one ahead --------------------------------------------------------------------------------


def test_the_next_item_is_made_while_one_is_used() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Generator[int]:
        for number in range(4):
            made[number].set()
            yield number

    for number in one_ahead(items()):
        if number < 3:
            assert made[number + 1].wait(timeout=20)
        if number < 2:
            assert not made[number + 2].is_set()


def test_one_ahead_keeps_items_whatever_they_are() -> None:
    for items in ([], [None, 0, None], [[], False]):
        assert list(one_ahead(item for item in items)) == items


def test_an_error_comes_with_its_item() -> None:
    def items() -> Generator[int]:
        yield 1
        raise OSError("the second")

    coming = one_ahead(items())
    with pytest.raises(OSError, match="the second"):
        for item in coming:
            assert item == 1


def test_leaving_early_leaves_nothing_behind() -> None:
    closed = threading.Event()

    def items() -> Generator[int]:
        try:
            yield from range(100)
        finally:
            closed.set()

    held = items()
    coming = one_ahead(held)
    assert next(coming) == 0
    coming.close()
    assert closed.is_set() and list(held) == []
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]


# --- numbers ----------------------------------------------------------------------------------


def _gradients(net: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    out = net(x).square().mean()
    return [g.clone() for g in torch.autograd.grad(out, list(net.parameters()))]


def test_company_changes_no_bit_of_a_gradient() -> None:
    torch.manual_seed(0)
    nets: list[torch.nn.Module] = []
    for _ in range(2):
        net = torch.nn.Sequential(
            torch.nn.Conv2d(16, 96, 1, bias=False), torch.nn.BatchNorm2d(96), torch.nn.Hardswish(),
            torch.nn.Conv2d(96, 96, 3, padding=1, groups=96), torch.nn.Flatten(),
            torch.nn.Linear(96 * 64, 40),
        )  # fmt: skip
        nets.append(net.to(memory_format=torch.channels_last))
    x = torch.randn(32, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    alone = [_gradients(net, x) for net in nets]
    for _ in range(20):
        beside = each(lambda net: _gradients(net, x), nets, 2)
        for ours, theirs in zip(alone, beside, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
