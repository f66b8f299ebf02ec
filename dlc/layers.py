"""What three or more models share: dense layers, convolution and max-pooling, as functions and as Linen modules.

Shapes: B batch, H W height and width, h w the same after the layer, C channels, KH KW height and width of a kernel,
I O its input and output channels (I = C), D features. Images are NHWC, [B, H, W, C]; kernels HWIO, [KH, KW, I, O].

Every function here gives one result in one of two forms. The plain form (`plain_conv`, `plain_max_pool`) is XLA's own
and is what runs on GPU and TPU. On a CPU XLA's convolution is slow (inside `lax.scan` up to sixty times slower still)
and so is the gradient of its pooling; there all but large images take a form made of one matrix product and
reductions. The choice is made while compiling, so the program holds the chosen form alone.
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
from jaxtyping import Array, Shaped

from dlc.errors import UserError

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
) -> Shaped[Array, "B h w O"]:
    """Convolution as the field uses the word, that is cross-correlation.

    y[b, i, j, o] = sum over u, v, c of x[b, i s + u, j t + v, c] kernel[u, v, c, o], the strides being (s, t).

    Raises UserError when the kernel is larger than the padded image or made for another number of channels.
    """
    size = kernel.shape[:2]
    pads = tuple(lax.padtype_to_pads(x.shape[1:3], size, strides, padding)) if isinstance(padding, str) else padding
    padded = tuple(n + sum(pad) for n, pad in zip(x.shape[1:3], pads, strict=True))
    _check("kernel", size, padded, kernel.shape[2], x.shape[3])
    plain = functools.partial(plain_conv, strides=strides, padding=pads)
    if math.prod(_count(padded, size, strides)) * math.prod(kernel.shape[:3]) > _LARGEST_GATHER:
        return plain(x, kernel)

    def gemm(x: Array, kernel: Array) -> Array:
        return _correlate(jnp.pad(x, ((0, 0), *pads, (0, 0))), kernel, strides)

    return lax.platform_dependent(x, kernel, cpu=gemm, default=plain)


def max_pool(x: Shaped[Array, "B H W C"], window: tuple[int, int]) -> Shaped[Array, "B h w C"]:
    """Maximum over windows that lie side by side; rows and columns that do not fill one are dropped.

    Of equal maxima the first, row by row, receives the gradient, as in PyTorch.

    Raises UserError when the window is larger than the image.
    """
    _check("pooling window", window, x.shape[1:3])

    def reduce(x: Array) -> Array:
        (p, q), (h, w) = window, _count(x.shape[1:3], window, window)
        return _first_max(x[:, : h * p, : w * q].reshape(-1, h, p, w, q, x.shape[3]), (2, 4))

    return lax.platform_dependent(x, cpu=reduce, default=functools.partial(plain_max_pool, window=window))


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
    _check("pooling window", window, _count(image, (kh, kw), (1, 1)))
    bias = bias.reshape(1, 1, 1, -1)
    if math.prod(_count(image, tile, window)) * math.prod(tile) * channels > _LARGEST_GATHER:
        return max_pool(conv(x, kernel) + bias, window)

    def gemm(x: Array, kernel: Array) -> Array:
        shifts = [((i, p - 1 - i), (j, q - 1 - j), (0, 0), (0, 0)) for i in range(p) for j in range(q)]
        kernels = jnp.stack([jnp.pad(kernel, shift) for shift in shifts], axis=3)
        y = _correlate(x, kernels.reshape(*tile, channels, p * q * features), window)
        return _first_max(y.reshape(*y.shape[:3], p * q, features), (3,))

    def plain(x: Array, kernel: Array) -> Array:
        return plain_max_pool(plain_conv(x, kernel), window)

    # A maximum commutes with adding a constant, and after it there is less to add to.
    return lax.platform_dependent(x, kernel, cpu=gemm, default=plain) + bias


def plain_conv(
    x: Shaped[Array, "B H W C"],
    kernel: Shaped[Array, "KH KW I O"],
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "VALID",
) -> Shaped[Array, "B h w O"]:
    """`conv` by XLA's own convolution."""
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def plain_max_pool(x: Shaped[Array, "B H W C"], window: tuple[int, int]) -> Shaped[Array, "B h w C"]:
    """`max_pool` by XLA's own windowed reduction."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *window, 1), "VALID")


class Dense(nn.Module):
    """Affine map of the last axis, x kernel + bias: `nn.Dense` with PyTorch's default initialisation."""

    features: int
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = fan_in_uniform()
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Shaped[Array, "*B D"]) -> Shaped[Array, "*B {self.features}"]:
        x, kernel, bias = _operands(self, x, (x.shape[-1],))
        return x @ kernel + bias.reshape((1,) * (x.ndim - 1) + (-1,))


class Conv(nn.Module):
    """`conv` with a bias: `nn.Conv` with PyTorch's default initialisation."""

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "VALID"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = fan_in_uniform()
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Shaped[Array, "B H W C"]) -> Shaped[Array, "B h w {self.features}"]:
        x, kernel, bias = _operands(self, x, (*self.kernel_size, x.shape[-1]))
        return conv(x, kernel, strides=self.strides, padding=self.padding) + bias.reshape(1, 1, 1, -1)


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


def _operands(module: Dense | Conv | ConvMaxPool, x: Array, inputs: tuple[int, ...]) -> list[Array]:
    """The input, kernel and bias of a module, in its compute dtype."""
    kernel = module.param("kernel", module.kernel_init, (*inputs, module.features), module.param_dtype)
    bias_init = module.bias_init or fan_in_uniform(math.prod(inputs))
    bias = module.param("bias", bias_init, (module.features,), module.param_dtype)
    return promote_dtype(x, kernel, bias, dtype=module.dtype)


def _correlate(x: Array, kernel: Array, strides: tuple[int, int]) -> Array:
    """`plain_conv` without padding, by gathering every window into a row of one matrix."""
    (kh, kw, _, features), (s, t) = kernel.shape, strides
    h, w = _count(x.shape[1:3], (kh, kw), strides)
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _first_max(x: Array, axes: tuple[int, ...]) -> Array:
    """`jnp.max(x, axes)`, whose gradient goes to the first maximum instead of being shared among equal ones."""
    return jnp.max(x, axes)


@_first_max.defjvp
def _first_max_jvp(axes: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    sizes = [n if axis in axes else 1 for axis, n in enumerate(x.shape)]
    position = jnp.arange(math.prod(sizes), dtype=jnp.int32).reshape(sizes)
    largest = jnp.max(x, axes, keepdims=True)
    # Reductions, because XLA would compute an unrolled argmax again inside everything that reads it.
    first = jnp.min(jnp.where(x == largest, position, position.size), axes, keepdims=True)
    return jnp.squeeze(largest, axes), jnp.sum(jnp.where(first == position, dx, 0), axes)


def _count(image: Sequence[int], size: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """How many windows fit, down and across."""
    return tuple((n - k) // s + 1 for n, k, s in zip(image, size, strides, strict=True))


def _check(
    name: str, size: Sequence[int], image: Sequence[int], channels: int | None = None, image_channels: int | None = None
) -> None:
    if any(k > n for k, n in zip(size, image, strict=True)):
        raise UserError(f"a {name} of {size[0]}x{size[1]} is larger than its image of {image[0]}x{image[1]}")
    if channels != image_channels:
        raise UserError(f"a {name} for {channels} channels cannot read an image of {image_channels}")
