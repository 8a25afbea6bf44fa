"""What tails are fed with: from the store, from memory or live, the numbers are the same.

More of it, with real weights, in test_exactness.py.
"""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from graft import backbones, machine, train
from graft.config import (
    Augmentation,
    Cache,
    Dihedral,
    Flip,
    Model,
    NoAugmentation,
    RandomCrop,
    RunConfig,
    from_dict,
)
from graft.dataset import LoadedDataset
from graft.errors import DataError
from graft.record import CHECKPOINT, EPOCHS, Record, read_run
from graft.strategies import FineTune, HeadOnly, Strategy
from graft.supply import Forecast, forecast
from graft.supply.batches import Input, forget_pictures
from graft.supply.shelf import Place, Shelf
from graft.supply.stored import MEMORY_SHARE
from graft.sweep import dry
from graft.sweep.asked import Asked
from graft.trunk import cut as cutting
from graft.trunk import fill, held
from graft.trunk.cut import cut
from graft.trunk.run import ON_CPU, Frozen
from graft.trunk.store import Filler, Store

SMALL, SMALL_END = "mobilenet_v3_small", "flatten"
# Of a picture at 32 px, in float32: what the network's end takes, and its smallest earlier place.
END_BYTES, SMALLEST_BYTES, PICTURES = 4 * 576, 4 * 96, 80
LIVE = Cache(enabled=False)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "activations"
    forget_pictures()


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose statistics were measured: else activations fade to zeros."""
    network = backbones.build(Model(name=SMALL, weights="none"), 2, seed=3, image_size=32)
    for module in network.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        network.module.train()(torch.randn(32, 3, 32, 32))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(network.module.state_dict(), path)
    return path


@pytest.fixture
def config(tiny_values: dict[str, Any], weights: Path) -> RunConfig:
    tiny_values["model"] = {"name": SMALL, "weights": str(weights)}
    tiny_values["strategy"] = {"_target_": "graft.strategies.HeadOnly"}
    tiny_values["epochs"] = 1
    return train.resolve(from_dict(tiny_values))


def run(config: RunConfig, folder: Path, dataset: LoadedDataset | None = None) -> Record:
    resolved = train.resolve(config)
    return train.train(resolved, folder, dataset or train.load_dataset(resolved))


def source(done: train.Outcome) -> str:
    assert isinstance(done, Record)
    return str(json.loads((done.path / "run.json").read_text())["trunk"]["source"])


def why(done: Record) -> str:
    return str(done.info["trunk"]["why"])


def assert_equal(one: train.Outcome, other: train.Outcome) -> None:
    """Metrics as they were written, every tensor, every score: bit for bit."""
    assert isinstance(one, Record) and isinstance(other, Record)
    tables = [pd.read_csv(r.path / EPOCHS, dtype=str).drop(columns="seconds") for r in (one, other)]
    pd.testing.assert_frame_equal(*tables)
    ours, theirs = (load_file(r.path / CHECKPOINT) for r in (one, other))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    np.testing.assert_array_equal(one.predictions.scores, other.predictions.scores)


def losses(done: Record) -> list[float]:
    return list(done.epochs["train_loss"])


def entries(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.name != ".lock"}


def gigabytes(row_bytes: int) -> Cache:
    """A limit that lies just above so many bytes a picture."""
    return Cache(limit_gb=(row_bytes + 1) * PICTURES / 1e9)


# --- stored or not, the numbers are the same ---------------------------------------------------


def assert_built_reused_and_live_are_equal(config: RunConfig, folder: Path) -> None:
    live = run(replace(config, cache=LIVE), folder / "live")
    built, reused = run(config, folder / "built"), run(config, folder / "reused")
    assert [source(one) for one in (live, built, reused)] == ["live", "built", "reused"]
    assert_equal(live, built)
    assert_equal(live, reused)


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        (
            HeadOnly(),
            {"augmentation": Dihedral(), "batch_size": 7, "sampling": "balanced", "epochs": 2},
        ),
        (FineTune(1), {"augmentation": Flip(), "epochs": 2}),
        (FineTune(2), {"augmentation": NoAugmentation(), "batch_size": 21}),
        pytest.param(HeadOnly(), {"batch_size": 1}, marks=pytest.mark.slow),
        (HeadOnly(), {"batch_size": 500}),
        pytest.param(
            FineTune(1),
            {"activations": "bfloat16", "precision": "bfloat16"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_the_store_changes_no_bit(
    config: RunConfig, tmp_path: Path, strategy: Strategy, changes: dict[str, Any]
) -> None:
    assert_built_reused_and_live_are_equal(replace(config, strategy=strategy, **changes), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "augmentation"),
    [(SMALL, NoAugmentation()), (SMALL, Flip()), (SMALL, Dihedral()), ("resnet18", Flip())],
    ids=str,
)
@pytest.mark.parametrize("batch_size", [16, 7])
@pytest.mark.parametrize("strategy", [HeadOnly(), FineTune(1), FineTune(2)], ids=repr)
def test_the_store_changes_no_bit_in_any_combination(
    config: RunConfig, tmp_path: Path, strategy: Strategy, augmentation: Augmentation,
    batch_size: int, name: str,
) -> None:  # fmt: skip
    model = config.model if name == SMALL else Model(name=name, weights="none")
    config = replace(
        config,
        strategy=strategy,
        augmentation=augmentation,
        batch_size=batch_size,
        model=model,
        epochs=2,
    )
    assert_built_reused_and_live_are_equal(config, tmp_path)


@pytest.mark.slow
def test_views_show_in_the_numbers(config: RunConfig, tmp_path: Path) -> None:
    """Else nothing above could fail."""
    seen = {
        tuple(losses(run(replace(config, augmentation=augmentation), tmp_path / str(i))))
        for i, augmentation in enumerate((NoAugmentation(), Flip(), Dihedral()))
    }
    assert len(seen) == 3


@pytest.mark.slow
def test_views_that_another_run_stored_are_not_stored_again(
    config: RunConfig, tmp_path: Path, cache: Path
) -> None:
    counts = []
    for i, augmentation in enumerate((NoAugmentation(), Flip(), Dihedral())):
        assert source(run(replace(config, augmentation=augmentation), tmp_path / str(i))) == "built"
        counts.append(len(entries(cache)))
    assert counts == [1, 2, 8]


def test_the_origin_says_what_is_stored(config: RunConfig, tmp_path: Path) -> None:
    wide = replace(config, image_size=64, strategy=FineTune(2), augmentation=Flip())
    stored = run(wide, tmp_path / "run").info["trunk"]
    assert (stored["at"], stored["views"], stored["pictures"]) == ("features.6", 2, PICTURES)
    # All pictures as they are, and those of the training set flipped: 40 channels of 4 x 4 pixels.
    assert stored["gigabytes"] == round((80 + 64) * 4 * 40 * 16 / 1e9, 4) > 0
    assert stored["why"] == "" and stored["difference"] == 0


def test_random_crops_are_live_and_the_record_says_why(config: RunConfig, tmp_path: Path) -> None:
    done = run(replace(config, augmentation=RandomCrop()), tmp_path / "run")
    assert source(done) == "live" and done.info["trunk"]["at"] == SMALL_END
    assert why(done).startswith("augmentation: there is no end to the views of RandomCrop")


# --- where it does not fit --------------------------------------------------------------------


@pytest.mark.parametrize("activations", ["float32", "bfloat16"])
def test_what_does_not_fit_at_the_end_is_stored_earlier(
    config: RunConfig, tmp_path: Path, activations: Any
) -> None:
    config = replace(config, augmentation=NoAugmentation(), activations=activations)
    limited = replace(config, cache=gigabytes(SMALLEST_BYTES))
    live = run(replace(config, cache=LIVE), tmp_path / "live")
    built, reused = run(limited, tmp_path / "built"), run(limited, tmp_path / "reused")
    assert [source(one) for one in (built, reused)] == ["built", "reused"]
    assert why(built).startswith("stored at ")
    assert f"at {SMALL_END} 0.00 GB would be stored, 0.00 GB may be" in why(built)
    assert_equal(live, built)
    assert_equal(live, reused)


def test_parts_that_are_not_the_network_are_not_used(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How a library builds a network may change, in a way that a cut has not learned yet."""
    expected = run(replace(config, cache=LIVE), tmp_path / "live")
    made = cutting._tail

    def wrong(*arguments: Any) -> Any:
        tail = made(*arguments)
        tail.register_forward_hook(lambda part, given, logits: 1.001 * logits)
        return tail

    monkeypatch.setattr("graft.trunk.cut._tail", wrong)
    found = run(config, tmp_path / "run")
    assert source(found) != "built"
    assert_equal(expected, found)


