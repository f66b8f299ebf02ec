"""The convolutional network of the lecture's MNIST program.

Glossary: B batch, H W height and width, C channels, K classes.
"""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from dlc import layers


class Convnet(nn.Module):
    """Two layers of 5x5 filters, each followed by max-pooling and ReLU, then two dense layers: 105,506 parameters.

    28 x 28 x 1 -> conv 24 x 24 x 32 -> pool 3: 8 x 8 x 32 -> conv 4 x 4 x 64 -> pool 2: 2 x 2 x 64 -> 200 -> 10 logits.

    Initial weights are drawn as in PyTorch, uniform in +-1/sqrt(fan-in), which is part of the lecture's program.

    Raises UserError if the images are too small for the filters.

    References: the lecture's MNIST program.
    """

    num_classes: int = 10
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.relu(layers.ConvMaxPool(32, (5, 5), window=(3, 3), **kinds, name="conv1")(x))
        x = nn.relu(layers.ConvMaxPool(64, (5, 5), window=(2, 2), **kinds, name="conv2")(x))
        x = layers.flatten(x)
        x = nn.relu(layers.Dense(200, **kinds, name="dense1")(x))
        return layers.Dense(self.num_classes, **kinds, name="dense2")(x)
