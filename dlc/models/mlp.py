"""Multi-layer perceptrons, from softmax regression up.

Glossary: B batch, K classes.
"""

from typing import Any, Literal

import flax.linen as nn
from jaxtyping import Array, Float

from dlc import layers


class MLP(nn.Module):
    """Dense layers with an activation between them. With no `hidden` layers this is softmax regression.

    Takes inputs of any shape [B, ...] and returns logits [B, K]. Weights begin uniform in +-1/sqrt(fan-in). With
    `dropout`, a fifth of the inputs and half of the hidden units are zero in training (Srivastava et al. 2014, appendix
    B.1). With `norm`, batch norm precedes each activation.

    References: the sizes 300, 1000, 300-100 and 500-150 are those of LeCun et al. 1998, "Gradient-based learning
    applied to document recognition", section III-C, whose units were scaled tanh.
    """

    hidden: tuple[int, ...] = ()
    num_classes: int = 10
    dtype: Any = None
    param_dtype: Any = "float32"
    activation: Literal["relu", "sigmoid"] = "relu"
    dropout: bool = False
    norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B ..."], *, train: bool = False) -> Float[Array, "B K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = layers.flatten(x)
        x = layers.Dropout(0.2)(x, train=train) if self.dropout else x
        for i, width in enumerate(self.hidden, 1):
            x = layers.Dense(width, **kinds, name=f"dense{i}")(x)
            x = layers.BatchNorm(0.99, **kinds, name=f"norm{i}")(x, train=train) if self.norm else x
            x = nn.sigmoid(x) if self.activation == "sigmoid" else nn.relu(x)
            x = layers.Dropout(0.5)(x, train=train) if self.dropout else x
        return layers.Dense(self.num_classes, **kinds, name=f"dense{len(self.hidden) + 1}")(x)
