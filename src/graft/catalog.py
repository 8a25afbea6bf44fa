"""The networks that can be asked for, as plain data: their blocks, input and weights.

What the head is, which is all that `head_only` trains:

    vgg16                  a new classifier: Linear(25088, 4096), ReLU, Dropout(0.5), Linear
    mobilenet_v3_small     the classifier: Linear(576, 1024) with its pretrained values, Hardswish,
                           Dropout, and a new Linear in place of its last
    efficientnet_b0/lite0  Dropout and a new Linear
    all others             a new Linear

The norm before a Linear (ConvNeXt, ViT) and the 1x1 convolution after the last stage (MobileNet,
EfficientNet) belong to the last block of the backbone, so that they are trained or frozen with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from graft.config import nearest
from graft.errors import ConfigError

Blocks = Mapping[str, tuple[str, ...]]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# EfficientNet-Lite's weights were trained on pixels as (x - 127) / 128.
LITE_MEAN, LITE_STD = (127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)


@dataclass(frozen=True)
class Backbone:
    """What is known of a network before it is built; plain data.

    Attributes:
        name: as it is typed after `model=`.
        blocks: block -> the modules and parameters in it (a name stands for all below it), input
            to output, "head" last.
        replaced: the module that a new task replaces; it ends in the last Linear.
        dropout: the dropout in the head, if there is one.
        weights: the member of torchvision's weights enum; None where a package brings the file.
        file: of those weights; its name ends in the first digits of its SHA-256.
        input_size: side in pixels that the weights were trained at.
        min_size: smallest side that reaches the end of the network.
        patch: the side is a multiple of this.
        mean, std: per channel, for pictures in [0, 1].
    """

    name: str
    blocks: Blocks
    replaced: str
    dropout: str | None = None
    weights: str | None = "IMAGENET1K_V1"
    file: str = ""
    input_size: int = 224
    min_size: int = 8
    patch: int = 1
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


def _features(first: int, last: int) -> tuple[str, ...]:
    return tuple(f"features.{i}" for i in range(first, last + 1))


_RESNET: Blocks = {
    "stem": ("conv1", "bn1", "relu", "maxpool"),
    **{f"layer{n}": (f"layer{n}",) for n in range(1, 5)},
    "head": ("fc",),
}
_VGG: Blocks = {
    "block1": _features(0, 4),
    "block2": _features(5, 9),
    "block3": _features(10, 16),
    "block4": _features(17, 23),
    "block5": _features(24, 30),
    "head": ("classifier",),
}
_MOBILENET: Blocks = {
    "stem": _features(0, 0),
    "stage1": _features(1, 1),
    "stage2": _features(2, 3),
    "stage3": _features(4, 6),
    "stage4": _features(7, 8),
    "stage5": _features(9, 12),
    "head": ("classifier",),
}
_EFFICIENTNET: Blocks = {
    "stem": _features(0, 0),
    **{f"stage{n}": _features(n, n) for n in range(1, 7)},
    "stage7": _features(7, 8),
    "head": ("classifier",),
}
_LITE: Blocks = {
    "stem": ("stem",),
    **{f"stage{n}": (f"stages.{n - 1}",) for n in range(1, 7)},
    "stage7": ("stages.6", "conv_head"),
    "head": ("dropout", "classifier"),
}
_CONVNEXT: Blocks = {
    "stem": _features(0, 0),
    "stage1": _features(1, 1),
    "stage2": _features(2, 3),
    "stage3": _features(4, 5),
    "stage4": (*_features(6, 7), "classifier.0"),
    "head": ("classifier.2",),
}
_VIT: Blocks = {
    "stem": ("conv_proj", "class_token", "encoder.pos_embedding", "encoder.dropout"),
    **{f"layer{n}": (f"encoder.layers.encoder_layer_{n}",) for n in range(11)},
    "layer11": ("encoder.layers.encoder_layer_11", "encoder.ln"),
    "head": ("heads",),
}

_ALL = (
    Backbone("vgg16", _VGG, "classifier", "classifier.2", min_size=32, file="vgg16-397923af.pth"),
    Backbone("resnet18", _RESNET, "fc", file="resnet18-f37072fd.pth"),
    Backbone("resnet50", _RESNET, "fc", weights="IMAGENET1K_V2", file="resnet50-11ad3fa6.pth"),
    Backbone(
        "mobilenet_v3_small",
        _MOBILENET,
        "classifier.3",
        "classifier.2",
        file="mobilenet_v3_small-047dcff4.pth",
    ),
    Backbone(
        "efficientnet_b0",
        _EFFICIENTNET,
        "classifier.1",
        "classifier.0",
        file="efficientnet_b0_rwightman-7f5810bc.pth",
    ),
    Backbone(
        "convnext_tiny", _CONVNEXT, "classifier.2", min_size=32, file="convnext_tiny-983f1562.pth"
    ),
    Backbone("vit_b_16", _VIT, "heads.head", min_size=16, patch=16, file="vit_b_16-c867db91.pth"),
    Backbone(
        "efficientnet_lite0",
        _LITE,
        "classifier",
        "dropout",
        None,
        "efficientnet-lite0-57934424.pth",
        mean=LITE_MEAN,
        std=LITE_STD,
    ),
)
BACKBONES: Mapping[str, Backbone] = {backbone.name: backbone for backbone in _ALL}


def find(name: str) -> Backbone:
    """The backbone of that name.

    Raises:
        ConfigError: there is none; names the nearest and all there are.
    """
    if name not in BACKBONES:
        raise ConfigError(
            f"model.name={name} is not known.{nearest(name, list(BACKBONES))} "
            f"Models: {', '.join(BACKBONES)}."
        )
    return BACKBONES[name]
