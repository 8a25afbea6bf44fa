"""One folder per class, with and without folders for the parts above."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from graft.config import ImageFolderDataset
from graft.data import load, places
from graft.data.tables import read
from graft.errors import ConfigError, DataError

Write = Callable[..., ImageFolderDataset]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Empty files below root/; a name that ends in / is a folder."""

    def of(*names: str, **keys: str) -> ImageFolderDataset:
        (tmp_path / "root").mkdir(exist_ok=True)
        for name in names:
            path = tmp_path / "root" / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.touch()
        return ImageFolderDataset(root=str(tmp_path / "root"), **keys)  # type: ignore[arg-type]

    return of


def many(folder: str, count: int) -> list[str]:
    return [f"{folder}/{i:03d}.png" for i in range(count)]


def test_a_folder_is_a_class_and_an_id_is_a_path_below_the_root(
    write: Write, tmp_path: Path
) -> None:
    table = read(write("dog/2.JPG", "cat/b.png", "cat/deep/a.webp", "dog/1.jpeg"), tmp_path)
    assert table.ids == ("cat/b.png", "cat/deep/a.webp", "dog/1.jpeg", "dog/2.JPG")
    assert table.labels == ("cat", "cat", "dog", "dog")
    assert table.paths[1] == tmp_path / "root/cat/deep/a.webp"
    assert (table.splits, table.groups, table.columns, table.notes) == (None, None, {}, ())


@pytest.mark.parametrize("extension", (*places.EXTENSIONS, ".PNG"))
def test_pictures_are_told_by_their_extension(write: Write, tmp_path: Path, extension: str) -> None:
    assert len(read(write(f"cat/a{extension}"), tmp_path).ids) == 1


def test_other_files_are_counted_and_hidden_ones_ignored(write: Write, tmp_path: Path) -> None:
    names = ("cat/a.png", "cat/notes.txt", "cat/1.HEIC", "cat/2.heic", "README", "loose.png")
    hidden = (".cache/x.png", "cat/.a.png", "cat/.hidden/x.png", ".DS_Store")
    table = read(write(*names, *hidden), tmp_path)
    assert table.ids == ("cat/a.png",)
    assert table.notes == (
        "Files that are not pictures we read, not used: 4 (.heic 2, no extension 1, .txt 1).",
        "Pictures outside of a class folder, not used: 1.",
    )


def test_training_and_testing_are_parts_too(write: Write, tmp_path: Path) -> None:
    names = [*many("Training/cat", 3), *many("Training/dog", 3), "Testing/dog/t.png"]
    table = read(write(*names), tmp_path)
    assert set(table.labels) == {"cat", "dog"}
    assert sorted(table.splits or ()) == ["test", *["train"] * 6]


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_folders_named_as_parts_are_the_split(write: Write, tmp_path: Path, val: str) -> None:
    names = [*many("train/cat", 3), *many("train/dog", 3), f"{val}/cat/v.png", "test/dog/t.png"]
    table = read(write(*names), tmp_path)
    assert sorted(table.labels) == ["cat"] * 4 + ["dog"] * 4
    assert dict(zip(table.ids, table.splits or (), strict=True))[f"{val}/cat/v.png"] == "val"
    assert sorted(set(table.splits or ())) == ["test", "train", "val"]


@pytest.mark.parametrize(("given", "made"), [("test", "val"), ("val", "test")])
def test_a_missing_part_is_taken_from_train(
    write: Write, tmp_path: Path, given: str, made: str
) -> None:
    names = [n for c in ("cat", "dog") for n in many(f"train/{c}", 90) + many(f"{given}/{c}", 10)]
    shares = load(write(*names), tmp_path).shares()
    assert shares[given] == {"cat": 10, "dog": 10}
    assert shares[made] == {"cat": 10, "dog": 10}  # 0.1 / (0.8 + 0.1) of 90
    assert shares["train"] == {"cat": 80, "dog": 80}


