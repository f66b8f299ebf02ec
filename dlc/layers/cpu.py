"""Forms for CPU of what `dlc/layers.py` computes, where XLA's own are slow; its functions choose them.

A 3x3 convolution of stride 1 has three products: its value, and the gradients for the image and for the kernel. XLA has
a good form of the first alone, and the gradient for the kernel is up to a hundred times slower inside `lax.scan`. So:

- the gradient for the image is the convolution by the turned kernel, written as one;
- the gradient for the kernel is Winograd's: of each tile of 2x2 outputs and the 4x4 inputs they see, 16 products of
  transformed numbers stand for 36, and over all tiles they are 16 products of tall matrices;
- with many channels the convolutions themselves are Winograd's, too.

F(2x2, 3x3) has no constant but 1/2, and its errors in float32 are within a few times those of the plain sum.

Shapes: B batch, H W height and width, C O input and output channels, T tiles of a batch.

References: Lavin, Gray 2015, "Fast algorithms for convolutional neural networks", section 4.1.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Pads = tuple[tuple[int, int], tuple[int, int]]
Matrix = Sequence[Sequence[int | float]]
Triple = tuple[Array, Array, Array]
Grid = list[list[Array]]  # arrays of one shape, as a matrix of them

# y = A' ((G k G') * (B' x B)) A, for tiles of 4x4 inputs x, a 3x3 kernel k and 2x2 outputs y.
_A = ((1, 0), (1, 1), (1, -1), (0, -1))
_B = ((1, 0, 0, 0), (0, 1, -1, 1), (-1, 1, 1, 0), (0, 0, 0, -1))
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))

# Channels from which 16 products of matrices beat XLA's convolution, which does not thread over so few pixels.
_MANY = 64
# From how many channels on all this pays, and up to how many XLA's is faster with two neighbouring pixels a window.
_FEW = 16
# Columns of all results of a batch below which laying its images side by side gains nothing.
_NARROW = 200
# Numbers that the transformed images of one product may hold: beyond, images are taken in groups.
_LARGEST = 2**26


def is_default() -> bool:
    """Whether this process computes on CPUs.

    Where it does not, the plain forms are taken at once: these here have reverse mode alone.
    """
    return jax.default_backend() == "cpu"


def has_conv3x3(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> bool:
    """Whether `conv3x3` is for these operands: few channels are better gathered, 16 bits lose too much in its sums."""
    ordinary = kernel.shape[:2] == (3, 3) and tuple(strides) == (1, 1) and all(0 <= p <= 2 for pad in pads for p in pad)
    precise = x.dtype == kernel.dtype and x.dtype in (jnp.float32, jnp.float64)
    return is_default() and ordinary and precise and min(kernel.shape[2:]) >= _FEW


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def conv(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """Any convolution of large images: XLA's, on two cores up to twice as fast."""
    return _side_by_side(x, kernel, strides, pads)


