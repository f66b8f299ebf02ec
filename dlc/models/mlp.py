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
        activation = {"relu": nn.relu, "sigmoid": nn.sigmoid}[self.activation]
        x = layers.Dropout(0.2 * self.dropout)(layers.flatten(x), train=train)
        for i, width in enumerate(self.hidden, 1):
            x = layers.Dense(width, **kinds, name=f"dense{i}")(x)
            if self.norm:
                x = layers.BatchNorm(0.99, dtype=self.dtype, param_dtype=self.param_dtype, name=f"norm{i}")(
                    x, train=train
                )
            x = layers.Dropout(0.5 * self.dropout)(activation(x), train=train)
        return layers.Dense(self.num_classes, **kinds, name=f"dense{len(self.hidden) + 1}")(x)
