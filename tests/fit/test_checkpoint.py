"""Checkpoints: what is stored comes back bit for bit, laid out as it was, or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.fit.plain import PlainNetwork
from torch import nn

from graft import weights
from graft.config import SGD, Adam, AdamW, CsvDataset, Model, RunConfig
from graft.fit import checkpoint
from graft.fit.checkpoint import Checkpoints, Pace, State
from graft.fit.learner import Learner
from graft.fit.optim import moments, optimizer, set_moments
from graft.fit.tensors import write
from graft.strategies import HeadOnly

OF = {"identity": "a"}
TRAINED = {"weight": torch.arange(6.0).reshape(2, 3)}
SHAPES = {name: tensor.shape for name, tensor in TRAINED.items()}


def state(epochs: int = 1, **changes: Any) -> State:
    history = [{"epoch": i + 1, "val_loss": 0.1 + 0.2 * i} for i in range(epochs)]
    values = {
        "history": history, "best_epoch": epochs, "steps": 4 * epochs, "scaler": {},
        "trained": TRAINED, "best": {}, "moments": {"weight/step": torch.tensor(4.0)},
        "random": torch.get_rng_state(),
    }  # fmt: skip
    return State(**{**values, **changes})


def names(folder: Path) -> list[str]:
    return sorted(path.name[: len("epoch-0001")] for path in folder.iterdir())


# --- the file ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.randn(3, 5), "b": torch.tensor(3), "c": torch.zeros(0, 2)},
        {"odd": torch.ones(3, dtype=torch.uint8), "wide": torch.randn(2, dtype=torch.float64)},
        {"view": torch.randn(4, 6)[1:3, ::2], "turned": torch.randn(3, 4).t()},
        {"half": torch.randn(3).bfloat16(), "last": torch.randn(2, 8, 3, 3).contiguous(
            memory_format=torch.channels_last)},
        {},
    ],
    ids=lambda tensors: " ".join(tensors),
)  # fmt: skip
def test_a_file_is_what_safetensors_reads(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "file"
    with path.open("wb") as stream:
        digest = write(stream, tensors, {"said": "ein Wort: \u00fc\u2028"})
    assert digest == weights.digest(path)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert all(found[name].dtype == tensors[name].dtype for name in tensors)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"said": "ein Wort: \u00fc\u2028"}


# --- what is found ----------------------------------------------------------------------------


def test_what_was_written_last_comes_back_whole(tmp_path: Path) -> None:
    odd = [{"epoch": 1, "val_loss": 0.1 + 0.2, "lr": 1e-300, "seconds": 1 / 3, "x": float("nan")}]
    before = state(
        history=odd, best={"weight": torch.randn(2, 3)}, scaler={"scale": 2.0**-24, "growth": 7},
        moments={"weight/step": torch.tensor(4.0), "weight/exp_avg": torch.randn(2, 3)},
    )  # fmt: skip
    Checkpoints(tmp_path / "resume", OF).write(before, {"fit": 1.25})
    found = Checkpoints(tmp_path / "resume", OF).newest(SHAPES)
    assert found is not None and (found.epoch, found.seconds) == (1, {"fit": 1.25})
    after = found.load()
    assert json.dumps(after.history) == json.dumps(odd)
    assert (after.best_epoch, after.steps, after.scaler) == (1, 4, before.scaler)
    for part in ("trained", "best", "moments"):
        one, other = getattr(before, part), getattr(after, part)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(before.random, after.random)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not ours")
    kept = Checkpoints(tmp_path, OF)
    for epochs in (1, 2, 5, 12):
        kept.write(state(epochs), {})
    assert names(tmp_path) == ["epoch-0005", "epoch-0012", "notes.txt"]
    again = Checkpoints(tmp_path, OF)
    found = again.newest(SHAPES)
    assert found is not None and found.epoch == 12
    again.write(state(13), {})
    assert names(tmp_path) == ["epoch-0012", "epoch-0013", "notes.txt"]


def test_one_of_a_run_that_went_further_does_not_push_out_a_new_one(tmp_path: Path) -> None:
    Checkpoints(tmp_path, {"identity": "b"}).write(state(90), {})
    kept = Checkpoints(tmp_path, OF)
    assert kept.newest(SHAPES) is None
    kept.write(state(1), {})
    assert names(tmp_path) == ["epoch-0001"]


@pytest.mark.parametrize(
    ("of", "shapes"),
    [
        ({"identity": "b"}, SHAPES),
        ({**OF, "device": "cuda"}, SHAPES),
        (OF, {"weight": torch.Size((3, 2))}),
        (OF, {**SHAPES, "bias": torch.Size((2,))}),
        (OF, {}),
    ],
    ids=str,
)
def test_one_of_something_else_is_left_out(
    tmp_path: Path, of: Mapping[str, str], shapes: Mapping[str, torch.Size],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    Checkpoints(tmp_path, OF).write(state(), {})
    assert Checkpoints(tmp_path, of).newest(shapes) is None
    assert not caplog.records


def test_what_has_such_a_name_and_is_no_checkpoint_is_left_out(tmp_path: Path) -> None:
    """Its digest may be right all the same."""
    save_file(TRAINED, tmp_path / "a")
    (tmp_path / "b").write_bytes(b"no tensors")
    for epoch, path in enumerate((tmp_path / "a", tmp_path / "b"), start=1):
        path.rename(tmp_path / f"epoch-{epoch:04d}-{weights.digest(path)}.safetensors")
    (tmp_path / f"epoch-0003-{'0' * 16}.safetensors").mkdir()
    assert Checkpoints(tmp_path, OF).newest(SHAPES) is None


def test_a_folder_that_is_not_there_holds_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", OF).newest(SHAPES) is None


# --- when -------------------------------------------------------------------------------------


def test_they_are_due_after_a_while_and_take_a_twentieth_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: now))
    pace = Pace(num_bytes=0)
    assert not pace.is_due
    now += checkpoint.EVERY_S
    assert pace.is_due
    with pace.writing():
        now += 0.5
    now += 9.5
    assert not pace.is_due
    now += 0.5
    assert pace.is_due


def test_the_first_of_large_ones_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    assert Pace(num_bytes=0).is_due
    assert not Pace(num_bytes=100_000_000).is_due


# --- what is restored -------------------------------------------------------------------------


def stepped(of: torch.optim.Optimizer, module: nn.Module, steps: int) -> None:
    random = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        for parameter in module.parameters():
            parameter.grad = torch.empty_like(parameter).copy_(
                torch.randn(parameter.shape, generator=random)
            )
        of.step()


@pytest.mark.parametrize(
    "config", [Adam(), AdamW(), SGD(), SGD(nesterov=True), SGD(momentum=0.0)], ids=repr
)
def test_an_optimizer_goes_on_bit_for_bit_in_the_order_of_memory(
    config: Adam | AdamW | SGD, tmp_path: Path
) -> None:
    modules = [nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last) for _ in range(2)]
    first, second = modules
    whole = optimizer(config, first.parameters())
    stepped(whole, first, 3)
    kept = Checkpoints(tmp_path, OF)
    kept.write(state(moments=moments(whole, dict(first.named_parameters()))), {})
    second.load_state_dict(first.state_dict())
    resumed = optimizer(config, second.parameters())
    found = kept.newest(SHAPES)
    assert found is not None
    set_moments(resumed, dict(second.named_parameters()), found.load().moments)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        for word, tensor in whole.state.get(one, {}).items():
            if tensor is not None:
                again = resumed.state[other][word]
                assert torch.equal(tensor, again) and tensor.stride() == again.stride()
                assert again.dtype == tensor.dtype and not again.requires_grad
    stepped(whole, first, 4)
    stepped(resumed, second, 4)
    assert all(map(torch.equal, first.parameters(), second.parameters()))


def new_learner(precision: str) -> Learner:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 1)
    )
    net = PlainNetwork(module.to(memory_format=torch.channels_last))
    config = RunConfig(
        dataset=CsvDataset(csv="", images="", target=""), model=Model(name="resnet18"),
        strategy=HeadOnly(), optimizer=Adam(lr=1e-2), epochs=3, batch_size=16,
        precision=precision,  # type: ignore[arg-type]
    )  # fmt: skip
    device = torch.device("cpu")
    return Learner("", config, net, net.module, steps_per_epoch=3, device=device)


def epoch(learner: Learner) -> None:
    random = torch.Generator().manual_seed(len(learner.history))
    learner.network.train()
    for _ in range(3):
        x = torch.randn(16, 3, 6, 6, generator=random).to(memory_format=torch.channels_last)
        learner.step((x,), torch.arange(16) % 2)
    learner.end_epoch({"loss": 1.0, "accuracy": 0.5}, 0.0)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_learner_goes_on_with_all_that_it_was(tmp_path: Path, precision: str) -> None:
    whole, resumed = new_learner(precision), new_learner(precision)
    for growth in (whole, resumed):
        growth.scaler.set_growth_interval(4)  # it grows in the second epoch
    epoch(whole)
    assert not whole.scaler.is_enabled() or whole.scaler.state_dict() != resumed.scaler.state_dict()
    kept = Checkpoints(tmp_path, OF)
    kept.write(whole.state(), {})
    found = kept.newest({name: t.shape for name, t in whole.state().trained.items()})
    assert found is not None
    strides = [p.stride() for p in resumed.network.module.parameters()]
    resumed.restore(found.load())
    assert [p.stride() for p in resumed.network.module.parameters()] == strides
    assert "1.running_mean" in whole.state().trained
    for one in (whole, resumed):
        epoch(one)
    assert whole.scaler.state_dict() == resumed.scaler.state_dict()
    states = [one.network.module.state_dict() for one in (whole, resumed)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert whole.history == resumed.history and whole.best_epoch == resumed.best_epoch
    assert whole.best_state.keys() == resumed.best_state.keys()
    assert all(torch.equal(t, resumed.best_state[n]) for n, t in whole.best_state.items())
