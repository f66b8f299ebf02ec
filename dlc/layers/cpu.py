"""The forms of layers that are fast on a CPU, where XLA's own are slow. The other files of this folder choose them.

Each form has the parameters and the result of the plain form beside which it is chosen.

Convolution. XLA's is slow on a CPU, and its gradients are up to sixty times slower still inside `lax.scan`.

- For small images, every window is copied into a row of a matrix and multiplied by the kernel (`conv_gathered`).
- Larger images are laid side by side into one wide image (`conv_wide`), because XLA splits the work by columns.
- A 3x3 convolution of stride 1 has three products: its value, and the gradients for the image and for the kernel. XLA
  is fast only at the first, and its gradient for the kernel is up to a hundred times slower inside `lax.scan`. In
  `conv3x3` the gradient for the image is written as the convolution by the rotated kernel. The gradient for the kernel
  is Winograd's: for each tile of 2x2 outputs and the 4x4 inputs they see, 16 products of transformed numbers replace
  36, and over all tiles these are 16 products of tall matrices. With many channels the convolutions use Winograd, too.
  F(2x2, 3x3) has no constants other than 1/2, and its errors in float32 are within a few times those of the plain sum.

Pooling. XLA's windowed reductions are slow on a CPU; here they are maxima and sums of shifted images.

Shapes: B batch, H W height and width, h w the same after the layer, C O input and output channels, T tiles of a batch
(in attention: tokens).

References: Lavin, Gray 2015, "Fast algorithms for convolutional neural networks", section 4.1.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Pads = tuple[tuple[int, int], tuple[int, int]]
Matrix = Sequence[Sequence[int | float]]
Triple = tuple[Array, Array, Array]
Grid = list[list[Array]]  # a matrix of arrays of one shape

# y = A' ((G k G') * (B' x B)) A, for tiles of 4x4 inputs x, a 3x3 kernel k and 2x2 outputs y.
_A = ((1, 0), (1, 1), (1, -1), (0, -1))
_B = ((1, 0, 0, 0), (0, 1, -1, 1), (-1, 1, 1, 0), (0, 0, 0, -1))
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))

# From this number of channels on, 16 matrix products beat XLA's convolution, which runs so few pixels on one thread.
_MANY = 64
# `conv3x3` pays off from this number of channels on. Up to it, XLA is faster with two neighbouring pixels a window.
_FEW = 16
# If the results of a batch have fewer columns than this in total, laying the images side by side gains nothing.
_NARROW = 200
# How many numbers the transformed images of one product may hold; larger batches are processed in groups of images.
_LARGEST = 2**26
# A matrix product is used if this many numbers, or fewer, are gathered from one image. It took 0.5 to 1.35 times as
# long as XLA's convolution, and inside `lax.scan` 0.02 to 0.5 times. Beyond, a batch of 128 would gather over 128 MiB.
_LARGEST_GATHER = 2**18


def is_default() -> bool:
    """Whether this process computes on CPUs.

    If not, the callers use the plain forms directly, because some forms here support reverse mode only.
    """
    return jax.default_backend() == "cpu"


# Matrix products


def dense(x: Array, kernel: Array) -> Array:
    """x kernel, with a faster gradient for the kernel."""
    return _matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[1])


@jax.custom_jvp
def _matmul(a: Array, b: Array) -> Array:
    return a @ b


@_matmul.defjvp
def _matmul_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (a, b), (da, db) = primals, tangents
    # XLA's faster matrix product (YNNPACK) sums only over the last axis of its left operand, but the gradient for `b`
    # sums over the first axis of `a`. The barrier keeps XLA from folding the transposition into its slower product.
    at = lax.optimization_barrier(a.T)
    return a @ b, da @ b + at.T @ db


# Convolution


def can_gather(image: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the windows of a padded image [H, W] are few enough to be gathered, for a kernel [KH, KW, C, ...].

    A 1x1 kernel gathers nothing.
    """
    gathered = math.prod(_count(image, kernel[:2], strides)) * math.prod(kernel[:3])
    return tuple(kernel[:2]) == (1, 1) or gathered <= _LARGEST_GATHER


