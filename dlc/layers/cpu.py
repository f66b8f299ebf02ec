"""The forms of layers that are fast on a CPU, where XLA's own are slow. The other files of this folder choose them.

Each form has the parameters and the result of the plain form beside which it is chosen.

Convolution. The sum over all b, i, j, u, v, c, o of

    x[b, i s + u - p, j t + v - q, c] kernel[u, v, c, o] y[b, i, j, o]

is linear in images x, kernel and y. `conv_p` is the gradient of this sum for one of the three, given the two others:
the convolution is its gradient for y, and the gradients of a convolution are the other two. The transpose of each is
again one of them, so JAX derives every mode of differentiation. On a CPU they are computed by the forms here, elsewhere
by XLA's own. XLA is slow at the two gradients, above all inside `lax.scan`, where it does not rewrite them:

- The gradient for the images is written as a convolution by the rotated kernel; with strides, as one for each of the
  s t phases of the pixels.
- The gradient for the kernel is written as a convolution whose batch is the input channels. It is summed over groups of
  a few images, which stay in the cache.
- With many channels, 3x3 kernels of stride 1 use Winograd's F(2x2, 3x3): for each tile of 2x2 outputs and the 4x4
  inputs they see, 16 products of transformed numbers replace 36, and over all tiles these are 16 products of tall
  matrices. It has no constants other than 1/2, and its errors in float32 are within a few times those of the plain sum.

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
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

Pads = tuple[tuple[int, int], tuple[int, int]]
Strides = tuple[int, int]
Shape = tuple[Any, ...]  # the batch may be symbolic
Matrix = Sequence[Sequence[int | float]]
Triple = tuple[Array, Array, Array]
Grid = list[list[Array]]  # a matrix of arrays of one shape

# y = A' ((G k G') * (B' x B)) A, for tiles of 4x4 inputs x, a 3x3 kernel k and 2x2 outputs y.
_A = ((1, 0), (1, 1), (1, -1), (0, -1))
_B = ((1, 0, 0, 0), (0, 1, -1, 1), (-1, 1, 1, 0), (0, 0, 0, -1))
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))

# From this number of channels on, 16 matrix products beat XLA's 3x3 convolution; for the gradient of a kernel, from
# three times as many weights on.
_MANY = 64
# XLA convolves images of few channels faster with two neighbouring pixels of output for each window.
_FEW = 16
# The gradient for a kernel is summed over groups of at most this many images, and of about this many pixels.
_GROUP, _GROUP_PIXELS = 8, 2**13
# A convolution in up to this many groups of channels is computed group by group.
_APART = 8
# How many numbers the transformed images of one product may hold; larger batches are processed in groups of images.
_LARGEST = 2**26
# `conv_max_pool` may gather this many numbers from one image. With more, a batch of 128 would gather over 128 MiB.
_LARGEST_GATHER = 2**18


def is_default() -> bool:
    """Whether this process computes on CPUs.

    If not, the callers use the plain forms directly.
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

# There is no public way to give an operation a form of its own for one platform together with its own transposes.
# `jax.extend` and `jax.interpreters` are JAX's interface for new primitives, without its promise of stability.
conv_p = Primitive("dlc_conv")
_ROLES = ("x", "kernel", "y")
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv(
    x: Float[Array, "B H W C"], kernel: Float[Array, "KH KW I O"], strides: Strides, pads: Pads, groups: int = 1
) -> Float[Array, "B h w O"]:
    """The convolution, by `conv_p`: our forms on a CPU, `lax.conv_general_dilated` elsewhere."""
    own, devices = functools.partial(_conv, strides=strides, pads=pads, groups=groups), jax.sharding.get_abstract_mesh()
    batch = isinstance(x.shape[0], int) and x.shape[0]
    among = tuple(name for name in ("data", "fsdp") if name in devices.auto_axes)  # of dlc/sharding.py
    if among and batch and batch % math.prod(devices.shape[name] for name in among) == 0:
        # Each device takes its images: left to itself, XLA would split some of the loops in here along another axis.
        split, whole = jax.P(among), jax.P()
        own = jax.shard_map(own, mesh=devices, in_specs=(split, whole), out_specs=split, axis_names=set(among))
    return own(x, kernel)


