"""Residual networks for images of 32 x 32: basic, plain, pre-activation and wide.

    cifar_resnet(depth=20)          6n + 2 layers, identity shortcuts (option A), section 4.2 of [1]
    cifar_plain(depth=20)           the same layers without shortcuts
    cifar_preact(depth=110)         pre-activation blocks [2]
    wide_resnet(depth=28, factor=10)  few and wide pre-activation blocks [3]
    cifar_resnet18()                the ImageNet network of 18 layers with a first layer for small images

Glossary: B batch, H W height and width, C channels, K classes, n number of blocks in a stage.

References:
    [1] He, Zhang, Ren, Sun 2015, "Deep residual learning for image recognition", section 4.2 and table 6.
    [2] He, Zhang, Ren, Sun 2016, "Identity mappings in deep residual networks", figure 1b and appendix.
    [3] Zagoruyko, Komodakis 2016, "Wide residual networks", table 1.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlc import layers
from dlc.errors import UserError

Shortcut = Literal["A", "B", "none"]

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # [1] follows He et al. 2015a


class CifarResNet(nn.Module):
    """A 3x3 convolution, stages of residual blocks of two 3x3 convolutions, global average pooling, a dense layer.

    Stage i has `blocks[i]` blocks of `widths[i]` channels. From the second stage on, its first block halves the image.
    Where a block changes the shape, its shortcut takes every second pixel and adds channels of zeros (option A of [1])
    or is a 1x1 convolution (B); elsewhere it is the identity. "none" has no shortcuts. With `preact`, batch
    normalisation and ReLU come before each convolution instead of after it, and once more at the end.

    Takes images [B, H, W, C], returns logits [B, K]. Batch statistics are in the collection "batch_stats".
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...] = (16, 32, 64)
    stem: int = 16
    shortcut: Shortcut = "A"
    preact: bool = False
    num_classes: int = 10
    dtype: Any = None
    param_dtype: Any = "float32"
    remat: bool = False  # compute the activations of a block again in the backward pass instead of keeping them

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = _conv3x3(self.stem, 1, **kinds, name="conv")(x)
        if not self.preact:
            x = nn.relu(layers.BatchNorm(**kinds, name="norm")(x, train=train))
        kind = _PreActBlock if self.preact else _Block
        for i, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True), 1):
            for j in range(1, count + 1):
                stride = 2 if i > 1 and j == 1 else 1
                block = kind(width, stride, self.shortcut, **kinds, name=f"stage{i}_block{j}")
                x = layers.remat(block, self.remat)(x, train=train)
        if self.preact:
            x = nn.relu(layers.BatchNorm(**kinds, name="norm")(x, train=train))
        return layers.Dense(self.num_classes, **kinds, name="dense")(x.mean((1, 2)))


class _Block(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))"""

    width: int
    stride: int
    shortcut: Shortcut
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = _conv3x3(self.width, self.stride, **kinds, name="conv1")(x)
        y = nn.relu(layers.BatchNorm(**kinds, name="norm1")(y, train=train))
        y = _conv3x3(self.width, 1, **kinds, name="conv2")(y)
        y = layers.BatchNorm(**kinds, name="norm2")(y, train=train)
        if self.shortcut == "B" and x.shape != y.shape:
            x = _conv1x1(self.width, self.stride, **kinds, name="shortcut")(x)
            x = layers.BatchNorm(**kinds, name="shortcut_norm")(x, train=train)
        elif self.shortcut == "A":
            x = _zero_padded(x, self.width, self.stride)
        return nn.relu(y if self.shortcut == "none" else y + x)


class _PreActBlock(nn.Module):
    """shortcut(x) + conv(relu(norm(conv(relu(norm(x))))))

    A convolutional shortcut reads relu(norm(x)), as in [3] and in the appendix of [2].
    """

    width: int
    stride: int
    shortcut: Shortcut
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = nn.relu(layers.BatchNorm(**kinds, name="norm1")(x, train=train))
        if self.shortcut == "B" and (x.shape[-1] != self.width or self.stride > 1):
            x = _conv1x1(self.width, self.stride, **kinds, name="shortcut")(y)
        elif self.shortcut == "A":
            x = _zero_padded(x, self.width, self.stride)
        y = _conv3x3(self.width, self.stride, **kinds, name="conv1")(y)
        y = nn.relu(layers.BatchNorm(**kinds, name="norm2")(y, train=train))
        y = _conv3x3(self.width, 1, **kinds, name="conv2")(y)
        return y if self.shortcut == "none" else y + x


def _conv3x3(width: int, stride: int, **kinds: Any) -> layers.Conv:
    # "SAME" would pad a stride of 2 only on the right; the papers' programs pad by one on all sides.
    pads = ((1, 1), (1, 1))
    return layers.Conv(width, (3, 3), (stride, stride), pads, use_bias=False, kernel_init=he_normal, **kinds)


def _conv1x1(width: int, stride: int, **kinds: Any) -> layers.Conv:
    return layers.Conv(width, (1, 1), (stride, stride), use_bias=False, kernel_init=he_normal, **kinds)


def _zero_padded(x: Array, width: int, stride: int) -> Array:
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1])))


def cifar_resnet(depth: int = 20, shortcut: Shortcut = "A", num_classes: int = 10, dtype: Any = None) -> CifarResNet:
    """The network of 6n + 2 layers in section 4.2 of [1]: 269,722 parameters at depth 20, 1,727,962 at 110.

    Raises UserError unless the depth is 6n + 2.
    """
    return CifarResNet((_blocks(depth, 2),) * 3, shortcut=shortcut, num_classes=num_classes, dtype=dtype)


def cifar_plain(depth: int = 20, num_classes: int = 10, dtype: Any = None) -> CifarResNet:
    """`cifar_resnet` without shortcuts, which gets worse with depth: figure 6, left, of [1]."""
    return cifar_resnet(depth, "none", num_classes, dtype)


def cifar_preact(depth: int = 110, num_classes: int = 10, dtype: Any = None) -> CifarResNet:
    """`cifar_resnet` with full pre-activation: figure 1b of [2]. Raises UserError unless the depth is 6n + 2."""
    return CifarResNet((_blocks(depth, 2),) * 3, preact=True, num_classes=num_classes, dtype=dtype)


def wide_resnet(depth: int = 28, factor: int = 10, num_classes: int = 10, dtype: Any = None) -> CifarResNet:
    """WRN-depth-factor of [3], without dropout: 36,479,194 parameters for WRN-28-10.

    Raises UserError unless the depth is 6n + 4.
    """
    widths = (16 * factor, 32 * factor, 64 * factor)
    return CifarResNet(
        (_blocks(depth, 4),) * 3, widths, shortcut="B", preact=True, num_classes=num_classes, dtype=dtype
    )


def cifar_resnet18(num_classes: int = 10, dtype: Any = None) -> CifarResNet:
    """ResNet-18 of table 1 of [1] for small images, the usual baseline on CIFAR-10: 11,173,962 parameters.

    Its first layer is a 3x3 convolution of stride 1 instead of a 7x7 of stride 2 and pooling. This variant is not in
    the paper; it comes from widely shared programs.
    """
    return CifarResNet((2,) * 4, (64, 128, 256, 512), stem=64, shortcut="B", num_classes=num_classes, dtype=dtype)


def _blocks(depth: int, rest: int) -> int:
    if depth < 6 + rest or (depth - rest) % 6:
        few = ", ".join(str(6 * n + rest) for n in (1, 2, 3))
        raise UserError(f"a depth of {depth} is not 6n + {rest}: choose one of {few}, ...")
    return (depth - rest) // 6