@pytest.mark.parametrize(
    ("limit", "num_bytes", "share"), [(None, END_BYTES, 0), (SMALLEST_BYTES, SMALLEST_BYTES, None),
                                      (1, 0, 1)],
    ids=["at the end", "earlier", "not at all"],
)  # fmt: skip
def test_a_forecast_says_what_is_then_done(
    config: RunConfig, tmp_path: Path, limit: int | None, num_bytes: int, share: float | None
) -> None:
    config = replace(config, augmentation=NoAugmentation())
    if limit is not None:
        config = replace(config, cache=gigabytes(limit))
    dataset = train.load_dataset(config)

    def forecasted() -> Forecast:
        network = train.build_network(config, dataset.examples.classes, torch.device("cpu"))
        return forecast(config, dataset.examples, dataset.digests, cut(network.module))

    before = forecasted()
    assert before.num_bytes == num_bytes * PICTURES and not before.is_there
    assert before.live_share == share if share is not None else 0 < before.live_share < 1
    done = run(config, tmp_path / "run")
    assert why(done).startswith(before.why) and before.why in before.line()
    assert done.info["trunk"]["gigabytes"] == round(before.num_bytes / 1e9, 4)
    after = forecasted()
    assert after.is_there is (num_bytes > 0) and after.num_bytes == before.num_bytes


