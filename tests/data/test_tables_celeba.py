"""CelebA in the forms it is passed around in, on ten pictures of five persons."""

from collections.abc import Callable
from pathlib import Path

import pytest

from graft.config import CelebaDataset
from graft.data import load
from graft.data.tables import read
from graft.errors import ConfigError, DataError

NAMES = [f"{i:06d}.jpg" for i in range(1, 11)]
MALE = ["-1", "1"] * 5
SMILING = ["1"] * 5 + ["-1"] * 5
PERSONS = ["7", "7", "12", "12", "3", "3", "4", "4", "51", "51"]
PARTITION = ["0"] * 6 + ["1"] * 2 + ["2"] * 2


def official(rows: list[str] | None = None, count: int = 10) -> str:
    rows = rows or [
        f"{n} {m:>2}  {s:>2} " for n, m, s in zip(NAMES, MALE, SMILING, strict=True)
    ]  # fmt: skip
    return "\n".join([str(count), "Male Smiling ", *rows]) + "\n"


def mirror() -> str:
    rows = [f"{n},{m},{s}" for n, m, s in zip(NAMES, MALE, SMILING, strict=True)]
    return "\n".join(["image_id,Male,Smiling", *rows]) + "\n"


def pairs(values: list[str], names: list[str] = NAMES) -> str:
    return "".join(f"{n} {v}\n" for n, v in zip(names, values, strict=True))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Writes files below celeba/; a name that ends in / is a folder for the ten pictures."""

    def of(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "celeba" / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                for picture in NAMES:
                    (path / picture).touch()
            else:
                path.write_text(text)
        return tmp_path / "celeba"

    return of


Write = Callable[[dict[str, str]], Path]
LISTS = {
    "identity_CelebA.txt": pairs(PERSONS),
    "list_eval_partition.txt": pairs(PARTITION),
    "img_align_celeba/": "",
}


@pytest.mark.parametrize("images", ["img_align_celeba/", "img_align_celeba/img_align_celeba/",
                                    "Img/img_align_celeba/"])  # fmt: skip
@pytest.mark.parametrize(
    "lists",
    [
        {"list_attr_celeba.txt": official(), "identity_CelebA.txt": pairs(PERSONS),
         "list_eval_partition.txt": pairs(PARTITION)},
        {"Anno/list_attr_celeba.txt": official(), "Anno/identity_CelebA.txt": pairs(PERSONS),
         "Eval/list_eval_partition.txt": pairs(PARTITION)},
        {"list_attr_celeba.csv": mirror(), "identity_CelebA.txt": pairs(PERSONS),
         "list_eval_partition.csv": "image_id,partition\n" + pairs(PARTITION).replace(" ", ",")},
    ],
    ids=["flat", "official", "mirror"],
)  # fmt: skip
def test_every_layout_reads_the_same(
    write: Write, tmp_path: Path, lists: dict[str, str], images: str
) -> None:
    root = write({**lists, images: ""})
    table = read(CelebaDataset(root=str(root)), tmp_path)
    assert (table.ids, table.labels, table.groups) == (tuple(NAMES), tuple(MALE), tuple(PERSONS))
    assert table.splits == ("train",) * 6 + ("val",) * 2 + ("test",) * 2
    assert table.columns == {"Smiling": tuple(SMILING)}
    assert all(path.is_file() for path in table.paths)
    assert len(table.notes) == 2 and "dataset.group=auto" in table.notes[0]


def test_any_attribute_can_be_the_target(write: Write, tmp_path: Path) -> None:
    root = write({"list_attr_celeba.txt": official(), **LISTS})
    table = read(CelebaDataset(root=str(root), target="Smiling"), tmp_path)
    assert table.labels == tuple(SMILING) and table.columns == {"Male": tuple(MALE)}
    with pytest.raises(DataError, match=r"dataset\.target=Smilling.*Did you mean Smiling") as found:
        read(CelebaDataset(root=str(root), target="Smilling"), tmp_path)
    assert "Male, Smiling" in str(found.value)


def test_the_homeworks_csv_needs_no_lists(write: Write, tmp_path: Path) -> None:
    rows = "".join(f"{n},{m}\n" for n, m in zip(NAMES, MALE, strict=True))
    root = write({"mine.csv": "filename,Male\n" + rows, "faces/": ""})
    config = CelebaDataset(csv=str(root / "mine.csv"), images=str(root / "faces"))
    table = read(config, tmp_path)
    assert (table.ids, table.labels) == (tuple(NAMES), tuple(MALE))
    assert (table.splits, table.groups, table.columns, table.notes) == (None, None, {}, ())


def test_lists_beside_the_csv_or_named_are_used_and_may_hold_more(
    write: Write, tmp_path: Path
) -> None:
    more = pairs([*PERSONS, "99"], [*NAMES, "000011.jpg"])
    root = write({"mine.csv": mirror(), "identity_CelebA.txt": more, "img_align_celeba/": "",
                  "other/parts.txt": pairs(PARTITION)})  # fmt: skip
    config = CelebaDataset(csv=str(root / "mine.csv"), images=str(root / "img_align_celeba"),
                           partition=str(root / "other/parts.txt"))  # fmt: skip
    table = read(config, tmp_path)
    assert table.groups == tuple(PERSONS)
    assert table.splits is not None and table.splits[-1] == "test"


def test_null_leaves_a_list_as_a_column(write: Write, tmp_path: Path) -> None:
    root = write({"list_attr_celeba.txt": official(), **LISTS})
    table = read(CelebaDataset(root=str(root), group=None, split=None), tmp_path)
    assert (table.groups, table.splits, table.notes) == (None, None, ())
    assert table.columns["identity"] == tuple(PERSONS)
    assert table.columns["partition"] == tuple(PARTITION)


def test_a_picture_without_a_person_is_named(write: Write, tmp_path: Path) -> None:
    short = {**LISTS, "identity_CelebA.txt": pairs(PERSONS[:8], NAMES[:8])}
    root = write({"list_attr_celeba.txt": official(), **short})
    expected = r"identity of 000009\.jpg, 000010\.jpg \(.*rows 11, 12\).*dataset\.group=null"
    with pytest.raises(DataError, match=expected):
        read(CelebaDataset(root=str(root)), tmp_path)
    assert read(CelebaDataset(root=str(root), group=None), tmp_path).columns["identity"][-1] == ""


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"list_attr_celeba.txt": official(count=11)}, "line 1 says 11 pictures, but 10 follow"),
        ({"list_attr_celeba.txt": official(["000001.jpg 1 1", "000002.jpg 1"])},
         "row 4: a picture and 2 values are expected"),
        ({"list_attr_celeba.txt": "0\nMale Smiling\n"}, "lists no pictures"),
        ({"list_attr_celeba.txt": "1\nMale Male\n000001.jpg 1 1\n"}, "two attributes have one"),
        ({"list_attr_celeba.csv": "picture,Male\n000001.jpg,1\n"}, "image_id or filename"),
        ({"list_attr_celeba.txt": official(), "identity_CelebA.txt": "000001.jpg\n"},
         "row 1: a picture and one value"),
        ({"list_attr_celeba.txt": official(), "list_eval_partition.txt": pairs(["7"] * 10)},
         "'7' is not a split"),
        ({}, "has no list_attr_celeba.txt or list_attr_celeba.csv"),
    ],
)  # fmt: skip
def test_a_list_of_another_form_is_refused(
    write: Write, tmp_path: Path, lists: dict[str, str], expected: str
) -> None:
    root = write({"img_align_celeba/": "", **lists})
    with pytest.raises(DataError) as found:
        read(CelebaDataset(root=str(root)), tmp_path)
    assert expected in str(found.value)


def test_what_is_missing_is_named_by_its_key(write: Write, tmp_path: Path) -> None:
    root = write({"list_attr_celeba.txt": official(), "empty/x": ""})
    for config, expected in (
        (CelebaDataset(), r"needs dataset\.root=.*or dataset\.csv="),
        (CelebaDataset(csv="x.csv"), r"needs dataset\.root="),
        (CelebaDataset(root=str(tmp_path / "no")), r"dataset\.root=.*no does not exist"),
        (CelebaDataset(root=str(root)), r"dataset\.root=.* has no img_align_celeba/"),
        (CelebaDataset(root=str(root), images=str(root / "empty"), identities="no.txt"),
         r"dataset\.identities=.*no\.txt does not exist"),
        (CelebaDataset(root=str(root), images=str(root / "empty"), group="identity"),
         r"dataset\.group=identity, but identity_CelebA\.txt was not found"),
    ):  # fmt: skip
        with pytest.raises((DataError, ConfigError), match=expected):
            read(config, tmp_path)


def test_the_official_split_keeps_persons_apart_or_says_so(write: Write, tmp_path: Path) -> None:
    root = write({"list_attr_celeba.txt": official(), **LISTS})
    examples = load(CelebaDataset(root=str(root)), tmp_path)
    assert examples.shares() == {
        "train": {"-1": 3, "1": 3}, "val": {"-1": 1, "1": 1}, "test": {"-1": 1, "1": 1},
    }  # fmt: skip
    torn = [*PERSONS[:8], "7", "51"]
    write({"identity_CelebA.txt": pairs(torn)})
    with pytest.raises(DataError, match=r"puts groups on two sides: 7.*dataset\.on_leak=warn"):
        load(CelebaDataset(root=str(root)), tmp_path)
    warned = load(CelebaDataset(root=str(root), on_leak="warn"), tmp_path)
    assert any("on two sides" in note for note in warned.notes)
