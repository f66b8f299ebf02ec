"""What three or more models share: dense layers, convolution, batch norm, dropout: functions and Linen modules.

Shapes: B batch, H W height and width, h w the same after the layer, C channels, KH KW height and width of a kernel,
I O its input channels (those of one group) and output channels, D features. Images are NHWC, [B, H, W, C]; kernels
HWIO, [KH, KW, I, O].

Every function here gives one result in one of two forms. The plain form (`plain_conv`, `plain_batch_norm`) is XLA's own
and is what runs on GPU and TPU. On a CPU XLA's convolution is slow (its gradients, inside `lax.scan`, up to sixty times
slower still); there small images take a form made of one matrix product and reductions, and others one of `dlc/cpu.py`.
The choice is made while compiling, so the program holds the chosen form alone.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from dlc.errors import UserError
from dlc.layers import cpu, pooling

Padding = str | Sequence[tuple[int, int]]

# Numbers gathered from one image up to which the matrix product is chosen on CPU. There it took 0.5 to 1.35 times what
# XLA's convolution takes, and inside `lax.scan` 0.5 to 0.02 times. Beyond, a batch of 128 would gather over 128 MiB.
_LARGEST_GATHER = 2**18


def fan_in_uniform(fan_in: int | None = None) -> Initializer:
    """PyTorch's default initialiser for the weights and the biases of its linear and convolutional layers.

    U(-1/sqrt(fan_in), 1/sqrt(fan_in)), fan_in being the number of inputs that one output sums over. Without `fan_in`
    it is read from the shape: all axes but the last, which counts the outputs. (PyTorch writes the weights' half as
    `kaiming_uniform_(a=sqrt(5))`, which is the same.) A bias must be given its kernel's.
    """

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        bound = 1 / math.sqrt(fan_in or math.prod(shape[:-1]))
        return jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=out_sharding)

    return init


def conv(
    x: Shaped[Array, "B H W C"],
    kernel: Shaped[Array, "KH KW I O"],
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "VALID",
    groups: int = 1,
    dilation: tuple[int, int] = (1, 1),
) -> Shaped[Array, "B h w O"]:
    """Convolution as the field uses the word, that is cross-correlation.

    y[b, i, j, o] = sum over u, v, c of x[b, i s + u, j t + v, c] kernel[u, v, c, o], the strides being (s, t). With
    `groups` the channels of input and output are parted into so many, and each group of outputs sees its own of inputs
    alone; with a `dilation` of (d, e) it is x[b, i s + u d, j t + v e, c].

    On a CPU float32 and float64 kernels of 3x3, stride 1 and 16 channels or more have reverse mode alone; `plain_conv`
    has `jax.jvp` too, and so has every GPU and TPU.

    Raises UserError when the kernel is larger than the padded image or made for another number of channels.
    """
    size = tuple((n - 1) * d + 1 for n, d in zip(kernel.shape[:2], dilation, strict=True))
    rows, columns = lax.padtype_to_pads(x.shape[1:3], size, strides, padding) if isinstance(padding, str) else padding
    pads = ((rows[0], rows[1]), (columns[0], columns[1]))
    padded = tuple(n + sum(pad) for n, pad in zip(x.shape[1:3], pads, strict=True))
    _check("kernel", size, padded, kernel.shape[2] * groups, x.shape[3])
    plain = functools.partial(plain_conv, strides=strides, padding=pads, groups=groups, dilation=dilation)
    if dilation != (1, 1):
        return plain(x, kernel)
    if groups > 1:
        of_a_group = functools.partial(conv, strides=strides, padding=pads)

        def parted(x: Array, kernel: Array) -> Array:
            pairs = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
            return jnp.concatenate([of_a_group(*pair) for pair in pairs], -1)

        return lax.platform_dependent(x, kernel, cpu=parted, default=plain)
    if cpu.has_conv3x3(x, kernel, strides, pads):
        return lax.platform_dependent(x, kernel, cpu=functools.partial(cpu.conv3x3, pads=pads), default=plain)
    gathered = math.prod(pooling.count(padded, size, strides)) * math.prod(kernel.shape[:3])
    if size != (1, 1) and gathered > _LARGEST_GATHER:  # of a 1x1 kernel nothing is gathered
        return lax.platform_dependent(
            x, kernel, cpu=functools.partial(cpu.conv, strides=strides, pads=pads), default=plain
        )

    def gemm(x: Array, kernel: Array) -> Array:
        return _correlate(jnp.pad(x, ((0, 0), *pads, (0, 0))), kernel, strides)

    return lax.platform_dependent(x, kernel, cpu=gemm, default=plain)


def conv_max_pool(
    x: Shaped[Array, "B H W C"],
    kernel: Shaped[Array, "KH KW I O"],
    bias: Shaped[Array, " O"],
    window: tuple[int, int],
) -> Shaped[Array, "B h w O"]:
    """`max_pool(conv(x, kernel) + bias, window)`, which is faster on CPU in one piece.

    There each row of the matrix product is one *pooled* pixel: it holds the tile of the image that a p x q pooling
    window sees, (KH + p - 1) x (KW + q - 1), and meets p q shifted copies of the kernel, one for each position in the
    window. Tiles overlap less than the windows of a convolution, so there is several times less to gather, for up to
    twice the arithmetic, and the candidates for a maximum come out side by side.

    Raises UserError when the kernel is larger than the image or made for another number of channels, or the window is
    larger than what the convolution leaves.
    """
    (p, q), (kh, kw, channels, features) = window, kernel.shape
    image, tile = x.shape[1:3], (kh + p - 1, kw + q - 1)
    _check("kernel", (kh, kw), image, channels, x.shape[3])
    _check("pooling window", window, pooling.count(image, (kh, kw), (1, 1)))
    bias = bias.reshape(1, 1, 1, -1)
    if math.prod(pooling.count(image, tile, window)) * math.prod(tile) * channels > _LARGEST_GATHER:
        return pooling.max_pool(conv(x, kernel) + bias, window)

    def gemm(x: Array, kernel: Array) -> Array:
        shifts = [((i, p - 1 - i), (j, q - 1 - j), (0, 0), (0, 0)) for i in range(p) for j in range(q)]
        kernels = jnp.stack([jnp.pad(kernel, shift) for shift in shifts], axis=3)
        y = _correlate(x, kernels.reshape(*tile, channels, p * q * features), window)
        return pooling.first_max(y.reshape(*y.shape[:3], p * q, features), (3,))

    def plain(x: Array, kernel: Array) -> Array:
        return pooling.plain_max_pool(plain_conv(x, kernel), window)

    # A maximum commutes with adding a constant, and after it there is less to add to.
    return lax.platform_dependent(x, kernel, cpu=gemm, default=plain) + bias


def plain_conv(
    x: Shaped[Array, "B H W C"],
    kernel: Shaped[Array, "KH KW I O"],
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "VALID",
    groups: int = 1,
    dilation: tuple[int, int] = (1, 1),
) -> Shaped[Array, "B h w O"]:
    """`conv` by XLA's own convolution."""
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def dense(x: Shaped[Array, "*B D"], kernel: Shaped[Array, "D O"]) -> Shaped[Array, "*B O"]:
    """x kernel, the product of the last axis; on a CPU in a form whose gradient for the kernel is faster."""
    if not cpu.is_default():
        return x @ kernel

    def of_matrices(x: Array, kernel: Array) -> Array:
        return _matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[1])

    return lax.platform_dependent(x, kernel, cpu=of_matrices, default=jnp.matmul)