def test_a_class_may_be_called_train(write: Write, tmp_path: Path) -> None:
    table = read(write("train/a.png", "bus/b.png", "car/c.png"), tmp_path)
    assert table.labels == ("bus", "car", "train") and table.splits is None


def test_parts_beside_classes_are_not_guessed_at(write: Write, tmp_path: Path) -> None:
    said = r"folders like splits \(test, train\) beside folders like classes \(extra\)"
    with pytest.raises(DataError, match=said):
        read(write("train/cat/a.png", "test/cat/a.png", "extra/a.png"), tmp_path)


def test_one_part_with_classes_below_is_not_taken_for_a_class(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"like splits \(train\) beside .* \(seg_test\)"):
        read(write("train/cat/a.png", "seg_test/cat/a.png"), tmp_path)


def test_a_part_with_two_folders_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train, val, valid: two of these name one part"):
        read(write("train/cat/a.png", "val/cat/a.png", "valid/cat/a.png"), tmp_path)


def test_a_link_out_of_the_root_is_refused(write: Write, tmp_path: Path) -> None:
    config = write("cat/a.png", "dog/b.png")
    (tmp_path / "secret.png").write_text("canary")
    os.utime(tmp_path / "secret.png", ns=(1, 2**60))
    (tmp_path / "root/dog/c.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"dog/c\.png: a link out of the pictures' folder"):
        read(config, tmp_path)
    assert (tmp_path / "secret.png").stat().st_atime_ns == 1


@pytest.mark.parametrize("name", ["dog", "cat/more"])
def test_a_link_to_a_folder_is_refused_not_followed(
    write: Write, tmp_path: Path, name: str
) -> None:
    config = write("cat/a.png")
    (tmp_path / "root" / name).symlink_to(tmp_path / "root")
    with pytest.raises(DataError, match=rf"links to folders are not followed: {name}\."):
        read(config, tmp_path)


def test_odd_things_with_a_pictures_name_hang_nothing(write: Write, tmp_path: Path) -> None:
    config = write("cat/a.png", "cat/folder.png/", "dog/b.png")
    os.mkfifo(tmp_path / "root/cat/pipe.png")
    (tmp_path / "root/cat/circle.png").symlink_to("circle.png")
    ids = read(config, tmp_path).ids  # the check of the pictures finds them unreadable
    assert ids == ("cat/a.png", "cat/circle.png", "cat/pipe.png", "dog/b.png")


def test_a_name_that_is_not_text_is_refused(write: Write, tmp_path: Path) -> None:
    config = write("cat/a.png")
    try:
        (tmp_path / "root/cat" / os.fsdecode(b"\xff.png")).touch()
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    with pytest.raises(DataError, match=r"not UTF-8: 'cat/\\udcff\.png'"):
        read(config, tmp_path)


def test_an_empty_class_is_refused_or_left_out(write: Write, tmp_path: Path) -> None:
    names = ("cat/a.png", "dog/b.png", "empty/")
    with pytest.raises(DataError, match=r"folders without a picture: empty.*min_class=drop"):
        read(write(*names), tmp_path)
    table = read(write(*names, min_class="drop"), tmp_path)
    assert table.notes == ("Folders without a picture, not used: empty.",)


def test_a_root_without_classes_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.root=.*root is empty"):
        read(write(), tmp_path)
    with pytest.raises(DataError, match="no pictures in folders, one for each class"):
        read(write("loose.png"), tmp_path)
    with pytest.raises(DataError, match=r"dataset\.root=no does not exist"):
        read(ImageFolderDataset(root="no"), tmp_path)


def test_columns_are_not_for_folders(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.group and dataset\.split"):
        read(write("cat/a.png", group="person"), tmp_path)


def test_folders_named_by_digits_are_classes_and_not_splits(tmp_path: Path) -> None:
    for name in ("0", "1", "2"):
        (tmp_path / name).mkdir()
        for i in range(10):
            (tmp_path / name / f"{i}.png").touch()
    found = load(ImageFolderDataset(root=str(tmp_path)), tmp_path)
    assert found.classes == ("0", "1", "2")
    assert len(found.train) == 24
