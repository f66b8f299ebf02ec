"""Multi-layer perceptrons, from softmax regression up.

Glossary: B batch, K classes.
"""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from dlc import layers


class MLP(nn.Module):
    """Dense layers with ReLU between them. With no `hidden` layers this is softmax regression.

    Takes inputs of any shape [B, ...] and returns logits [B, K]. Weights begin uniform in +-1/sqrt(fan-in).

    References: the sizes 300, 1000, 300-100 and 500-150 are those of LeCun et al. 1998, "Gradient-based learning
    applied to document recognition", section III-C, whose units were scaled tanh.
    """

    hidden: tuple[int, ...] = ()
    num_classes: int = 10
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B ..."], *, train: bool = False) -> Float[Array, "B K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = layers.flatten(x)
        for i, width in enumerate(self.hidden, 1):
            x = nn.relu(layers.Dense(width, **kinds, name=f"dense{i}")(x))
        return layers.Dense(self.num_classes, **kinds, name=f"dense{len(self.hidden) + 1}")(x)