def conv_gathered(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """Any convolution, as one product of a matrix that has every window in a row."""
    return _correlate(jnp.pad(x, ((0, 0), *pads, (0, 0))), kernel, strides)


def _correlate(x: Array, kernel: Array, strides: tuple[int, int]) -> Array:
    (kh, kw, _, features), (s, t) = kernel.shape, strides
    h, w = _count(x.shape[1:3], (kh, kw), strides)
    if h * w <= kh * kw:  # take whichever makes fewer and longer copies
        windows = [x[:, i * s : i * s + kh, j * t : j * t + kw] for i in range(h) for j in range(w)]
        rows = jnp.stack(windows, axis=1)
    else:
        bottom, right = (h - 1) * s + 1, (w - 1) * t + 1
        pixels = [x[:, i : i + bottom : s, j : j + right : t] for i in range(kh) for j in range(kw)]
        rows = jnp.concatenate(pixels, axis=3)
    # Two axes each: the gradient of a product over more axes transposes its operands, and runs at half the speed.
    kernel = kernel.reshape(-1, features)
    return _matmul(rows.reshape(-1, len(kernel)), kernel).reshape(-1, h, w, features)


def can_gather_pooled(image: Sequence[int], kernel: Sequence[int], window: Sequence[int]) -> bool:
    """`can_gather` for `conv_max_pool`."""
    tile = _tile(kernel, window)
    return math.prod(_count(image, tile, window)) * math.prod(tile) * kernel[2] <= _LARGEST_GATHER


def conv_max_pool(x: Array, kernel: Array, window: tuple[int, int]) -> Array:
    """`plain_max_pool(plain_conv(x, kernel), window)` in one step.

    Each row of the matrix product is one *pooled* pixel. It holds the tile of the image that a p x q pooling window
    sees, (KH + p - 1) x (KW + q - 1), and is multiplied by p q shifted copies of the kernel, one for each position in
    the window. Tiles overlap less than the windows of a convolution, so there is several times less to gather, for up
    to twice the arithmetic, and the candidates for a maximum come out side by side.
    """
    (p, q), (_, _, channels, features) = window, kernel.shape
    shifts = [((i, p - 1 - i), (j, q - 1 - j), (0, 0), (0, 0)) for i in range(p) for j in range(q)]
    kernels = jnp.stack([jnp.pad(kernel, shift) for shift in shifts], axis=3)
    y = _correlate(x, kernels.reshape(*_tile(kernel.shape, window), channels, p * q * features), window)
    return _first_max(y.reshape(*y.shape[:3], p * q, features), (3,))


def _tile(kernel: Sequence[int], window: Sequence[int]) -> tuple[int, int]:
    return kernel[0] + window[0] - 1, kernel[1] + window[1] - 1


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _first_max(x: Array, axes: tuple[int, ...]) -> Array:
    """`jnp.max(x, axes)` of a matrix product. Its gradient goes to the first maximum.

    This is faster than finding value and place in one reduction, but it is safe only if XLA does not compute x twice:
    the second time the maximum may differ in its last bit, and then no place equals it.
    """
    return jnp.max(x, axes)


@_first_max.defjvp
def _first_max_jvp(axes: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    sizes = [n if axis in axes else 1 for axis, n in enumerate(x.shape)]
    position = jnp.arange(math.prod(sizes), dtype=jnp.int32).reshape(sizes)
    largest = jnp.max(x, axes, keepdims=True)
    # Reductions, because XLA would recompute an unrolled argmax inside everything that reads it.
    first = jnp.min(jnp.where(x == largest, position, position.size), axes, keepdims=True)
    return jnp.squeeze(largest, axes), jnp.sum(jnp.where(first == position, dx, 0), axes)


def has_conv3x3(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> bool:
    """Whether `conv3x3` suits these operands: gathering is better for few channels, and 16 bits are too coarse."""
    ordinary = kernel.shape[:2] == (3, 3) and tuple(strides) == (1, 1) and all(0 <= p <= 2 for pad in pads for p in pad)
    precise = x.dtype == kernel.dtype and x.dtype in (jnp.float32, jnp.float64)
    return is_default() and ordinary and precise and min(kernel.shape[2:]) >= _FEW


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def conv_wide(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """Any convolution of large images: XLA's own, on two cores up to twice as fast."""
    return _side_by_side(x, kernel, strides, pads)


@conv_wide.defjvp
def _conv_wide_jvp(
    strides: tuple[int, int], pads: Pads, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    return conv_wide(x, kernel, strides, pads), _xla(dx, kernel, strides, pads) + _xla(x, dkernel, strides, pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C O"], pads: Pads) -> Float[Array, "B h w O"]:
    """The convolution of stride 1 by a 3x3 kernel, with 0 to 2 zeros padded on each side; reverse mode only."""
    if min(kernel.shape[2:]) >= _MANY:
        return _in_groups(lambda x: _winograd(x, kernel, pads), x, _held(x, kernel))
    if max(kernel.shape[2:]) <= _FEW and (x.shape[2] + sum(pads[1])) % 2 == 0:
        pairs = jnp.stack([jnp.pad(kernel, ((0, 0), (j, 1 - j), (0, 0), (0, 0))) for j in (0, 1)], axis=3)
        y = _xla(x, pairs.reshape(3, 4, kernel.shape[2], -1), (1, 2), pads)
        return y.reshape(*y.shape[:2], -1, kernel.shape[3])
    return _side_by_side(x, kernel, (1, 1), pads)


def _conv3x3_backward(pads: Pads, operands: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = operands
    # The barrier makes XLA rotate the kernel; otherwise it reads the window backwards, which is slow.
    rotated = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    dx = conv3x3(dy, rotated, ((2 - pads[0][0], 2 - pads[0][1]), (2 - pads[1][0], 2 - pads[1][1])))
    size = _group_size(len(x), _held(x, kernel))
    if size == len(x):
        return dx, _kernel_gradient(x, dy, pads)

    def add(total: Array, group: Sequence[Array]) -> tuple[Array, None]:
        return total + _kernel_gradient(group[0], group[1], pads), None

    groups = [a.reshape(-1, size, *a.shape[1:]) for a in (x, dy)]
    return dx, lax.scan(add, jnp.zeros_like(kernel), tuple(groups))[0]


conv3x3.defvjp(lambda x, kernel, pads: (conv3x3(x, kernel, pads), (x, kernel)), _conv3x3_backward)


def _winograd(x: Array, kernel: Array, pads: Pads) -> Array:
    h, w = (n + sum(pad) - 2 for n, pad in zip(x.shape[1:3], pads, strict=True))
    rows, columns = -(-h // 2), -(-w // 2)
    inputs = _tiles(x, pads, rows, columns)
    kernels = _sandwich(_G, [[kernel[i, j] for j in range(3)] for i in range(3)])
    products = [[a @ b for a, b in zip(*row, strict=True)] for row in zip(inputs, kernels, strict=True)]
    y = _sandwich(_transposed(_A), products)
    tiles = jnp.stack([jnp.stack([a.reshape(len(x), rows, columns, -1) for a in row], 3) for row in y], 2)
    return tiles.reshape(len(x), 2 * rows, 2 * columns, -1)[:, :h, :w]


def _kernel_gradient(x: Array, dy: Array, pads: Pads) -> Array:
    h, w, features = dy.shape[1:]
    rows, columns = -(-h // 2), -(-w // 2)
    dy = jnp.pad(dy, ((0, 0), (0, 2 * rows - h), (0, 2 * columns - w), (0, 0)))
    outputs = _sandwich(_A, [[dy[:, i::2, j::2].reshape(-1, features) for j in (0, 1)] for i in (0, 1)])
    inputs = _tiles(x, pads, rows, columns)
    # No barrier as in `_matmul`: copying matrices this tall costs more than the faster product saves.
    products = [[a.T @ b for a, b in zip(*row, strict=True)] for row in zip(inputs, outputs, strict=True)]
    return jnp.stack([jnp.stack(row) for row in _sandwich(_transposed(_G), products)])


def _tiles(x: Array, pads: Pads, rows: int, columns: int) -> Grid:
    """B' x B for all 4x4 tiles, which begin at every second row and column: 4x4 arrays [T, C]."""
    (top, _), (left, _) = pads
    bottom, right = 2 * rows + 2 - x.shape[1] - top, 2 * columns + 2 - x.shape[2] - left
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    h, w, channels = 2 * rows, 2 * columns, x.shape[3]
    tiles = [[x[:, i : i + h : 2, j : j + w : 2].reshape(-1, channels) for j in range(4)] for i in range(4)]
    return _sandwich(_transposed(_B), tiles)


def _sandwich(m: Matrix, x: Grid) -> Grid:
    """m x m' for a matrix x of arrays, written out as sums, which XLA fuses; a product would multiply by 0 and 1."""

    def row_sum(row: Sequence[int | float], arrays: Sequence[Array]) -> Array:
        terms = [a if c == 1 else -a if c == -1 else c * a for c, a in zip(row, arrays, strict=True) if c]
        return functools.reduce(jnp.add, terms)

    columns = [[row_sum(row, column) for row in m] for column in zip(*x, strict=True)]
    return [[row_sum(row, half) for row in m] for half in zip(*columns, strict=True)]


def _transposed(m: Matrix) -> Matrix:
    return tuple(zip(*m, strict=True))


def _xla(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _side_by_side(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """`_xla` of one wide image made of all images of the batch, because XLA splits the work by columns."""
    kw, t = kernel.shape[1], strides[1]
    padded = [n + sum(pad) for n, pad in zip(x.shape[1:3], pads, strict=True)]
    h, w = _count(padded, kernel.shape[:2], strides)
    if len(x) == 1 or len(x) * w < _NARROW:
        return _xla(x, kernel, strides, pads)
    (left, right), width = pads[1], padded[1]
    x = jnp.pad(x, ((0, 0), pads[0], (left, right + -width % t), (0, 0)))
    period = x.shape[2] // t  # columns of output from the start of one image to the start of the next
    wide = x.swapaxes(0, 1).reshape(1, x.shape[1], -1, x.shape[3])
    y = _xla(wide, kernel, strides, ((0, 0), (0, kw - 1)))  # the results of windows over two images are dropped
    return y[0, :, : period * len(x)].reshape(h, len(x), period, -1)[:, :, :w].swapaxes(0, 1)


def _held(x: Array, kernel: Array) -> int:
    """About how many numbers the transformed tiles of one image and of its outputs hold: 16 for every 4 pixels."""
    return 4 * (x.shape[1] + 2) * (x.shape[2] + 2) * sum(kernel.shape[2:])


def _group_size(images: int, held: int) -> int:
    """The largest divisor of the batch whose tiles are small enough; at least 1."""
    return max(n for n in range(1, images + 1) if images % n == 0 and (n * held <= _LARGEST or n == 1))


def _in_groups(f: Callable[[Array], Array], x: Array, held: int) -> Array:
    size = _group_size(len(x), held)
    if size == len(x):
        return f(x)
    y = lax.map(f, x.reshape(-1, size, *x.shape[1:]))
    return y.reshape(len(x), *y.shape[2:])


# Pooling


def window_reduce(
    x: Array, window: Sequence[int], strides: Sequence[int], pads: Any, combine: Callable[..., Any], fill: int | float
) -> Array:
    """A windowed reduction that combines shifted images: first rows, then columns."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    h, w = _count(x.shape[1:3], window, strides)
    (p, q), (s, t) = window, strides
    rows = [x[:, i : i + (h - 1) * s + 1 : s] for i in range(p)]
    x = functools.reduce(combine, rows)
    return functools.reduce(combine, [x[:, :, j : j + (w - 1) * t + 1 : t] for j in range(q)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool_overlapping(x: Array, window: tuple[int, int], strides: tuple[int, int], pads: Any) -> Array:
    """The maxima of windows that overlap; reverse mode only.

    It uses the gradient of XLA's own form, because `jnp.maximum` splits its gradient between equal numbers.
    """
    return window_reduce(x, window, strides, pads, jnp.maximum, -jnp.inf)


def _overlapping_backward(
    window: tuple[int, int], strides: tuple[int, int], pads: Any, x: Array, dy: Array
) -> tuple[Array]:
    def plain(x: Array) -> Array:
        pads4 = ((0, 0), *pads, (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), pads4)

    return jax.vjp(plain, x)[1](dy)


max_pool_overlapping.defvjp(lambda x, *rest: (max_pool_overlapping(x, *rest), x), _overlapping_backward)


def max_pool_adjacent(x: Array, window: tuple[int, int]) -> Array:
    """The maxima of windows that lie side by side, without padding."""
    (p, q), (h, w) = window, _count(x.shape[1:3], window, window)
    return _window_max(x[:, : h * p, : w * q].reshape(-1, h, p, w, q, x.shape[3]))


@jax.custom_jvp
def _window_max(x: Array) -> Array:
    """`jnp.max(x, (2, 4))` of [B, h, p, w, q, C]. Its gradient goes to the first maximum, row by row."""
    return jnp.max(x, (2, 4))


@_window_max.defjvp
def _window_max_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (largest, _), (dlargest, _) = jax.jvp(_max_and_place, primals, tangents)
    return largest, dlargest


@jax.custom_jvp
def _max_and_place(x: Array) -> tuple[Array, Array]:
    """The first maximum of each window and its place, counted row by row. The maximum is NaN if the window has one."""

    def larger(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        above = (b[0] > a[0]) | (jnp.isnan(b[0]) & ~jnp.isnan(a[0]))
        second = above | ((b[0] == a[0]) & (b[1] < a[1]))
        return jnp.where(second, b[0], a[0]), jnp.where(second, b[1], a[1])

    places = _places(x)
    start = (jnp.array(-jnp.inf, x.dtype), jnp.array(places.size, jnp.int32))
    return lax.reduce((x, jnp.broadcast_to(places, x.shape)), start, larger, (2, 4))


@_max_and_place.defjvp
def _max_and_place_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    (x,), (dx,) = primals, tangents
    largest, first = _max_and_place(x)
    dlargest = jnp.sum(jnp.where(_places(x) == first[:, :, None, :, None], dx, 0), (2, 4))
    return (largest, first), (dlargest, np.zeros(first.shape, jax.dtypes.float0))


def _places(x: Array) -> Array:
    p, q = x.shape[2], x.shape[4]
    return jnp.arange(p * q, dtype=jnp.int32).reshape(1, 1, p, 1, q, 1)


# Norms


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    x: Float[Array, "*B C"], scale: Float[Array, " C"], bias: Float[Array, " C"], epsilon: float
) -> tuple[Float[Array, "*B C"], Float[Array, " C"], Float[Array, " C"]]:
    """`plain_batch_norm` with a gradient that needs two sums over the batch; mean and variance have no gradient."""
    return _batch_norm(x, scale, bias, epsilon)[0]


def _batch_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Triple, tuple[Array, ...]]:
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    var = jnp.square(x - _last(mean, x)).mean(axes)
    factor = lax.rsqrt(var + epsilon)
    y = (x - _last(mean, x)) * _last(factor * scale, x) + _last(bias, x)
    return (y, mean, var), (x, mean, factor, scale)


def _batch_norm_backward(epsilon: float, saved: tuple[Array, ...], gradients: Sequence[Array]) -> tuple[Array, ...]:
    x, mean, factor, scale = saved
    dy, axes, count = gradients[0], tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    centred = x - _last(mean, x)
    dbias, dscale = dy.sum(axes), (dy * centred).sum(axes) * factor
    dx = dy - _last(dbias / count, x) - centred * _last(dscale * factor / count, x)
    return dx * _last(factor * scale, x), dscale, dbias


batch_norm.defvjp(_batch_norm, _batch_norm_backward)


def sum_around(x: Float[Array, "B H W C"], before: int, after: int) -> Float[Array, "B H W C"]:
    """For each channel, the sum of it, `before` channels before it and `after` channels after it.

    It is a product with a band matrix, which is faster than adding shifted copies.
    """
    distance = np.arange(x.shape[-1])[None] - np.arange(x.shape[-1])[:, None]
    band = (-after <= distance) & (distance <= before)
    return x @ jnp.asarray(band, x.dtype)


# Attention


def causal_in_halves(
    attend: Callable[..., Array], query: Float[Array, "B T N H"], key: Float[Array, "B T K H"], value: Array
) -> Float[Array, "B T N H"]:
    """Causal self-attention by `attend`, without multiplying the first half of the text by the second."""
    T, half = query.shape[1], query.shape[1] // 2
    first = attend(query[:, :half], key[:, :half], value[:, :half], causal=True)
    earlier = (jnp.arange(T)[None] <= jnp.arange(half, T)[:, None])[None, None]
    return jnp.concatenate([first, attend(query[:, half:], key, value, mask=earlier)], axis=1)


# Shared


def _count(image: Sequence[int], size: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The number of windows down and across."""
    return tuple((n - k) // s + 1 for n, k, s in zip(image, size, strides, strict=True))


def _last(values: Array, x: Array) -> Array:
    return values.reshape((1,) * (x.ndim - 1) + (-1,))
