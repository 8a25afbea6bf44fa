"""CSV tables: text stays text, and whatever is wrong is said with its rows before a file is opened.

The names in brackets are those of the list of faults that the reader must survive.
"""

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graft.config import CsvDataset
from graft.data.tables import Table, read
from graft.errors import DataError

Reader = Callable[..., Table]


@pytest.fixture
def table(tmp_path: Path) -> Reader:
    """Writes `text` as labels.csv, and a file for every name in `files`; reads it."""

    def of(text: str | bytes, files: Any = ("a.jpg", "b.jpg", "c.jpg"), **keys: Any) -> Table:
        images = tmp_path / "pictures"
        for name in files:
            (images / name).parent.mkdir(parents=True, exist_ok=True)
            (images / name).touch()
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "labels.csv").write_bytes(data)
        known = {"csv": str(tmp_path / "labels.csv"), "images": str(images), "target": "label"}
        return read(CsvDataset(**{**known, **keys}), tmp_path)

    return of


def said(table: Reader, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(DataError) as caught:
        table(*args, **kwargs)
    return str(caught.value)


# --- what is read ----------------------------------------------------------------------------


def test_a_row_becomes_id_path_label_and_other_columns(table: Reader, tmp_path: Path) -> None:
    found = table("label,filename,age,who\ncat,a.jpg,007,x\ndog,b.jpg,,y\n", group="who")
    assert found.ids == ("a.jpg", "b.jpg")
    assert found.paths == (tmp_path / "pictures/a.jpg", tmp_path / "pictures/b.jpg")
    assert (found.labels, found.groups, found.splits) == (("cat", "dog"), ("x", "y"), None)
    assert found.columns == {"age": ("007", "")}


@pytest.mark.parametrize("name", ["NA", "None", "null", "nan", "001", "1.0", "True", "007", " x "])
def test_a_class_keeps_its_name_as_written(table: Reader, name: str) -> None:  # C2
    assert table(f"filename,label\na.jpg,{name}\nb.jpg,other\n").labels == (name, "other")


@pytest.mark.parametrize("name", ["NA", "None", "null", "nan", "001", "1.0", "True"])
def test_a_class_keeps_its_name_beside_a_number(table: Reader, name: str) -> None:  # C2
    assert table(f"filename,label\na.jpg,{name}\nb.jpg,5\n").labels == (name, "5")


@pytest.mark.parametrize(
    "data",
    [b"\xef\xbb\xbffilename,label\r\na.jpg,caf\xc3\xa9\r\n\r\n",
     b"filename,label\ra.jpg,caf\xc3\xa9",
     b'"filename","label"\n"a.jpg","caf\xc3\xa9"\n\n\n'],
    ids=["mark and CRLF", "CR, no end", "quotes and blank lines"],
)  # fmt: skip
def test_line_ends_marks_and_quotes_make_no_difference(table: Reader, data: bytes) -> None:  # C7
    found = table(data)
    assert (found.ids, found.labels, found.columns) == (("a.jpg",), ("café",), {})


def test_relative_paths_start_from_the_working_directory(
    table: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = table("filename,label\na.jpg,x\n", csv="labels.csv", images="pictures")
    assert found.paths == (tmp_path / "pictures/a.jpg",)


def test_an_unnamed_column_such_as_an_index_is_kept(table: Reader) -> None:
    assert table(",filename,label\n0,a.jpg,x\n").columns == {"column 1": ("0",)}


# --- labels ----------------------------------------------------------------------------------


def test_empty_labels_are_refused_with_the_first_ten_rows(table: Reader) -> None:  # C1
    names = [f"{i}.jpg" for i in range(41)]
    text = "filename,label\n" + "".join(f"{n},\n" for n in names) + "a.jpg,x\n"
    message = said(table, text, [*names, "a.jpg"])
    assert "labels.csv, dataset.target=label" in message
    assert "rows 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 (first 10 of 41): no label" in message


@pytest.mark.parametrize("blank", ["", "  ", '""', "NaN"])
def test_a_missing_value_among_numbers_is_refused(table: Reader, blank: str) -> None:  # C1
    assert "row 3: no label" in said(
        table, f"filename,label\na.jpg,1\nb.jpg,{blank}\nc.jpg,-1\n"
    )  # fmt: skip


def test_nan_among_names_or_listed_is_a_class(table: Reader) -> None:
    assert table("filename,label\na.jpg,NaN\nb.jpg,cat\n").labels == ("NaN", "cat")
    listed = table("filename,label\na.jpg,NaN\nb.jpg,1\n", classes=("1", "NaN"))
    assert listed.labels == ("NaN", "1")


def test_a_label_outside_of_the_class_list_names_rows_and_nearest(table: Reader) -> None:  # C3
    text = "filename,label\na.jpg,dgo\nb.jpg,cat\nc.jpg,dgo\n"
    message = said(table, text, classes=("cat", "dog"))
    assert "rows 2, 4: 'dgo' is not one of dataset.classes=[cat,dog]. Did you mean dog?" in message


def test_everything_wrong_is_said_at_once(table: Reader) -> None:
    text = "filename,label,who,part\n../x.jpg,,a,train\nb.jpg,1,,tset\n"
    message = said(table, text, group="who", split="part")
    for part in ("no label", "no group", "'tset' is not a split. Did you mean test?", "'../x.jpg'"):
        assert part in message


# --- repeated pictures -----------------------------------------------------------------------


@pytest.mark.parametrize("again", ["a.jpg", "./a.jpg", ".//a.jpg"])
def test_a_picture_listed_twice_alike_is_kept_once(table: Reader, again: str) -> None:  # C4
    found = table(f"filename,label,age\na.jpg,x,1\nb.jpg,y,2\n{again},x,3\n")
    assert (found.ids, found.columns["age"]) == (("a.jpg", "b.jpg"), ("1", "2"))
    assert "1 row names a picture again and is left out (row 4)" in found.notes[0]


def test_a_picture_with_two_labels_is_refused(table: Reader) -> None:  # C4
    message = said(table, "filename,label\na.jpg,x\nb.jpg,y\na.jpg,y\n")
    assert "a.jpg (rows 2, 4): label 'x' and 'y'" in message


def test_a_picture_in_two_splits_is_refused(table: Reader) -> None:
    text = "filename,label,part\na.jpg,x,train\nb.jpg,y,train\na.jpg,x,test\n"
    assert "a.jpg (rows 2, 4): split 'train' and 'test'" in said(table, text, split="part")


# --- where pictures may lie ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "a/../../b.jpg", "a/../b.jpg", "..", "{root}/secret.jpg", "//etc/passwd",
     "~/x.jpg", "~root/x.jpg", "a\0.jpg", "a\\b.jpg", "..\\b.jpg", "C:\\x.jpg", "C:x.jpg"],
)  # fmt: skip
def test_a_name_that_could_lead_out_is_refused(table: Reader, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret.jpg"  # C5
    secret.write_text("canary")
    os.utime(secret, ns=(1, 2**60))
    name = name.format(root=tmp_path)
    message = said(table, f"filename,label\nb.jpg,x\n{name},y\n")
    assert "row 3" in message and repr(name) in message
    assert secret.stat().st_atime_ns == 1


@pytest.mark.parametrize("name", ["a\\b.jpg", "~x.jpg", "C:x.jpg"])
def test_a_doubtful_name_is_refused_though_there_is_such_a_file(table: Reader, name: str) -> None:
    assert repr(name) in said(table, f"filename,label\na.jpg,x\n{name},y\n", ["a.jpg", name])


@pytest.mark.parametrize("name", ["link.jpg", "out/x.jpg", "deep/out/x.jpg"])
def test_a_link_out_of_the_folder_is_refused(table: Reader, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"  # C5
    outside.mkdir()
    (outside / "x.jpg").write_text("canary")
    os.utime(outside / "x.jpg", ns=(1, 2**60))
    place = tmp_path / "pictures" / name
    link = place if name == "link.jpg" else place.parent
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / "x.jpg" if name == "link.jpg" else outside)
    assert f"'{name}'" in said(table, f"filename,label\na.jpg,x\n{name},y\n")
    assert (outside / "x.jpg").stat().st_atime_ns == 1


def test_links_within_the_folder_and_a_linked_root_are_fine(table: Reader, tmp_path: Path) -> None:
    (tmp_path / "real/sub").mkdir(parents=True)
    (tmp_path / "real/sub/x.jpg").touch()
    (tmp_path / "pictures").symlink_to("real")
    (tmp_path / "real/y.jpg").symlink_to("sub/x.jpg")
    (tmp_path / "real/folder").symlink_to("sub")
    text = "filename,label\nsub/x.jpg,a\ny.jpg,b\nfolder/x.jpg,c\n"
    assert len(table(text, files=()).paths) == 3


def test_absolute_paths_need_a_setting(table: Reader, tmp_path: Path) -> None:  # C5
    (tmp_path / "far.jpg").touch()
    text = f"filename,label\na.jpg,x\n{tmp_path}/far.jpg,y\n"
    assert "dataset.absolute_paths=true" in said(table, text)
    assert table(text, absolute_paths=True).paths[1] == tmp_path / "far.jpg"
    upwards = f"filename,label\na.jpg,x\n{tmp_path}/pictures/../far.jpg,y\n"
    assert "could lead out" in said(table, upwards, absolute_paths=True)


def test_missing_pictures_are_counted_with_their_rows(table: Reader) -> None:  # I1
    text = "filename,label\na.jpg,x\nno.jpg,y\nb.jpg,x\n"
    message = said(table, text)
    assert "1 of 3 pictures are not in dataset.images=" in message and "row 3: 'no.jpg'" in message
    assert len(table(text, on_bad_image="skip").ids) == 3


def test_a_wrong_folder_is_suspected_where_no_picture_is_there(table: Reader) -> None:
    message = said(table, "filename,label\nx.jpg,x\ny.jpg,y\n", on_bad_image="skip")
    assert "Is it the right folder?" in message


@pytest.mark.parametrize(
    ("name", "hint"),
    [("a", " There is a file 'a.jpg'."), ("sub/B", " There is a file 'b.JPG'."), ("no.jpg", "")],
)
def test_a_missing_picture_may_be_there_under_another_name(
    table: Reader, name: str, hint: str
) -> None:
    message = said(table, f"filename,label\n{name},x\n", ["a.jpg", "sub/b.JPG"])
    assert message.endswith(f"Is it the right folder?{hint}")


def test_backslashes_are_said_to_be_that(table: Reader) -> None:
    message = said(table, "filename,label\nsub\\a.jpg,x\nsub\\b.jpg,y\n")
    assert (
        "rows 2, 3: a backslash in a file name; between folders write /: 'sub\\\\a.jpg'" in message
    )


def test_a_column_with_a_blank_at_its_end_shows_it(table: Reader) -> None:
    message = said(table, "filename, label\na.jpg, x\n")
    assert "Did you mean ' label'?" in message and "Columns found: filename, ' label'." in message


def test_a_folder_that_is_missing_empty_or_a_file_is_named(table: Reader, tmp_path: Path) -> None:
    text, (nothing, file) = "filename,label\na.jpg,x\n", (tmp_path / "nothing", tmp_path / "file")
    file.touch()  # I12
    assert "nothing does not exist" in said(table, text, images=str(nothing))
    assert "file is not a folder" in said(table, text, images=str(file))
    nothing.mkdir()
    assert f"dataset.images={nothing} is empty" in said(table, text, images=str(nothing))


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[None]:
    """Root may read everything: be somebody else for a while."""
    for place in (tmp_path, *tmp_path.parents):
        if place == tmp_path or place.name.startswith(("pytest-", "popen-")):
            place.chmod(0o755)
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, unprivileged: None) -> None:
    closed = tmp_path / "closed"  # I12
    me = os.geteuid()
    os.seteuid(os.getuid())
    closed.mkdir(mode=0o000)
    (tmp_path / "labels.csv").write_text("filename,label\na.jpg,x\n")
    os.seteuid(me)
    config = CsvDataset(csv=str(tmp_path / "labels.csv"), images=str(closed), target="label")
    with pytest.raises(DataError, match=r"dataset\.images=.*cannot be read: Permission denied"):
        read(config, tmp_path)