class Dense(nn.Module):
    """Affine map of the last axis, x kernel + bias: `nn.Dense` with PyTorch's default initialisation."""

    features: int
    use_bias: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = fan_in_uniform()
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Shaped[Array, "*B D"]) -> Shaped[Array, "*B {self.features}"]:
        x, kernel, *bias = _operands(self, x, (x.shape[-1],), self.use_bias)
        y = dense(x, kernel)
        return y + bias[0].reshape((1,) * (y.ndim - 1) + (-1,)) if bias else y


class Conv(nn.Module):
    """`conv` and a bias: `nn.Conv` with PyTorch's default initialisation."""

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "VALID"
    use_bias: bool = True
    groups: int = 1
    dilation: tuple[int, int] = (1, 1)
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = fan_in_uniform()
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Shaped[Array, "B H W C"]) -> Shaped[Array, "B h w {self.features}"]:
        if x.shape[-1] % self.groups or self.features % self.groups:
            raise UserError(
                f"{self.groups} groups do not divide {x.shape[-1]} input and {self.features} output channels"
            )
        x, kernel, *bias = _operands(self, x, (*self.kernel_size, x.shape[-1] // self.groups), self.use_bias)
        y = conv(x, kernel, strides=self.strides, padding=self.padding, groups=self.groups, dilation=self.dilation)
        return y + bias[0].reshape(1, 1, 1, -1) if bias else y


class ConvMaxPool(nn.Module):
    """`conv_max_pool`: the parameters and the result of `Conv` followed by `max_pool`."""

    features: int
    kernel_size: tuple[int, int]
    window: tuple[int, int]
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = fan_in_uniform()
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Shaped[Array, "B H W C"]) -> Shaped[Array, "B h w {self.features}"]:
        x, kernel, bias = _operands(self, x, (*self.kernel_size, x.shape[-1]))
        return conv_max_pool(x, kernel, bias, self.window)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last: y = (x - mean) / sqrt(var + epsilon) * scale + bias.

    In training mean and variance are the batch's, else the running ones in the collection "batch_stats", of which each
    training step keeps the share `momentum`. As in the paper (and PyTorch) the running variance averages the unbiased
    variance m / (m - 1) var of the m numbers that a batch has for each channel; `nn.BatchNorm` averages the biased one.
    Statistics are at least float32 and the result has the compute dtype.

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
        running = {
            "mean": self.variable("batch_stats", "mean", lambda: jnp.zeros(shape, jnp.float32)),
            "var": self.variable("batch_stats", "var", lambda: jnp.ones(shape, jnp.float32)),
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


class Dropout(nn.Module):
    """In training, each number is zero with probability `rate`, and the others are divided by 1 - rate.

    `nn.Dropout` draws 32 bits for each number; this draws 16, half the cost on a CPU, and `rate` is rounded to 1/65536.
    The key is that of the collection "dropout".

    References: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting".
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, train: bool = False) -> Float[Array, "..."]:
        if not 0 <= self.rate < 1:
            raise UserError(f"dropout must be at least 0 and less than 1, not {self.rate}")
        if not (train and self.rate):
            return x
        words = jax.random.bits(self.make_rng("dropout"), (-(-x.size // 2),))
        bits = lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[: x.size].reshape(x.shape)
        return jnp.where(bits >= round(self.rate * 2**16), x / (1 - self.rate), 0).astype(x.dtype)


def batch_norm(
    x: Float[Array, "*B C"], scale: Float[Array, " C"], bias: Float[Array, " C"], epsilon: float
) -> tuple[Float[Array, "*B C"], Float[Array, " C"], Float[Array, " C"]]:
    """`x` normalised by its own statistics, with its mean and its (biased) variance, which have no gradient."""
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


def _normalise(x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    factor = scale * lax.rsqrt(var + epsilon)
    return (x - _last(mean, x)) * _last(factor, x) + _last(bias, x)


def _last(values: Array, x: Array) -> Array:
    return values.reshape((1,) * (x.ndim - 1) + (-1,))


def _operands(
    module: Dense | Conv | ConvMaxPool, x: Array, inputs: tuple[int, ...], use_bias: bool = True
) -> list[Array]:
    """The input, kernel and bias, if it has one, of a module, in its compute dtype."""
    if module.has_variable("params", "kernel"):
        made_for: int = module.get_variable("params", "kernel").shape[-2]
        if made_for != inputs[-1]:
            raise UserError(f"the weights of {module.name} are for inputs of {made_for} channels, not {inputs[-1]}")
    kernel = module.param("kernel", module.kernel_init, (*inputs, module.features), module.param_dtype)
    if not use_bias:
        return promote_dtype(x, kernel, dtype=module.dtype)
    bias_init = module.bias_init or fan_in_uniform(math.prod(inputs))
    bias = module.param("bias", bias_init, (module.features,), module.param_dtype)
    return promote_dtype(x, kernel, bias, dtype=module.dtype)


def _correlate(x: Array, kernel: Array, strides: tuple[int, int]) -> Array:
    """`plain_conv` without padding, by gathering every window into a row of one matrix."""
    (kh, kw, _, features), (s, t) = kernel.shape, strides
    h, w = pooling.count(x.shape[1:3], (kh, kw), strides)
    if h * w <= kh * kw:  # the fewer and longer copies
        windows = [x[:, i * s : i * s + kh, j * t : j * t + kw] for i in range(h) for j in range(w)]
        rows = jnp.stack(windows, axis=1)
    else:
        bottom, right = (h - 1) * s + 1, (w - 1) * t + 1
        pixels = [x[:, i : i + bottom : s, j : j + right : t] for i in range(kh) for j in range(kw)]
        rows = jnp.concatenate(pixels, axis=3)
    # Two axes each: the gradient of a product over more of them transposes what it multiplies, at half the speed.
    kernel = kernel.reshape(-1, features)
    return _matmul(rows.reshape(-1, len(kernel)), kernel).reshape(-1, h, w, features)


@jax.custom_jvp
def _matmul(a: Array, b: Array) -> Array:
    return a @ b


@_matmul.defjvp
def _matmul_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (a, b), (da, db) = primals, tangents
    # On CPU XLA's faster matrix product (YNNPACK) sums over the left operand's last axis only, and the gradient for `b`
    # sums over the first of `a`. The barrier keeps XLA from folding the transposition into its slower product.
    at = lax.optimization_barrier(a.T)
    return a @ b, da @ b + at.T @ db


def _check(
    name: str, size: Sequence[int], image: Sequence[int], channels: int | None = None, image_channels: int | None = None
) -> None:
    pooling.check_size(name, size, image)
    if channels != image_channels:
        raise UserError(f"a {name} for {channels} channels cannot read an image of {image_channels}")