def _conv(x: Array, kernel: Array, *, strides: Strides, pads: Pads, groups: int) -> Array:
    x, kernel = _varying(x, kernel)
    padded = [n + sum(pad) for n, pad in zip(x.shape[1:3], pads, strict=True)]
    shape = (x.shape[0], *_count(padded, kernel.shape[:2], strides), kernel.shape[3])
    return conv_p.bind(x, kernel, wanted="y", shape=shape, strides=strides, pads=pads, groups=groups)


def _plain(a: Array, b: Array, *, wanted: str, shape: Shape, strides: Strides, pads: Pads, groups: int) -> Array:
    """`conv_p` by XLA's convolution and what JAX derives from it."""
    convolve = functools.partial(
        lax.conv_general_dilated, window_strides=strides, padding=pads, dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )  # fmt: skip
    if wanted == "y":
        return convolve(a, b)
    linear = (lambda x: convolve(x, a)) if wanted == "x" else (lambda kernel: convolve(a, kernel))
    # Inside `shard_map` the result varies over the devices as `a` does; JAX would sum one that does not over them.
    kind = jax.typeof(a)
    primal = jax.ShapeDtypeStruct(shape, a.dtype, sharding=kind.sharding, manual_axis_type=kind.mat)
    return jax.linear_transpose(linear, primal)(b)[0]


def _varying(*arrays: Array) -> list[Array]:
    """Inside `shard_map`: all arrays vary over the same devices. (The transpose of that sums a gradient over them.)"""
    found: list[frozenset[str]] = [jax.typeof(array).mat.varying for array in arrays]
    missing = [tuple(sorted(frozenset().union(*found) - own)) for own in found]
    return [lax.pcast(a, axes, to="varying") if axes else a for a, axes in zip(arrays, missing, strict=True)]


def _given(wanted: str) -> list[str]:
    return [role for role in _ROLES if role != wanted]


def _transpose(position: int, cotangent: Array, a: Any, b: Any, *, wanted: str, shape: Shape, **rest: Any) -> Array:
    role, other = _given(wanted)[position], _given(wanted)[1 - position]
    known = {wanted: cotangent, other: (b, a)[position]}
    return conv_p.bind(*(known[r] for r in _given(role)), wanted=role, shape=(a, b)[position].aval.shape, **rest)


def _batched(operands: Sequence[Array], axes: Sequence[Any], *, wanted: str, shape: Shape, **rest: Any) -> Any:
    """`jax.vmap`: more images are a larger batch; several kernels are left to XLA's rule."""
    roles = [role for role, axis in zip(_given(wanted), axes, strict=True) if axis is not None]
    if {*roles, wanted} != {"x", "y"}:
        plain = functools.partial(_plain, wanted=wanted, shape=shape, **rest)
        return jax.vmap(plain, axes)(*operands), 0
    size = next(a.shape[axis] for a, axis in zip(operands, axes, strict=True) if axis is not None)
    moved = [a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(operands, axes, strict=True)]
    folded = [a if a.ndim == 4 else a.reshape(-1, *a.shape[2:]) for a in moved]
    out = conv_p.bind(*folded, wanted=wanted, shape=(size * shape[0], *shape[1:]), **rest)
    return out.reshape(size, *shape), 0


@functools.partial(jax.jit, static_argnames=("wanted", "shape", "strides", "pads", "groups"))
def _outside_jit(a: Array, b: Array, **parameters: Any) -> Array:
    return conv_p.bind(a, b, **parameters)