@conv.defjvp
def _conv_jvp(
    strides: tuple[int, int], pads: Pads, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    return conv(x, kernel, strides, pads), _xla(dx, kernel, strides, pads) + _xla(x, dkernel, strides, pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C O"], pads: Pads) -> Float[Array, "B h w O"]:
    """The convolution of stride 1 by a 3x3 kernel, with 0 to 2 zeros padded on each side."""
    if min(kernel.shape[2:]) >= _MANY:
        return _in_groups(lambda x: _winograd(x, kernel, pads), x, _held(x, kernel))
    if max(kernel.shape[2:]) <= _FEW and (x.shape[2] + sum(pads[1])) % 2 == 0:
        pairs = jnp.stack([jnp.pad(kernel, ((0, 0), (j, 1 - j), (0, 0), (0, 0))) for j in (0, 1)], axis=3)
        y = _xla(x, pairs.reshape(3, 4, kernel.shape[2], -1), (1, 2), pads)
        return y.reshape(*y.shape[:2], -1, kernel.shape[3])
    return _side_by_side(x, kernel, (1, 1), pads)


def _backward(pads: Pads, operands: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = operands
    # Behind the barrier the kernel really is turned; else XLA would take it for a window read backwards, and be slow.
    turned = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    dx = conv3x3(dy, turned, ((2 - pads[0][0], 2 - pads[0][1]), (2 - pads[1][0], 2 - pads[1][1])))
    size = _group_size(len(x), _held(x, kernel))
    if size == len(x):
        return dx, _kernel_gradient(x, dy, pads)

    def add(total: Array, group: Sequence[Array]) -> tuple[Array, None]:
        return total + _kernel_gradient(group[0], group[1], pads), None

    groups = [a.reshape(-1, size, *a.shape[1:]) for a in (x, dy)]
    return dx, lax.scan(add, jnp.zeros_like(kernel), tuple(groups))[0]


conv3x3.defvjp(lambda x, kernel, pads: (conv3x3(x, kernel, pads), (x, kernel)), _backward)


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
    # Not behind a barrier as in `layers._matmul`: copies of so tall matrices cost more than the faster product saves.
    products = [[a.T @ b for a, b in zip(*row, strict=True)] for row in zip(inputs, outputs, strict=True)]
    return jnp.stack([jnp.stack(row) for row in _sandwich(_transposed(_G), products)])


def _tiles(x: Array, pads: Pads, rows: int, columns: int) -> Grid:
    """B' x B of all 4x4 tiles, which begin at every second row and column: 4x4 arrays [T, C]."""
    (top, _), (left, _) = pads
    bottom, right = 2 * rows + 2 - x.shape[1] - top, 2 * columns + 2 - x.shape[2] - left
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    h, w, channels = 2 * rows, 2 * columns, x.shape[3]
    tiles = [[x[:, i : i + h : 2, j : j + w : 2].reshape(-1, channels) for j in range(4)] for i in range(4)]
    return _sandwich(_transposed(_B), tiles)


def _sandwich(m: Matrix, x: Grid) -> Grid:
    """m x m' of a matrix of arrays, spelt out as sums: XLA fuses them, and would multiply by zeros and ones."""

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
    """`_xla` of one broad image made of all images of the batch: XLA parts the work by columns."""
    kw, t = kernel.shape[1], strides[1]
    h, w = ((n + sum(pad) - k) // s + 1
            for n, pad, k, s in zip(x.shape[1:3], pads, kernel.shape[:2], strides, strict=True))  # fmt: skip
    if len(x) == 1 or len(x) * w < _NARROW:
        return _xla(x, kernel, strides, pads)
    (left, right), width = pads[1], x.shape[2] + sum(pads[1])
    x = jnp.pad(x, ((0, 0), pads[0], (left, right + -width % t), (0, 0)))
    period = x.shape[2] // t  # outputs from the first column of one image to that of the next
    broad = x.swapaxes(0, 1).reshape(1, x.shape[1], -1, x.shape[3])
    y = _xla(broad, kernel, strides, ((0, 0), (0, kw - 1)))  # windows over two images are computed for nothing
    return y[0, :, : period * len(x)].reshape(h, len(x), period, -1)[:, :, :w].swapaxes(0, 1)


def _held(x: Array, kernel: Array) -> int:
    """About how many numbers the transformed tiles of one image and its outputs hold: 16 for each 4 pixels."""
    return 4 * (x.shape[1] + 2) * (x.shape[2] + 2) * sum(kernel.shape[2:])


def _group_size(images: int, held: int) -> int:
    """The largest divisor of the batch that does not hold too much, and 1 at least."""
    return max(n for n in range(1, images + 1) if images % n == 0 and (n * held <= _LARGEST or n == 1))


def _in_groups(f: Callable[[Array], Array], x: Array, held: int) -> Array:
    size = _group_size(len(x), held)
    if size == len(x):
        return f(x)
    y = lax.map(f, x.reshape(-1, size, *x.shape[1:]))
    return y.reshape(len(x), *y.shape[2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    x: Float[Array, "*B C"], scale: Float[Array, " C"], bias: Float[Array, " C"], epsilon: float
) -> tuple[Float[Array, "*B C"], Float[Array, " C"], Float[Array, " C"]]:
    """`layers.plain_batch_norm`, whose gradient takes two sums over the batch; mean and variance have none."""
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


def _last(values: Array, x: Array) -> Array:
    return values.reshape((1,) * (x.ndim - 1) + (-1,))
