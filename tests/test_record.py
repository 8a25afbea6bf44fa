"""The folder of a run: what is written comes back, whole or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from graft.errors import RecordError
from graft.record import (
    CHECKPOINT,
    CONFIG,
    EPOCHS,
    PREDICTIONS,
    RUN,
    Predictions,
    RunFolder,
    is_complete,
    read_run,
    read_runs,
    write_json,
    write_whole,
)  # fmt: skip


def _predictions(classes: tuple[str, ...]) -> Predictions:
    labels = np.array([0, 1, 1, 0], dtype=np.int64)
    random = np.random.default_rng(0)
    shape = (4,) if len(classes) == 2 else (4, len(classes))
    scores = random.random(shape).astype(np.float32)
    splits = np.array(["val", "val", "test", "test"], dtype=object)
    return Predictions(np.array(list("abcd"), dtype=object), splits, labels, scores, classes)


@pytest.mark.parametrize(
    "classes", [("-1", "1"), ("NA", "001", "1.0"), ("id", "label", "split", "score")], ids=str
)
def test_predictions_come_back_as_they_were(tmp_path: Path, classes: tuple[str, ...]) -> None:
    before = _predictions(classes)
    folder = RunFolder(tmp_path / "run")
    folder.write_predictions(before)
    folder.write_run({"status": "completed", "classes": list(classes)})
    after = read_run(tmp_path / "run").predictions
    np.testing.assert_array_equal(after.scores, before.scores)
    np.testing.assert_array_equal(after.labels, before.labels)
    assert after.ids.tolist() == before.ids.tolist() and after.classes == classes


def test_two_classes_are_stored_as_a_score_and_a_label_of_0_or_1(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_predictions(_predictions(("-1", "1")))
    table = pd.read_parquet(tmp_path / PREDICTIONS)
    assert list(table.columns) == ["id", "split", "label", "score"]
    assert table["label"].tolist() == [0, 1, 1, 0]


def test_epochs_come_back_as_they_were_and_what_is_no_number_as_an_empty_cell(
    tmp_path: Path,
) -> None:
    rows = [
        {"epoch": 1, "train_loss": 0.1 + 0.2, "val_loss": float(np.float32(1e-7))},
        {"epoch": 2, "train_loss": float("nan"), "val_loss": float("inf"), "late": 1e300},
    ]
    folder = RunFolder(tmp_path)
    folder.write_epochs(rows)
    folder.write_run({"status": "diverged"})
    table = read_run(tmp_path).epochs
    assert list(table.columns) == ["epoch", "train_loss", "val_loss", "late"]
    assert table["epoch"].dtype == np.int64
    for name in table.columns:
        expected = [row.get(name, float("nan")) for row in rows]
        np.testing.assert_array_equal(table[name].to_numpy(), np.array(expected))
    assert (tmp_path / EPOCHS).read_text().splitlines()[2] == "2,,inf,1e+300"


def test_examples_come_back_as_they_were(tmp_path: Path) -> None:
    table = {"id": ["ä", "b"], "label": ["NA", "001"], "class, or not": ["", "1.0"]}
    folder = RunFolder(tmp_path)
    folder.write_examples(table)
    folder.write_run({"status": "completed"})
    assert read_run(tmp_path).examples.to_dict("list") == table


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(part: Path) -> None:
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_whole(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    state = {"weight": torch.randn(3, 4).t(), "count": torch.tensor(3)}
    RunFolder(tmp_path).write_checkpoint(state)
    after = load_file(tmp_path / CHECKPOINT)
    assert all(torch.equal(after[name], state[name]) for name in state)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\x01", "{}", '{"status": "fai\\u0001ed"}'])
def test_a_damaged_record_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / RUN).write_text(text)
    with pytest.raises(RecordError, match=r"run\.json is missing or damaged"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        "", "~", "y", "1e-3", "0x1", "a: b #c", " a", "a\tb\n c ", "x y " * 99,
        "\x00\x07\x85\u2028\ufeff",
        "caf\xe9 \N{SLIGHTLY SMILING FACE}",
        "caf\udce9.csv",  # a name that is not UTF-8, as Python has it
        1e-3, 1e16, 1e30, 0.1 + 0.2, float("inf"), 10**30, True, None, [], {},
        [[1, {"a": []}], "-"],
    ],
)  # fmt: skip
def test_a_configuration_comes_back(tmp_path: Path, value: Any) -> None:
    config = {"a": value, "b": {"c": [value]}}
    folder = RunFolder(tmp_path)
    folder.write_config(config)
    folder.write_run({"status": "completed"})
    assert read_run(folder.path).config == config


@pytest.mark.parametrize("content", [b"", b"a: [1", b"- 1", b"a: \xff", b"\x00", b"a: b: c"])
def test_a_damaged_configuration_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    RunFolder(tmp_path).write_run({"status": "completed"})
    (tmp_path / CONFIG).write_bytes(content)
    with pytest.raises(RecordError, match=r"config\.yaml is damaged"):
        _ = read_run(tmp_path).config


def test_who_names_a_sweep_instead_of_a_run_is_told_a_run(tmp_path: Path) -> None:
    (tmp_path / "a=1").mkdir()
    write_json(tmp_path / "a=1" / RUN, {"status": "completed"})
    with pytest.raises(RecordError, match=r"holds no run.*such as .*a=1"):
        read_run(tmp_path)


def test_a_record_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / RUN, {"format": 99, "status": "completed"})
    with pytest.raises(RecordError, match="newer version"):
        read_run(tmp_path)


def test_runs_come_in_the_order_in_which_they_were_asked_for(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        RunFolder(tmp_path / name).write_run({"status": "completed"})
    write_json(tmp_path / "sweep.json", {"runs": [{"run": "c"}, {"run": "a"}]})
    assert [run.name for run in read_runs(tmp_path)] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [([], False), (["completed"], True), (["completed", "pruned"], True), (["pruned"], False),
     (["completed", "pruned", "failed"], False), (["completed", "running"], False)],
    ids=str,
)  # fmt: skip
def test_nothing_is_missing_of_what_was_pruned(statuses: list[str], expected: bool) -> None:
    assert is_complete(statuses) is expected
