"""On a CUDA device: equal where kernels are, within a bound where another batch size means another
kernel, and nothing that only a GPU does goes wrong.

    pytest -m gpu -s        # prints the bounds that are met

`make test` leaves these out; `make test-all` skips them where there is no device.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tests.home import Home

from graft import backbones, machine, train
from graft.config import (
    SGD,
    Adam,
    AdamW,
    Cache,
    Cosine,
    CrossEntropy,
    Model,
    RandomCrop,
    RunConfig,
)
from graft.dataset import LoadedDataset
from graft.errors import Diverged
from graft.fit import checkpoint, recorded
from graft.record import CHECKPOINT, ENVIRONMENT, EPOCHS, RUN, Record, read_json
from graft.strategies import FineTune, Full, HeadOnly, Strategy
from graft.trunk import activations, held
from graft.trunk.rows import RowFormat

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

# As a share: of losses between a network that is run whole and one whose trunk is stored, and
# between heads trained alone and in a stack of another height.
BOUND = 1e-3


@pytest.fixture(autouse=True)
def _own_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(tiny_config: RunConfig) -> RunConfig:
    """With real weights: what a random network makes of pictures fades to nothing."""
    config = replace(
        tiny_config, device="cuda", model=Model(name="efficientnet_lite0"),
        optimizer=Adam(lr=1e-3), epochs=3,
    )  # fmt: skip
    return train.resolve(config)


@pytest.fixture
def dataset(base: RunConfig) -> LoadedDataset:
    return train.load_dataset(base)


def alone(config: RunConfig, folder: Path, dataset: LoadedDataset, **more: Any) -> Record:
    return train.train(train.resolve(config), folder, dataset, **more)


def together(
    configs: Sequence[RunConfig], folder: Path, dataset: LoadedDataset
) -> list[train.Outcome]:
    members = [train.Member(train.resolve(c), folder / str(i)) for i, c in enumerate(configs)]
    return train.train_array(members, dataset)


def assert_equal(a: train.Outcome, b: train.Outcome) -> None:
    assert isinstance(a, Record), a
    assert isinstance(b, Record), b
    pd.testing.assert_frame_equal(
        a.epochs.drop(columns="seconds"), b.epochs.drop(columns="seconds"), check_exact=True
    )
    one, other = (load_file(run.path / CHECKPOINT) for run in (a, b))
    assert not [name for name in one if not torch.equal(one[name], other[name])]
    assert (a.predictions.scores == b.predictions.scores).all()


def assert_close(a: train.Outcome, b: train.Outcome, what: str) -> None:
    assert isinstance(a, Record), a
    assert isinstance(b, Record), b
    for loss in ("train_loss", "val_loss"):
        one, other = (run.epochs[loss].to_numpy() for run in (a, b))
        share = float(np.max(np.abs(one - other) / np.abs(other)))
        print(f"\n{what}: {loss} differs by {share:.1e} at most", end="")
        assert share < BOUND


def read(path: Path) -> dict[str, Any]:
    found = read_json(path)
    assert found is not None, path
    return found


def of_trunk(run: train.Outcome) -> dict[str, Any]:
    assert isinstance(run, Record), run
    return dict(run.info["trunk"])


# --- the same numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [HeadOnly(), FineTune(1), FineTune(2)], ids=str)
def test_reused_is_built_and_live_is_close(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, strategy: Strategy
) -> None:
    config = replace(base, strategy=strategy)
    built, reused = (alone(config, tmp_path / name, dataset) for name in ("built", "reused"))
    live = alone(replace(config, cache=Cache(enabled=False)), tmp_path / "live", dataset)
    sources = [of_trunk(run)["source"] for run in (built, reused, live)]
    assert sources == ["built", "reused", "live"]
    assert_equal(built, reused)
    assert_close(built, live, f"{strategy}, stored or live")
    print(f"\nbatch sizes: {of_trunk(built)['difference']:.1e}", end="")


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        (FineTune(1), {}),
        (Full(), {}),
        (FineTune(1), {"augmentation": RandomCrop()}),
        (FineTune(1), {"precision": "bfloat16"}),
    ],
    ids=str,
)
def test_a_run_is_repeated_bit_for_bit(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, strategy: Strategy,
    changes: dict[str, Any],
) -> None:  # fmt: skip
    config = replace(base, strategy=strategy, **changes)
    assert_equal(*(alone(config, tmp_path / name, dataset) for name in "ab"))


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_so_is_one_of_attention(tiny_config: RunConfig, tmp_path: Path, precision: Any) -> None:
    config = train.resolve(
        replace(
            tiny_config, device="cuda", image_size=224, batch_size=16, strategy=Full(),
            model=Model(name="vit_b_16", weights="none"), precision=precision,
        )
    )  # fmt: skip
    dataset = train.load_dataset(config)
    assert_equal(*(alone(config, tmp_path / name, dataset) for name in "ab"))


# A live trunk is run for all of them at once, and those of a lane share its memory. Small batches:
# a lane is asked for more steps than it may be ahead.
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augmentation": RandomCrop()},
        {"cuda_graphs": False},
        {"augmentation": RandomCrop(), "cuda_graphs": False},
        {"precision": "bfloat16"},
        {"precision": "float16"},
    ],
    ids=str,
)
def test_company_changes_nothing_where_tails_are_separate(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, changes: dict[str, Any],
    num_lanes: list[int],
) -> None:  # fmt: skip
    model = replace(base.model, dropout=0.3)
    base = replace(base, strategy=FineTune(1), model=model, batch_size=8, **changes)
    configs = [
        replace(base, optimizer=optimizer)
        for optimizer in (Adam(lr=1e-3), AdamW(lr=1e-4, weight_decay=0.1), SGD(lr=1e-2))
    ]
    outcomes = together(configs, tmp_path / "array", dataset)
    assert num_lanes[0] == 2
    for i, config in enumerate(configs):
        (one,) = together([config], tmp_path / f"alone{i}", dataset)
        if isinstance(one, Diverged):  # the last one does so, in float16
            assert str(one) == str(outcomes[i])
        else:
            assert_equal(outcomes[i], one)
    assert num_lanes[-3:] == [1] * 3
    assert sum(isinstance(one, Record) for one in outcomes) >= 2


# One whose operations keep their own outputs for the backward pass, and one with all of a head.
@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
def test_nor_with_networks_of_other_kinds(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, num_lanes: list[int], name: str
) -> None:
    model = Model(name=name, weights="none")
    base = replace(base, strategy=FineTune(1), model=model, image_size=64, epochs=2)
    configs = [replace(base, optimizer=Adam(lr=lr)) for lr in (1e-3, 1e-4)]
    outcomes = together([train.resolve(one) for one in configs], tmp_path / "array", dataset)
    assert num_lanes == [2]
    for i, config in enumerate(configs):
        assert_equal(outcomes[i], alone(config, tmp_path / f"alone{i}", dataset))


def test_lanes_do_make_their_steps_side_by_side(base: RunConfig) -> None:
    """And each waits for what it was asked for before it, and is waited for."""
    device = torch.device("cuda")
    recorders = [recorded.Recorder(device, is_on=False) for _ in range(2)]
    zeros = torch.zeros(1 << 20, device=device) + 1  # kernels are loaded when first asked for,
    torch.cuda._sleep(1)  # and all wait till they are
    torch.cuda.synchronize()
    torch.cuda._sleep(50_000_000)
    before: torch.Tensor = zeros + 1
    made = []
    began, ended = ([torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(2))
    with recorded.Recorder.in_lanes(recorders, 2):
        for recorder, begin, end in zip(recorders, began, ended, strict=True):
            with recorder.lane(before):
                begin.record()
                torch.cuda._sleep(100_000_000)
                made.append(before + 1)
                end.record()
    assert all(bool((one == 3).all()) for one in made)
    assert began[1].elapsed_time(ended[0]) > 0  # before the first had ended


def test_the_driver_says_of_the_gpus_what_pytorch_says() -> None:
    lines = (
        "from graft import _cuda; print(_cuda.devices()); import sys; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    count = range(torch.cuda.device_count())
    expected = tuple(torch.cuda.get_device_capability(number) for number in count)
    assert done.stdout.split("\n")[:2] == [str(expected), "False"]


# The second has a head of two layers, 0.6 million weights.
@pytest.mark.parametrize(
    ("name", "weights"), [("efficientnet_lite0", "imagenet"), ("mobilenet_v3_small", "none")]
)
def test_a_stack_is_close_to_its_runs_alone_and_the_same_twice(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, name: str, weights: str
) -> None:
    model = replace(base.model, name=name, weights=weights, dropout=0.3)
    base = train.resolve(replace(base, strategy=HeadOnly(), model=model))
    configs = [replace(base, optimizer=Adam(lr=lr)) for lr in (1e-2, 1e-3, 1e-4, 3e-3, 3e-4)]
    outcomes = together(configs, tmp_path / "array", dataset)
    again = together(configs, tmp_path / "again", dataset)
    for i, config in enumerate(configs):
        assert_equal(outcomes[i], again[i])
        assert_close(outcomes[i], alone(config, tmp_path / f"alone{i}", dataset), f"stack, {i}")


@pytest.mark.parametrize("strategy", [HeadOnly(), FineTune(1)], ids=str)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_run_goes_on_bit_for_bit(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    strategy: Strategy, precision: Any,
) -> None:  # fmt: skip
    for name, value in (("EVERY_S", 0.0), ("REST", 0.0)):
        monkeypatch.setattr(checkpoint, name, value)
    monkeypatch.setattr(train, "WRITE_S", 0.0)
    model = replace(base.model, dropout=0.3)
    config = replace(base, strategy=strategy, precision=precision, model=model)
    whole = alone(config, tmp_path / "whole", dataset)

    class Follower:
        def epochs(self, rows: Sequence[Any]) -> None:
            if rows[-1]["epoch"] >= 2:
                raise RuntimeError("the machine is gone")

    with pytest.raises(RuntimeError, match="gone"):
        alone(config, tmp_path / "other", dataset, followers=[Follower()])
    assert_equal(alone(config, tmp_path / "other", dataset), whole)


@pytest.mark.parametrize("activations_as", ["float32", "bfloat16"])
def test_activations_in_its_memory_or_read_are_the_same(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    activations_as: Any,
) -> None:  # fmt: skip
    config = replace(base, strategy=FineTune(1), activations=activations_as)
    kept = alone(config, tmp_path / "held", dataset)
    monkeypatch.setattr(held, "GPU_SHARE", 0.0)
    assert_equal(alone(config, tmp_path / "read", dataset), kept)


class _Rows:
    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def rows(self) -> Any:
        return self._rows

    def close(self) -> None:
        pass


@pytest.mark.parametrize("stage_bytes", [1, 1000, 1 << 26])
def test_rows_arrive_whole_whatever_the_stages(
    monkeypatch: pytest.MonkeyPatch, stage_bytes: int
) -> None:
    monkeypatch.setattr(held, "STAGE_BYTES", stage_bytes)
    random = np.random.default_rng(0)
    format = RowFormat(((7,),), ("float32",), ("float32",))
    numbers = {name: random.normal(size=(n, 7)).astype(np.float32) for name, n in
               (("plain", 301), ("flip", 45))}  # fmt: skip
    views = {
        name: activations.View(_Rows(values.view(np.uint8)), np.arange(len(values)))
        for name, values in numbers.items()
    }
    found_there = activations.Activations(format, views, torch.device("cuda"))
    examples, which = random.integers(45, size=64), random.integers(2, size=64)
    parts = [slice(0, 20), slice(20, 21), slice(21, 64)]
    names = ("plain", "flip")
    batches = found_there.batches([examples[p] for p in parts], names, [which[p] for p in parts])
    for part, (found,) in zip(parts, batches, strict=True):
        pairs = zip(examples[part], which[part], strict=True)
        expected = [numbers[names[w]][e] for e, w in pairs]
        assert (found.cpu().numpy() == np.array(expected)).all()


@pytest.fixture
def num_lanes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each group of runs, how many lanes it had."""
    seen: list[int] = []
    in_lanes = recorded.Recorder.in_lanes

    def noted(recorders: Any, count: int) -> Any:
        seen.append(count)
        return in_lanes(recorders, count)

    monkeypatch.setattr(recorded.Recorder, "in_lanes", staticmethod(noted))
    return seen


