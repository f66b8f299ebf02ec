"""Batch normalisation, and normalisation over neighbouring channels.

Shapes: B batch, H W height and width, C channels.

As in `basic.py`, each function has a plain form, which runs on GPU and TPU, and one in `cpu.py`.
"""

import functools
import math

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dlc.layers import cpu


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last: y = (x - mean) / sqrt(var + epsilon) * scale + bias.

    In training, mean and variance are those of the batch. In evaluation they are the running averages in the collection
    "batch_stats", which each training step multiplies by `momentum` before it adds its share. As in the paper (and
    PyTorch), the running variance averages the unbiased variance, m / (m - 1) var for the m numbers that a batch has
    for each channel; `nn.BatchNorm` averages the biased one. Statistics are float32 or wider, and the result has the
    compute dtype.

    References: Ioffe, Szegedy 2015, "Batch normalization", algorithms 1 and 2.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    scale_init: Initializer = nn.initializers.ones
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"], *, train: bool = False) -> Float[Array, "*B C"]:
        shape, full = x.shape[-1:], jnp.promote_types(x.dtype, jnp.float32)
        kept = jnp.promote_types(self.param_dtype, jnp.float32)
        running = {
            "mean": self.variable("batch_stats", "mean", lambda: jnp.zeros(shape, kept)),
            "var": self.variable("batch_stats", "var", lambda: jnp.ones(shape, kept)),
        }
        scale = self.param("scale", self.scale_init, shape, self.param_dtype) if self.use_scale else jnp.ones(shape)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype) if self.use_bias else jnp.zeros(shape)
        scale, bias = scale.astype(full), bias.astype(full)
        if not train or self.is_initializing():
            y = _normalise(x.astype(full), running["mean"].value, running["var"].value, scale, bias, self.epsilon)
        else:
            y, *batch = batch_norm(x.astype(full), scale, bias, self.epsilon)
            unbiased = math.prod(x.shape[:-1]) / max(1, math.prod(x.shape[:-1]) - 1)
            for old, new in zip(running.values(), (batch[0], batch[1] * unbiased), strict=True):
                old.value = (self.momentum * old.value + (1 - self.momentum) * new).astype(old.value.dtype)
        return y.astype(self.dtype or x.dtype)


def batch_norm(
    x: Float[Array, "*B C"], scale: Float[Array, " C"], bias: Float[Array, " C"], epsilon: float
) -> tuple[Float[Array, "*B C"], Float[Array, " C"], Float[Array, " C"]]:
    """`x` normalised by its own statistics; its mean and its (biased) variance, which pass no gradient on."""
    plain = functools.partial(plain_batch_norm, epsilon=epsilon)
    fast = functools.partial(cpu.batch_norm, epsilon=epsilon) if cpu.is_default() else plain
    y, mean, var = lax.platform_dependent(x, scale, bias, cpu=fast, default=plain)
    return y, lax.stop_gradient(mean), lax.stop_gradient(var)


def plain_batch_norm(
    x: Float[Array, "*B C"], scale: Float[Array, " C"], bias: Float[Array, " C"], epsilon: float
) -> tuple[Float[Array, "*B C"], Float[Array, " C"], Float[Array, " C"]]:
    """`batch_norm` with the gradient that JAX derives."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    var = jnp.square(x - _last(mean, x)).mean(axes)
    return _normalise(x, mean, var, scale, bias, epsilon), mean, var


def local_response_norm(
    x: Float[Array, "B H W C"], size: int, alpha: int | float, beta: int | float, k: int | float
) -> Float[Array, "B H W C"]:
    """x / (k + alpha sum of x^2 over the `size` channels around each)^beta, computed in float32 or wider.

    References: Krizhevsky, Sutskever, Hinton 2012, "ImageNet classification with deep convolutional neural networks",
    section 3.3. (PyTorch and Caffe divide their alpha by `size`.)
    """
    full = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.square(full)
    around = (size // 2, (size - 1) // 2)

    def windowed(squares: Array) -> Array:
        pads = ((0, 0), (0, 0), (0, 0), around)
        return lax.reduce_window(squares, 0.0, lax.add, (1, 1, 1, size), (1, 1, 1, 1), pads)

    banded = functools.partial(cpu.sum_around, before=around[0], after=around[1])
    total = lax.platform_dependent(squares, cpu=banded, default=windowed)
    return (full * (k + alpha * total) ** -beta).astype(x.dtype)


def _normalise(x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    factor = scale * lax.rsqrt(var + epsilon)
    return (x - _last(mean, x)) * _last(factor, x) + _last(bias, x)


def _last(values: Array, x: Array) -> Array:
    return values.reshape((1,) * (x.ndim - 1) + (-1,))
