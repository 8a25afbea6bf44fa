"""The parts: the seed's calls index for index, groups whole, every class everywhere."""

from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from graft.config import from_dict
from graft.data.split import Split, crossing, needed, rare, split
from graft.errors import ConfigError, DataError

FRACTIONS = (0.8, 0.1, 0.1)


def made(labels: Any, **kwargs: Any) -> Split:
    known = {"groups": None, "given": None, "fractions": FRACTIONS, "seed": 42, **kwargs}
    return split(np.asarray(labels), **known)


def named(parts: Split, size: int) -> list[str]:
    names = ["?"] * size
    for name in ("train", "val", "test"):
        for i in getattr(parts, name):
            assert names[i] == "?", "in two parts"
            names[i] = name
    return names


@pytest.mark.parametrize("share", [0.423, 0.5, 0.01])
def test_thirty_thousand_rows_split_index_for_index_as_the_two_calls_do(share: float) -> None:
    y = (np.random.default_rng(1).random(30_000) < share).astype(int)
    train, rest = train_test_split(np.arange(30_000), test_size=0.20, stratify=y, random_state=42)
    val, test = train_test_split(rest, test_size=0.50, stratify=y[rest], random_state=42)
    parts = made(y)
    assert (len(parts.train), len(parts.val), len(parts.test)) == (24_000, 3_000, 3_000)
    for ours, theirs in ((parts.train, train), (parts.val, val), (parts.test, test)):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("fractions", "sizes"),
    [((0.7, 0.2, 0.1), (7_000, 2_000, 1_000)), ((0.7, 0.1, 0.2), (7_000, 1_000, 2_000)),
     ((0.4, 0.3, 0.3), (4_000, 3_000, 3_000))],
)  # fmt: skip
def test_fractions_are_taken_as_decimals(fractions: Any, sizes: Any) -> None:
    # 0.2 + 0.1 is more than 0.3 in binary: the training part would lose a row.
    parts = made(np.arange(10_000) % 2, fractions=fractions)
    assert (len(parts.train), len(parts.val), len(parts.test)) == sizes


@pytest.mark.parametrize("size", [3, 4, 5, 9, 11])
def test_a_small_class_is_in_every_part(size: int) -> None:
    labels = np.array([0] * 100 + [1] * size)
    parts = made(labels)
    assert "?" not in named(parts, len(labels))
    for part in (parts.train, parts.val, parts.test):
        assert set(labels[part]) == {0, 1}


def test_a_class_that_the_two_calls_would_leave_out_is_in_every_part() -> None:
    labels = np.repeat([0, 1, 2, 3], [104, 104, 104, 3])
    _, rest = train_test_split(labels, test_size=0.2, stratify=labels, random_state=42)
    assert 3 not in rest
    assert 3 in labels[made(labels).val] and 3 in labels[made(labels).test]