# --- recorded steps -----------------------------------------------------------------------------


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every launch of a recording, as it is made."""
    seen: list[object] = []
    replay = recorded._Recording.replay

    def noted(self: recorded._Recording, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(self)
        replay(self, inputs)

    monkeypatch.setattr(recorded._Recording, "replay", noted)
    return seen


@pytest.mark.parametrize("strategy", [HeadOnly(), FineTune(1), Full()], ids=str)
@pytest.mark.parametrize("name", list(backbones.BACKBONES))
def test_a_recorded_step_changes_no_bit(
    tiny_config: RunConfig, tmp_path: Path, replayed: list[object], name: str, strategy: Strategy
) -> None:
    size = 224 if name == "vit_b_16" else 64
    config = train.resolve(
        replace(
            tiny_config, device="cuda", epochs=3, batch_size=8, image_size=size, strategy=strategy,
            model=Model(name=name, weights="none", dropout=0.2), schedule=Cosine(),
        )
    )  # fmt: skip
    dataset = train.load_dataset(config)
    asked = alone(replace(config, cuda_graphs=False), tmp_path / "asked", dataset)
    assert not replayed
    assert_equal(asked, alone(config, tmp_path / "recorded", dataset))
    # All but the first three of a kind: whole batches, and what is left at the end of an epoch.
    steps = 3 * -(-len(dataset.examples.train) // 8)
    assert len(replayed) >= steps - 2 * recorded.ASKED_FIRST > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": SGD(lr=1e-2, momentum=0.9, nesterov=True)},
        {"optimizer": AdamW(lr=1e-3, weight_decay=0.1)},
        {"precision": "bfloat16"},
        {"precision": "tf32"},
        {"augmentation": RandomCrop()},
        {"loss": CrossEntropy(class_weights="balanced", label_smoothing=0.1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("strategy", [HeadOnly(), FineTune(1)], ids=str)
def test_nor_with_other_settings(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, replayed: list[object],
    strategy: Strategy, changes: dict[str, Any],
) -> None:  # fmt: skip
    config = train.resolve(replace(base, batch_size=8, strategy=strategy, **changes))
    asked = alone(replace(config, cuda_graphs=False), tmp_path / "asked", dataset)
    assert_equal(asked, alone(config, tmp_path / "recorded", dataset))
    assert replayed


def test_nor_in_a_stack_that_grows_smaller(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, replayed: list[object]
) -> None:
    base = replace(base, batch_size=8, epochs=4, model=replace(base.model, dropout=0.3))
    configs = [
        replace(base, optimizer=Adam(lr=lr), epochs=epochs, seed=seed)
        for lr, epochs, seed in ((1e-2, 4, 0), (1e-3, 2, 0), (float("1e30"), 4, 0), (1e-4, 3, 1))
    ]
    asked = together([replace(c, cuda_graphs=False) for c in configs], tmp_path / "asked", dataset)
    assert not replayed
    found = together(configs, tmp_path / "recorded", dataset)
    assert len(set(map(id, replayed))) > 2
    for one, other in zip(asked, found, strict=True):
        if isinstance(one, Record):
            assert_equal(one, other)
        else:
            assert type(one) is type(other)


def test_what_fails_while_it_is_recorded_is_asked_for() -> None:
    x, total = torch.ones(4, device="cuda"), torch.zeros((), device="cuda")

    def step(inputs: torch.Tensor) -> None:
        total.add_(inputs.sum())
        if torch.cuda.is_current_stream_capturing():
            raise torch.OutOfMemoryError("no room for a second one")

    recorder = recorded.Recorder(torch.device("cuda"), is_on=True)
    for _ in range(10):
        with recorder.lane(x):
            recorder.run(step, x)
    assert float(total) == 40


WAITS = """
import torch
from graft.errors import RunError
from graft.fit import recorded