@pytest.mark.parametrize("augmentation", [NoAugmentation(), RandomCrop()], ids=str)
def test_the_time_of_a_dry_run_has_what_runs_for_every_batch(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, augmentation: Augmentation
) -> None:
    """Whatever is timed takes 16 seconds: each of 16 pictures in the trunk takes one."""
    monkeypatch.setattr(dry, "_timed", lambda call, device: 16.0)
    monkeypatch.setattr(dry, "_fit_s", lambda *_: 0.0)
    asked = Asked("run", {}, replace(config, augmentation=augmentation, epochs=3))
    cost = dry._cost([asked], set())
    stored_s = float(PICTURES)
    live_s = 3.0 * (64 + 8)  # training and validation pictures
    expected = (stored_s, 0.0) if augmentation == NoAugmentation() else (0.0, live_s)
    assert (cost.trunk_s, cost.fit_s) == expected


def test_how_fast_a_fill_was_is_not_seen_in_what_runs_for_every_batch(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A size that gives the stored part's bits was never tried on the rest."""
    made: list[tuple[Frozen, bool]] = []
    begin = Frozen.__init__

    def noted(self: Frozen, *args: Any, is_for_storing: bool = False) -> None:
        begin(self, *args, is_for_storing=is_for_storing)
        made.append((self, is_for_storing))

    monkeypatch.setattr(Frozen, "__init__", noted)
    limited = replace(config, augmentation=NoAugmentation(), cache=gigabytes(SMALLEST_BYTES))
    run(limited, tmp_path / "built")
    assert any(one.pace.seconds for one, is_for_storing in made if is_for_storing)
    (rest,) = [one for one, is_for_storing in made if not is_for_storing]
    assert rest.pace.seconds == {} and rest.pace.best == ON_CPU[0]


def test_memory_is_shared_out_among_views(
    config: RunConfig, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a store: each view fits, both do not."""
    cache.parent.mkdir(parents=True)
    cache.write_text("no folder")
    config = replace(config, augmentation=Flip())
    enough = 144 * END_BYTES * MEMORY_SHARE  # of 64 training pictures two views, of 16 others one
    for available, expected in ((enough, "memory"), (enough - MEMORY_SHARE, "live")):
        with monkeypatch.context() as patch:
            patch.setattr(machine, "available_bytes", lambda n=available: n)
            assert source(run(config, tmp_path / expected)) == expected


@pytest.mark.slow
def test_runs_side_by_side_go_on_from_there_together(config: RunConfig, tmp_path: Path) -> None:
    limited = replace(
        config, augmentation=NoAugmentation(), cache=gigabytes(SMALLEST_BYTES), strategy=HeadOnly()
    )
    configs = [limited, replace(limited, optimizer=replace(config.optimizer, lr=1e-4))]
    members = [train.Member(one, tmp_path / str(i)) for i, one in enumerate(configs)]
    together = train.train_array(members, train.load_dataset(config))
    for i, (one, done) in enumerate(zip(configs, together, strict=True)):
        assert isinstance(done, Record) and why(done).startswith("stored at")
        assert_equal(done, run(replace(one, cache=LIVE), tmp_path / f"alone{i}"))


def test_where_nothing_fits_it_is_live_and_the_sizes_are_named(
    config: RunConfig, tmp_path: Path, cache: Path
) -> None:
    config = replace(config, strategy=FineTune(1))
    done = run(replace(config, cache=Cache(limit_gb=1e-8)), tmp_path / "limited")
    assert source(done) == "live" and not cache.exists()
    assert why(done).startswith("at features.8 0.00 GB would be stored, 0.00 GB may be")
    assert_equal(done, run(config, tmp_path / "whole"))


def test_what_does_not_fit_beside_is_left_for_later(
    config: RunConfig, tmp_path: Path, cache: Path
) -> None:
    """It must not cost the first its place."""
    head = replace(config, augmentation=NoAugmentation(), cache=gigabytes(END_BYTES))
    tune = replace(head, strategy=FineTune(1))
    members = [train.Member(head, tmp_path / "head")]
    (done,) = train.train_array(members, train.load_dataset(head), beside=[tune])
    assert source(done) == "built" and len(entries(cache)) == 1


def test_what_is_wanted_beside_costs_the_first_no_place_though_others_are_read(
    config: RunConfig, tmp_path: Path, cache: Path
) -> None:
    """What is in use by others is not known to be in the way until room is made."""
    num_bytes = END_BYTES * PICTURES
    head = replace(config, augmentation=NoAugmentation(), cache=gigabytes(2 * END_BYTES))
    store = Store(cache)
    with store.fill("read", {}, 1, num_bytes) as filler:
        filler.write(0, np.zeros((1, num_bytes), dtype=np.uint8))
        being_read = filler.finish()
    members = [train.Member(head, tmp_path / "head")]
    tune = replace(head, strategy=FineTune(1))
    (done,) = train.train_array(members, train.load_dataset(head), beside=[tune])
    being_read.close()
    assert source(done) == "built" and len(entries(cache)) == 2


def test_without_a_store_memory_has_nothing_for_those_beside(
    config: RunConfig, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("no folder")
    head = replace(config, augmentation=NoAugmentation())
    enough = END_BYTES * PICTURES * MEMORY_SHARE
    monkeypatch.setattr(machine, "available_bytes", lambda: enough)
    members = [train.Member(head, tmp_path / "head")]
    tune = replace(head, strategy=FineTune(1))
    (done,) = train.train_array(members, train.load_dataset(head), beside=[tune])
    assert source(done) == "memory"


def test_an_earlier_place_and_another_trunks_end_are_not_mistaken_for_each_other(
    config: RunConfig,
) -> None:
    """The same activations, but those that a tail sees are rounded and the others are not."""
    network = train.build_network(config, ("a", "b"), torch.device("cpu"))
    ends = []
    for strategy in (HeadOnly(), FineTune(1)):
        network.freeze(strategy.trainable(list(network.blocks)))
        found = cut(network.module)
        assert found is not None
        ends.append(found)
    dataset = train.load_dataset(config)
    for activations, is_shared in (("float32", True), ("bfloat16", False)):
        wanted: Any = replace(config, activations=activations)
        shelf = Shelf(Input(wanted, dataset.examples, dataset.digests, torch.device("cpu")))
        exit = ends[1].exits
        keys = {shelf.key(Place(one, exit, "features.8", "same"), "plain") for one in ends}
        assert (len(keys) == 1) is is_shared


# --- what is stale is not found ---------------------------------------------------------------


def _other_weights(config: RunConfig, folder: Path) -> RunConfig:
    state = load_file(config.model.weights)
    state["features.0.0.weight"][0, 0, 0, 0] += 0.25
    save_file(state, folder / "other.safetensors")
    return replace(config, model=replace(config.model, weights=str(folder / "other.safetensors")))


def _other_mean(config: RunConfig, folder: Path) -> RunConfig:
    return replace(config, model=replace(config.model, mean=(0.4, 0.4, 0.4)))


def _other_deviation(config: RunConfig, folder: Path) -> RunConfig:
    return replace(config, model=replace(config.model, std=(0.3, 0.3, 0.3)))


def _other_size(config: RunConfig, folder: Path) -> RunConfig:
    return replace(config, image_size=40)


@pytest.mark.parametrize("change", [_other_weights, _other_mean, _other_deviation, _other_size])
def test_what_changes_the_trunk_or_its_pictures_is_not_reused(
    config: RunConfig, tmp_path: Path, change: Any
) -> None:
    config = replace(config, augmentation=NoAugmentation())
    first = run(config, tmp_path / "first")
    other = change(config, tmp_path)
    done = run(other, tmp_path / "other")
    assert source(done) == "built" and losses(done) != losses(first)
    assert source(run(config, tmp_path / "again")) == "reused"


def test_weights_that_changed_under_their_name_are_not_reused(
    config: RunConfig, tmp_path: Path
) -> None:
    copy = tmp_path / "mine.safetensors"
    shutil.copy(config.model.weights, copy)
    config = replace(config, model=replace(config.model, weights=str(copy)))
    first = run(config, tmp_path / "first")
    state = load_file(copy)
    state["features.1.block.0.1.running_mean"] += 0.5
    copy.unlink()
    save_file(state, copy)
    second = run(config, tmp_path / "second")
    assert source(second) == "built" and losses(second) != losses(first)


@pytest.fixture
def own_pictures(tiny_pictures: Path, tmp_path: Path, tiny_values: dict[str, Any]) -> Path:
    folder = tmp_path / "pictures"
    shutil.copytree(tiny_pictures, folder)
    tiny_values["dataset"] |= {"csv": str(folder / "labels.csv"), "images": str(folder)}
    return folder


def _repaint(path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (24, 24), "red").save(content, "PNG")
    path.write_bytes(content.getvalue())


def test_a_picture_that_changed_since_it_was_checked_is_refused(
    own_pictures: Path, config: RunConfig, tmp_path: Path, cache: Path
) -> None:
    dataset = train.load_dataset(config)
    _repaint(own_pictures / "003.png")
    with pytest.raises(DataError, match=r"003\.png: changed since it was checked"):
        run(config, tmp_path / "run", dataset)
    assert not any((path / "header.json").exists() for path in cache.glob("*"))


@pytest.mark.slow
def test_a_picture_that_changed_between_two_sweeps_is_not_reused(
    own_pictures: Path, config: RunConfig, tmp_path: Path
) -> None:
    first = run(config, tmp_path / "first")
    _repaint(own_pictures / "003.png")
    changed = replace(config, workers=0)  # read anew, as another process would
    second = run(changed, tmp_path / "second")
    assert source(second) == "built"
    assert losses(second) != losses(first)
    assert_equal(second, run(replace(changed, cache=LIVE), tmp_path / "live"))


# --- in the memory of a device ----------------------------------------------------------------


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a CPU had memory of its own, as a GPU has."""
    monkeypatch.setattr(held, "is_held", lambda device: True)
    monkeypatch.setattr(machine, "free_gpu_bytes", lambda device: 2**30)


class _Disk:
    """Its flushes end when they may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may, self.num_waiting, self._real = threading.Event(), 0, os.fsync
        self.error: OSError | None = None
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, file: Any) -> None:
        if threading.current_thread().name == "finish":
            self.num_waiting += 1
            assert self.may.wait(60)
            if self.error is not None:
                raise self.error
        self._real(file)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Disk]:
    found = _Disk(monkeypatch)
    yield found
    found.may.set()


@pytest.mark.parametrize("augmentation", [NoAugmentation(), Flip()], ids=str)
def test_what_is_held_on_a_device_changes_no_bit(
    config: RunConfig, tmp_path: Path, augmentation: Augmentation, on_device: None
) -> None:
    config = replace(config, strategy=FineTune(1), augmentation=augmentation)
    assert_built_reused_and_live_are_equal(config, tmp_path)


class _AtEpoch:
    """Calls when a run's first epoch has ended."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def epochs(self, rows: Sequence[Any]) -> None:
        self._call()


def test_runs_train_before_the_disk_has_what_they_train_on(
    config: RunConfig, tmp_path: Path, cache: Path, on_device: None, disk: _Disk
) -> None:
    seen: list[tuple[int, list[str]]] = []

    def looked() -> None:
        deadline = time.monotonic() + 60  # the first epoch may be over before it is asked
        while disk.num_waiting < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append((disk.num_waiting, [path.suffix for path in cache.glob("*.part")]))
        disk.may.set()

    built = train.train(
        config, tmp_path / "built", train.load_dataset(config), followers=[_AtEpoch(looked)]
    )
    assert seen and all(waiting == 2 and len(parts) == 2 for waiting, parts in seen[:1])  # views
    assert not list(cache.glob("*.part"))  # by the end it has them
    assert_equal(built, run(config, tmp_path / "reused"))
    assert source(run(config, tmp_path / "again")) == "reused"


def test_a_disk_that_fails_meanwhile_costs_the_entry_alone(
    config: RunConfig, tmp_path: Path, cache: Path, on_device: None, disk: _Disk,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    disk.error = OSError(errno.EIO, "Input/output error")
    disk.may.set()
    built = run(config, tmp_path / "built")
    said = [one.getMessage() for one in caplog.records if "Input/output" in one.getMessage()]
    assert len(said) == 2 and all("in use all the same" in one for one in said)  # views
    assert not [path for path in cache.iterdir() if path.is_dir()]
    disk.error = None
    again = run(config, tmp_path / "again")
    assert source(again) == "built"
    assert_equal(built, again)


def test_whatever_goes_wrong_meanwhile_costs_the_entry_alone(
    config: RunConfig, tmp_path: Path, on_device: None, disk: _Disk,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def finish(self: Filler) -> None:
        raise MemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(Filler, "finish", finish)
        built = run(config, tmp_path / "built")
    assert "none left" in caplog.text
    disk.may.set()
    assert_equal(built, run(config, tmp_path / "again"))


class _Memory:
    """A trunk's, of which there is none left beside what is held; from some view on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_before: int) -> None:
        self.num_left, self.is_held, self.has_run_out = num_before, False, False
        tried = Frozen.tried
        fitting = held.Held.fitting.__func__  # type: ignore[attr-defined]

        def noted(cls: Any, *args: Any) -> Any:
            self.is_held = True
            return fitting(cls, *args)

        def short(frozen: Frozen, *inputs: torch.Tensor) -> Any:
            if self.is_held and self.num_left == 0:
                self.is_held, self.has_run_out = False, True
                raise torch.OutOfMemoryError("CUDA out of memory.")
            self.num_left -= 1
            return tried(frozen, *inputs)

        monkeypatch.setattr(held.Held, "fitting", classmethod(noted))
        monkeypatch.setattr(Frozen, "tried", short)


@pytest.mark.parametrize("num_before", [0, 1], ids=["at once", "in the second view"])
def test_a_trunk_that_needs_the_room_gets_it(
    config: RunConfig, tmp_path: Path, on_device: None, monkeypatch: pytest.MonkeyPatch,
    num_before: int,
) -> None:  # fmt: skip
    config = replace(config, augmentation=Flip())
    with monkeypatch.context() as patch:
        memory = _Memory(patch, num_before)
        built = run(config, tmp_path / "built")
        assert memory.has_run_out and source(built) == "built"
    assert_equal(built, run(replace(config, cache=LIVE), tmp_path / "live"))


def test_who_is_interrupted_does_not_wait_for_the_disk(
    config: RunConfig, tmp_path: Path, cache: Path, on_device: None, disk: _Disk
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(
            config, tmp_path / "built", train.load_dataset(config), followers=[_AtEpoch(interrupt)]
        )
    assert not disk.may.is_set() and len(list(cache.glob("*.part"))) == 2


def test_what_was_begun_is_gone_on_with_and_held(
    config: RunConfig, tmp_path: Path, cache: Path, on_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that the disk has from before are not computed again: they come from there."""
    for module in ("entry", "filler"):
        monkeypatch.setattr(f"graft.trunk.store.{module}.BLOCK_ROWS", 16)
    monkeypatch.setattr(fill, "STRETCH", 16)
    write, count = Filler.write, 0

    def failing(self: Filler, start: int, rows: Any) -> None:
        nonlocal count
        count += 1
        if count > 2:
            raise KeyboardInterrupt
        write(self, start, rows)

    config = replace(config, augmentation=NoAugmentation())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Filler, "write", failing)
        run(config, tmp_path / "killed")
    assert len(list(cache.glob("*.part"))) == 1
    rows: list[int] = []
    monkeypatch.setattr(Filler, "write", lambda self, *a: (rows.append(a[0]), write(self, *a))[1])
    built = run(config, tmp_path / "built")
    assert source(built) == "built" and sorted(rows) == [32, 48, 64]
    assert_equal(built, run(replace(config, cache=LIVE), tmp_path / "live"))


def test_without_a_store_they_are_held_all_the_same(
    config: RunConfig, tmp_path: Path, cache: Path, on_device: None,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    cache.parent.mkdir(parents=True)
    cache.write_text("no folder")
    done = run(config, tmp_path / "run")
    assert source(done) == "memory"
    assert len([one for one in caplog.records if "Going on without it" in one.getMessage()]) == 1
    assert_equal(done, run(replace(config, cache=LIVE), tmp_path / "live"))


def test_what_does_not_fit_there_is_read(
    config: RunConfig, tmp_path: Path, on_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_gpu_bytes", lambda device: 2 * 144 * END_BYTES - 1)
    monkeypatch.setattr(torch.Tensor, "index_select", None)  # nothing is picked on the device
    assert source(run(config, tmp_path / "run")) == "built"


# --- several at once --------------------------------------------------------------------------


def test_one_pass_gives_what_others_need_and_they_train_as_they_would_alone(
    config: RunConfig, tmp_path: Path, cache: Path
) -> None:
    config = replace(config, augmentation=NoAugmentation())
    tunes = [replace(config, strategy=FineTune(depth)) for depth in (1, 2)]
    alone = [run(replace(one, cache=LIVE), tmp_path / f"alone{i}") for i, one in enumerate(tunes)]
    members = [train.Member(config, tmp_path / "head")]
    (head,) = train.train_array(members, train.load_dataset(config), beside=tunes)
    assert source(head) == "built" and len(entries(cache)) == 3
    assert_equal(head, run(replace(config, cache=LIVE), tmp_path / "head alone"))
    for i, one in enumerate(tunes):
        done = run(one, tmp_path / f"after{i}")
        assert source(done) == "reused"
        assert_equal(done, alone[i])


@pytest.mark.slow
def test_a_shallower_trunk_gets_what_a_deeper_one_beside_it_needs(
    config: RunConfig, tmp_path: Path
) -> None:
    tune = replace(config, strategy=FineTune(2))
    members = [train.Member(tune, tmp_path / "tune")]
    (done,) = train.train_array(members, train.load_dataset(config), beside=[config])
    assert_equal(done, run(replace(tune, cache=LIVE), tmp_path / "alone"))
    assert source(run(config, tmp_path / "head")) == "reused"


OF_A_PROCESS = """
import json, sys
from pathlib import Path
from graft import train
from graft.config import from_dict
config = train.resolve(from_dict(json.loads(sys.argv[1])))
dataset = train.load_dataset(config)
print("ready", flush=True)
sys.stdin.readline()
train.train(config, Path(sys.argv[2]), dataset)
"""


@pytest.mark.slow
def test_two_processes_that_want_the_same_at_once_both_have_it(
    config: RunConfig, tiny_values: dict[str, Any], tmp_path: Path, cache: Path
) -> None:
    tiny_values["augmentation"] = {"_target_": "graft.config.NoAugmentation"}
    tiny_values["image_size"] = 64
    folders = [tmp_path / "a", tmp_path / "b"]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", OF_A_PROCESS, json.dumps(tiny_values), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for folder in folders
    ]  # fmt: skip
    try:
        for child in children:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        assert [child.wait(120) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
            child.communicate()
    one, other = (read_run(folder) for folder in folders)
    assert_equal(one, other)
    assert {source(one), source(other)} <= {"built", "reused"} and len(entries(cache)) == 1


def test_several_who_want_the_same_each_compute_another_view(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from graft.supply.stored import _free_first
    from graft.trunk.fill import Wanted
    from graft.trunk.rows import RowFormat

    store = Store(tmp_path / "activations", None)
    format = RowFormat.of((torch.zeros(2, 4),), "float32", 2)
    keys = {view: f"{number}" * 32 for number, view in enumerate(("plain", "flipped"), start=1)}
    every = {view: [Wanted(key, {}, ("out",), format)] for view, key in keys.items()}
    assert [view for view, _ in _free_first(store, every)] == ["plain", "flipped"]
    with store.fill(keys["plain"], {}, 4, format.row_bytes):
        assert store.is_being_filled(keys["plain"])
        assert [view for view, _ in _free_first(store, every)] == ["flipped", "plain"]
    assert not store.is_being_filled(keys["plain"])
