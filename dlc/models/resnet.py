"""Residual networks for ImageNet, and the plain networks they are compared with.

    resnet18()  resnet34()                 blocks of two 3x3 convolutions
    resnet50()  resnet101()  resnet152()   blocks of 1x1, 3x3 and 1x1
    plain18()   plain34()                  the layers of resnet18 and resnet34 without shortcuts

The family for small images is in `resnet_cifar.py`.

Glossary: B batch, H W height and width, C channels, K classes.

References:
    [1] He, Zhang, Ren, Sun 2015, "Deep residual learning for image recognition", table 1, figure 3, sections 3.3, 4.1.
    [2] Goyal et al. 2017, "Accurate, large minibatch SGD: training ImageNet in 1 hour", section 5.1.
    [3] He, Zhang, Ren, Sun 2015, "Delving deep into rectifiers", section 2.2.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlc import layers
from dlc.layers import pooling

Shortcut = Literal["A", "B", "C", "none"]

# [1] says "as in [3]", where the fan is the number of a kernel's inputs (equation 10) or, equally well, of its outputs
# (14). The programs behind the published weights use the outputs.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet(nn.Module):
    """A 7x7 convolution, pooling, four stages of residual blocks, global average pooling, a dense layer.

    Stage i has `blocks[i]` blocks of 64 2^i channels (four times as many after a `bottleneck`). From the second stage
    on, its first block halves the image. The fields are what the paper leaves open or compares:

    `shortcut`, section 4.1: where a block changes the shape, its shortcut adds channels of zeros ("A") or is a
    projection, a 1x1 convolution ("B", in all published weights); "C" has projections everywhere, "none" no shortcuts.
    `stride_at`: the convolution of a bottleneck that halves the image. In [1] it is the first, "1x1" (section 3.4 and
    the authors' models). In the weights of torchvision and timm it is the "3x3", known as V1.5, with 6 % more
    operations in 50 layers; this is the default, so that such weights fit.
    `zero_norm`: the last batch norm of each block begins with a scale of zero [2], so that each block begins as its
    shortcut; in [1] all scales begin at one.

    Takes images [B, H, W, 3], 224x224 in the paper; returns logits [B, K]. Batch statistics are in the collection
    "batch_stats".
    """

    blocks: tuple[int, ...]
    bottleneck: bool = False
    shortcut: Shortcut = "B"
    stride_at: Literal["3x3", "1x1"] = "3x3"
    zero_norm: bool = False
    num_classes: int = 1000
    dtype: Any = None
    param_dtype: Any = "float32"
    remat: bool = False  # compute the activations of a block again in the backward pass instead of keeping them

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        fields = (self.bottleneck, self.shortcut, self.stride_at, self.zero_norm)
        x = _conv(64, 7, 2, **kinds, name="conv1")(x)
        x = nn.relu(layers.BatchNorm(**kinds, name="norm1")(x, train=train))
        x = pooling.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, count in enumerate(self.blocks, 1):
            for j in range(1, count + 1):
                width, stride = 32 * 2**i, 2 if i > 1 and j == 1 else 1
                block = _Block(width, stride, *fields, **kinds, name=f"stage{i}_block{j}")
                x = layers.remat(block, self.remat)(x, train=train)
        return layers.Dense(self.num_classes, **kinds, name="dense")(x.mean((1, 2)))


class _Block(nn.Module):
    """relu(shortcut(x) + f(x)), where f is two or three convolutions with norms, and ReLU between them."""

    width: int
    stride: int
    bottleneck: bool
    shortcut: Shortcut
    stride_at: Literal["3x3", "1x1"]
    zero_norm: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        stride, wide = self.stride, 4 * self.width if self.bottleneck else self.width
        if self.bottleneck:
            first, second = (stride, 1) if self.stride_at == "1x1" else (1, stride)
            steps = [(self.width, 1, first), (self.width, 3, second), (wide, 1, 1)]
        else:
            steps = [(self.width, 3, stride), (self.width, 3, 1)]

        y = x
        for i, (features, size, step) in enumerate(steps, 1):
            last = i == len(steps)
            scale = nn.initializers.zeros if last and self.zero_norm else nn.initializers.ones
            y = _conv(features, size, step, **kinds, name=f"conv{i}")(y)
            y = layers.BatchNorm(scale_init=scale, **kinds, name=f"norm{i}")(y, train=train)
            y = y if last else nn.relu(y)

        changes = stride > 1 or x.shape[-1] != wide
        if self.shortcut == "none":
            return nn.relu(y)
        if self.shortcut == "C" or (self.shortcut == "B" and changes):
            x = _conv(wide, 1, stride, **kinds, name="shortcut")(x)
            x = layers.BatchNorm(**kinds, name="shortcut_norm")(x, train=train)
        elif changes:
            x = jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, wide - x.shape[-1])))
        return nn.relu(y + x)


def _conv(features: int, size: int, stride: int, **kinds: Any) -> layers.Conv:
    # "SAME" would pad a stride of 2 only on the right; the papers' programs pad equally on all sides.
    pads = ((size // 2, size // 2),) * 2
    return layers.Conv(
        features, (size, size), (stride, stride), pads, use_bias=False, kernel_init=he_normal, **kinds
    )  # fmt: skip


def resnet18(**changes: Any) -> ResNet:
    """11,689,512 parameters; 18 layers in table 1 of [1]. `changes` are fields of `ResNet`."""
    return ResNet(**{"blocks": (2, 2, 2, 2), **changes})


def resnet34(**changes: Any) -> ResNet:
    """21,797,672 parameters; 21,623,848 with shortcut="A", 22,716,840 with "C": tables 2 and 3 of [1]."""
    return ResNet(**{"blocks": (3, 4, 6, 3), **changes})


def resnet50(**changes: Any) -> ResNet:
    """25,557,032 parameters; 50 layers in table 1 of [1], which has `stride_at="1x1"`."""
    return ResNet(**{"blocks": (3, 4, 6, 3), "bottleneck": True, **changes})


def resnet101(**changes: Any) -> ResNet:
    """44,549,160 parameters; 101 layers in table 1 of [1]."""
    return ResNet(**{"blocks": (3, 4, 23, 3), "bottleneck": True, **changes})


def resnet152(**changes: Any) -> ResNet:
    """60,192,808 parameters; 152 layers in table 1 of [1]."""
    return ResNet(**{"blocks": (3, 8, 36, 3), "bottleneck": True, **changes})


def plain18(**changes: Any) -> ResNet:
    """11,515,688 parameters: resnet18 without shortcuts, figure 4, left, of [1]."""
    return resnet18(**{"shortcut": "none", **changes})


def plain34(**changes: Any) -> ResNet:
    """21,623,848 parameters: resnet34 without shortcuts (figure 3), and worse than plain18: figure 4, left, of [1]."""
    return resnet34(**{"shortcut": "none", **changes})