x, total = torch.ones(4, device="cuda"), torch.zeros((), device="cuda")
recorder = recorded.Recorder(torch.device("cuda"), is_on=True)
try:
    for _ in range(recorded.ASKED_FIRST + 1):
        with recorder.lane(x):
            recorder.run(lambda y: total.add_(float(y.sum())), x)
except RunError as error:
    print(error)
"""


def test_a_step_that_waits_for_the_device_says_what_to_do() -> None:
    # In a process of its own: PyTorch is not the same after it.
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True)
    assert "Run it with cuda_graphs=false" in done.stdout, done.stderr


# --- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
def test_other_precisions_are_other_runs_near_by(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path, precision: Any
) -> None:
    exact = alone(replace(base, strategy=FineTune(1)), tmp_path / "exact", dataset)
    config = replace(base, strategy=FineTune(1), precision=precision)
    rounded = alone(config, tmp_path / precision, dataset)
    one, other = exact.epochs["val_loss"].to_numpy(), rounded.epochs["val_loss"].to_numpy()
    assert (one != other).any() and np.isfinite(other).all()
    assert np.max(np.abs(one - other)) < 0.3
    assert exact.info["identity"] != rounded.info["identity"]
    # What the one sets is not left behind for the next.
    assert_equal(alone(replace(base, strategy=FineTune(1)), tmp_path / "after", dataset), exact)


def test_float32_is_not_tf32(base: RunConfig) -> None:
    x = torch.randn(64, 512, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    exact = x.double() @ x.double().T
    errors = {}
    for precision in ("float32", "tf32"):
        machine.prepare_process(replace(base, precision=precision))
        errors[precision] = float((x @ x.T - exact).abs().max())
    machine.prepare_process(base)
    print(f"\n{errors}", end="")
    assert errors["float32"] < 1e-3 < errors["tf32"]


# --- memory -------------------------------------------------------------------------------------


def test_a_run_that_asks_for_too_much_fails_alone_and_gives_back(
    base: RunConfig, dataset: LoadedDataset, tmp_path: Path
) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    before = torch.cuda.memory_allocated()
    large = replace(base, strategy=Full(), image_size=1024, batch_size=64)
    torch.cuda.set_per_process_memory_fraction(2**31 / total)
    try:
        (outcome,) = together([large], tmp_path / "large", dataset)
        (after,) = together([replace(base, strategy=Full())], tmp_path / "small", dataset)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert isinstance(outcome, torch.OutOfMemoryError)
    info = read(tmp_path / "large" / "0" / RUN)
    assert info["status"] == "failed" and "memory" in info["reason"], info["reason"]
    assert isinstance(after, Record)
    assert torch.cuda.memory_allocated() - before < 2**28


def test_what_pytorch_keeps_counts_as_free() -> None:
    torch.cuda.empty_cache()
    device = torch.device("cuda")
    free = machine.free_gpu_bytes(device)
    large = torch.empty(2**30, dtype=torch.uint8, device=device)
    assert free - machine.free_gpu_bytes(device) == pytest.approx(2**30, rel=0.05)
    del large
    assert machine.free_gpu_bytes(device) == pytest.approx(free, rel=0.01)


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def home(tiny_pictures: Path, tmp_path: Path) -> Home:
    return Home(tmp_path, tiny_pictures, "device=auto")


def runs_of(home: Home, name: str) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in (home.outputs / name).glob(f"*/{RUN}")}


def test_a_sweep_on_slots_of_the_gpu(home: Home) -> None:
    sweep = ("strategy=head_only,fine_tune", "optimizer.lr=1e-2,1e-3", "epochs=2")
    slots = "hydra.launcher.per_gpu=2"
    assert "gpu 0/1" in home.graft(slots, *sweep, "sweep.dry_run=true").stdout
    home.graft("sweep.name=s", slots, *sweep)
    runs = runs_of(home, "s")
    assert len(runs) == 4
    for run in runs.values():
        assert read(run / RUN)["status"] == "completed"
        assert read(run / ENVIRONMENT)["device"] == torch.cuda.get_device_name()
    # In one process of the same command: the same numbers.
    home.graft("sweep.name=inline", "hydra/launcher=graft_inline", *sweep)
    for name, run in runs_of(home, "inline").items():
        one, other = (
            pd.read_csv(path / EPOCHS).drop(columns="seconds") for path in (run, runs[name])
        )
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_search_with_pruning(home: Home) -> None:
    home.graft(
        "hydra/sweeper=search", "optimizer.lr=tag(log,interval(1e-5,1))", "epochs=4",
        "hydra.sweeper.n_trials=8", "hydra/sweeper/pruner=median", "sweep.name=search",
    )  # fmt: skip
    runs = runs_of(home, "search")
    assert len(runs) == 8
    assert {read(run / RUN)["status"] for run in runs.values()} <= {"completed", "pruned"}
