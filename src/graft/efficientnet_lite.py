"""EfficientNet-Lite0: the EfficientNet made for phones, in plain convolutions.

Against EfficientNet-B0 it has no squeeze-and-excitation and uses ReLU6 for SiLU. Its published
weights were trained in TensorFlow, whose "same" padding is lopsided where a stride is 2; so is
ours, or the weights would see every picture shifted by a pixel.

Stochastic depth, which its training from scratch used, is left out.

Source: M. Tan and Q. V. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks", ICML 2019, arXiv:1905.11946, table 1; the Lite changes: github.com/tensorflow/tpu,
models/official/efficientnet/lite.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.fx
from torch import nn
from torch.nn import functional as F

# (expansion, channels, blocks, kernel, stride of the first block), one a stage
STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)
STEM, FEATURES = 32, 1280


@torch.fx.wrap
def pad_for_stride_2(x: torch.Tensor, kernel: int) -> torch.Tensor:
    """[B, C, H, W], padded so that a stride of 2 gives ceil(H / 2): an odd pixel goes last."""
    rows, columns = (kernel - 2 + size % 2 for size in x.shape[-2:])
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


class PadForStride2(nn.Module):
    """TensorFlow's "same" padding, before a convolution of stride 2."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return pad_for_stride_2(x, self.kernel)


def convolution(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """Convolution, batch norm (TensorFlow's constants) and, unless `relu` is False, ReLU6."""
    parts: dict[str, nn.Module] = {} if stride == 1 else {"pad": PadForStride2(kernel)}
    padding = kernel // 2 if stride == 1 else 0
    parts["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    # Trained with a momentum of 0.01, over millions of steps. In the few hundred of a fine-tuned
    # block such running statistics lag behind: on ten classes of digits validation accuracy after
    # four epochs was 0.75 with it and 0.92 with torch's default.
    parts["norm"] = nn.BatchNorm2d(outputs, eps=1e-3)
    if relu:
        parts["relu"] = nn.ReLU6(inplace=True)
    return nn.Sequential(OrderedDict(parts))


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; add the input where the shape is kept."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = convolution(inputs, wide) if expansion > 1 else nn.Identity()
        self.depthwise = convolution(wide, wide, kernel, stride, groups=wide)
        self.project = convolution(wide, outputs, relu=False)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.project(self.depthwise(self.expand(x)))
        return y + x if self.is_residual else y


def _stage(inputs: int, stage: tuple[int, int, int, int, int]) -> nn.Sequential:
    expansion, outputs, blocks, kernel, stride = stage
    first = InvertedResidual(inputs, outputs, expansion, kernel, stride)
    others = (InvertedResidual(outputs, outputs, expansion, kernel, 1) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)


class EfficientNetLite0(nn.Module):
    """float32 [B, 3, S, S], normalised by mean 127/255 and std 128/255 -> logits [B, num_classes].

    Any S of 8 or more; trained at 224.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = convolution(3, STEM, 3, stride=2)
        channels = (STEM, *(stage[1] for stage in STAGES))
        self.stages = nn.Sequential(*map(_stage, channels, STAGES))
        self.conv_head = convolution(channels[-1], FEATURES)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(FEATURES, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_head(self.stages(self.stem(x))).mean((2, 3))
        logits: torch.Tensor = self.classifier(self.dropout(x))
        return logits


# --- the published file's names -------------------------------------------------------------

_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
_ENDS = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "conv_head.conv",
    "_bn1": "conv_head.norm",
    "_fc": "classifier",
}


def from_published(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with the published file's names under ours; other names stay as they are.

    The published names count blocks through all stages: `_blocks.3._bn2.bias`.
    """
    places = [f"stages.{i}.{k}" for i, stage in enumerate(STAGES) for k in range(stage[2])]
    return {_renamed(key, places): tensor for key, tensor in state.items()}


def _renamed(key: str, places: list[str]) -> str:
    if inner := re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", key):
        index, part, leaf = int(inner[1]), inner[2], inner[3]
        if index < len(places) and part in _PARTS:
            return f"{places[index]}.{_PARTS[part]}.{leaf}"
    first, _, leaf = key.partition(".")
    return f"{_ENDS[first]}.{leaf}" if first in _ENDS else key
