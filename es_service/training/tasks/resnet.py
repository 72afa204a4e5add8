"""Blocks of ResNets, and a small one for 28×28 grey images: 0.3 M parameters, made to be fast on one CPU thread."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from es_service.training import scoring

__all__ = ["Block", "Pointwise", "Shortcut", "SmallResNet"]


class Pointwise(nn.Linear):
    """A 1×1 convolution, written as a product over the last axis.

    In channels last it is one, and its gradients then come in the layout of its weights, without which
    DistributedDataParallel warns and copies.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return float[B, out, h, w] of float[B, in, h, w]."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Shortcut(nn.Module):
    """The mean of 2×2 where the block halves the resolution, then a 1×1 convolution (He et al. 2019, ResNet-D)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.mix = Pointwise(width_in, width, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return float[B, width, h / stride, w / stride] of float[B, width_in, h, w]."""
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        mixed: torch.Tensor = self.norm(self.mix(x))
        return mixed


class Block(nn.Module):
    """Two 3×3 convolutions around a shortcut (He et al., *Deep Residual Learning*, 2016, figure 2)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        keeps_shape = stride == 1 and width_in == width
        self.shortcut = nn.Identity() if keeps_shape else Shortcut(width_in, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return float[B, width, h / stride, w / stride] of float[B, width_in, h, w]."""
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        out = self.norm2(self.conv2(out)) + self.shortcut(x)
        return F.relu(out, inplace=True)


class SmallResNet(nn.Module):
    """A strided stem and one residual block per width, each but the first at half the resolution; then the mean.

    Images float[B, 1, 28, 28] go in, logits float[B, num_classes] come out.

    Args:
        num_classes: length of a row of logits.
        widths: channels of the blocks; the first is the stem's too.
    """

    def __init__(self, num_classes: int = 10, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, widths[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        before = (widths[0], *widths)
        self.blocks = nn.Sequential(
            *(
                Block(width_in, width, 1 if index == 0 else 2)
                for index, (width_in, width) in enumerate(zip(before, widths, strict=False))
            )
        )
        self.head = nn.Linear(widths[-1], num_classes)
        self._checkpoints = False

    def gradient_checkpointing_enable(self) -> None:
        """Keep only what goes into each block for the backward pass, and compute the rest again there."""
        self._checkpoints = True

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits float[B, num_classes] of images float[B, 1, 28, 28]."""
        # Channels last is 1.4 times as fast on a CPU; the weights keep their layout.
        features = self.stem(images).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            features = _again(block, features) if self._checkpoints and torch.is_grad_enabled() else block(features)
        logits: torch.Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def _again(block: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Return what a block makes of features, without keeping more; BatchNorm's statistics are updated only once."""
    once: dict[str, Any] = {}
    if not torch.compiler.is_compiling():  # compiled, buffers are outputs of the first pass anyway
        once["context_fn"] = lambda: (contextlib.nullcontext(), scoring.untouched(block))
    out: torch.Tensor = checkpoint(block, features, use_reentrant=False, preserve_rng_state=False, **once)
    return out