# --- form ------------------------------------------------------------------------------------


def test_columns_that_are_not_there_are_named_with_the_nearest(table: Reader) -> None:  # C6
    message = said(table, "file,lable\na.jpg,x\n", group="who")
    assert "dataset.file=filename is not a column" in message and "Did you mean file?" in message
    assert "dataset.target=label is not a column" in message and "Did you mean lable?" in message
    assert "dataset.group=who is not a column" in message
    assert "Columns found: file, lable." in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg,x\nb.jpg,y\n", "Columns found: a.jpg, x. Is the header line missing?"),
        ("filename,label,label\na.jpg,x,y\n", "two columns have one name: label"),
        ("filename;label\na.jpg;x\n", "separated by semicolons"),
        ("filename\tlabel\na.jpg\tx\n", "separated by tabs"),
        ("filename,label\na.jpg,x\nb.jpg,x,y\nc.jpg\n", "row 3: 3 fields, but the header has 2"),
        ("filename,label\na.jpg,x\nb.jpg,x,y\nc.jpg\n", "row 4: 1 field, but"),
        ('filename,label\na.jpg,x\nb.jpg,"x\ny"\n', "row 3: a line break within quotes"),
        ('filename,label\na.jpg,x\nb.jpg,"x\nc.jpg,y\n', "line 3: not readable as CSV"),
        ('filename,label\na.jpg,"x"y\n', "line 2: not readable as CSV"),
        ("\n\n", "line 1 is blank"),
        ("", "is empty"),
        ("\ufeff", "is empty"),
        ("filename,label\n", "has a header and no rows"),
        ("filename,label\n\n\n", "has a header and no rows"),
    ],
)
def test_a_table_of_another_form_is_refused(table: Reader, text: str, expected: str) -> None:
    message = said(table, text)  # C6, C8
    assert expected in message and "labels.csv" in message


