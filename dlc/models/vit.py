"""ViT: a transformer that reads an image as a sequence of patches.

Glossary: B batch, H W height and width of an image, P of a patch, T the class token and (H / P) (W / P) patches,
D width, N heads, K classes.

References:
    [1] Dosovitskiy et al. 2020, "An image is worth 16x16 words", section 3.1 and table 1; dropout is in table 3 and
        appendix B.1, initial weights are in the authors' program.
    [2] Touvron et al. 2020, "Training data-efficient image transformers" (DeiT), table 1: the sizes Ti and S.
    [3] Abnar, Zuidema 2020, "Quantifying attention flow in transformers", section 3: rollout.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlc import layers
from dlc.errors import UserError
from dlc.layers.attention import AXES, Attention, Axes


@dataclass(frozen=True)
class ViTConfig:
    """The sizes of a ViT. The defaults are ViT-B/16 for ImageNet."""

    image: int = 224  # height and width
    patch: int = 16
    classes: int = 1000
    layers: int = 12
    heads: int = 12
    width: int = 768
    hidden: int | None = None  # of the feed-forward part; the default is 4 width
    dropout: float = 0.1  # after the positions and all dense layers except query, key and value
    epsilon: float = 1e-6  # of the norms
    dtype: Any = None
    param_dtype: Any = "float32"
    remat: bool = False  # compute the activations of a block again in the backward pass instead of keeping them


class ViT(nn.Module):
    """From images to logits: patches, `layers` blocks, norm, and a dense layer that reads the class token.

    The last layer begins at zero, so that the first loss is log K.

    Raises UserError if the image does not have the configured size, the patches do not divide it, or the heads do not
    divide the width.
    """

    config: ViTConfig = ViTConfig()
    axes: ClassVar[Axes] = {
        **AXES, "up/kernel": (None, "hidden"), "up/bias": ("hidden",), "down/kernel": ("hidden", None),
    }  # fmt: skip

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 3"], *, train: bool = False) -> Float[Array, "B K"]:
        c = self.config
        if c.image % c.patch:
            raise UserError(f"patches of {c.patch}x{c.patch} do not divide an image of {c.image}x{c.image}")
        if image.shape[1:3] != (c.image, c.image):
            raise UserError(
                f"this ViT has positions for images of {c.image}x{c.image}, not {image.shape[1]}x{image.shape[2]}: "
                "resize them, or set `image`"
            )
        kinds = {"dtype": c.dtype, "param_dtype": c.param_dtype}
        dense: Any = functools.partial(layers.Dense, **kinds, bias_init=nn.initializers.zeros)

        x = dense(c.width, kernel_init=nn.initializers.lecun_normal(), name="patch")(patches(image, c.patch))
        first = self.param("class", nn.initializers.zeros, (1, 1, c.width), c.param_dtype).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, c.width)), x], axis=1)
        places = self.param("position", nn.initializers.normal(0.02), (1, *x.shape[1:]), c.param_dtype)
        x = layers.Dropout(c.dropout)(x + places.astype(x.dtype), train=train)
        for i in range(c.layers):
            x = layers.remat(_Block(c, name=f"block{i}"), c.remat)(x, train=train)
        x = nn.LayerNorm(c.epsilon, **kinds, name="norm")(x)
        return dense(c.classes, kernel_init=nn.initializers.zeros, name="head")(x[:, 0])


def vit_ti16(**changes: Any) -> ViT:
    """5,717,416 weights, the smallest model of DeiT [2]. `changes` are fields of `ViTConfig`."""
    return ViT(ViTConfig(**{"heads": 3, "width": 192, **changes}))


def vit_s16(**changes: Any) -> ViT:
    """22,050,664 weights, the small model of DeiT [2]."""
    return ViT(ViTConfig(**{"heads": 6, "width": 384, **changes}))


def vit_b16(**changes: Any) -> ViT:
    """86,567,656 weights: "base" in table 1 [1]."""
    return ViT(ViTConfig(**changes))


def vit_l16(**changes: Any) -> ViT:
    """304,326,632 weights: "large" in table 1 [1]."""
    return ViT(ViTConfig(**{"layers": 24, "heads": 16, "width": 1024, **changes}))


def vit_cifar(**changes: Any) -> ViT:
    """2,693,578 weights, for 32x32 images of 10 classes. This size is ours and not in a paper."""
    ours = {"image": 32, "patch": 4, "classes": 10, "layers": 6, "heads": 3, "width": 192, "dropout": 0.0}
    return ViT(ViTConfig(**{**ours, **changes}))


def patches(image: Float[Array, "B H W C"], size: int) -> Float[Array, "B T F"]:
    """The squares of the image in row order, each flattened to size x size x C numbers, also in row order."""
    B, H, W, C = image.shape
    squares = image.reshape(B, H // size, size, W // size, size, C).transpose(0, 1, 3, 2, 4, 5)
    return squares.reshape(B, (H // size) * (W // size), size * size * C)


def attention_rollout(weights: Sequence[Float[Array, "B N T T"]]) -> Float[Array, "B T T"]:
    """How much each input token contributes to each output token, if only attention and shortcuts are considered.

    This is the product over the layers, the first on the right, of (mean over heads + identity) / 2; each row sums to
    one. Row 0 without its first entry shows what the class token looks at. The weights are found in
    `block{i}/attention/weights` after `model.apply(variables, image, mutable=["intermediates"])`.

    References: section 3 of [3].
    """
    dtype = jnp.promote_types(weights[0].dtype, jnp.float32)
    rollout = identity = jnp.eye(weights[0].shape[-1], dtype=dtype)[None]
    for layer in weights:
        mixed = layer.astype(dtype).mean(1) + identity
        rollout = mixed / mixed.sum(-1, keepdims=True) @ rollout
    return rollout


class _Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, train: bool) -> Float[Array, "B T D"]:
        c = self.config
        kinds = {"dtype": c.dtype, "param_dtype": c.param_dtype}
        spread, nearly_zero = nn.initializers.xavier_uniform(), nn.initializers.normal(1e-6)
        dense: Any = functools.partial(layers.Dense, **kinds, kernel_init=spread, bias_init=nearly_zero)
        drop = functools.partial(layers.Dropout(c.dropout), train=train)
        # The scale that three separate kernels would have: as one kernel, they seem to have three times the outputs.
        three = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")
        attend = Attention(c.width, c.heads, **kinds, kernel_init=three, out_init=spread, name="attention")
        x = x + drop(attend(nn.LayerNorm(c.epsilon, **kinds, name="norm1")(x)))
        y = nn.LayerNorm(c.epsilon, **kinds, name="norm2")(x)
        y = drop(nn.gelu(dense(c.hidden or 4 * c.width, name="up")(y), approximate=False))
        return x + drop(dense(c.width, name="down")(y))