def _form(a: Array, b: Array, *, wanted: str, shape: Shape, strides: Strides, pads: Pads, groups: int) -> Array:
    """`conv_p` on a CPU."""
    if groups > _APART:  # such as a depthwise convolution: a program for each group would be too large
        return _plain(a, b, wanted=wanted, shape=shape, strides=strides, pads=pads, groups=groups)
    form = {"y": _value, "x": _image_gradient, "kernel": _kernel_gradient}[wanted]
    form = functools.partial(form, strides=strides, pads=pads)
    if groups == 1:
        return form(a, b, shape=shape)
    shape = (*shape[:-1], shape[-1] // groups)
    parts = zip(jnp.split(a, groups, -1), jnp.split(b, groups, -1), strict=True)
    return jnp.concatenate([form(*part, shape=shape) for part in parts], -1)


conv_p.def_impl(_outside_jit)
conv_p.def_abstract_eval(lambda a, b, *, shape, **rest: a.update(shape=shape, weak_type=False))
ad.defbilinear(conv_p, functools.partial(_transpose, 0), functools.partial(_transpose, 1))
batching.primitive_batchers[conv_p] = _batched
mlir.register_lowering(conv_p, mlir.lower_fun(_plain, multiple_results=False))
mlir.register_lowering(conv_p, mlir.lower_fun(_form, multiple_results=False), platform="cpu")


def _value(x: Array, kernel: Array, shape: Shape, strides: Strides, pads: Pads) -> Array:
    if kernel.shape[:2] == (1, 1):
        x = _padded(x, pads)[:, :: strides[0], :: strides[1]]
        return (x.reshape(-1, x.shape[3]) @ kernel[0, 0]).reshape(shape)
    if _suits_winograd(kernel.shape, x.dtype, strides, pads):
        return _winograd_in_groups(x, kernel, pads)
    if max(kernel.shape[2:]) <= _FEW and strides == (1, 1) and shape[2] % 2 == 0:
        pairs = jnp.stack([jnp.pad(kernel, ((0, 0), (j, 1 - j), (0, 0), (0, 0))) for j in (0, 1)], axis=3)
        pairs = pairs.reshape(kernel.shape[0], kernel.shape[1] + 1, kernel.shape[2], -1)
        return _xla(x, pairs, (1, 2), pads).reshape(shape)
    return _xla(x, kernel, strides, pads)


def _image_gradient(kernel: Array, dy: Array, shape: Shape, strides: Strides, pads: Pads) -> Array:
    """Pixels that lie s x t apart meet the same part of the kernel, with which they are a convolution of stride 1."""
    blocks = _each(lambda n, s: -(-n // s), shape[1:3], strides)

    def of_phase(phase: tuple[int, int]) -> Array:
        first = _each(lambda a, p, s: (a + p[0]) % s, phase, pads, strides)
        taps = _each(lambda k, f, s: -(-(k - f) // s), kernel.shape[:2], first, strides)
        whole = (*dy.shape[:1], *blocks, kernel.shape[2])
        if min(taps) < 1:  # no window sees these pixels
            return jnp.zeros(whole, dy.dtype)
        back = _each(lambda a, p, f, s: (a + p[0] - f) // s, phase, pads, first, strides)
        around = _each(lambda m, o, b, n: (m - 1 - o, b + o - n), taps, back, blocks, dy.shape[1:3])
        part = kernel[first[0] :: strides[0], first[1] :: strides[1]]
        if _suits_winograd(part.shape, dy.dtype, (1, 1), around):
            return _winograd_in_groups(dy, part, around, rotated=True)
        rotated = part[::-1, ::-1].swapaxes(2, 3)
        if max(taps) > 1:  # The barrier makes XLA rotate the kernel, rather than read windows backwards, which is slow.
            rotated = lax.optimization_barrier(rotated)
        return _value(dy, rotated, whole, (1, 1), around)

    if strides == (1, 1):
        return of_phase((0, 0))
    (s, t), (h, w) = strides, blocks
    dx = jnp.stack([jnp.stack([of_phase((i, j)) for j in range(t)], 3) for i in range(s)], 2)
    return dx.reshape(-1, h * s, w * t, kernel.shape[2])[:, : shape[1], : shape[2]]


def _kernel_gradient(x: Array, dy: Array, shape: Shape, strides: Strides, pads: Pads) -> Array:
    if tuple(shape[:2]) == (1, 1):
        # No barrier as in `_matmul`: XLA would compute x again, from the last convolution on, while it transposes x.
        x = _padded(x, pads)[:, :: strides[0], :: strides[1]]
        return (x.reshape(-1, shape[2]).T @ dy.reshape(-1, shape[3])).reshape(shape)
    images = x.shape[0]
    if _suits_winograd(shape, x.dtype, strides, pads) and math.prod(shape[2:]) >= 3 * _MANY**2:
        size, of_a_group = _group_size(images, _held(x, shape)), _winograd_kernel_gradient
    else:
        size = max(1, min(_GROUP, _GROUP_PIXELS // math.prod(x.shape[1:3])))
        of_a_group = functools.partial(_xla_kernel_gradient, strides=strides)
    of_a_group = functools.partial(of_a_group, size=shape[:2], pads=pads)
    if not isinstance(images, int) or images <= size:  # a symbolic batch is one group
        return of_a_group(x, dy)
    whole = images // size * size
    groups = tuple(a[:whole].reshape(-1, size, *a.shape[1:]) for a in (x, dy))
    total = lax.map(lambda group: of_a_group(*group), groups).sum(0)
    return total + of_a_group(x[whole:], dy[whole:]) if whole < images else total


def _xla_kernel_gradient(x: Array, dy: Array, size: Sequence[int], strides: Strides, pads: Pads) -> Array:
    """Written in the layout that XLA is fast at: the input channels are the batch, and the sum is over images."""

    if max(x.shape[3], dy.shape[3]) <= _FEW and strides == (1, 1) and dy.shape[2] % 2 == 0:
        # As in `_value`: two neighbouring pixels of output are one, which is seen through a window of one column more.
        pairs = dy.reshape(*dy.shape[:2], dy.shape[2] // 2, 2 * dy.shape[3])
        both = _xla_kernel_gradient(x, pairs, (size[0], size[1] + 1), (1, 2), pads)
        left, right = jnp.split(both, 2, axis=3)
        return left[:, :-1] + right[:, 1:]

    def around(k: int, n: int, m: int, s: int, pad: tuple[int, int]) -> tuple[int, int]:
        return pad[0], (m - 1) * s + k - n - pad[0]

    pads = _each(around, size, x.shape[1:3], dy.shape[1:3], strides, pads)
    x, dy = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
    y = lax.conv_general_dilated(x, dy, (1, 1), pads, rhs_dilation=strides, dimension_numbers=_LAYOUT)
    return y.transpose(1, 2, 0, 3)


def _suits_winograd(kernel: Sequence[int], dtype: Any, strides: Strides, pads: Pads) -> bool:
    """Whether it exists and is faster; 16 bits are too coarse for it."""
    ordinary = tuple(kernel[:2]) == (3, 3) and strides == (1, 1) and all(0 <= p <= 2 for pad in pads for p in pad)
    return ordinary and dtype in (jnp.float32, jnp.float64) and min(kernel[2:]) >= _MANY


def can_gather_pooled(image: Sequence[int], kernel: Sequence[int], window: Sequence[int]) -> bool:
    """Whether `conv_max_pool` gathers few enough numbers from an image [H, W] for a kernel [KH, KW, C, O]."""
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
    return _first_max(y.reshape(*y.shape[:3], p * q, features))


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


def _tile(kernel: Sequence[int], window: Sequence[int]) -> tuple[int, int]:
    return kernel[0] + window[0] - 1, kernel[1] + window[1] - 1


@jax.custom_jvp
def _first_max(x: Array) -> Array:
    """The maximum over the last axis but one of a matrix product. Its gradient goes to the first maximum.

    This is faster than finding value and place in one reduction, but it is safe only if XLA does not compute x twice:
    the second time the maximum may differ in its last bit, and then no place equals it.
    """
    return jnp.max(x, -2)


@_first_max.defjvp
def _first_max_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    position = jnp.arange(x.shape[-2], dtype=jnp.int32).reshape(1, 1, 1, -1, 1)
    largest = jnp.max(x, -2, keepdims=True)
    # Reductions, because XLA would recompute an unrolled argmax inside everything that reads it.
    first = jnp.min(jnp.where(x == largest, position, position.size), -2, keepdims=True)
    return jnp.squeeze(largest, -2), jnp.sum(jnp.where(first == position, dx, 0), -2)


def _winograd_in_groups(x: Array, kernel: Array, pads: Pads, rotated: bool = False) -> Array:
    """The convolution by a 3x3 kernel or, if `rotated`, by that kernel rotated, with its input and output swapped."""
    size = _group_size(x.shape[0], _held(x, kernel.shape))
    if size == x.shape[0]:
        return _winograd(x, kernel, pads, rotated)
    y = lax.map(lambda x: _winograd(x, kernel, pads, rotated), x.reshape(-1, size, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


def _winograd(x: Array, kernel: Array, pads: Pads, rotated: bool) -> Array:
    h, w = (n + sum(pad) - 2 for n, pad in zip(x.shape[1:3], pads, strict=True))
    rows, columns = -(-h // 2), -(-w // 2)
    inputs = _tiles(x, pads, rows, columns)
    # A copy of a kernel of many channels, rotated and transposed, would cost more than the products.
    order = (2, 1, 0) if rotated else (0, 1, 2)
    kernels = _sandwich(_G, [[kernel[i, j] for j in order] for i in order])
    products = [
        [a @ (b.T if rotated else b) for a, b in zip(*row, strict=True)] for row in zip(inputs, kernels, strict=True)
    ]
    y = _sandwich(_transposed(_A), products)
    shape = (x.shape[0], rows, columns, y[0][0].shape[1])
    tiles = jnp.stack([jnp.stack([a.reshape(shape) for a in row], 3) for row in y], 2)
    return tiles.reshape(x.shape[0], 2 * rows, 2 * columns, shape[-1])[:, :h, :w]


def _winograd_kernel_gradient(x: Array, dy: Array, size: Sequence[int], pads: Pads) -> Array:
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
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_LAYOUT)


def _padded(x: Array, pads: Pads) -> Array:
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])


def _held(x: Array, kernel: Sequence[int]) -> int:
    """About how many numbers the transformed tiles of one image and of its outputs hold: 16 for every 4 pixels."""
    return 4 * (x.shape[1] + 2) * (x.shape[2] + 2) * sum(kernel[2:])


def _group_size(images: Any, held: int) -> Any:
    """The largest divisor of the batch whose tiles are small enough; at least 1. A symbolic batch is one group."""
    if not isinstance(images, int):
        return images
    sizes = (n for n in range(1, images + 1) if images % n == 0 and (n * held <= _LARGEST or n == 1))
    return max(sizes, default=0)


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


def max_pool(x: Array, window: tuple[int, int], strides: Strides, pads: Pads) -> Array:
    """The maximum of each window. The gradient goes to the first maximum, row by row."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    h, w = _count(x.shape[1:3], window, strides)
    return _max(_max(x, window[1], strides[1], w, 2), window[0], strides[0], h, 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def _max(x: Array, size: int, stride: int, count: int, axis: int) -> Array:
    """The maxima of `count` windows along one axis."""
    return functools.reduce(jnp.maximum, _taps(x, size, stride, count, axis))


@_max.defjvp
def _max_jvp(
    size: int, stride: int, count: int, axis: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    values, dvalues = (_taps(a, size, stride, count, axis) for a in (x, dx))
    # The place is found by comparing the values with each other, not with the maximum: XLA may compute x twice, and the
    # second time a value may differ from the maximum in its last bit.
    largest, place = values[0], jnp.zeros(values[0].shape, jnp.int8 if size < 128 else jnp.int32)
    for i, value in enumerate(values[1:], 1):
        above = (value > largest) | (jnp.isnan(value) & ~jnp.isnan(largest))
        largest, place = jnp.where(above, value, largest), jnp.where(above, i, place).astype(place.dtype)
    return largest, functools.reduce(jnp.add, [jnp.where(place == i, dx, 0) for i, dx in enumerate(dvalues)])


def _taps(x: Array, size: int, stride: int, count: int, axis: int) -> list[Array]:
    """For each place in a window, what the `count` windows see there. Nothing is strided: XLA copies that slowly."""
    needed = (count + (size - 1) // stride) * stride
    # This may cut what no window sees; what it adds, no window sees either.
    cut = [(0, needed - n if i == axis else 0, 0) for i, n in enumerate(x.shape)]
    x = lax.pad(x, jnp.zeros((), x.dtype), cut)
    x = x.reshape(*x.shape[:axis], needed // stride, stride, *x.shape[axis + 1 :])
    phases = [lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in range(stride)]
    return [lax.slice_in_dim(phases[i % stride], i // stride, i // stride + count, axis=axis) for i in range(size)]


# Norms


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def batch_norm(x: Float[Array, "*B C"], scale: Float[Array, " C"], bias: Float[Array, " C"], epsilon: float) -> Triple:
    """`plain_batch_norm` with a gradient that needs two sums over the batch; mean and variance have no gradient."""
    mean, var, factor = _statistics(x, epsilon)
    return (x - _last(mean, x)) * _last(factor * scale, x) + _last(bias, x), mean, var


@batch_norm.defjvp
def _batch_norm_jvp(epsilon: float, primals: Triple, tangents: Triple) -> tuple[Triple, Triple]:
    (x, scale, bias), (dx, dscale, dbias) = primals, tangents
    mean, var, factor = _statistics(x, epsilon)
    normal, slope = (x - _last(mean, x)) * _last(factor, x), factor * scale
    # Written so that its transpose sums twice over the batch: the cotangent of y, and its product with `normal`.
    of_normal = dscale - slope * _mean(normal * dx)
    of_one = dbias - slope * _mean(dx)
    dy = dx * _last(slope, x) + normal * _spread(of_normal, x) + _spread(of_one, x)
    y = (x - _last(mean, x)) * _last(slope, x) + _last(bias, x)
    return (y, mean, var), (dy, jnp.zeros_like(mean), jnp.zeros_like(var))


def _statistics(x: Array, epsilon: float) -> Triple:
    """Mean, variance and 1 / sqrt(variance + epsilon)."""
    mean = _mean(x)
    var = _mean(jnp.square(x - _last(mean, x)))
    return mean, var, lax.rsqrt(var + epsilon)


def _mean(x: Array) -> Array:
    """The mean over all axes but the last. The sum over the batch is a product, since XLA's reductions are slow."""
    total = jnp.ones((1, x.shape[0]), x.dtype) @ x.reshape(x.shape[0], math.prod(x.shape[1:]))
    return total.reshape(-1, x.shape[-1]).sum(0) / math.prod(x.shape[:-1])


def _spread(values: Array, x: Array) -> Array:
    """`_last` as an array of x's shape, as a product. Its transpose is then one, too, and not a reduction."""
    image = jnp.broadcast_to(values, x.shape[1:]).reshape(1, -1)
    return (jnp.ones((x.shape[0], 1), x.dtype) @ image).reshape(x.shape)


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


def _each(f: Callable[..., Any], *sizes: Sequence[Any]) -> tuple[Any, Any]:
    """f for the rows, and f for the columns."""
    rows, columns = zip(*sizes, strict=True)
    return f(*rows), f(*columns)


def _last(values: Array, x: Array) -> Array:
    return values.reshape((1,) * (x.ndim - 1) + (-1,))
