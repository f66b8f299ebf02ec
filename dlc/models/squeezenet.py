"""SqueezeNet: the accuracy of AlexNet with a fiftieth of its weights.

Glossary: B batch, H W height and width, C channels, K classes.

References:
    [1] Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer 2016, "SqueezeNet: AlexNet-level accuracy with 50x fewer
        parameters and <0.5MB model size", section 3 and table 1. Its program, with the initial weights, and version 1.1
        are in https://github.com/forresti/SqueezeNet.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlc import layers
from dlc.layers.pooling import max_pool

# For the modules fire2 to fire9: the squeezed channels, and half of the output channels (table 1).
FIRES = {2: (16, 64), 3: (16, 64), 4: (32, 128), 5: (32, 128), 6: (48, 192), 7: (48, 192), 8: (64, 256), 9: (64, 256)}

POOLED = {"1.0": (1, 4, 8), "1.1": (1, 3, 5)}  # after which modules to pool; 1 is the first convolution


class SqueezeNet(nn.Module):
    """A convolution, eight fire modules, and a 1x1 convolution with one map for each class, whose mean is the logit.

    Version 1.1 has a smaller first layer and pools earlier, which takes 2.4 times less computation.

    Takes images [B, 224, 224, 3] or of another size, returns logits [B, K], which the last ReLU keeps from being
    negative. (The sizes in table 1 are for 227x227.) In training, dropout uses the random stream "dropout". Pooling
    rounds up, as in the paper's program. With `padded` the last layer has a border of zeros, as in that program's
    version 1.0, so that its maps have a border that only depends on the bias; PyTorch's has none.
    """

    version: Literal["1.0", "1.1"] = "1.0"
    num_classes: int = 1000
    dropout: float = 0.5
    padded: bool = False
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool = False) -> Float[Array, "B K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        first, side = {"1.0": (96, 7), "1.1": (64, 3)}[self.version]
        x = nn.relu(_conv(first, side, strides=(2, 2), **kinds, name="conv1")(x))
        for i in range(1, 10):
            if i > 1:
                x = _Fire(*FIRES[i], **kinds, name=f"fire{i}")(x)
            if i in POOLED[self.version]:
                x = max_pool(x, (3, 3), (2, 2), ceil=True)
        x = layers.Dropout(self.dropout)(x, train=train)
        last = nn.initializers.normal(0.01)
        border = ((1, 1), (1, 1)) if self.padded else ((0, 0), (0, 0))
        x = nn.relu(_conv(self.num_classes, 1, padding=border, kernel_init=last, **kinds, name="conv10")(x))
        return x.mean((1, 2))


class _Fire(nn.Module):
    """relu of a 1x1 convolution, then relu of a 1x1 and of a 3x3 convolution of it, concatenated: figure 1."""

    between: int
    width: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.relu(_conv(self.between, 1, **kinds, name="squeeze")(x))
        small = _conv(self.width, 1, **kinds, name="expand1x1")(x)
        large = _conv(self.width, 3, padding=((1, 1), (1, 1)), **kinds, name="expand3x3")(x)
        return nn.relu(jnp.concatenate([small, large], axis=-1))


def _conv(width: int, side: int, **settings: Any) -> layers.Conv:
    init = {"kernel_init": nn.initializers.lecun_uniform(), "bias_init": nn.initializers.zeros}
    return layers.Conv(width, (side, side), **{**init, **settings})


def squeezenet1_0(**changes: Any) -> SqueezeNet:
    """The network of table 1: 1,248,424 parameters. `changes` are fields of `SqueezeNet`."""
    return SqueezeNet("1.0", **changes)


def squeezenet1_1(**changes: Any) -> SqueezeNet:
    """Version 1.1 of the authors' program: 1,235,496 parameters."""
    return SqueezeNet("1.1", **changes)
