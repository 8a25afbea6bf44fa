"""The name of stored activations: whatever changes their bytes changes it, and nothing else."""

import functools
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import PIL
import pytest
import torch
from PIL import features
from torch import nn
from torch.fx import GraphModule

from graft import train
from graft.backbones import Network, build
from graft.config import Dihedral, Model, NoAugmentation, RunConfig, from_dict
from graft.data import decode
from graft.strategies import HeadOnly
from graft.supply.batches import Input
from graft.supply.shelf import Place, Shelf
from graft.trunk import key
from graft.trunk.cut import cut
from graft.trunk.exits import Exit, prefix
from graft.trunk.key import digest_of


def network_of(name: str = "resnet18") -> Network:
    network = build(Model(name=name, weights="none"), 2, seed=0, image_size=32)
    network.freeze(HeadOnly().trainable(list(network.blocks)))
    return network


def trunk_of(module: nn.Module, exit: Exit | None = None) -> GraphModule:
    found = cut(module)
    assert found is not None
    return prefix(found.trunk, [exit or found.exits])


def digest_with(change: Callable[[nn.Module], None], exit: Exit | None = None) -> tuple[str, str]:
    """Before a change and after it."""
    module = network_of().module
    before = digest_of(trunk_of(module, exit))
    change(module)
    return before, digest_of(trunk_of(module, exit))


# --- the network ------------------------------------------------------------------------------


@torch.no_grad()
def _one_weight(module: Any) -> None:
    module.layer2[0].conv1.weight[3, 5, 1, 1] += 1e-6


@torch.no_grad()
def _one_statistic(module: Any) -> None:
    module.layer3[1].bn2.running_var[7] *= 1.0001


def _sign_of_zero(module: Any) -> None:
    """-0.0 equals 0.0, but is another number."""
    with torch.no_grad():
        module.layer1[0].bn1.bias[0] = -0.0


def _eps(module: Any) -> None:
    module.bn1.eps = 1e-4


def _stride(module: Any) -> None:
    module.maxpool.stride = 1


def _padding(module: Any) -> None:
    module.layer4[0].conv2.padding_mode = "reflect"


def _another_activation(module: Any) -> None:
    module.layer1[0].relu = nn.Hardswish()


def _half_precision(module: Any) -> None:
    module.layer1.half()


