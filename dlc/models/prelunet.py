"""PReLU-net: a network whose rectifiers learn the slope of their negative half.

    prelunet_a()  19 layers; prelunet_b() 22; prelunet_c() 22 wider ones

Glossary: B batch, H W height and width, C channels, K classes, n bins across a level of the pyramid.

References:
    [1] He, Zhang, Ren, Sun 2015, "Delving deep into rectifiers: surpassing human-level performance on ImageNet
        classification": section 2.1 (PReLU), equation 15 (initial weights), table 3 and section 3 (the networks).
    [2] He, Zhang, Ren, Sun 2014, "Spatial pyramid pooling in deep convolutional networks for visual recognition",
        section 2.3.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlc import layers
from dlc.errors import UserError
from dlc.layers import pooling

SLOPE = 0.25  # the initial slope of the negative half, as in `layers.PReLU`
PYRAMID = 7, 3, 2, 1  # 63 bins

# Equation 15: variance 2 / ((1 + slope^2) n), where n is the number of inputs that an output sums over. It preserves
# the size of the signal from layer to layer. With a slope of zero it is the rule for ReLU.
he_normal_prelu = nn.initializers.variance_scaling(2 / (1 + SLOPE**2), "fan_in", "normal")


class PReLUNet(nn.Module):
    """A 7x7 convolution, three stages of 3x3 convolutions, pyramid pooling, three dense layers, with PReLU after each.

    Each stage begins with max-pooling and has `depth` convolutions of `widths[i]` channels, without batch norm. As in
    [1], dropout of one half comes before the second and the third dense layer (random stream "dropout").

    Takes images [B, H, W, 3], 224x224 in the paper; returns logits [B, K].

    Raises UserError if the image's size does not divide into the bins of the pyramid.
    """

    depth: int = 5
    widths: tuple[int, int, int] = (256, 512, 512)
    hidden: int = 4096
    dropout: float = 0.5
    num_classes: int = 1000
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool = False) -> Float[Array, "B K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        start = {**kinds, "kernel_init": he_normal_prelu, "bias_init": nn.initializers.zeros}
        x = layers.Conv(96, (7, 7), (2, 2), ((3, 3), (3, 3)), **start, name="conv1")(x)
        x = layers.PReLU(self.param_dtype, name="prelu1")(x)
        for i, width in enumerate(self.widths, 1):
            x = pooling.max_pool(x, (2, 2))
            for j in range(1, self.depth + 1):
                x = layers.Conv(width, (3, 3), padding=((1, 1), (1, 1)), **start, name=f"stage{i}_conv{j}")(x)
                x = layers.PReLU(self.param_dtype, name=f"stage{i}_prelu{j}")(x)
        x = pyramid(x)
        for i in (1, 2):
            x = layers.PReLU(self.param_dtype, name=f"dense_prelu{i}")(
                layers.Dense(self.hidden, **start, name=f"dense{i}")(x)
            )
            x = layers.Dropout(self.dropout)(x, train=train)
        return layers.Dense(self.num_classes, **start, name="dense3")(x)


def pyramid(x: Float[Array, "B H W C"], levels: tuple[int, ...] = PYRAMID) -> Float[Array, "B F"]:
    """Spatial pyramid pooling: the maxima of n x n bins for each n in `levels`, F = C (n1^2 + n2^2 + ...) numbers.

    Along a pixels, the bins are windows of ceil(a / n) at a stride of floor(a / n): the rule of [2] for training with
    images of one size. (With 14 pixels, the windows of n = 3 leave out the last row and column. For images of several
    sizes [2] has another rule.)

    Raises UserError if this gives more bins than n.
    """
    bins = []
    for n in levels:
        size = x.shape[1:3]
        window, strides = tuple(-(-a // n) for a in size), tuple(a // n for a in size)
        if 0 in strides or pooling.count(size, window, strides) != (n, n):
            raise UserError(
                f"windows do not divide {size[0]}x{size[1]} pixels into {n}x{n} bins: take images of 224x224"
            )
        y = pooling.max_pool(x, (window[0], window[1]), (strides[0], strides[1]))
        bins.append(layers.flatten(y.transpose(0, 3, 1, 2)))
    return jnp.concatenate(bins, axis=1)


def prelunet_a(**changes: Any) -> PReLUNet:
    """178,032,072 parameters, 19 layers: model A in table 3 of [1]. `changes` are fields of `PReLUNet`."""
    return PReLUNet(**changes)


def prelunet_b(**changes: Any) -> PReLUNet:
    """183,343,048 parameters, 22 layers: model B in table 3 of [1]."""
    return PReLUNet(**{"depth": 6, **changes})


def prelunet_c(**changes: Any) -> PReLUNet:
    """330,623,944 parameters, 22 layers: model C in table 3 of [1]."""
    return PReLUNet(**{"depth": 6, "widths": (384, 768, 896), **changes})
