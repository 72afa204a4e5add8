"""Models of images: ResNets and a small vision transformer. Images are bytes; they are normalised on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from es_service import errors
from es_service.training.tasks.resnet import Block, Pointwise, Shortcut

__all__ = ["MEAN", "STD", "Normalised", "ResNet", "VisionTransformer", "build_named"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images, scaled to [0, 1]
_SMALL = 64  # pixels; up to here the first layer of a ResNet keeps the resolution
_PATCHES = ((48, 4), (96, 8))  # pixels of the shorter side, pixels of a patch; above, patches are of 16
_WIDTH, _DEPTH, _HEADS = 192, 12, 3


class Normalised(nn.Module):
    """A model of float images of about zero mean and unit variance, as one of bytes.

    Args:
        net: float[B, 3, h, w] -> logits float[B, C], or an object that has them as `logits`.
        mean: of the channels, scaled to [0, 1].
        std: of the channels.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> None:
        super().__init__()
        self.net = net
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, 255.0 * torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits float[B, C] of images uint8[B, 3, h, w]."""
        outputs = self.net((images - self.mean) / self.std)
        logits: torch.Tensor = getattr(outputs, "logits", outputs)
        return logits


class Bottleneck(nn.Module):
    """A 3×3 convolution between two 1×1, around a shortcut (He et al., *Deep Residual Learning*, 2016, figure 5)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        inner = width // 4
        self.mix1 = Pointwise(width_in, inner, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.mix2 = Pointwise(inner, width, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        keeps_shape = stride == 1 and width_in == width
        self.shortcut = nn.Identity() if keeps_shape else Shortcut(width_in, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return float[B, width, h / stride, w / stride] of float[B, width_in, h, w]."""
        out = F.relu(self.norm1(self.mix1(x)), inplace=True)
        out = F.relu(self.norm2(self.conv(out)), inplace=True)
        return F.relu(self.norm3(self.mix2(out)) + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """Four stages of residual blocks, each but the first at half the resolution; then the mean.

    Small images keep their resolution in the first layer, as in the paper's models for CIFAR; that of larger ones goes
    down to a quarter, as in those for ImageNet.

    Args:
        block: makes a block of (channels in, channels, stride).
        depths: blocks of each stage.
        widths: channels of each stage.
        num_classes: length of a row of logits.
        is_small: whether images have at most 64 pixels a side.
    """

    def __init__(
        self,
        block: type[Block | Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
        is_small: bool,
    ) -> None:
        super().__init__()
        first = nn.Conv2d(3, 64, 3 if is_small else 7, 1 if is_small else 2, padding=1 if is_small else 3, bias=False)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(64), nn.ReLU(inplace=True))
        if not is_small:
            self.stem.append(nn.MaxPool2d(3, 2, padding=1))
        self.blocks, width_in = nn.Sequential(), 64
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for index in range(depth):
                one = block(width_in, width, 2 if stage > 0 and index == 0 else 1)
                # It begins as its shortcut, which makes the first steps stable (Goyal et al., arXiv 1706.02677).
                nn.init.zeros_(one.norm3.weight if isinstance(one, Bottleneck) else one.norm2.weight)
                self.blocks.append(one)
                width_in = width
        self.head = nn.Linear(width_in, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits float[B, C] of images float[B, 3, h, w]; fastest in channels last."""
        logits: torch.Tensor = self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))
        return logits


class VisionTransformer(nn.Module):
    """A transformer over the patches of an image (Dosovitskiy et al., arXiv 2010.11929); logits of their mean.

    Args:
        height, width: pixels of an image, multiples of `patch`.
        patch: pixels of a patch's side.
        num_classes: length of a row of logits.
    """

    def __init__(self, height: int, width: int, patch: int, num_classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, _WIDTH, patch, patch)
        self.positions = nn.Parameter(torch.empty((height // patch) * (width // patch), _WIDTH))
        nn.init.trunc_normal_(self.positions, std=0.02)
        layers = (
            nn.TransformerEncoderLayer(
                _WIDTH, _HEADS, 4 * _WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(_DEPTH)
        )
        self.layers = nn.Sequential(*layers, nn.LayerNorm(_WIDTH))
        self.head = nn.Linear(_WIDTH, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits float[B, C] of images float[B, 3, h, w]."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        logits: torch.Tensor = self.head(self.layers(tokens).mean(dim=1))
        return logits


def build_named(name: str, height: int, width: int, num_classes: int) -> Normalised:
    """Build one of the models that have a name.

    Raises:
        ConfigError: images of this size cannot be cut into whole patches.
    """
    if name == "vit_tiny":
        patch = patch_of(height, width)
        return Normalised(VisionTransformer(height, width, patch, num_classes))
    is_small = max(height, width) <= _SMALL
    if name == "resnet18":
        return Normalised(ResNet(Block, (2, 2, 2, 2), (64, 128, 256, 512), num_classes, is_small))
    return Normalised(ResNet(Bottleneck, (3, 4, 6, 3), (256, 512, 1024, 2048), num_classes, is_small))


def patch_of(height: int, width: int) -> int:
    """Return the pixels of a patch's side for images of this size: 64 to 144 patches for squares up to 96 pixels."""
    shorter = min(height, width)
    patch = next((patch for most, patch in _PATCHES if shorter <= most), 16)
    if height % patch or width % patch:
        raise errors.ConfigError(
            f"vit_tiny cuts images of {width}×{height} pixels into patches of {patch}×{patch}, and they must be a "
            f"multiple of that: give --image-size {max(patch, patch * round(shorter / patch))}"
        )
    return patch