CHANGES = [
    _one_weight, _one_statistic, _sign_of_zero, _eps, _stride, _padding, _another_activation,
    _half_precision,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_network_has_another_digest(change: Callable[[nn.Module], None]) -> None:
    before, after = digest_with(change)
    assert before != after


def _another_head(module: Any) -> None:
    module.fc = nn.Linear(512, 7)


def _a_trained_head(module: Any) -> None:
    with torch.no_grad():
        module.fc.weight.add_(1.0)


def test_what_the_trunk_does_not_use_does_not_change_its_digest() -> None:
    for change in (_another_head, _a_trained_head):
        before, after = digest_with(change)
        assert before == after
    before, after = digest_with(_another_activation, ("maxpool",))
    assert before == after


def test_each_exit_has_its_own_digest() -> None:
    module = network_of().module
    exits = [None, ("maxpool",), ("layer1_0_relu_1",), ("layer1_1_relu_1",)]
    assert len({digest_of(trunk_of(module, exit)) for exit in exits}) == len(exits)


def test_networks_of_equal_weights_but_other_operations_differ() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
            self.scale = nn.Parameter(torch.ones(1), requires_grad=False)
            for parameter in self.parameters():
                nn.init.constant_(parameter, 0.5)
            self.stem.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.middle(self.stem(x)).mean((2, 3)))
            return out

        def middle(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    class Added(Frozen):
        def middle(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.scale

    class Doubled(Frozen):
        def middle(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale * 2

    class Tripled(Frozen):
        def middle(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale * 3

    class Written(Frozen):
        def middle(self, x: torch.Tensor) -> torch.Tensor:
            x.relu_()
            return x * self.scale

    kinds = (Frozen, Added, Doubled, Tripled, Written)
    assert len({digest_of(trunk_of(kind())) for kind in kinds}) == len(kinds)
    scaled = Frozen()
    nn.init.constant_(scaled.scale, 0.25)
    assert digest_of(trunk_of(scaled)) != digest_of(trunk_of(Frozen()))


def test_settings_that_a_module_does_not_print_count_too() -> None:
    """The number of heads of an attention is neither in its weights' shapes nor in its repr."""

    class Attentive(nn.Module):
        def __init__(self, heads: int) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, heads, batch_first=True)
            self.head = nn.Linear(8, 2)
            for parameter in self.parameters():
                nn.init.constant_(parameter, 0.5)
            self.attention.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.attention(x, x, x)[0])
            return out

    two, four = (digest_of(trunk_of(Attentive(heads).eval())) for heads in (2, 4))
    assert two != four
    assert two == digest_of(trunk_of(Attentive(2).eval()))


# --- the pictures, and what is made of them ---------------------------------------------------


@pytest.fixture
def config(tiny_values: dict[str, Any]) -> RunConfig:
    return train.resolve(from_dict(tiny_values))


def key_of(
    config: RunConfig,
    *,
    view: str = "plain",
    change: Callable[[list[str]], list[str]] = lambda digests: digests,
) -> str:
    dataset = train.load_dataset(config)
    digests: Sequence[str] = change(list(dataset.digests))
    shelf = Shelf(Input(config, dataset.examples, digests, torch.device(config.device)))
    return shelf.key(place(), view)


@functools.cache
def place() -> Place:
    found = cut(network_of().module)
    assert found is not None
    return Place(found, found.exits, found.at, digest_of(prefix(found.trunk, [found.exits])))


def with_model(config: RunConfig, **changes: Any) -> RunConfig:
    return changed(config, model=changed(config.model, **changes))


def changed(config: Any, **changes: Any) -> Any:
    return type(config)(**(vars(config) | changes))


SETTINGS: dict[str, Callable[[RunConfig], RunConfig]] = {
    "image size": lambda c: changed(c, image_size=40),
    "mean": lambda c: with_model(c, mean=(0.485, 0.456, 0.4061)),
    "deviation": lambda c: with_model(c, std=(0.229, 0.224, 0.2251)),
    "precision": lambda c: changed(c, precision="bfloat16"),
    "stored type": lambda c: changed(c, activations="bfloat16"),
}


@pytest.mark.parametrize("change", SETTINGS.values(), ids=SETTINGS)
def test_a_changed_setting_is_another_key(
    config: RunConfig, change: Callable[[RunConfig], RunConfig]
) -> None:
    assert key_of(change(config)) != key_of(config)


def _first_is_other(digests: list[str]) -> list[str]:
    return ["0" * 16, *digests[1:]]


def _swapped(digests: list[str]) -> list[str]:
    return [digests[1], digests[0], *digests[2:]]


@pytest.mark.parametrize("change", [_first_is_other, _swapped], ids=["another file", "the order"])
def test_changed_pictures_are_another_key(
    config: RunConfig, change: Callable[[list[str]], list[str]]
) -> None:
    assert key_of(config, change=change) != key_of(config)


def test_each_view_is_another_key_though_it_shows_the_same_pictures() -> None:
    keys = {key.key(trunk="t", pictures=["a"], view=v, settings={}) for v in ("plain", "flipped")}
    assert len(keys) == 2


def test_views_of_the_training_set_are_other_keys(config: RunConfig) -> None:
    turning = changed(config, augmentation=Dihedral())
    assert len({key_of(turning, view=v) for v in ("plain", "flipped", "turned")}) == 3


def test_what_an_augmentation_shows_as_it_is_is_shared_with_others(config: RunConfig) -> None:
    keys = {key_of(changed(config, augmentation=a())) for a in (NoAugmentation, Dihedral)}
    assert keys == {key_of(config)}


VERSIONS = {
    "decoding": (decode, "FORMAT", 999),
    "Pillow": (PIL, "__version__", "0.0.1"),
    # One Pillow is built with several of these.
    "a library that decodes": (features, "version", lambda name: "0.0.1"),
    "torch": (torch, "__version__", "0.0.1"),
    "keys": (key, "FORMAT", 999),
}


@pytest.mark.parametrize("what", VERSIONS)
def test_another_version_is_another_key(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    before = key_of(config)
    monkeypatch.setattr(*VERSIONS[what])
    assert key_of(config) != before


def test_another_kind_of_processor_is_another_key(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key_of(config)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
    assert key_of(config) != before


def test_another_number_of_threads_is_another_key(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work that is shared out otherwise is added up otherwise."""
    before = key_of(config)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert key_of(config) != before


def test_a_gpu_is_another_key_and_each_kind_of_gpu_too(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {key_of(config)}
    for name in ("NVIDIA A", "NVIDIA B"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        keys.add(key_of(changed(config, device="cuda:0")))
    first = key_of(changed(config, device="cuda:0"))
    assert len(keys) == 3
    assert key_of(changed(config, device="cuda:1")) == first  # it rounds as its neighbour does


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 7}, {"batch_size": 3}, {"seed": 5}, {"sampling": "balanced"}, {"workers": 0},
        {"metric": "val_loss"}, {"output_dir": "elsewhere"},
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_change_activations_does_not_change_the_key(
    config: RunConfig, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = key_of(config)
    monkeypatch.chdir(tmp_path)
    assert key_of(changed(config, **change)) == before


# --- anywhere ---------------------------------------------------------------------------------

OF_A_FRESH_PROCESS = """
import sys
import torch
from graft.backbones import build
from graft.config import Model
from graft.strategies import HeadOnly
from graft.trunk import key
from graft.trunk.cut import cut
from graft.trunk.exits import prefix
for name in sys.argv[1:]:
    network = build(Model(name=name, weights="none"), 2, seed=0, image_size=32)
    network.freeze(HeadOnly().trainable(list(network.blocks)))
    found = cut(network.module)
    digest = key.digest_of(prefix(found.trunk, [found.exits]))
    settings = {**key.machine(torch.device("cpu")), "mean": (0.1, 0.2), "image_size": 32}
    print(key.key(trunk=digest, pictures=["a", "b"], view="plain", settings=settings))
"""


@pytest.mark.slow
def test_equal_settings_are_equal_keys_in_a_fresh_process() -> None:
    names = ["mobilenet_v3_small", "efficientnet_lite0"]
    done = subprocess.run(
        [sys.executable, "-c", OF_A_FRESH_PROCESS, *names],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # Of another type, in another order: after a round trip through a file they may be.
    settings = {"image_size": 32, "mean": [0.1, 0.2], **key.machine(torch.device("cpu"))}
    ours = [
        key.key(
            trunk=digest_of(trunk_of(network_of(name).module)),
            pictures=("a", "b"), view="plain", settings=settings,
        )
        for name in names
    ]  # fmt: skip
    assert done.stdout.split() == ours
    assert len(set(ours)) == 2 and {len(one) for one in ours} == {16}


def test_the_order_of_memory_does_not_change_the_digest() -> None:
    module = network_of().module
    before = digest_of(trunk_of(module))
    assert digest_of(trunk_of(module.to(memory_format=torch.channels_last))) == before
