"""Inception networks with batch norm, written like the tables of their papers.

    bn_inception()    two 3x3 kernels instead of each 5x5, for images of 224 x 224 [1]
    inception_v3()    1x7 and 7x1 kernels instead of 7x7, for images of 299 x 299 [2]

A module is a tuple of branches over one input, whose channels are concatenated. A branch is a sequence of layers, each
a convolution (with batch norm and ReLU), a pooling function, or a tuple of convolutions that are again over one input.

Glossary: B batch, H W height and width, C D channels, K classes.

References:
    [1] Ioffe, Szegedy 2015, "Batch normalization: accelerating deep network training by reducing internal covariate
        shift", section 4.2 and figure 5, in the appendix.
    [2] Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2015, "Rethinking the Inception architecture for computer vision",
        figures 5 to 8 and table 1. The authors' program differs from them; published weights fit the program, which is
        implemented here as in torchvision.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dlc import layers
from dlc.layers import pooling

Branches = tuple[tuple[Any, ...], ...]


class Convolution(NamedTuple):
    features: int
    size: tuple[int, int]
    strides: tuple[int, int]
    padding: str


def conv(features: int, height: int, width: int = 0, stride: int = 1, padding: str = "SAME") -> Convolution:
    return Convolution(features, (height, width or height), (stride, stride), padding)


def narrow(features: int, height: int, width: int = 0, stride: int = 1) -> Convolution:
    return conv(features, height, width, stride, "VALID")


def fork(features: int) -> tuple[Convolution, Convolution]:
    return conv(features, 1, 3), conv(features, 3, 1)


halve = functools.partial(pooling.max_pool, window=(3, 3), strides=(2, 2))
_around = functools.partial(pooling.avg_pool, window=(3, 3), strides=(1, 1), padding=((1, 1), (1, 1)))
mean = functools.partial(_around, count_padding=False)
_max = functools.partial(pooling.max_pool, window=(3, 3), strides=(1, 1), padding=((1, 1), (1, 1)))


def _halve_same(x: Array) -> Array:
    pads = lax.padtype_to_pads(x.shape[1:3], (3, 3), (2, 2), "SAME")
    return pooling.max_pool(x, (3, 3), (2, 2), [(before, after) for before, after in pads])


def mixed(branches: Branches, begin: Any, **settings: Any) -> nn.Module:
    """The module of these branches, whose kernels are drawn by the initialiser `begin`."""
    return _Mixed(branches, begin, **settings)


class BNInception(nn.Module):
    """GoogLeNet with batch norm, two 3x3 convolutions for one 5x5, and strides of 2 in modules instead of pooling.

    With `separable`, the first convolution is separable as in the paper: eight 7x7 filters for each colour, then 1x1;
    most programs have an ordinary one. In 4c and 4d the projection has 96 channels, as in the authors' program, because
    the 128 in the paper's table do not fit the sums in the same table. Padding is TensorFlow's "SAME". There is no
    dropout (section 4.2.1). [1] does not specify initial weights; here they are He's.

    Takes images [B, H, W, 3], returns logits [B, K].
    """

    num_classes: int = 1000
    separable: bool = True
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool = False) -> Float[Array, "B K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        begin = nn.initializers.he_normal()
        first = conv(64, 7, stride=2)
        if self.separable:
            depthwise = {"use_bias": False, "groups": 3, "kernel_init": begin, **kinds}
            x = layers.Conv(24, first.size, first.strides, first.padding, **depthwise, name="depthwise")(x)
            first = conv(64, 1)
        x = mixed(((first, _halve_same, conv(64, 1), conv(192, 3), _halve_same),), begin, **kinds, name="stem")(
            x, train=train
        )
        for name, branches in BN_MODULES.items():
            x = mixed(branches, begin, **kinds, name=f"mixed{name}")(x, train=train)
        return layers.Dense(self.num_classes, **kinds, kernel_init=begin, name="dense")(x.mean((1, 2)))


def _bn_module(
    one: int, reduce3: int, three: int, reduce_double: int, double: int, pool: Any, project: int
) -> Branches:
    """A row of figure 5 of [1]. A module without the 1x1 branch (and without projection) halves the image."""
    stride = 1 if one else 2
    branches: Branches = (
        (conv(reduce3, 1), conv(three, 3, stride=stride)),
        (conv(reduce_double, 1), conv(double, 3), conv(double, 3, stride=stride)),
    )
    return ((conv(one, 1),), *branches, (pool, conv(project, 1))) if one else (*branches, (pool,))


BN_MODULES = {  # figure 5 of [1]: 1x1, 3x3 reduce, 3x3, double 3x3 reduce, double 3x3, pool, its projection
    "3a": _bn_module(64, 64, 64, 64, 96, mean, 32),
    "3b": _bn_module(64, 64, 96, 64, 96, mean, 64),
    "3c": _bn_module(0, 128, 160, 64, 96, _halve_same, 0),
    "4a": _bn_module(224, 64, 96, 96, 128, mean, 128),
    "4b": _bn_module(192, 96, 128, 96, 128, mean, 128),
    "4c": _bn_module(160, 128, 160, 128, 160, mean, 96),
    "4d": _bn_module(96, 128, 192, 160, 192, mean, 96),
    "4e": _bn_module(0, 128, 192, 192, 256, _halve_same, 0),
    "5a": _bn_module(352, 192, 320, 160, 224, mean, 128),
    "5b": _bn_module(352, 192, 320, 192, 224, _max, 128),
}


def bn_inception(**changes: Any) -> BNInception:
    """Figure 5 of [1]: 11,188,288 parameters, 11,194,984 if not `separable`. (The text of [1] has 13.6 million.)"""
    return BNInception(**changes)


class InceptionV3(nn.Module):
    """A stem of five convolutions, eleven modules, global average pooling, dropout and a dense layer.

    With `aux`, a second head reads the last 17 x 17 module during training (section 4 of [2]). Its loss, times 0.3 in
    the authors' program, is added to the loss: `losses.auxiliary`. Takes images [B, H, W, 3], returns logits [B, K];
    with `train=True` and `aux` a tuple of the logits and those of the second head.

    Averages over 3x3 count the padding, as in torchvision (in TensorFlow they do not). Dropout and initial weights,
    normal distributions truncated at two standard deviations, are those of the authors' program; torchvision's dropout
    rate is 0.5. Weights from torchvision expect images scaled to [-1, 1], as (image - 0.5) / 0.5. torchvision's own
    model converts from the usual normalisation internally (`transform_input`); here the caller prepares the images.

    Raises UserError if the image is too small: it needs 75 x 75, and 299 x 299 with the second head.
    """

    num_classes: int = 1000
    aux: bool = True
    dropout: float = 0.2
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W 3"], *, train: bool = False
    ) -> Float[Array, "B K"] | tuple[Float[Array, "B K"], ...]:
        kinds, begin = {"dtype": self.dtype, "param_dtype": self.param_dtype}, nn.initializers.truncated_normal(0.1)
        second: tuple[Array, ...] = ()
        for name, branches in V3_MODULES.items():
            x = mixed(branches, begin, **kinds, name=name)(x, train=train)
            if name == "mixed6e" and self.aux and (train or self.is_initializing()):
                second = (_SecondHead(self.num_classes, **kinds, name="aux")(x, train=train),)
        x = layers.Dropout(self.dropout)(x.mean((1, 2)), train=train)
        logits = layers.Dense(self.num_classes, **kinds, kernel_init=begin, name="dense")(x)
        return (logits, *second) if train and self.aux else logits


def _figure5(project: int) -> Branches:
    double = (conv(64, 1), conv(96, 3), conv(96, 3))
    return (conv(64, 1),), (conv(48, 1), conv(64, 5)), double, (_around, conv(project, 1))


def _figure6(width: int) -> Branches:
    seven = (conv(width, 1), conv(width, 1, 7), conv(192, 7, 1))
    double = (conv(width, 1), conv(width, 7, 1), conv(width, 1, 7), conv(width, 7, 1), conv(192, 1, 7))
    return (conv(192, 1),), seven, double, (_around, conv(192, 1))


_FIGURE7: Branches = (
    (conv(320, 1),),
    (conv(384, 1), fork(384)),
    (conv(448, 1), conv(384, 3), fork(384)),
    (_around, conv(192, 1)),
)
V3_MODULES: dict[str, Branches] = {  # table 1 of [2]; names are those of the authors' program
    "stem": ((narrow(32, 3, stride=2), narrow(32, 3), conv(64, 3), halve, conv(80, 1), narrow(192, 3), halve),),
    "mixed5b": _figure5(32),
    "mixed5c": _figure5(64),
    "mixed5d": _figure5(64),
    "mixed6a": ((narrow(384, 3, stride=2),), (conv(64, 1), conv(96, 3), narrow(96, 3, stride=2)), (halve,)),
    "mixed6b": _figure6(128),
    "mixed6c": _figure6(160),
    "mixed6d": _figure6(160),
    "mixed6e": _figure6(192),
    "mixed7a": (
        (conv(192, 1), narrow(320, 3, stride=2)),
        (conv(192, 1), conv(192, 1, 7), conv(192, 7, 1), narrow(192, 3, stride=2)),
        (halve,),
    ),
    "mixed7b": _FIGURE7,
    "mixed7c": _FIGURE7,
}


def inception_v3(**changes: Any) -> InceptionV3:
    """27,161,264 parameters, 23,834,568 without the auxiliary head. `changes` are fields of `InceptionV3`."""
    return InceptionV3(**changes)


class _SecondHead(nn.Module):
    """Average over 5x5, two convolutions and a dense layer: figure 8 of [2]."""

    num_classes: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B K"]:
        kinds, begin = {"dtype": self.dtype, "param_dtype": self.param_dtype}, nn.initializers.truncated_normal
        x = pooling.avg_pool(x, (5, 5), (3, 3))
        x = _ConvNorm(conv(128, 1), begin(0.1), **kinds, name="conv1")(x, train=train)
        x = _ConvNorm(narrow(768, 5), begin(0.01), **kinds, name="conv2")(x, train=train)
        return layers.Dense(self.num_classes, **kinds, kernel_init=begin(0.001), name="dense")(x.mean((1, 2)))


class _Mixed(nn.Module):
    """The concatenated channels of all branches.

    Convolution j of branch i is named branch{i}_{j}; those of a fork are branch{i}_{j}a and branch{i}_{j}b.
    """

    branches: Branches
    begin: Any
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        apply: Any = functools.partial(_ConvNorm, begin=self.begin, dtype=self.dtype, param_dtype=self.param_dtype)
        ends = []
        for i, branch in enumerate(self.branches, 1):
            y, j = x, 0
            for layer in branch:
                if callable(layer):
                    y = layer(y)
                    continue
                j += 1
                if isinstance(layer, Convolution):
                    y = apply(layer, name=f"branch{i}_{j}")(y, train=train)
                else:
                    parts = zip(layer, "ab", strict=True)
                    y = jnp.concatenate([apply(one, name=f"branch{i}_{j}{c}")(y, train=train) for one, c in parts], -1)
            ends.append(y)
        return jnp.concatenate(ends, -1)


class _ConvNorm(nn.Module):
    """A convolution without bias, batch norm and ReLU."""

    layer: Convolution
    begin: Any
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = layers.Conv(*self.layer, use_bias=False, kernel_init=self.begin, **kinds, name="conv")(x)
        return nn.relu(layers.BatchNorm(epsilon=1e-3, **kinds, name="norm")(x, train=train))
