"""GoogLeNet, the first Inception network: parallel branches of several kernel sizes, and auxiliary heads.

    googlenet()       the paper's: biases, local response normalisation, 5x5 kernels
    googlenet_bn()    the one for which torchvision publishes weights: batch norm, and 3x3 kernels instead of 5x5

Glossary: B batch, H W height and width, C D channels, K classes.

References:
    [1] Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich 2014, "Going deeper with
        convolutions": table 1 and figure 3; the auxiliary heads are at the end of section 5, training is in section 6.
    [2] Krizhevsky, Sutskever, Hinton 2012, "ImageNet classification with deep convolutional neural networks",
        section 3.3: the local response normalisation.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dlc import layers
from dlc.layers import pooling
from dlc.layers.norms import local_response_norm

Form = Literal["paper", "torchvision"]

# Table 1 of [1]: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj.
TABLE = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class GoogLeNet(nn.Module):
    """Three convolutions, nine Inception modules, global average pooling, dropout and a dense layer.

    With `aux`, two more heads read modules 4a and 4d during training. Their losses, times 0.3, are added to the loss:
    `losses.auxiliary`. Takes images [B, H, W, 3], 224 x 224 in the paper, and returns logits [B, K]; with `train=True`
    and `aux` a tuple of the logits, those of 4a and those of 4d.

    [1] specifies neither the constants of the normalisation nor the initial weights. They are those of Caffe's BVLC
    GoogLeNet here: alpha 1e-4 for the *mean* of five squares, and uniform weights of variance 1 / fan-in with biases of
    0.2. In the version with batch norm, weights begin as a truncated normal distribution of standard deviation 0.01, as
    in torchvision.

    Weights from torchvision expect images scaled to [-1, 1], as (image - 0.5) / 0.5. torchvision's own model converts
    from the usual normalisation internally (`transform_input`); here the caller prepares the images.

    Raises UserError if the image is too small: with the heads, the paper's version needs 79 x 79.
    """

    num_classes: int = 1000
    form: Form = "paper"
    aux: bool = True
    dropout: float = 0.4
    aux_dropout: float = 0.7
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W 3"], *, train: bool = False
    ) -> Float[Array, "B K"] | tuple[Float[Array, "B K"], ...]:
        paper, kinds = self.form == "paper", {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv: Any = functools.partial(_Conv, form=self.form, **kinds)
        head: Any = functools.partial(_Head, self.num_classes, self.aux_dropout, self.form, **kinds)
        halve = functools.partial(pooling.max_pool, window=(3, 3), strides=(2, 2), ceil=True)
        with_heads = self.aux and (train or self.is_initializing())
        heads: list[Array] = []

        x = halve(conv(64, 7, 2, name="conv1")(x, train=train))
        x = conv(64, 1, name="conv2")(_normalised(x) if paper else x, train=train)
        x = conv(192, 3, name="conv3")(x, train=train)
        x = halve(_normalised(x) if paper else x)
        for name, widths in TABLE.items():
            if name == "4a":
                x = halve(x)
            elif name == "5a":
                x = halve(x) if paper else pooling.max_pool(x, (2, 2), ceil=True)
            x = _Inception(widths, self.form, **kinds, name=f"inception{name}")(x, train=train)
            if with_heads and name in ("4a", "4d"):
                heads.append(head(name=f"aux{len(heads) + 1}")(x, train=train))
        x = layers.Dropout(self.dropout)(x.mean((1, 2)), train=train)
        logits = layers.Dense(self.num_classes, **kinds, **_begin(self.form, 0.0), name="dense")(x)
        return (logits, *heads) if train and self.aux else logits


def googlenet(**changes: Any) -> GoogLeNet:
    """Table 1 of [1]: 13,378,280 parameters, 6,998,552 without the auxiliary heads. `changes` are its fields."""
    return GoogLeNet(**changes)


def googlenet_bn(**changes: Any) -> GoogLeNet:
    """torchvision's version: 13,004,888 parameters, 6,624,904 without the auxiliary heads.

    Apart from batch norm it differs from [1] in its 3x3 kernels instead of 5x5 (a mistake, kept because the published
    weights have it), a last max-pooling over 2x2 instead of 3x3, heads that average adaptively to 4 x 4, and less
    dropout.
    """
    return GoogLeNet(**{"form": "torchvision", "dropout": 0.2, **changes})


class _Inception(nn.Module):
    """Figure 2b of [1]: four branches over one input, whose channels are concatenated."""

    widths: tuple[int, int, int, int, int, int]
    form: Form
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H W D"]:
        conv: Any = functools.partial(_Conv, form=self.form, dtype=self.dtype, param_dtype=self.param_dtype)
        one, reduce3, three, reduce5, five, project = self.widths
        size5 = 5 if self.form == "paper" else 3
        a = conv(one, 1, name="conv1x1")(x, train=train)
        b = conv(reduce3, 1, name="reduce3x3")(x, train=train)
        b = conv(three, 3, name="conv3x3")(b, train=train)
        c = conv(reduce5, 1, name="reduce5x5")(x, train=train)
        c = conv(five, size5, name="conv5x5")(c, train=train)
        d = pooling.max_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)))
        d = conv(project, 1, name="project")(d, train=train)
        return jnp.concatenate([a, b, c, d], -1)


class _Head(nn.Module):
    """An auxiliary classifier: average to 4 x 4, 1x1 convolution, dense layer of 1024, dropout, dense layer."""

    num_classes: int
    dropout: float
    form: Form
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = pooling.avg_pool(x, (5, 5), (3, 3)) if self.form == "paper" else _mean_to(x, 4)
        x = _Conv(128, 1, form=self.form, **kinds, name="conv")(x, train=train)
        x = layers.flatten(x.transpose(0, 3, 1, 2))  # channels first, the order of published weights
        x = nn.relu(layers.Dense(1024, **kinds, **_begin(self.form), name="dense1")(x))
        x = layers.Dropout(self.dropout)(x, train=train)
        return layers.Dense(self.num_classes, **kinds, **_begin(self.form, 0.0), name="dense2")(x)


class _Conv(nn.Module):
    """A convolution padded to keep the image's size (before the stride), batch norm if torchvision's, and ReLU."""

    features: int
    size: int
    stride: int = 1
    form: Form = "paper"
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        pads, paper = ((self.size // 2, self.size // 2),) * 2, self.form == "paper"
        size, strides = (self.size, self.size), (self.stride, self.stride)
        begin = _begin(self.form)
        x = layers.Conv(self.features, size, strides, pads, use_bias=paper, **kinds, **begin, name="conv")(x)
        return nn.relu(x if paper else layers.BatchNorm(epsilon=1e-3, **kinds, name="norm")(x, train=train))


def _begin(form: Form, bias: float = 0.2) -> dict[str, Any]:
    """Initialisers; the last layers begin with a bias of zero."""
    if form == "paper":
        return {"kernel_init": nn.initializers.lecun_uniform(), "bias_init": nn.initializers.constant(bias)}
    return {"kernel_init": nn.initializers.truncated_normal(0.01)}


def _normalised(x: Array) -> Array:
    return local_response_norm(x, size=5, alpha=1e-4 / 5, beta=0.75, k=1)


def _mean_to(x: Array, n: int) -> Array:
    """Means over n x n windows of an image of any size; they overlap if n does not divide it, as in PyTorch."""
    for axis in (1, 2):
        size = x.shape[axis]
        spans = [(i * size // n, -(-(i + 1) * size // n)) for i in range(n)]
        x = jnp.concatenate([lax.slice_in_dim(x, *span, axis=axis).mean(axis, keepdims=True) for span in spans], axis)
    return x
