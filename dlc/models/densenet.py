"""DenseNet: every layer of a block reads the outputs of all layers before it.

    densenet121()  densenet169()  densenet201()  densenet161()

Glossary: B batch, H W height and width, C channels, K classes, G growth: the number of channels that a layer adds.

References:
    [1] Huang, Liu, van der Maaten, Weinberger 2016, "Densely connected convolutional networks", section 3 and table 1.
    [2] Pleiss, Chen, Huang, Li, van der Maaten, Weinberger 2017, "Memory-efficient implementation of DenseNets".
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlc import layers
from dlc.layers import pooling

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # section 4.2: as in He et al. 2015a


class DenseNet(nn.Module):
    """A 7x7 convolution, pooling, dense blocks with transitions between them, global average pooling, a dense layer.

    Block i has `blocks[i]` layers: norm, ReLU, a 1x1 convolution to 4 G channels, norm, ReLU, a 3x3 convolution to G.
    A transition is norm, ReLU, a 1x1 convolution to half the channels, and average pooling. This is DenseNet-BC of [1].

    Takes images [B, H, W, 3], 224x224 in the paper; returns logits [B, K]. Batch statistics are in the collection
    "batch_stats".
    """

    blocks: tuple[int, ...]
    growth: int = 32
    stem: int = 64  # channels of the first convolution: twice the growth
    num_classes: int = 1000
    dtype: Any = None
    param_dtype: Any = "float32"
    remat: bool = False  # compute the activations of a layer again in the backward pass instead of keeping them

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = _conv(self.stem, 7, 2, **kinds, name="conv")(x)
        x = nn.relu(layers.BatchNorm(**kinds, name="norm1")(x, train=train))
        x = pooling.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, count in enumerate(self.blocks, 1):
            if i > 1:
                y = layers.BatchNorm(**kinds, name=f"transition{i - 1}_norm")(x, train=train)
                y = _conv(x.shape[-1] // 2, 1, **kinds, name=f"transition{i - 1}_conv")(nn.relu(y))
                x = pooling.avg_pool(y, (2, 2))
            parts: tuple[Array, ...] = (x,)
            for j in range(1, count + 1):
                layer = layers.remat(_Layer(self.growth, **kinds, name=f"block{i}_layer{j}"), self.remat)
                parts = (*parts, layer(parts, train=train))
                # Concatenate two arrays at a time: the gradient of the input is then one array, not a sum of slices.
                # With `remat` each layer does it for itself [2]: only the parts are kept, and not their copies.
                parts = parts if self.remat else (jnp.concatenate(parts, axis=-1),)
            x = jnp.concatenate(parts, axis=-1)
        x = nn.relu(layers.BatchNorm(**kinds, name="norm2")(x, train=train))
        return layers.Dense(self.num_classes, bias_init=nn.initializers.zeros, **kinds, name="dense")(x.mean((1, 2)))


class _Layer(nn.Module):
    """G new channels from all existing ones."""

    growth: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, parts: tuple[Float[Array, "B H W _"], ...], *, train: bool) -> Float[Array, "B H W G"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = jnp.concatenate(parts, axis=-1)
        y = nn.relu(layers.BatchNorm(**kinds, name="norm1")(x, train=train))
        y = _conv(4 * self.growth, 1, **kinds, name="conv1")(y)
        y = nn.relu(layers.BatchNorm(**kinds, name="norm2")(y, train=train))
        return _conv(self.growth, 3, **kinds, name="conv2")(y)


def _conv(features: int, size: int, stride: int = 1, **kinds: Any) -> layers.Conv:
    pads = ((size // 2, size // 2),) * 2
    return layers.Conv(features, (size, size), (stride, stride), pads, use_bias=False, kernel_init=he_normal, **kinds)


def densenet121(**changes: Any) -> DenseNet:
    """7,978,856 parameters; 121 layers in table 1 of [1]. `changes` are fields of `DenseNet`."""
    return DenseNet(**{"blocks": (6, 12, 24, 16), **changes})


def densenet169(**changes: Any) -> DenseNet:
    """14,149,480 parameters; 169 layers in table 1 of [1]."""
    return DenseNet(**{"blocks": (6, 12, 32, 32), **changes})


def densenet201(**changes: Any) -> DenseNet:
    """20,013,928 parameters; 201 layers in table 1 of [1]."""
    return DenseNet(**{"blocks": (6, 12, 48, 32), **changes})


def densenet161(**changes: Any) -> DenseNet:
    """28,681,000 parameters; 161 layers with a growth of 48: figure 3 of [1], right, in the published version."""
    return DenseNet(**{"blocks": (6, 12, 36, 24), "growth": 48, "stem": 96, **changes})
