"""ENet: a small network that segments street scenes, and its encoder as an image classifier.

    enet()             encoder and decoder: a class for each pixel
    enet_classifier()  the encoder alone: a class for each image

Glossary: B batch, H W height and width, h w the same after the layer, C channels, K classes.

References:
    [1] Paszke, Chaurasia, Kim, Culurciello 2016, "ENet: a deep neural network architecture for real-time semantic
        segmentation", section 3, table 1, figure 2.
    [2] The authors' program: https://github.com/e-lab/ENet-training, train/models. It fills what [1] leaves open: the
        epsilon of the norms, the position of the norms in the first block and after asymmetric convolutions, and the
        2x2 kernel of the last layer. Where the two differ, this follows [1]: no biases, and PReLU and dropout in the
        decoder, too.
    [3] Canziani, Paszke, Culurciello 2016, "An analysis of deep neural network models for practical applications".
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dlc import layers
from dlc.errors import UserError
from dlc.layers import pooling

# The convolution between the projections of a block: its dilation, or "asymmetric" for 5x1 followed by 1x5
Middle = int | Literal["asymmetric"]
SECTION: tuple[Middle, ...] = (1, 2, "asymmetric", 4, 1, 8, "asymmetric", 16)  # table 1, bottleneck2.1 to 2.8


class ENet(nn.Module):
    """From images to a class for each pixel: [B, H, W, 3] to logits [B, H, W, K].

    The encoder makes the image eight times smaller, and the decoder restores its size: it places pixels where the
    encoder's max-pooling found the maxima. In training, dropout of whole channels uses the random stream "dropout".
    Batch statistics are in the collection "batch_stats".

    Raises UserError unless 8 divides height and width.
    """

    num_classes: int = 20
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool = False) -> Float[Array, "B H W K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block: Any = functools.partial(_Block, dropout=0.1, **kinds)
        x, outer, inner = _encode(x, train, kinds)
        x = block(64, "up", name="block4_0")(x, inner, train=train)
        for j in (1, 2):
            x = block(64, name=f"block4_{j}")(x, train=train)
        x = block(16, "up", name="block5_0")(x, outer, train=train)
        x = block(16, name="block5_1")(x, train=train)
        return _transposed_conv(self.num_classes, 2, **kinds, name="full_conv")(x)


class ENetClassifier(nn.Module):
    """The encoder of `ENet`, global average pooling, a dense layer: images [B, H, W, 3] to logits [B, K].

    The chart of [3] has an ENet that was trained on ImageNet, but its head is not published; this one is ours. The
    weights of the encoder have the same names as in `ENet`.

    Raises UserError unless 8 divides height and width.
    """

    num_classes: int = 1000
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool = False) -> Float[Array, "B K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x, _, _ = _encode(x, train, kinds)
        return layers.Dense(self.num_classes, **kinds, name="dense")(x.mean((1, 2)))


def enet(**changes: Any) -> ENet:
    """363,999 parameters (table 3 of [1] has 0.37 M); 19 classes of Cityscapes and one for everything else."""
    return ENet(**changes)


def enet_classifier(**changes: Any) -> ENetClassifier:
    """466,519 parameters, 337,519 of them in the encoder. `changes` are fields of `ENetClassifier`."""
    return ENetClassifier(**changes)


def _encode(x: Array, train: bool, kinds: dict[str, Any]) -> tuple[Array, Array, Array]:
    """The encoded image, and the positions of the maxima of its two inner poolings.

    This is a function, so that its blocks belong to the module that calls it.
    """
    if x.shape[1] % 8 or x.shape[2] % 8:
        raise UserError(f"ENet halves its image three times, but 8 does not divide {x.shape[1]}x{x.shape[2]}")
    y = _conv(13, (3, 3), (2, 2), **kinds, name="initial")(x)
    x = jnp.concatenate([y, pooling.max_pool(x, (2, 2)).astype(y.dtype)], axis=-1)
    x = _norm_prelu(x, "initial", train, kinds)

    block: Any = functools.partial(_Block, dropout=0.01, **kinds)
    outer = max_places(x)
    x = block(64, "down", name="block1_0")(x, train=train)
    for j in range(1, 5):
        x = block(64, name=f"block1_{j}")(x, train=train)

    block = functools.partial(_Block, dropout=0.1, **kinds)
    inner = max_places(x)
    x = block(128, "down", name="block2_0")(x, train=train)
    for i in (2, 3):
        for j, middle in enumerate(SECTION, 1):
            x = block(128, "same", middle, name=f"block{i}_{j}")(x, train=train)
    return x, outer, inner


class _Block(nn.Module):
    """PReLU(main branch + dropout(expansion(convolution(projection(x))))): figure 2b of [1].

    "down" halves the image: its projection has a 2x2 kernel, and its main branch is max-pooling with added channels of
    zeros. "up" doubles it: its convolution is transposed, and its main branch is a 1x1 convolution and unpooling to
    `places`.
    """

    features: int
    kind: Literal["same", "down", "up"] = "same"
    middle: Middle = 1
    dropout: float = 0.1
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], places: Int[Array, "B H W D"] | None = None, *, train: bool
    ) -> Float[Array, "B h w D"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv: Any = functools.partial(_conv, **kinds)
        thin = self.features // 4
        size = (2, 2) if self.kind == "down" else (1, 1)
        y = conv(thin, size, size, name="projection")(x)
        y = _norm_prelu(y, "projection", train, kinds)
        if self.kind == "up":
            y = _transposed_conv(thin, 3, **kinds, name="conv")(y)
        elif self.middle == "asymmetric":
            y = conv(thin, (1, 5), name="conv2")(conv(thin, (5, 1), name="conv1")(y))
        else:
            y = conv(thin, (3, 3), dilation=self.middle, name="conv")(y)
        y = _norm_prelu(y, "conv", train, kinds)
        y = conv(self.features, (1, 1), name="expansion")(y)
        y = layers.BatchNorm(epsilon=1e-3, **kinds, name="expansion_norm")(y, train=train)
        # Dropout of whole channels ("spatial"): it is applied to one number for each channel.
        y = y * layers.Dropout(self.dropout)(jnp.ones((y.shape[0], 1, 1, self.features), y.dtype), train=train)

        if self.kind == "down":
            x = pooling.max_pool(x, (2, 2))
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.features - x.shape[-1])))
        elif places is not None:
            x = conv(self.features, (1, 1), name="main")(x)
            x = max_unpool(layers.BatchNorm(epsilon=1e-3, **kinds, name="main_norm")(x, train=train), places)
        return layers.PReLU(self.param_dtype, name="prelu")(x + y)


def max_places(x: Float[Array, "B H W C"]) -> Int[Array, "B h w C"]:
    """The position of each maximum in its 2x2 window: 0 and 1 above, 2 and 3 below; of equal ones the first."""
    B, H, W, C = x.shape
    windows = x.reshape(B, H // 2, 2, W // 2, 2, C).transpose(0, 1, 3, 5, 2, 4)
    return windows.reshape(B, H // 2, W // 2, C, 4).argmax(-1)


def max_unpool(x: Float[Array, "B h w C"], places: Int[Array, "B h w C"]) -> Float[Array, "B H W C"]:
    """The inverse of max-pooling: an image of twice the size with the pixels of `x` at `places` and zeros elsewhere."""
    B, h, w, C = x.shape
    here = places[:, :, None, :, None] == jnp.arange(4).reshape(1, 1, 2, 1, 2, 1)
    return jnp.where(here, x[:, :, None, :, None], 0).reshape(B, 2 * h, 2 * w, C)


def _conv(
    features: int, size: tuple[int, int], strides: tuple[int, int] = (1, 1), dilation: int = 1, **rest: Any
) -> layers.Conv:
    # Even kernels halve the image and need no padding.
    rows, columns = ((n - 1) // 2 * dilation for n in size)
    pads = ((rows, rows), (columns, columns))
    return layers.Conv(features, size, strides, pads, use_bias=False, dilation=(dilation, dilation), **rest)


def _transposed_conv(features: int, size: int, **rest: Any) -> nn.ConvTranspose:
    """A `size` x `size` convolution of the image with zeros between its pixels; it doubles height and width."""
    pads = ((1, size - 1), (1, size - 1))
    init = layers.fan_in_uniform()
    return nn.ConvTranspose(features, (size, size), (2, 2), pads, use_bias=False, kernel_init=init, **rest)


def _norm_prelu(x: Array, name: str, train: bool, kinds: dict[str, Any]) -> Array:
    x = layers.BatchNorm(epsilon=1e-3, **kinds, name=f"{name}_norm")(x, train=train)
    return layers.PReLU(kinds["param_dtype"], name=f"{name}_prelu")(x)
