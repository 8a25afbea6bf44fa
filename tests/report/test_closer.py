import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graft.record import Record, read_runs
from graft.report.closer import class_rows, mistakes, slices
from graft.report.thumbnails import SIDE, thumbnail


def _picture(uri: str | None) -> Image.Image:
    assert uri is not None
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def _run(maker: Any, path: Path, **kwargs: Any) -> Record:
    made = maker(path / "s", sizes=(4, 60))
    made.run({"strategy": "full"}, 0.3, **kwargs)
    return read_runs(made.path)[0]


def test_mistakes_are_wrong_and_the_most_confident_come_first(maker: Any, tmp_path: Path) -> None:
    record = _run(maker, tmp_path)
    test = record.predictions.of("test")
    found = mistakes(record, test, count=5)
    assert len(found) == 5
    assert [m.score for m in found] == sorted((m.score for m in found), reverse=True)
    assert all(m.label != m.predicted for m in found)
    wrong = test.predicted != test.labels
    sure = np.maximum(test.scores, 1 - test.scores)
    assert found[0].score == pytest.approx(sure[wrong].max())


def test_slices_leave_out_names_constants_and_what_repeats_the_label(
    maker: Any, tmp_path: Path
) -> None:
    made = maker(tmp_path / "s", sizes=(4, 60))
    columns = {
        "name": [str(i) for i in range(64)], "constant": ["x"] * 64,
        "Male": [str(2 * label - 1) for label in made.labels],
        "glasses": ["yes" if i % 3 else "" for i in range(64)],
    }  # fmt: skip
    made.run({"strategy": "full"}, 0.3, columns=columns)
    record = read_runs(made.path)[0]
    found = slices(record, record.predictions.of("test"))
    assert sorted(one.column for one in found) == ["glasses", "skin_tone"]
    assert [one.gap for one in found] == sorted((one.gap for one in found), reverse=True)
    assert sum(share.total for _, share in found[0].rows) == 60


def test_a_class_that_is_never_predicted_has_no_precision(maker: Any, tmp_path: Path) -> None:
    record = _run(maker, tmp_path, scores=np.full(64, 0.1))
    woman, man = class_rows(record.predictions)
    assert man.precision is None and man.recall is not None
    assert man.recall.value == 0.0 and woman.recall is not None


def test_many_classes_begin_with_the_worst(maker: Any, tmp_path: Path) -> None:
    made = maker(tmp_path / "s", tuple(f"c{i}" for i in range(30)), (200, 200))
    made.run({"strategy": "full"}, 0.8)
    rows = class_rows(read_runs(made.path)[0].predictions)
    values = [row.recall.value for row in rows if row.recall]
    assert values == sorted(values)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK", "I;16", "F"])
def test_a_thumbnail_is_a_small_colour_picture(mode: str, tmp_path: Path) -> None:
    kind = "tif" if mode in ("F", "CMYK", "I;16") else "png"
    path = tmp_path / f"a.{kind}"
    Image.new("RGB", (400, 200), "white").convert(mode if mode != "I;16" else "L").save(path)
    if mode == "I;16":
        Image.fromarray(np.full((200, 400), 65535, dtype=np.uint16)).save(path)
    found = _picture(thumbnail(path))
    assert (found.mode, found.size) == ("RGB", (SIDE, SIDE // 2))
    assert np.asarray(found).mean() > 250


def test_what_is_transparent_is_white_and_pictures_stand_upright(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert np.asarray(_picture(thumbnail(tmp_path / "a.png"))).min() > 250
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "b.jpg", exif=exif)
    assert _picture(thumbnail(tmp_path / "b.jpg")).size == (20, 40)


def test_what_is_no_picture_has_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("<html>")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("1", (20_000, 5_000)).save(tmp_path / "bomb.png")
    for name in ("empty.png", "text.jpg", "folder.png", "pipe.png", "bomb.png", "missing.png"):
        assert thumbnail(tmp_path / name) is None, name