def test_lines_are_counted_as_an_editor_does(table: Reader) -> None:
    assert "row 5: no label" in said(table, "filename,label\n\n\na.jpg,x\nb.jpg,\n")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("filename,label\na.jpg,x\n".encode("utf-16"), "encoded as UTF-16"),
        ("filename,label\na.jpg,x\n".encode("utf-16-le"), "encoded as UTF-16"),
        ("filename,label\na.jpg,x\nb.jpg,café\n".encode("latin-1"), "line 3 is not UTF-8"),
    ],
)
def test_another_encoding_is_named(table: Reader, data: bytes, expected: str) -> None:  # C7
    assert expected in said(table, data)


def test_a_table_that_is_not_there_is_named_by_its_key(table: Reader, tmp_path: Path) -> None:
    table("filename,label\na.jpg,x\n")
    config = {"images": str(tmp_path / "pictures"), "target": "label"}
    for path, words in ((tmp_path / "no.csv", "does not exist"), (tmp_path, "is not a file")):
        with pytest.raises(DataError, match=rf"dataset\.csv={path} {words}"):
            read(CsvDataset(csv=str(path), **config), tmp_path)


def test_a_split_without_training_pictures_is_refused(table: Reader) -> None:
    text = "filename,label,part\na.jpg,x,val\nb.jpg,y,TEST\n"
    assert "no picture is in the training part" in said(table, text, split="part")


