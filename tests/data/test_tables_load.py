"""From a table to examples: classes, parts, what is left out, what is recorded."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.model_selection import train_test_split

from graft.config import TARGETS, CsvDataset
from graft.data import Examples, load
from graft.errors import DataError

Load = Callable[..., Examples]
CONF = Path(__file__).parents[2] / "conf/dataset"


@pytest.fixture
def examples(tmp_path: Path) -> Load:
    """Loads a table with these labels (and other columns) of pictures 0.jpg, 1.jpg, ..."""

    def of(labels: Sequence[Any], drop: Any = (), **keys: Any) -> Examples:
        columns = {name: v for name, v in keys.items() if isinstance(v, list)}
        keys = {name: v for name, v in keys.items() if name not in columns}
        (tmp_path / "pictures").mkdir(exist_ok=True)
        lines = [",".join(["filename", "label", *columns])]
        for i, row in enumerate(zip(labels, *columns.values(), strict=True)):
            (tmp_path / f"pictures/{i}.jpg").touch()
            lines.append(",".join([f"{i}.jpg", *map(str, row)]))
        (tmp_path / "labels.csv").write_text("\n".join(lines))
        config = CsvDataset(
            csv=str(tmp_path / "labels.csv"), images=str(tmp_path / "pictures"), target="label",
            **keys,
        )  # fmt: skip
        return load(config, tmp_path, drop=drop)

    return of


def said(examples: Load, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(DataError) as caught:
        examples(*args, **kwargs)
    return str(caught.value)


# --- classes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "order"),
    [(["1", "-1"], ("-1", "1")), (["10", "9", "1.5"], ("1.5", "9", "10")),
     (["001", "1"], ("001", "1")), (["b", "10", "9"], ("10", "9", "b")),
     (["nan", "1"], ("1", "nan")), (["True", "False"], ("False", "True"))],
)  # fmt: skip
def test_classes_are_sorted_as_numbers_if_all_are(
    examples: Load, names: list[str], order: tuple[str, ...]
) -> None:
    found = examples(names * 5)
    assert found.classes == order
    assert [found.classes[label] for label in found.labels] == names * 5


def test_the_positive_class_is_the_second_and_changes_no_split(examples: Load) -> None:
    plain = examples(["cat", "dog"] * 50)
    turned = examples(["cat", "dog"] * 50, positive="cat")
    listed = examples(["cat", "dog"] * 50, classes=("dog", "cat"))
    assert (plain.classes, turned.classes) == (("cat", "dog"), ("dog", "cat"))
    assert listed.classes == turned.classes and (listed.labels == 1 - plain.labels).all()
    np.testing.assert_array_equal(turned.test, plain.test)
    assert turned.digest != plain.digest


@pytest.mark.parametrize(
    ("names", "keys", "expected"),
    [
        ("ab", {"positive": "aa"}, "dataset.positive=aa is not a class. Did you mean a?"),
        ("abc", {"positive": "a"}, "dataset.positive=a is for two classes; here are 3 (a, b, c)"),
        ("ab", {"classes": ("a", "b", "a")}, "a class is listed twice"),
        ("ab", {"classes": ("a", "b", "c")}, "too few have 'c' (0)"),
        ("a", {}, "fewer than two classes (a)"),
    ],
)
def test_classes_that_cannot_be_are_refused(
    examples: Load, names: str, keys: Any, expected: str
) -> None:
    assert expected in said(examples, list(names) * 4, **keys)


def test_one_row_is_refused(examples: Load) -> None:  # C8
    assert "nothing to tell apart" in said(examples, ["a"])


def test_a_class_named_as_a_missing_value_is_noted(examples: Load) -> None:
    assert "not as a missing label: NA" in " ".join(examples(["NA", "b "] * 3).notes)
    assert "blanks at the ends" in " ".join(examples(["NA", "b "] * 3).notes)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("cat", "Cat", "dog"), "'Cat' and 'cat'"),
        (("big cat", "big  cat", "dog"), "'big  cat' and 'big cat'"),
        (("1", "1.0", "2"), "'1' and '1.0'"),
        (("cat", "cat-2", "dog"), ""),
    ],
)
def test_classes_that_may_be_one_are_noted(examples: Load, labels: Any, said: str) -> None:
    notes = [n for n in examples([*labels] * 4).notes if "one may be meant" in n]
    assert notes == ([f"Kept as different classes, though one may be meant: {said}."] * bool(said))


def test_a_class_too_small_for_the_split_is_refused_with_its_count(examples: Load) -> None:  # C9
    message = said(examples, ["a"] * 9 + ["b"] * 9 + ["pug"] * 2)
    assert "dataset.target=label: each class needs at least 3 pictures" in message
    assert "'pug' (2)" in message and "dataset.min_class=drop" in message


def test_a_class_too_small_for_the_split_is_left_out_on_request(examples: Load) -> None:  # C9
    found = examples(["a"] * 9 + ["b"] * 9 + ["pug"] * 2, min_class="drop")
    assert found.classes == ("a", "b") and len(found.ids) == 18
    assert "left out 1 class with too few members: 'pug' (2)." in found.notes[0]
    assert "fewer than two" in said(examples, ["a"] * 9 + ["pug"] * 2, min_class="drop")


def test_a_class_is_counted_in_groups_where_there_are_groups(examples: Load) -> None:  # C9
    who = ["x", "y", "z"] * 3 + ["u", "v", "v"]
    message = said(examples, ["a"] * 9 + ["b"] * 3, who=who, group="who")
    assert "at least 3 groups" in message and "'b' (2)" in message


def test_a_given_split_needs_every_class_in_training_and_notes_others(examples: Load) -> None:
    part = ["train", "train", "val", "test", "train"]
    message = said(examples, ["a", "a", "a", "b", "c"], part=part, split="part")
    assert "at least 1 pictures in the training part" in message and "'b' (0)" in message
    found = examples(["a", "b", "a", "b", "b"], part=part, split="part")
    assert "No val pictures of these classes: b." in found.notes


# --- parts -----------------------------------------------------------------------------------


def test_a_csv_is_split_as_the_two_calls_split_it(examples: Load) -> None:
    y = np.where(np.random.default_rng(0).random(1000) < 0.423, 1, -1)
    train, rest = train_test_split(range(1000), test_size=0.20, stratify=y, random_state=42)
    val, test = train_test_split(rest, test_size=0.50, stratify=y[rest], random_state=42)
    found = examples(y.tolist(), positive="-1")
    assert (found.train.tolist(), found.val.tolist(), found.test.tolist()) == (train, val, test)


def test_a_group_on_two_sides_of_a_given_split_is_an_error_by_default(examples: Load) -> None:
    keys: Any = {"part": ["train", "train", "val", "test"], "who": ["p", "q", "p", "r"]}
    keys |= {"split": "part", "group": "who"}
    message = said(examples, ["a", "b", "a", "b"], **keys)
    assert "dataset.group=who, dataset.split=part" in message and "two sides: p." in message
    assert any("Leak" in n for n in examples(["a", "b", "a", "b"], on_leak="warn", **keys).notes)


def test_shares_count_each_class_in_each_part_in_order(examples: Load) -> None:
    assert examples(["1", "-1"] * 20).shares() == {
        "train": {"-1": 16, "1": 16}, "val": {"-1": 2, "1": 2}, "test": {"-1": 2, "1": 2},
    }  # fmt: skip


# --- left out --------------------------------------------------------------------------------


def test_dropped_pictures_leave_the_others_where_they_were(examples: Load) -> None:
    labels = ["a", "b"] * 20
    whole = examples(labels)
    bad = {whole.ids[whole.train[3]], whole.ids[whole.val[0]]}
    left = examples(labels, drop=bad, on_bad_image="skip")
    for name in ("train", "val", "test"):
        before = [i for i in whole.ids[getattr(whole, name)] if i not in bad]
        assert left.ids[getattr(left, name)].tolist() == before
    assert left.ids.tolist() == [i for i in whole.ids if i not in bad]
    assert [p.name for p in left.paths] == left.ids.tolist()
    assert any("left out 2 pictures" in note for note in left.notes)


def test_what_is_dropped_is_gone_through_once_and_not_for_every_picture(examples: Load) -> None:
    class Counted(list[str]):
        times = 0

        def __iter__(self) -> Iterator[str]:
            self.times += 1
            return super().__iter__()

    whole = examples(["a", "b"] * 20)
    bad = Counted([whole.ids[whole.train[3]]])
    examples(["a", "b"] * 20, drop=bad, on_bad_image="skip")
    assert bad.times == 1


def test_a_test_picture_is_never_dropped(examples: Load) -> None:
    labels = ["a", "b"] * 20
    bad = examples(labels).ids[examples(labels).test[0]]
    message = said(examples, labels, drop=[bad], on_bad_image="skip")
    assert "test" in message and bad in message


def test_dropping_a_whole_part_is_refused(examples: Load) -> None:
    whole = examples(["a", "b"] * 20)
    for part, expected in ((whole.val, "no validation"), (whole.train, "no training pictures of")):
        assert expected in said(examples, ["a", "b"] * 20, drop=whole.ids[part].tolist())


# --- what is recorded ------------------------------------------------------------------------


def test_the_table_has_everything_as_text(examples: Load) -> None:
    keys: Any = {"age": ["007"] * 6, "split": ["x"] * 6, "who": list("pqrstu")}
    found = examples(["a", "b"] * 3, **keys, group="who")
    table = {name: list(cells) for name, cells in found.table().items()}
    assert list(table) == ["id", "path", "label", "split", "group", "age", "column split"]
    assert table["label"] == ["a", "b"] * 3 and table["age"] == ["007"] * 6
    assert table["split"] == found.parts().tolist() and table["column split"] == ["x"] * 6
    assert table["path"] == [str(p) for p in found.paths]


def test_the_digest_sees_whatever_changes_the_examples(examples: Load) -> None:
    labels = ["a", "b"] * 10
    first = examples(labels)
    assert examples(labels).digest == first.digest
    others = [
        examples(["b", "a", *labels[2:]]),
        examples(labels, split_seed=1),
        examples(labels[:-2]),
        examples(labels, who=list("abcdefghij" * 2), group="who"),
    ]
    assert len({first.digest, *(other.digest for other in others)}) == 5
    assert first.digest_with(["x"] * 20) != first.digest_with(["y"] * 20) != first.digest


# --- the YAML files --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["emoji", "celeba", "csv", "image_folder"])
def test_a_dataset_file_has_every_key_with_the_classs_own_default(name: str) -> None:
    common = yaml.safe_load((CONF / "_common.yaml").read_text())
    own = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert own.pop("defaults") == ["_common", "_self_"]
    cls = {c.__qualname__: c for c in TARGETS["dataset"]}[own.pop("_target_").split(".")[-1]]
    expected: dict[str, Any] = {}
    for item in dataclasses.fields(cls):
        is_open = item.default is dataclasses.MISSING
        default = list(item.default) if isinstance(item.default, tuple) else item.default
        expected[item.name] = "???" if is_open else default
    assert common | own == expected
