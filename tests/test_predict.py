"""Scores of a finished run for any pictures: its precision, odd places, odd names."""

import csv
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from graft import train
from graft.config import RunConfig
from graft.predict import main
from graft.record import CONFIG, Record


@pytest.fixture
def trained(tiny_config: RunConfig, tmp_path: Path) -> Callable[..., Record]:
    def run(**changes: object) -> Record:
        config = train.resolve(replace(tiny_config, epochs=1, **changes))
        return train.train(config, tmp_path / "run", train.load_dataset(config))

    return run


def _scores(path: Path) -> list[float]:
    with path.open(newline="", encoding="utf-8") as stream:
        return [float(row["score"]) for row in csv.DictReader(stream)]


def test_the_precision_of_the_run_is_that_of_its_scores(
    trained: Callable[..., Record], tiny_pictures: Path, tmp_path: Path
) -> None:
    run = trained(precision="bfloat16")
    stored = run.predictions.of("test")
    pictures = [str(tiny_pictures / name) for name in stored.ids]
    assert main([str(run.path), *pictures, "--out", str(tmp_path / "p.csv")]) == 0
    assert _scores(tmp_path / "p.csv") == pytest.approx(stored.scores, abs=1e-6)


def test_a_precision_that_the_device_lacks_is_float32_and_said(
    trained: Callable[..., Record],
    tiny_pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = trained()
    stored = run.predictions.of("test")
    values = yaml.safe_load((run.path / CONFIG).read_text())
    (run.path / CONFIG).write_text(yaml.safe_dump({**values, "precision": "tf32"}))
    pictures = [str(tiny_pictures / name) for name in stored.ids]
    out = str(tmp_path / "p.csv")
    assert main([str(run.path), *pictures, "--out", out, "--device", "cpu"]) == 0
    assert "precision=tf32 cannot be had on cpu" in capsys.readouterr().err
    assert _scores(tmp_path / "p.csv") == pytest.approx(stored.scores, abs=1e-6)
    assert main([str(run.path), *pictures, "--device", "cuda:7"]) == 2
    assert "device=cuda:7 is not there" in capsys.readouterr().err


def test_hidden_files_and_what_is_no_picture_are_left_out_and_counted(
    trained: Callable[..., Record],
    tiny_pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "new"
    (folder / ".hidden").mkdir(parents=True)
    shutil.copy(tiny_pictures / "000.png", folder / "=a.jfif")  # read by content
    shutil.copy(tiny_pictures / "001.png", folder / ".hidden" / "b.png")
    (folder / "._a.png").write_bytes(b"a Mac's notes")
    (folder / "notes.txt").write_text("no picture")
    here = [str(trained().path), str(folder), "--out", str(tmp_path / "p.csv")]
    assert main(here) == 0
    assert "1 predictions (1 files that are not pictures left out)" in capsys.readouterr().err
    assert len(_scores(tmp_path / "p.csv")) == 1


def test_a_name_that_is_no_utf8_is_written_and_a_formula_is_made_harmless(
    trained: Callable[..., Record],
    tiny_pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = Path("=1+2\udcff.png")
    shutil.copy(tiny_pictures / "000.png", odd)
    assert main([str(trained().path), str(odd), "--out", "p.csv"]) == 0
    (row,) = csv.DictReader(Path("p.csv").read_text(encoding="utf-8").splitlines())
    assert row["file"] == "'=1+2\\udcff.png"


def test_every_picture_that_cannot_be_used_is_named(
    trained: Callable[..., Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    new.mkdir()
    for i in range(12):
        (new / f"{i:02d}.png").write_text("no picture")
    assert main([str(trained().path), str(new)]) == 2
    said = capsys.readouterr().err
    assert "12 of 12 pictures cannot be used" in said and "on_bad_image" not in said
    assert all(f"{new}/{i:02d}.png: not a picture" in said for i in range(12))


def test_pictures_that_cannot_be_used_may_be_left_out(
    trained: Callable[..., Record], tiny_pictures: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("000", "001"):
        shutil.copy(tiny_pictures / f"{name}.png", tmp_path / f"{name}.png")
    run = str(trained().path)
    assert main([run, str(tmp_path)]) == 0
    without = capsys.readouterr().out
    (tmp_path / "0000.png").write_text("no picture")
    assert main([run, str(tmp_path)]) == 2
    assert "--on-bad-image skip" in capsys.readouterr().err
    assert main([run, str(tmp_path), "--on-bad-image", "skip"]) == 0
    out, error = capsys.readouterr()
    assert out == without
    assert f"1 of 3 pictures cannot be used:\n  {tmp_path / '0000.png'}: not a picture" in error
    assert "2 predictions" in error
    for name in ("000", "001"):
        (tmp_path / f"{name}.png").write_text("no picture")
    assert main([run, str(tmp_path), "--on-bad-image", "skip"]) == 2
    assert "--on-bad-image" not in capsys.readouterr().err


def test_a_link_to_write_to_stays_a_link(
    trained: Callable[..., Record], tiny_pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "p.csv")
    picture = str(tiny_pictures / "000.png")
    assert main([str(trained().path), picture, "--out", str(tmp_path / "link.csv")]) == 0
    assert (tmp_path / "link.csv").is_symlink() and len(_scores(tmp_path / "p.csv")) == 1


@pytest.mark.parametrize(("error", "code"), [(BrokenPipeError, 1), (KeyboardInterrupt, 130)])
def test_a_reader_that_has_gone_and_ctrl_c_are_no_traceback(
    trained: Callable[..., Record],
    tiny_pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: type[BaseException],
    code: int,
) -> None:
    def fail(*_: object) -> None:
        raise error

    run = trained()
    monkeypatch.setattr("graft.predict._save", fail)
    with (tmp_path / "stdout").open("w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        assert main([str(run.path), str(tiny_pictures / "000.png")]) == code


@pytest.mark.parametrize("out", ["folder", "file/p.csv", "pipe"])
def test_a_place_that_cannot_be_written_is_said_before_any_work(
    trained: Callable[..., Record],
    tiny_pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    out: str,
) -> None:
    run = trained()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("graft.predict.predict", None)  # it is not called
    assert main([str(run.path), str(tiny_pictures), "--out", out]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"graft-predict: --out {out} ") and len(said.splitlines()) == 1