@pytest.mark.parametrize("value", ["trian", "", "3", "0.0"])
def test_an_unknown_split_is_refused(table: Reader, value: str) -> None:  # C11
    text = f"filename,label,part\na.jpg,x,train\nb.jpg,y,{value}\n"
    message = said(table, text, split="part")
    assert f"row 3: {value!r} is not a split" in message
    assert "Allowed: train, val, valid, validation, test, training, testing, 0, 1, 2" in message


def test_split_names_are_read_whatever_their_case(table: Reader) -> None:
    text = "filename,label,part\na.jpg,x,Train\nb.jpg,y,validation\nc.jpg,y,2\n"
    assert table(text, split="part").splits == ("train", "val", "test")


@pytest.mark.slow
def test_a_million_rows_take_ten_seconds_and_a_gigabyte(tmp_path: Path) -> None:  # C12
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/0.jpg").touch()
    with (tmp_path / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["filename", "label", "person"])
        writer.writerows((f"{i}.jpg", i % 2, i // 20) for i in range(1_000_000))
    # A process of its own: memory is counted at its highest, whatever came before.
    done = subprocess.run(
        [sys.executable, "-c", _READ_AND_COUNT, str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows, seconds, kilobytes = map(float, done.stdout.split())
    assert rows == 1_000_000 and seconds < 10 and kilobytes < 1e6


# CPU time, since other tests may run beside this one.
_READ_AND_COUNT = """
import re, resource, sys, time
from pathlib import Path
from graft.config import CsvDataset
from graft.data.tables import read
root = Path(sys.argv[1])
config = CsvDataset(csv=str(root / "labels.csv"), images=str(root / "pictures"),
                    target="label", group="person", on_bad_image="skip")
start = time.process_time()
rows = len(read(config, root).ids)
seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.platform == "linux":  # where the other figure begins with that of whoever started us
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(rows, seconds, float(peak) / (1024 if sys.platform == "darwin" else 1))
"""
