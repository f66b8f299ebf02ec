"""Inception-v4: more modules than Inception-v3, identical throughout a stage.

Glossary: B batch, H W height and width, K classes. `dlc/models/inception.py` explains how modules are written.

References:
    [1] Szegedy, Ioffe, Vanhoucke, Alemi 2016, "Inception-v4, Inception-ResNet and the impact of residual connections
        on learning", figures 3 to 9.
"""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from dlc import layers
from dlc.models.inception import Branches, conv, fork, halve, mean, mixed, narrow


class InceptionV4(nn.Module):
    """A branching stem, 4 + 7 + 3 modules, two reductions between them, average pooling, dropout, a dense layer.

    Figure 9 of [1]. Averages over 3x3 do not count the padding. Initial weights are He's, as in the authors' program.

    Takes images [B, H, W, 3], returns logits [B, K]. Raises UserError if the image is smaller than 75 x 75.
    """

    num_classes: int = 1000
    dropout: float = 0.2
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool = False) -> Float[Array, "B K"]:
        kinds, begin = {"dtype": self.dtype, "param_dtype": self.param_dtype}, nn.initializers.he_normal()
        for name, branches in V4_MODULES.items():
            x = mixed(branches, begin, **kinds, name=name)(x, train=train)
        x = layers.Dropout(self.dropout)(x.mean((1, 2)), train=train)
        return layers.Dense(self.num_classes, **kinds, kernel_init=begin, name="dense")(x)


_FIGURE4: Branches = (
    (conv(96, 1),),
    (conv(64, 1), conv(96, 3)),
    (conv(64, 1), conv(96, 3), conv(96, 3)),
    (mean, conv(96, 1)),
)
_FIGURE5: Branches = (
    (conv(384, 1),),
    (conv(192, 1), conv(224, 1, 7), conv(256, 7, 1)),
    (conv(192, 1), conv(192, 7, 1), conv(224, 1, 7), conv(224, 7, 1), conv(256, 1, 7)),
    (mean, conv(128, 1)),
)
_FIGURE6: Branches = (
    (conv(256, 1),),
    (conv(384, 1), fork(256)),
    (conv(384, 1), conv(448, 3, 1), conv(512, 1, 3), fork(256)),
    (mean, conv(256, 1)),
)
V4_MODULES: dict[str, Branches] = {  # figures 3 to 9 of [1]
    "stem1": ((narrow(32, 3, stride=2), narrow(32, 3), conv(64, 3)),),
    "stem2": ((halve,), (narrow(96, 3, stride=2),)),
    "stem3": (
        (conv(64, 1), narrow(96, 3)),
        (conv(64, 1), conv(64, 1, 7), conv(64, 7, 1), narrow(96, 3)),
    ),
    "stem4": ((narrow(192, 3, stride=2),), (halve,)),
    **{f"a{i}": _FIGURE4 for i in range(1, 5)},
    "reduction_a": ((narrow(384, 3, stride=2),), (conv(192, 1), conv(224, 3), narrow(256, 3, stride=2)), (halve,)),
    **{f"b{i}": _FIGURE5 for i in range(1, 8)},
    "reduction_b": (
        (conv(192, 1), narrow(192, 3, stride=2)),
        (conv(256, 1), conv(256, 1, 7), conv(320, 7, 1), narrow(320, 3, stride=2)),
        (halve,),
    ),
    **{f"c{i}": _FIGURE6 for i in range(1, 4)},
}


def inception_v4(**changes: Any) -> InceptionV4:
    """42,679,816 parameters."""
    return InceptionV4(**changes)
