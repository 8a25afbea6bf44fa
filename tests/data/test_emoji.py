"""The built-in drawings: how many, balanced, drawn as one person each, made once."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graft.data.emoji import TABLE, drawings, render


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


def test_every_role_has_as_many_men_as_women() -> None:
    count = Counter((drawing.role, drawing.is_man) for drawing in drawings())
    assert all(count[role, True] == count[role, False] for role, _ in count)


def test_no_two_drawings_are_equal_and_none_is_blank(folder: Path) -> None:
    seen = {path.read_bytes() for path in folder.glob("*.png")}
    assert len(seen) == 970
    for path in folder.glob("*.png"):
        assert np.asarray(Image.open(path)).std() > 20, path.name


def test_a_sequence_is_one_drawing_and_not_two_side_by_side(folder: Path) -> None:
    for path in folder.glob("*.png"):
        ink = np.asarray(Image.open(path).convert("L")) < 250
        height = np.ptp(np.flatnonzero(ink.any(axis=1))) + 1
        width = np.ptp(np.flatnonzero(ink.any(axis=0))) + 1
        assert width < 2.2 * height, path.name


def test_rendered_once_and_found_again(folder: Path) -> None:
    before = (folder / TABLE).stat().st_mtime_ns
    assert render(folder.parent) == folder
    assert (folder / TABLE).stat().st_mtime_ns == before


def test_an_unfinished_folder_is_rendered_anew(folder: Path, tmp_path: Path) -> None:
    (tmp_path / folder.name).mkdir()
    assert len(_rows(render(tmp_path))) == 970
