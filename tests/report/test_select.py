from typing import Any

import numpy as np
import pytest

from graft.config import CrossEntropy
from graft.errors import RecordError
from graft.record import PREDICTIONS, read_json, read_runs, write_json
from graft.report.select import ranked, selection, val_loss, why_not_comparable


def _best(maker: Any) -> str:
    return ranked(read_runs(maker.path))[0].name


def test_the_winner_is_best_on_validation(binary: Any) -> None:
    assert _best(binary) == "strategy=fine_tune,optimizer.lr=1e-3"


def test_the_winner_is_chosen_without_the_test_split(maker: Any, tmp_path: Any) -> None:
    made = maker(tmp_path / "s")
    labels = made.labels.astype(float)
    on_val, is_val = labels.copy(), made.splits == "val"
    on_val[~is_val] = 1 - labels[~is_val]  # right on validation, wrong on every test example
    on_test = np.where(is_val, np.where(np.arange(len(labels)) < 6, 1 - labels, labels), labels)
    made.run({"strategy": "full"}, scores=on_test)
    made.run({"strategy": "head_only"}, scores=on_val)
    assert _best(made) == "strategy=head_only"


def test_runs_that_did_not_complete_are_never_chosen(maker: Any, tmp_path: Any) -> None:
    made = maker(tmp_path / "s")
    for status in ("diverged", "failed", "pruned", "skipped", "timed_out", "running"):
        made.run({"strategy": status}, 5.0, status=status)
    assert ranked(read_runs(made.path)) == []
    made.run({"strategy": "head_only"}, 0.1)
    assert _best(made) == "strategy=head_only"


def test_of_equal_runs_the_lower_validation_loss_wins_then_the_earlier_asked(
    maker: Any, tmp_path: Any
) -> None:
    made = maker(tmp_path / "s")
    same = made.labels * 0.8 + 0.1
    made.run({"seed": "0"}, 0.5, scores=same)
    made.run({"seed": "1"}, 0.9, scores=same)
    made.run({"seed": "2"}, 0.9, scores=same)
    assert [r.name for r in ranked(read_runs(made.path))] == ["seed=1", "seed=2", "seed=0"]


def test_losses_of_different_kinds_decide_nothing(maker: Any, tmp_path: Any) -> None:
    made = maker(tmp_path / "tied")
    same = made.labels * 0.8 + 0.1
    made.run({"loss": "smooth"}, 0.5, scores=same, loss=CrossEntropy(label_smoothing=0.1))
    made.run({"loss": "plain"}, 0.9, scores=same)
    records = read_runs(made.path)
    assert val_loss(records[1]) < val_loss(records[0])
    assert [r.name for r in ranked(records)] == ["loss=smooth", "loss=plain"]

    made = maker(tmp_path / "by_loss")
    made.run({"loss": "smooth"}, 0.5, metric="val_loss", loss=CrossEntropy(label_smoothing=0.1))
    made.run({"loss": "plain"}, 0.9, metric="val_loss")
    assert "of different kinds" in str(why_not_comparable(read_runs(made.path)))
    (made.path / "loss=smooth" / "config.yaml").write_text("{")
    assert _best(made) == "loss=plain"  # nobody knows that they differ


def test_a_loss_is_better_when_it_is_lower(maker: Any, tmp_path: Any) -> None:
    made = maker(tmp_path / "s")
    made.run({"seed": "0"}, 0.2, metric="val_loss")
    made.run({"seed": "1"}, 2.0, metric="val_loss")
    assert _best(made) == "seed=1"


def test_the_runs_own_metric_selects(maker: Any, tmp_path: Any) -> None:
    made = maker(tmp_path / "s")
    ordered = 0.6 + 0.3 * made.labels  # everything is called the second class, in perfect order
    made.run({"seed": "0"}, 0.9, metric="val_auroc")
    made.run({"seed": "1"}, 0.1, metric="val_auroc", scores=ordered)
    assert _best(made) == "seed=1"
    assert [selection(r) for r in read_runs(made.path)][1] == 1.0


def test_a_metric_that_is_not_defined_ranks_last(maker: Any, tmp_path: Any) -> None:
    made = maker(tmp_path / "s")
    made.labels[:] = 0
    made.run({"seed": "0"}, 0.5, metric="val_auroc")
    assert not np.isfinite(selection(read_runs(made.path)[0]))
    assert _best(made) == "seed=0"


def test_runs_selected_by_different_metrics_are_not_ranked(maker: Any, tmp_path: Any) -> None:
    made = maker(tmp_path / "s")
    made.run({"metric": "val_f1"}, metric="val_f1")
    made.run({"metric": "val_loss"}, metric="val_loss")
    with pytest.raises(RecordError, match="different metrics \\(val_f1, val_loss\\)"):
        ranked(read_runs(made.path))


def test_runs_validated_on_other_examples_are_not_ranked(maker: Any, tmp_path: Any) -> None:
    made = maker(tmp_path / "s")
    made.run({"dataset.split_seed": "0"})
    made.splits = made.splits[::-1].copy()
    made.run({"dataset.split_seed": "1"})
    with pytest.raises(RecordError, match="different examples"):
        ranked(read_runs(made.path))


def test_runs_with_other_classes_are_not_ranked(maker: Any, tmp_path: Any) -> None:
    made = maker(tmp_path / "s")
    made.run({"dataset.target": "Male"})
    path = made.run({"dataset.target": "Smiling"})
    write_json(path / "run.json", {**(read_json(path / "run.json") or {}), "classes": ["x", "y"]})
    with pytest.raises(RecordError, match="different classes"):
        ranked(read_runs(made.path))


def test_the_order_of_the_stored_examples_does_not_matter(maker: Any, tmp_path: Any) -> None:
    import pandas as pd

    made = maker(tmp_path / "s")
    made.run({"seed": "0"}, 0.5)
    path = made.run({"seed": "1"}, 0.9) / PREDICTIONS
    pd.read_parquet(path).iloc[::-1].to_parquet(path, index=False)
    assert _best(made) == "seed=1"
