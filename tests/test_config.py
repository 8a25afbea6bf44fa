"""The typed configuration: what is wrong is said by name, all at once, and nothing is built."""

import math
from pathlib import Path
from typing import Any

import pytest

from graft.config import METRICS, from_dict, keys, to_dict
from graft.errors import ConfigError
from graft.identity import run_identity

BASE: dict[str, Any] = {
    "dataset": {"_target_": "graft.config.EmojiDataset"},
    "model": {"name": "vgg16"},
    "strategy": {"_target_": "graft.strategies.FineTune"},
    "optimizer": {"_target_": "graft.config.Adam", "lr": 0.001},
}


def _with(key: str, value: Any) -> dict[str, Any]:
    """BASE with one key, dotted, set to another value."""
    values = {k: dict(v) for k, v in BASE.items()}
    group, _, name = key.partition(".")
    if name:
        values.setdefault(group, {})[name] = value
    else:
        values[group] = value
    return values


def test_plain_values_survive_the_way_there_and_back() -> None:
    config = from_dict(BASE)
    assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optimizer.lr", 0, "optimizer.lr=0: expected a number above 0"),
        ("optimizer.lr", -1.0, "optimizer.lr=-1.0"),
        ("optimizer.lr", math.nan, "optimizer.lr=nan"),
        ("optimizer.lr", math.inf, "optimizer.lr=inf"),
        ("optimizer.lr", "1e-3x", "optimizer.lr=1e-3x"),
        ("optimizer.lr", [1e-3, 1e-4], "optimizer.lr=[0.001, 0.0001]"),
        ("optimizer.weight_decay", math.nan, "optimizer.weight_decay=nan"),
        ("epochs", 0, "epochs=0: expected a whole number of at least 1"),
        ("epochs", 1.5, "epochs=1.5"),
        ("epochs", True, "epochs=True"),
        ("batch_size", 0, "batch_size=0"),
        ("workers", -1, "workers=-1"),
        ("seed", "???", "seed=???"),
        (
            "seed",
            2**64,
            "seed=18446744073709551616: expected a whole number, 0 to 9223372036854775",
        ),
        ("dataset.fractions", [0.8, 0.1, 0.2], "dataset.fractions=[0.8, 0.1, 0.2]"),
        ("dataset.fractions", [0.9, 0.1, 0.0], "dataset.fractions"),
        ("dataset.fractions", [1.2, -0.1, -0.1], "dataset.fractions"),
        ("dataset.fractions", [0.8, 0.2], "dataset.fractions"),
        ("model.dropout", 1.0, "model.dropout=1.0"),
        ("precision", "fp16", "expected one of float32, tf32, bfloat16, float16"),
        ("metric", "test_accuracy", "expected one of val_accuracy"),
        ("strategy._target_", "os.system", "strategy._target_='os.system' is not allowed"),
        ("optimizer._target_", "torch.load", "is not allowed"),
        ("dataset", "emoji", "dataset"),
        ("model", "vgg16", "model='vgg16'"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(key: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(_with(key, value))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("key", "near"), [("optimizer.lrr", "lr"), ("epoch", "epochs"), ("strategy.dept", "depth")]
)
def test_an_unknown_key_names_the_nearest(key: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key} is not a key .* Did you mean {near}\?"):
        from_dict(_with(key, 1))


def test_everything_that_is_wrong_is_said_at_once() -> None:
    values = _with("optimizer.lr", -1) | {"epochs": 0, "sed": 1}
    with pytest.raises(ConfigError) as caught:
        from_dict(values)
    assert len(str(caught.value).splitlines()) == 3


def test_a_target_outside_the_list_is_not_imported(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "canary.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="not allowed"):
        from_dict(_with("loss", {"_target_": "canary.Loss"}))


def test_the_list_of_keys_holds_each_part() -> None:
    assert {"seed", "optimizer.lr", "dataset.csv", "strategy.depth", "tracking.uri"} <= set(keys())


@pytest.mark.parametrize(
    ("key", "value", "is_same"),
    [
        ("output_dir", "elsewhere", True),
        ("device", "cpu", True),
        ("tracking", {"uri": "off"}, True),
        ("sweep", {"name": "other"}, True),
        ("seed", 1, False),
        ("optimizer.lr", 0.01, False),
        ("strategy.depth", 2, False),
        ("precision", "bfloat16", False),
        ("dataset.split_seed", 7, False),
    ],
)
def test_the_identity_sees_what_changes_a_result(key: str, value: Any, is_same: bool) -> None:
    before, after = run_identity(from_dict(BASE)), run_identity(from_dict(_with(key, value)))
    assert (before == after) == is_same


def test_every_metric_has_a_direction() -> None:
    assert set(METRICS.values()) == {"max", "min"}
