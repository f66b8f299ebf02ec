"""VGG: only 3x3 convolutions, in increasing depth.

Glossary: B batch, H W height and width, C channels, K classes.

References:
    [1] Simonyan, Zisserman 2014, "Very deep convolutional networks for large-scale image recognition", table 1 (the
        columns A, B, D and E), sections 2.1 and 3.1.
    [2] Ioffe, Szegedy 2015, "Batch normalization". The versions with batch norm are not in a paper, but torchvision's.
"""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from dlc import layers
from dlc.layers.pooling import max_pool

WIDTHS = 64, 128, 256, 512, 512  # channels of the five stages: table 1


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, `depths[i]` in stage i, each followed by 2x2 max-pooling; three dense layers.

    Takes images [B, 224, 224, 3], returns logits [B, K]. In training, dropout uses the random stream "dropout"; batch
    statistics, if any, are in the collection "batch_stats".

    Weights begin as Glorot and Bengio's and biases at zero. According to [1], no smaller network needs to be trained
    first then. With `norm`, each convolution is normalised and keeps its bias.
    """

    depths: tuple[int, int, int, int, int]
    norm: bool = False
    num_classes: int = 1000
    hidden: int = 4096
    dropout: float = 0.5
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool = False) -> Float[Array, "B K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        init: dict[str, Any] = {"kernel_init": nn.initializers.xavier_uniform(), "bias_init": nn.initializers.zeros}
        for i, (depth, width) in enumerate(zip(self.depths, WIDTHS, strict=True), 1):
            for j in range(1, depth + 1):
                x = layers.Conv(width, (3, 3), padding=((1, 1), (1, 1)), **init, **kinds, name=f"conv{i}_{j}")(x)
                if self.norm:
                    x = layers.BatchNorm(**kinds, name=f"norm{i}_{j}")(x, train=train)
                x = nn.relu(x)
            x = max_pool(x, (2, 2))
        x = layers.flatten(x.transpose(0, 3, 1, 2))  # channels first, the order of published weights
        for i in (1, 2):
            x = nn.relu(layers.Dense(self.hidden, **init, **kinds, name=f"dense{i}")(x))
            x = layers.Dropout(self.dropout)(x, train=train)
        return layers.Dense(self.num_classes, **init, **kinds, name="dense3")(x)


def vgg11(**changes: Any) -> VGG:
    """A of table 1: 132,863,336 parameters; with `norm=True` 132,868,840. `changes` are fields of `VGG`."""
    return VGG((1, 1, 2, 2, 2), **changes)


def vgg13(**changes: Any) -> VGG:
    """B of table 1: 133,047,848 parameters; with `norm=True` 133,053,736."""
    return VGG((2, 2, 2, 2, 2), **changes)


def vgg16(**changes: Any) -> VGG:
    """D of table 1: 138,357,544 parameters; with `norm=True` 138,365,992."""
    return VGG((2, 2, 3, 3, 3), **changes)


def vgg19(**changes: Any) -> VGG:
    """E of table 1: 143,667,240 parameters; with `norm=True` 143,678,248."""
    return VGG((2, 2, 4, 4, 4), **changes)
