"""The same numbers with the trunk cache or without, alone or in company, bit for bit."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from graft import machine, train
from graft.config import (
    SGD,
    Adam,
    AdamW,
    Cache,
    Cosine,
    Dihedral,
    Flip,
    Model,
    NoAugmentation,
    RandomCrop,
    RunConfig,
)
from graft.dataset import LoadedDataset
from graft.record import CHECKPOINT, Record
from graft.strategies import FineTune, Full, HeadOnly, Strategy


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(tiny_config: RunConfig) -> RunConfig:
    """With real weights: what a random network makes of pictures fades to nothing."""
    model = Model(name="efficientnet_lite0")
    return train.resolve(replace(tiny_config, model=model, optimizer=Adam(lr=1e-3)))


@pytest.fixture
def dataset(base: RunConfig) -> LoadedDataset:
    return train.load_dataset(base)


def alone(config: RunConfig, folder: Path, dataset: LoadedDataset) -> Record:
    return train.train(train.resolve(config), folder, dataset)


def together(
    configs: Sequence[RunConfig], folder: Path, dataset: LoadedDataset, **options: Any
) -> list[train.Outcome]:
    members = [
        train.Member(train.resolve(config), folder / f"run{i}") for i, config in enumerate(configs)
    ]
    return train.train_array(members, dataset, **options)


def assert_equal(a: train.Outcome, b: train.Outcome) -> None:
    assert isinstance(a, Record) and isinstance(b, Record)
    pd.testing.assert_frame_equal(
        a.epochs.drop(columns="seconds"), b.epochs.drop(columns="seconds"), check_exact=True
    )
    one, other = (load_file(run.path / CHECKPOINT) for run in (a, b))
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different and one.keys() == other.keys()
    assert (a.predictions.scores == b.predictions.scores).all()


def source(run: train.Outcome) -> str:
    assert isinstance(run, Record)
    return str(run.info["trunk"]["source"])


# --- with the cache or without --------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        (HeadOnly(), {}),
        (HeadOnly(), {"augmentation": NoAugmentation(), "sampling": "balanced"}),
        (FineTune(1), {}),
        (FineTune(1), {"augmentation": Dihedral(), "batch_size": 7}),
        pytest.param(FineTune(2), {"schedule": Cosine(warmup_epochs=0.5)}, marks=pytest.mark.slow),
        (HeadOnly(), {"activations": "bfloat16"}),
        pytest.param(HeadOnly(), {"precision": "bfloat16"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_built_reused_and_live_are_equal(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, strategy: Strategy,
    changes: dict[str, Any],
) -> None:  # fmt: skip
    config = replace(base, strategy=strategy, **changes)
    live = alone(replace(config, cache=Cache(enabled=False)), tmp_path / "live", dataset)
    built = alone(config, tmp_path / "built", dataset)
    reused = alone(config, tmp_path / "reused", dataset)
    assert [source(run) for run in (live, built, reused)] == ["live", "built", "reused"]
    assert_equal(live, built)
    assert_equal(live, reused)


@pytest.mark.slow
def test_another_stored_type_is_another_run(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path
) -> None:
    full = alone(replace(base, strategy=HeadOnly()), tmp_path / "full", dataset)
    half = alone(
        replace(base, strategy=HeadOnly(), activations="bfloat16"), tmp_path / "half", dataset
    )
    assert half.info["trunk"]["gigabytes"] == pytest.approx(
        full.info["trunk"]["gigabytes"] / 2, abs=1e-4
    )
    assert half.epochs["train_loss"].tolist() != full.epochs["train_loss"].tolist()
    assert half.info["identity"] != full.info["identity"]


@pytest.mark.slow
def test_what_cannot_be_stored_says_why(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path
) -> None:
    crop = alone(replace(base, augmentation=RandomCrop()), tmp_path / "crop", dataset)
    assert source(crop) == "live" and "no end to the views" in crop.info["trunk"]["why"]
    full = alone(replace(base, strategy=Full()), tmp_path / "full", dataset)
    assert full.info["trunk"]["at"] is None


@pytest.mark.slow
@pytest.mark.parametrize("limit_gb", [1e-9, 2e-4, 4e-4])
def test_what_does_not_fit_is_stored_earlier_or_not_at_all(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, limit_gb: float
) -> None:
    config = replace(base, strategy=FineTune(2), augmentation=NoAugmentation())
    limited = alone(replace(config, cache=Cache(limit_gb=limit_gb)), tmp_path / "limited", dataset)
    whole = alone(config, tmp_path / "whole", dataset)
    assert_equal(limited, whole)
    if source(limited) == "live":
        assert "may be" in limited.info["trunk"]["why"]


@pytest.mark.slow
def test_a_cache_that_cannot_be_used_costs_a_warning(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = alone(base, tmp_path / "plain", dataset)
    folder = tmp_path / "cache" / "activations"
    folder.rename(tmp_path / "away")
    folder.write_text("a file where the folder should be")
    caplog.clear()
    other = alone(base, tmp_path / "other", dataset)
    assert source(other) == "memory"
    assert_equal(plain, other)
    warnings = [r for r in caplog.records if r.levelname == "WARNING" and "cache" in r.message]
    assert len(warnings) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", ["flip", *(pytest.param(one, marks=pytest.mark.slow) for one in ("cut", "remove"))]
)
def test_a_damaged_entry_is_built_again(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, damage: str
) -> None:
    first = alone(base, tmp_path / "first", dataset)
    data = next((tmp_path / "cache" / "activations").rglob("data.bin"))
    content = bytearray(data.read_bytes())
    if damage == "flip":
        content[len(content) // 3] ^= 16
        data.write_bytes(content)
    elif damage == "cut":
        data.write_bytes(content[: len(content) // 2])
    else:
        data.unlink()
    second = alone(base, tmp_path / "second", dataset)
    assert source(second) == "built"
    assert_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 40},
        pytest.param({"precision": "bfloat16"}, marks=pytest.mark.slow),
        {"strategy": FineTune(2)},
    ],
    ids=str,
)
def test_what_changes_activations_is_never_reused(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, changes: dict[str, Any]
) -> None:
    alone(base, tmp_path / "first", dataset)
    assert source(alone(replace(base, **changes), tmp_path / "second", dataset)) == "built"


def test_a_changed_picture_is_refused_not_stored(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path
) -> None:
    digests = ("0" * 16, *dataset.digests[1:])
    with pytest.raises(Exception, match="changed since it was checked"):
        alone(base, tmp_path / "run", replace(dataset, digests=digests))


def test_the_cache_may_be_deleted_while_a_run_reads_it(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(train, "WRITE_S", 0.0)
    plain = alone(base, tmp_path / "plain", dataset)

    class Deletes:
        def epochs(self, rows: Any) -> None:
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    deleted = train.train(base, tmp_path / "run", dataset, followers=[Deletes()])
    assert source(deleted) == "reused" and not (tmp_path / "cache").exists()
    assert_equal(plain, deleted)


@pytest.mark.slow
def test_one_pass_builds_what_two_strategies_need(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path
) -> None:
    head, tune = (replace(base, strategy=s) for s in (HeadOnly(), FineTune(1)))
    expected = alone(replace(tune, cache=Cache(enabled=False)), tmp_path / "expected", dataset)
    together([head], tmp_path, dataset, beside=[tune])
    found = alone(tune, tmp_path / "found", dataset)
    assert source(found) == "reused"
    assert_equal(expected, found)


def test_what_the_caller_asked_of_torch_lowers_no_precision(
    tiny_config: RunConfig, request: pytest.FixtureRequest
) -> None:
    """A script may have asked for fast products before it trains; no key of the cache says so."""
    request.addfinalizer(lambda: machine.prepare_process(tiny_config))
    found = torch.backends
    torch.set_float32_matmul_precision("medium")
    found.fp32_precision = found.cudnn.fp32_precision = "tf32"
    found.mkldnn.conv.fp32_precision = found.mkldnn.fp32_precision = "bf16"
    assert found.mkldnn.matmul.fp32_precision == "bf16"
    machine.prepare_process(tiny_config)
    kinds = (found.mkldnn.matmul, found.mkldnn.conv, found.cuda.matmul, found.cudnn.conv)
    assert {kind.fp32_precision for kind in kinds} <= {"none", "ieee"}
    assert torch.get_float32_matmul_precision() == "highest"


# --- alone or in company --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        (HeadOnly(), {}),
        (FineTune(1), {}),
        pytest.param(HeadOnly(), {"augmentation": RandomCrop()}, marks=pytest.mark.slow),
        pytest.param(FineTune(1), {"augmentation": RandomCrop()}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_company_changes_nothing(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, strategy: Strategy,
    changes: dict[str, Any],
) -> None:  # fmt: skip
    config = replace(base, strategy=strategy, **changes)
    configs = [
        replace(config, optimizer=Adam(lr=1e-2)),
        replace(config, optimizer=AdamW(lr=1e-3), epochs=3, schedule=Cosine()),
        replace(config, model=replace(config.model, dropout=0.6, head_seed=5)),
        replace(config, optimizer=SGD(lr=1e-2), epochs=1),
    ]
    assert len({train.array_key(one) for one in configs}) == 1
    company = together(configs, tmp_path / "company", dataset)
    for i, one in enumerate(configs):
        assert_equal(alone(one, tmp_path / f"alone{i}", dataset), company[i])


def test_a_run_that_diverges_leaves_the_others_as_they_are(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path
) -> None:
    config = replace(base, strategy=HeadOnly())
    bad = replace(config, optimizer=Adam(lr=1e38))
    good = alone(config, tmp_path / "alone", dataset)
    ended: list[str] = []
    outcomes = together(
        [bad, config], tmp_path / "both", dataset,
        ended=lambda member, outcome: ended.append(member.folder.name),
    )  # fmt: skip
    assert type(outcomes[0]).__name__ == "Diverged"
    assert_equal(good, outcomes[1])
    assert sorted(ended) == ["run0", "run1"] and ended[0] == "run0"


def test_the_time_of_an_array_is_shared_out(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path
) -> None:
    config = replace(base, strategy=HeadOnly(), augmentation=Flip())
    runs = together(
        [replace(config, optimizer=Adam(lr=r)) for r in (1e-2, 1e-3)], tmp_path, dataset
    )
    times = [run.info["timings_s"] for run in runs if isinstance(run, Record)]
    assert times[0]["fit"] == pytest.approx(times[1]["fit"], abs=0.02)


def test_each_run_logs_its_own_epochs(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path
) -> None:
    config = replace(base, strategy=HeadOnly())
    configs = [replace(config, epochs=n, optimizer=Adam(lr=10.0**-n)) for n in (1, 3)]
    together(configs, tmp_path, dataset)
    for i, epochs in enumerate((1, 3)):
        text = (tmp_path / f"run{i}" / "train.log").read_text()
        assert text.count(f"epoch {epochs}/{epochs}  train loss") == 1
        assert text.count("  train loss") == epochs
