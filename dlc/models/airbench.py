"""The network that trains to 94 % on CIFAR-10 in seconds.

Glossary: B batch, H W height and width, C channels, K classes.

References:
    [1] Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498, sections 2 and 3.
    [2] The programs of cifar10-airbench: airbench94_muon.py, airbench95.py and airbench96_faster.py. The last two scale
        logits by 1/9 and normalise with another momentum.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dlc import layers
from dlc.errors import UserError
from dlc.layers import pooling


class Airbench(nn.Module):
    """A frozen whitening layer, three groups of convolutions, a dense layer: 1,971,640 weights, 288 of them frozen.

    32 x 32 x 3 -> 2x2 whitening: 31 x 31 x 24 -> groups: 15 x 15 x 64, 7 x 7 x 256, 3 x 3 x 256 -> pool 3: 256 -> 10.
    The whitening kernel, [2, 2, C, 8 C], is not a parameter. It is in the collection "whitening" and zero until it is
    set to the result of `whitening(images)`; its bias is learnt. Logits are divided by the width.

    Raises UserError if the images are smaller than 25 x 25.
    """

    widths: tuple[int, ...] = (64, 256, 256)
    depth: int = 2  # convolutions in a group
    num_classes: int = 10
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = _gelu(_Whitening(**kinds, name="whitening")(x))
        for i, width in enumerate(self.widths, 1):
            x = _Group(width, self.depth, **kinds, name=f"group{i}")(x, train=train)
        x = pooling.max_pool(x, (3, 3))
        x = layers.flatten(x)
        x = layers.Dense(self.num_classes, use_bias=False, kernel_init=_unit, **kinds, name="dense")(x)
        return x / self.widths[-1]


def airbench94(num_classes: int = 10, dtype: Any = None) -> Airbench:
    """The network that reaches 94 %: 1,971,640 weights."""
    return Airbench(num_classes=num_classes, dtype=dtype)


def airbench95(num_classes: int = 10, dtype: Any = None) -> Airbench:
    """The network of airbench95, with the normalisation of airbench94_muon: 4,604,728 weights."""
    return Airbench((128, 384, 384), 2, num_classes, dtype)


def airbench96(num_classes: int = 10, dtype: Any = None) -> Airbench:
    """The network of airbench96_faster, with the normalisation of airbench94_muon: 9,915,704 weights.

    It is wider, and each group has a third convolution and a shortcut around its last two.
    """
    return Airbench((128, 384, 512), 3, num_classes, dtype)


def whitening(
    images: Float[Array | np.ndarray, "N H W C"], size: int = 2, eps: float = 5e-4
) -> Float[Array, "size size C filters"]:
    """The kernel [size, size, C, 2 size^2 C] that whitens all `size` x `size` patches of standardised images.

        P'P / count = V diag(l) V',  filters = V / sqrt(l + eps), then their negatives

    P has one row for each patch and is not centred. The responses of a filter have the mean square l / (l + eps). This
    is about 1 unless the variance in its direction is below `eps`, which keeps noise from being amplified. The
    strongest direction comes first. With the negatives, a ReLU or GELU loses no information. It is at least float32.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv 2404.00498), section 3.2, after Page
    2019, "How to train your ResNet 8: bag of tricks".

    Raises UserError if a patch is larger than an image.
    """
    _, H, W, C = images.shape
    h, w = H - size + 1, W - size + 1
    if min(h, w) < 1:
        raise UserError(f"a patch of {size}x{size} is larger than its image of {H}x{W}")
    images = jnp.asarray(images)
    images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    shifts = [images[:, y : y + h, x : x + w] for y in range(size) for x in range(size)]
    patches = jnp.concatenate(shifts, axis=-1).reshape(-1, size * size * C)
    # The ten bits of a product that GPUs and TPUs use by default are too few for the small eigenvalues.
    covariance = jnp.matmul(patches.T, patches, precision="highest") / patches.shape[0]
    values, vectors = jnp.linalg.eigh(covariance)
    filters = (vectors / jnp.sqrt(jnp.maximum(values, 0) + eps)[None, :])[:, ::-1]
    return jnp.concatenate([filters, -filters], axis=1).reshape(size, size, C, -1)


class _Whitening(nn.Module):
    """A 2x2 convolution with a fixed kernel and a learnt bias."""

    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        channels = x.shape[-1]
        shape = (2, 2, channels, 8 * channels)
        kernel = self.variable("whitening", "kernel", jnp.zeros, shape, self.param_dtype).value
        bias = self.param("bias", layers.fan_in_uniform(4 * channels), shape[-1:], self.param_dtype)
        dtype = self.dtype or x.dtype
        y = layers.conv(x.astype(dtype), kernel.astype(dtype))
        return y + bias.astype(dtype).reshape(1, 1, 1, -1)


class _Group(nn.Module):
    """conv, pool, norm, GELU, then conv, norm, GELU; with depth 3 the last three twice, with a shortcut."""

    width: int
    depth: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def conv(name: str) -> layers.Conv:
            return layers.Conv(
                self.width, (3, 3), padding="SAME", use_bias=False, kernel_init=partial_identity, **kinds, name=name
            )

        def norm(name: str) -> layers.BatchNorm:
            # Almost no epsilon, and a momentum of only 0.6, because a run has a few hundred steps.
            return layers.BatchNorm(0.6, 1e-12, use_scale=False, **kinds, name=name)

        x = pooling.max_pool(conv("conv1")(x), (2, 2))
        x = y = _gelu(norm("norm1")(x, train=train))
        for i in range(2, self.depth + 1):
            y = norm(f"norm{i}")(conv(f"conv{i}")(y), train=train)
            y = _gelu(x + y if i == self.depth > 2 else y)
        return y


def _gelu(x: Array) -> Array:
    return nn.gelu(x, approximate=False)


def partial_identity(key: Any, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
    """An initialiser: the first I of the O filters pass each channel on (Dirac); the others begin as PyTorch's do."""
    kernel = layers.fan_in_uniform()(key, shape, dtype)
    kh, kw, inputs, outputs = shape
    same = min(inputs, outputs)
    centre = jnp.zeros((kh, kw, inputs, same), dtype).at[kh // 2, kw // 2, jnp.arange(same), jnp.arange(same)].set(1)
    return kernel.at[..., :same].set(centre)


def _unit(key: Any, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
    """PyTorch's default, scaled to a standard deviation of one."""
    kernel = layers.fan_in_uniform()(key, shape, dtype)
    return kernel / kernel.std(ddof=1)
