"""What waits for a slot: in which order, split how, and again after which failures."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
from hydra.core.utils import JobReturn
from hydra.errors import HydraException

from hydra_plugins.gpu_launcher._array import Array, arrange
from hydra_plugins.gpu_launcher._job import Job, done, failed
from hydra_plugins.gpu_launcher._queue import RETRY_S, Queue
from hydra_plugins.gpu_launcher.ends import NotStarted, TimedOut, WorkerDied
from hydra_plugins.gpu_launcher.plan import Plan


def array(*nums: int) -> Array:
    return [Job(num, f"a={num}", (f"a={num}",)) for num in nums]


def nums(found: Array | None) -> list[int] | None:
    return None if found is None else [job.num for job in found]


def taken(queue: Queue) -> list[list[int]]:
    """All that can be taken now."""
    found = []
    while (one := queue.take()) is not None:
        found.append([job.num for job in one])
    return found


def settled(queue: Queue, jobs: Array, *outcomes: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """(numbers of the jobs that have ended, (number, retry) of each failure)"""
    results: Sequence[JobReturn] = [
        failed(job, one) if isinstance(one, Exception) else done(job, one)
        for job, one in zip(jobs, outcomes, strict=True)
    ]
    ended, failures = queue.settle(jobs, results)
    return [job.num for job, _ in ended], [(one.job.num, one.retry) for one in failures]


# --- order ------------------------------------------------------------------------------------


def test_with_one_slot_arrays_come_in_the_order_asked() -> None:
    assert taken(Queue([array(0), array(1, 2, 3), array(4, 5)])) == [[0], [1, 2, 3], [4, 5]]


def test_with_several_slots_the_longest_come_first_and_equals_in_the_order_asked() -> None:
    queue = Queue([array(0), array(1, 2), array(3), array(4, 5, 6), array(7, 8)], num_slots=2)
    assert taken(queue) == [[4, 5, 6], [1, 2], [7, 8], [0], [3]]


def test_how_long_a_job_takes_counts_for_order_and_for_splitting() -> None:
    jobs = [Job(num, "", ()) for num in range(6)]
    plan = Plan([[0, 1, 2], [3, 4]], lengths={3: 5.0, 4: 5.0})
    arrays, _ = arrange(jobs, plan, "p")
    assert taken(Queue(arrays, num_slots=2)) == [[3, 4], [0, 1, 2], [5]]
    assert sorted(taken(Queue(arrays, num_slots=4))) == [[0, 1, 2], [3], [4], [5]]


@pytest.mark.parametrize(
    ("sizes", "num_slots", "expected"),
    [
        ([8], 1, [8]),
        ([8], 2, [4, 4]),
        ([7], 3, [3, 2, 2]),
        ([8], 4, [2, 2, 2, 2]),
        ([3], 8, [1, 1, 1]),
        ([6, 1], 3, [3, 3, 1]),
        ([2, 2], 2, [2, 2]),
        ([5, 5, 5], 2, [5, 5, 5]),
        ([], 4, []),
    ],
)
def test_arrays_are_split_until_no_slot_is_idle(
    sizes: list[int], num_slots: int, expected: list[int]
) -> None:
    count = iter(range(100))
    arrays = [array(*(next(count) for _ in range(size))) for size in sizes]
    found = taken(Queue(arrays, num_slots))
    assert sorted(map(len, found), reverse=True) == expected
    assert sorted(num for one in found for num in one) == list(range(sum(sizes)))


def test_ten_thousand_jobs_are_taken_in_a_moment() -> None:
    queue = Queue([array(num) for num in range(10_000)], num_slots=4)
    began = time.process_time()
    assert len(taken(queue)) == 10_000
    assert time.process_time() - began < 1


# --- retries ----------------------------------------------------------------------------------


def test_a_job_is_retried_so_often_and_then_has_failed() -> None:
    (jobs,) = arrays = [array(3)]
    queue = Queue(arrays, max_retries=2)
    queue.take()
    assert settled(queue, jobs, ValueError()) == ([], [(3, 1)])
    assert settled(queue, jobs, ValueError()) == ([], [(3, 2)])
    assert settled(queue, jobs, ValueError()) == ([3], [(3, 0)])


def test_a_retry_waits_and_each_one_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    queue = Queue([], max_retries=9)
    waits = []
    for _ in range(9):
        settled(queue, array(0), ValueError())
        assert queue.take() is None and len(queue) == 1
        waits.append(queue.due_in_s())
        now += queue.due_in_s()
        assert nums(queue.take()) == [0]
    assert waits == [RETRY_S * factor for factor in (1, 2, 4, 8, 16, 32)] + [30.0] * 3


def test_while_a_retry_waits_others_come_first() -> None:
    queue = Queue([array(0), array(1)], max_retries=1)
    first = queue.take()
    assert first is not None
    settled(queue, first, ValueError())
    assert queue.due_in_s() == 0
    assert taken(queue) == [[1]]
    assert 0 < queue.due_in_s() <= RETRY_S


def test_of_an_array_those_that_failed_are_retried_together() -> None:
    queue = Queue([], max_retries=1)
    found = settled(queue, array(0, 1, 2, 3), 0.5, ValueError(), None, KeyError())
    assert found == ([0, 2], [(1, 1), (3, 1)])
    time.sleep(queue.due_in_s())
    assert taken(queue) == [[1, 3]]


def test_what_is_final_is_not_retried() -> None:
    class Diverged(Exception):
        is_final = True

    once = ValueError()
    once.is_final = True  # type: ignore[attr-defined]
    queue = Queue([], max_retries=5)
    assert settled(queue, array(0, 1), Diverged(), once) == ([0, 1], [(0, 0), (1, 0)])
    assert len(queue) == 0


# --- halves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [WorkerDied("killed"), TimedOut("silent")])
def test_an_array_whose_process_died_goes_on_in_halves_at_once(error: Exception) -> None:
    queue = Queue([], max_retries=0)
    assert settled(queue, array(0, 1, 2), *[error] * 3) == ([], [])
    assert taken(queue) == [[0, 1], [2]]


def test_halves_cost_no_retry_and_find_the_culprit() -> None:
    queue, starts, ended = Queue([array(*range(16))], max_retries=1), 0, dict[int, int]()
    while len(queue):
        jobs = queue.take()
        if jobs is None:
            time.sleep(queue.due_in_s())
            continue
        starts += 1
        dies = any(job.num == 11 for job in jobs)
        finished, failures = settled(queue, jobs, *[WorkerDied() if dies else 1 for _ in jobs])
        ended |= dict.fromkeys(finished, 1)
        assert {num for num, _ in failures} <= {11}
    assert sorted(ended) == list(range(16))
    assert starts == 1 + 2 * 4 + 1  # halves of 16, 8, 4 and 2, and one retry


def test_an_array_that_could_not_be_started_is_not_tried_in_halves() -> None:
    queue = Queue([], max_retries=3)
    found = settled(queue, array(0, 1), *[NotStarted("no worker gets ready")] * 2)
    assert found == ([0, 1], [(0, 0), (1, 0)])


# --- plans ------------------------------------------------------------------------------------


def test_jobs_that_are_done_are_in_no_array() -> None:
    jobs = array(*range(5, 10))
    arrays, values = arrange(jobs, Plan([[3, 1]], {0: "a", 4: None}), "app.prepare")
    assert [nums(one) for one in arrays] == [[7], [8, 6]]
    assert [one[0].is_in_array for one in arrays] == [False, True]
    assert values == {5: "a", 9: None}


@pytest.mark.parametrize("plan", [Plan([[0, 1]], {1: 0}), Plan((), {2: 0}), Plan((), {-1: 0})])
def test_a_wrong_plan_is_refused(plan: Plan) -> None:
    with pytest.raises(HydraException, match=r"hydra.launcher.prepare=app.prepare returned posi"):
        arrange(array(0, 1), plan, "app.prepare")
