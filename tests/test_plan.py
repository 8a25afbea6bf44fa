"""Where to store: what fits, and of that what costs least."""

import pytest

from graft.plan import MIN_EPOCHS, Candidate, Choice, Work, choose, cost_s, fits, gigabytes

GB = 10**9
# 1,000,000 rows: a row of 1,000 bytes is 1 GB in all. Reading costs nothing unless a case says so.
WORK = Work(num_rows=1_000_000, num_seen=1_000_000, epochs=10, read_s=0.0)


def place(name: str, kilobytes: int, before_s: float, after_s: float) -> Candidate:
    return Candidate(name, kilobytes * 1000, before_s, after_s)


# A trunk whose maps shrink, then grow again towards its end, as it often is.
EARLY = place("early", 100, 0.2, 0.8)
SMALL = place("small", 10, 0.6, 0.4)
END = place("end", 40, 1.0, 0.0)
TRUNK = (EARLY, SMALL, END)


@pytest.mark.parametrize(
    ("candidates", "room_gb", "chosen"),
    [
        (TRUNK, 1000, END),
        (TRUNK, 40, END),
        (TRUNK, 39, SMALL),
        (TRUNK, 10, SMALL),
        (TRUNK, 9, None),
        (TRUNK, 0, None),
        ((END,), 40, END),
        ((END,), 39, None),
        # An earlier place that fits is not worth it if nearly all work comes after it.
        ((place("first", 1, 0.02, 0.98), END), 39, place("first", 1, 0.02, 0.98)),
        ((place("first", 1, 0.2, 0.99), END), 39, None),
        # Of two that fit, the one after which less is left.
        ((place("a", 5, 0.3, 0.7), place("b", 5, 0.7, 0.3), END), 39, place("b", 5, 0.7, 0.3)),
        ((place("a", 5, 0.3, 0.1), place("b", 5, 0.7, 0.3), END), 39, place("a", 5, 0.3, 0.1)),
    ],
)
def test_of_what_fits_that_which_costs_least_is_stored(
    candidates: tuple[Candidate, ...], room_gb: int, chosen: Candidate | None
) -> None:
    assert choose(candidates, WORK, room_gb * GB).candidate == chosen


@pytest.mark.parametrize(
    ("room_gb", "why"),
    [
        (40, ""),
        (39, "stored at small: at end 40.00 GB would be stored, 39.00 GB may be"),
        (9, "at end 40.00 GB would be stored, 9.00 GB may be"),
    ],
)
def test_why_it_is_not_stored_at_the_end_is_said(room_gb: int, why: str) -> None:
    assert choose(TRUNK, WORK, room_gb * GB).why == why


def test_what_would_save_no_time_is_not_stored_and_it_is_said() -> None:
    found = choose((place("first", 1, 0.2, 0.99), END), WORK, 39 * GB)
    assert found == Choice(
        None,
        "at end 40.00 GB would be stored, 39.00 GB may be; what fits would save no time",
    )


def test_views_count_as_rows_each() -> None:
    for views, is_chosen in ((1, True), (2, False)):
        work = Work(views * WORK.num_rows, WORK.num_seen, 10, 0.0)
        assert (choose((END,), work, 79 * GB).candidate == END) is is_chosen
        assert fits(END.row_bytes, work, 79 * GB) is is_chosen


def test_many_views_of_few_epochs_may_cost_more_than_they_save() -> None:
    early = place("early", 1, 0.5, 0.5)
    few, many = (Work(n * WORK.num_rows, WORK.num_seen, 1, 0.0) for n in (8, 11))
    assert choose((early, END), few, 39 * GB).candidate == early
    assert choose((early, END), many, 39 * GB).candidate is None


def test_a_longer_run_is_worth_more_storing() -> None:
    early, work = place("early", 1, 0.5, 0.5), (11 * WORK.num_rows, WORK.num_seen)
    assert choose((early, END), Work(*work, 10, 0.0), 39 * GB).candidate is None
    assert choose((early, END), Work(*work, 30, 0.0), 39 * GB).candidate == early


@pytest.mark.parametrize(
    ("row_bytes", "room", "answer"), [(10, 10_000_000, True), (10, 9_999_999, False), (0, 0, True)]
)
def test_what_fits_fits_to_the_byte(row_bytes: int, room: int, answer: bool) -> None:
    assert fits(row_bytes, WORK, room) is answer


@pytest.mark.parametrize(
    ("one", "work", "seconds"),
    [
        (Candidate("", 0, 2.0, 0.0), Work(100, 80, 10, 0.0), 200),
        (Candidate("", 0, 0.0, 0.5), Work(100, 80, 10, 0.0), 400),
        (Candidate("", 0, 0.0, 0.5), Work(100, 80, 20, 0.0), 800),
        (Candidate("", 0, 0.0, 0.5), Work(100, 80, 1, 0.0), 400),
        (Candidate("", 1000, 0.0, 0.0), Work(100, 80, 10, 1e-3), 800),
        (Candidate("", 1000, 2.0, 0.5), Work(100, 80, 10, 1e-3), 200 + 400 + 800),
    ],
)
def test_a_place_costs_a_fill_and_the_rest_of_the_way_in_every_epoch(
    one: Candidate, work: Work, seconds: float
) -> None:
    assert cost_s(one, work) == pytest.approx(seconds)
    assert MIN_EPOCHS == 10


def test_bytes_that_are_read_slowly_speak_for_a_smaller_place() -> None:
    large, small = place("large", 30, 0.6, 0.40), place("small", 3, 0.6, 0.41)
    for read_s, chosen in ((0.0, large), (1e-6, small)):
        work = Work(WORK.num_rows, WORK.num_seen, 10, read_s)
        assert choose((small, large, END), work, 39 * GB).candidate == chosen


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0.00 GB"), (1_234_000_000, "1.23 GB"), (99 * GB, "99.00 GB"), (1234 * GB, "1,234 GB")],
)
def test_sizes_are_in_gigabytes(count: int, words: str) -> None:
    assert gigabytes(count) == words