def test_another_seed_is_another_split_and_the_same_seed_the_same() -> None:
    labels = np.arange(200) % 2
    for groups in (None, [str(i // 2) for i in range(200)]):
        first, again, other = (made(labels, groups=groups, seed=s) for s in (1, 1, 2))
        np.testing.assert_array_equal(first.val, again.val)
        assert set(first.val) != set(other.val)


# --- groups ----------------------------------------------------------------------------------


def persons(count: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Labels and groups of uneven size; each group has one class, as a person does."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 36, count)
    classes = (random.random(count) < 0.42).astype(int)
    return np.repeat(classes, sizes), [str(g) for g in np.repeat(np.arange(count), sizes)]


def test_no_group_is_on_two_sides() -> None:
    labels, groups = persons(300)
    parts = made(labels, groups=groups)
    assert "?" not in named(parts, len(labels))
    assert crossing(groups, parts) == []


@pytest.mark.parametrize("fractions", [FRACTIONS, (0.5, 0.2, 0.3)])
def test_parts_of_groups_have_the_sizes_and_shares_asked_for(fractions: Any) -> None:
    labels, groups = persons(300)
    parts = made(labels, groups=groups, fractions=fractions)
    for part, fraction in zip((parts.train, parts.val, parts.test), fractions, strict=True):
        assert len(part) / len(labels) == pytest.approx(fraction, abs=0.005)
        assert labels[part].mean() == pytest.approx(labels.mean(), abs=0.01)


def test_a_rare_class_keeps_its_share_in_small_parts() -> None:
    # Groups mix both classes; without a weight the common class would decide alone.
    random = np.random.default_rng(3)
    sizes = random.integers(5, 40, 400)
    chance = np.repeat(random.choice([0, 0, 0, 0.2], 400), sizes)
    labels = (random.random(len(chance)) < chance).astype(int)
    parts = made(labels, groups=[str(g) for g in np.repeat(np.arange(400), sizes)])
    for part in (parts.train, parts.val, parts.test):
        assert labels[part].mean() == pytest.approx(labels.mean(), rel=0.04)


def test_the_groups_split_does_not_depend_on_the_order_of_the_rows() -> None:
    labels, groups = persons(50)
    order = np.random.default_rng(3).permutation(len(labels))
    parts = named(made(labels, groups=groups), len(labels))
    moved = named(made(labels[order], groups=[groups[i] for i in order]), len(labels))
    assert moved == [parts[i] for i in order]


def test_three_groups_a_class_are_enough_for_every_class_in_every_part() -> None:
    labels = np.repeat(np.arange(90) % 30, 7)
    parts = made(labels, groups=[str(g) for g in np.repeat(np.arange(90), 7)])
    for part in (parts.train, parts.val, parts.test):
        assert set(labels[part]) == set(range(30))


def test_groups_that_cannot_be_divided_are_refused() -> None:
    # Two classes to a group and three groups: each part would need two of them.
    with pytest.raises(DataError, match=r"dataset\.group: no way was found to divide"):
        made([0, 1, 0, 2, 1, 2], groups=["a", "a", "b", "b", "c", "c"])


def test_few_groups_of_several_classes_are_divided_where_that_is_possible() -> None:
    # Rows are groups, columns the pictures of a class: largest first leads to a dead end here.
    counts = [[0, 1, 2], [3, 0, 5], [2, 3, 0], [0, 0, 5], [1, 4, 5]]
    cells = [
        (str(g), c) for g, row in enumerate(counts) for c, n in enumerate(row) for _ in [0] * n
    ]
    labels = np.array([c for _, c in cells])
    parts = made(labels, groups=[g for g, _ in cells], seed=1)
    assert [set(labels[p]) for p in (parts.train, parts.val, parts.test)] == [{0, 1, 2}] * 3


# --- a split that the table gives ------------------------------------------------------------


def test_a_given_split_is_used_as_it_stands_in_the_tables_order() -> None:
    parts = made([0, 1] * 3, given=["test", "val", "train", "train", "val", "test"])
    assert (parts.train.tolist(), parts.val.tolist(), parts.test.tolist()) == (
        [2, 3], [1, 4], [0, 5],
    )  # fmt: skip


@pytest.mark.parametrize(("has", "lacks"), [("test", "val"), ("val", "test")])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_part_that_is_not_given_is_taken_from_train(has: str, lacks: str, grouped: bool) -> None:
    labels, given = np.arange(200) % 2, ["train"] * 180 + [has] * 20
    groups = [str(i // 2) for i in range(200)] if grouped else None
    parts = made(labels, given=given, groups=groups)
    assert getattr(parts, has).tolist() == list(range(180, 200))
    assert len(getattr(parts, lacks)) == 20 and len(parts.train) == 160
    assert labels[getattr(parts, lacks)].mean() == 0.5
    assert "?" not in named(parts, 200)
    assert not grouped or crossing(groups or [], parts) == []


def test_only_train_given_is_as_if_nothing_was_given() -> None:
    labels = np.arange(100) % 2
    given, free = made(labels, given=["train"] * 100), made(labels)
    np.testing.assert_array_equal(given.val, free.val)
    np.testing.assert_array_equal(given.test, free.test)


# --- what is too small -----------------------------------------------------------------------


def test_a_class_needs_a_member_for_each_part_that_is_made() -> None:
    labels = np.array([0] * 3 + [1] * 2 + [2] * 9)
    assert rare(labels, 4, groups=None, given=None) == {1: 2, 3: 0}
    given = ["train", "train", "test", "train", "val"] + ["train"] * 9
    assert rare(labels, 3, groups=None, given=given) == {}
    assert needed(given) == 1 and needed(["train", "test"]) == 2 and needed(None) == 3


def test_members_are_counted_in_groups_where_there_are_groups() -> None:
    labels = np.array([0] * 6 + [1] * 6)
    groups = ["a", "a", "b", "b", "c", "c", "a", "a", "a", "b", "b", "b"]
    assert rare(labels, 2, groups=groups, given=None) == {1: 2}


@pytest.mark.parametrize(
    "fractions", [[0.8, 0.1, 0.2], [1.2, -0.1, -0.1], [0.9, 0.1, 0], [0.8, 0.2], [1, 0, 0]]
)
def test_fractions_that_are_no_split_are_refused(fractions: list[float]) -> None:
    dataset = {"_target_": "graft.config.EmojiDataset", "fractions": fractions}
    with pytest.raises(ConfigError, match=r"dataset\.fractions=.*three fractions"):
        from_dict({"dataset": dataset})


def test_fractions_may_miss_one_by_a_rounding() -> None:
    third = [0.333333, 0.333333, 0.333334]
    dataset = {"_target_": "graft.config.EmojiDataset", "fractions": third}
    with pytest.raises(ConfigError) as caught:  # the rest of the configuration is missing
        from_dict({"dataset": dataset})
    assert "fractions" not in str(caught.value)
