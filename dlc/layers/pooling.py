"""Pooling over windows of an image, and normalisation over neighbouring channels: functions without weights.

Shapes: B batch, H W height and width, h w the same after the layer, C channels. Images are NHWC, [B, H, W, C].

As in `dlc/layers.py` each has a plain form, XLA's own, which runs on GPU and TPU, and another for CPU, where windowed
reductions are slow: maxima and sums of shifted images.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from dlc.errors import UserError
from dlc.layers import cpu

Pads = Sequence[tuple[int, int]]
NONE = ((0, 0), (0, 0))


def max_pool(
    x: Shaped[Array, "B H W C"],
    window: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: Pads = NONE,
    ceil: bool = False,
) -> Shaped[Array, "B h w C"]:
    """Maximum over windows, which lie side by side unless `strides` says otherwise.

    Padding never is a maximum. Rows and columns that do not fill a window are dropped; with `ceil` the window that they
    begin counts, too, unless it lies in the padding alone (as in Caffe, and PyTorch's `ceil_mode`). Of equal maxima the
    first, row by row, receives the gradient, as in PyTorch. On a CPU windows that overlap have reverse mode alone.

    Raises UserError when the window is larger than the padded image.
    """
    strides = strides or window
    pads = _whole("pooling window", x, window, strides, padding, ceil)
    plain = functools.partial(plain_max_pool, window=window, strides=strides, padding=pads)
    if not cpu.is_default():  # at once, because they have forward mode, too
        return plain(x)
    if strides == window and pads == NONE:
        return lax.platform_dependent(x, cpu=functools.partial(_side_by_side, window=window), default=plain)
    return lax.platform_dependent(x, cpu=lambda x: _overlapping(x, window, strides, pads), default=plain)


def avg_pool(
    x: Float[Array, "B H W C"],
    window: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: Pads = NONE,
    ceil: bool = False,
    count_padding: bool = True,
) -> Float[Array, "B h w C"]:
    """Mean over windows, as `max_pool` lays them; zeros of the padding count as pixels unless `count_padding` is False.

    What `ceil` adds behind the padding never counts.

    Raises UserError when the window is larger than the padded image.
    """
    strides = strides or window
    pads = _whole("pooling window", x, window, strides, padding, ceil)
    plain = functools.partial(plain_sum_pool, window=window, strides=strides, padding=pads)
    shifted = functools.partial(_shifted, window=window, strides=strides, pads=pads, combine=jnp.add, fill=0)
    counts = []
    for n, k, s, (before, after), (_, total) in zip(x.shape[1:3], window, strides, padding, pads, strict=True):
        first, last = (-before, n + after) if count_padding else (0, n)
        starts = s * np.arange((n + before + total - k) // s + 1) - before
        counts.append(np.minimum(starts + k, last) - np.maximum(starts, first))
    pixels = np.outer(*counts)[None, :, :, None]
    return lax.platform_dependent(x, cpu=shifted, default=plain) / pixels.astype(x.dtype)


def local_response_norm(
    x: Float[Array, "B H W C"], size: int, alpha: int | float, beta: int | float, k: int | float
) -> Float[Array, "B H W C"]:
    """x / (k + alpha sum of x^2 over the `size` channels around each)^beta, computed in float32 at least.

    References: Krizhevsky, Sutskever, Hinton 2012, "ImageNet classification with deep convolutional neural networks",
    section 3.3. (PyTorch's and Caffe's alpha is divided by `size`.)
    """
    full = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.square(full)
    around = (size // 2, (size - 1) // 2)

    def banded(squares: Array) -> Array:  # a matrix product: faster there than five shifted copies
        distance = np.arange(squares.shape[-1])[None] - np.arange(squares.shape[-1])[:, None]
        band = (-around[1] <= distance) & (distance <= around[0])
        return squares @ jnp.asarray(band, squares.dtype)

    def windowed(squares: Array) -> Array:
        pads = ((0, 0), (0, 0), (0, 0), around)
        return lax.reduce_window(squares, 0.0, lax.add, (1, 1, 1, size), (1, 1, 1, 1), pads)

    total = lax.platform_dependent(squares, cpu=banded, default=windowed)
    return (full * (k + alpha * total) ** -beta).astype(x.dtype)


def plain_max_pool(
    x: Shaped[Array, "B H W C"],
    window: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: Pads = NONE,
) -> Shaped[Array, "B h w C"]:
    """`max_pool` by XLA's own windowed reduction."""
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, *window, 1), (1, *(strides or window), 1), ((0, 0), *padding, (0, 0))
    )


def plain_sum_pool(
    x: Float[Array, "B H W C"], window: tuple[int, int], strides: tuple[int, int], padding: Pads
) -> Float[Array, "B h w C"]:
    """The sums of windows by XLA's own windowed reduction."""
    return lax.reduce_window(x, 0.0, lax.add, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0)))


def count(image: Sequence[int], size: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """How many windows fit, down and across."""
    return tuple((n - k) // s + 1 for n, k, s in zip(image, size, strides, strict=True))


def check_size(name: str, size: Sequence[int], image: Sequence[int]) -> None:
    """Raises UserError if a window is larger than its image."""
    if any(k > n for k, n in zip(size, image, strict=True)):
        raise UserError(f"a {name} of {size[0]}x{size[1]} is larger than its image of {image[0]}x{image[1]}")


def _whole(
    name: str, x: Array, window: Sequence[int], strides: Sequence[int], padding: Pads, ceil: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The padding with what `ceil` adds behind it."""
    padded = tuple(n + sum(pad) for n, pad in zip(x.shape[1:3], padding, strict=True))
    check_size(name, window, padded)
    pads = []
    for n, k, s, (before, after) in zip(x.shape[1:3], window, strides, padding, strict=True):
        windows = (n + before + after - k) // s + 1
        if ceil and (n + before + after - k) % s and windows * s < n + before:
            after += windows * s + k - (n + before + after)
        pads.append((before, after))
    return pads[0], pads[1]


def _shifted(
    x: Array, window: Sequence[int], strides: Sequence[int], pads: Pads, combine: Callable[..., Any], fill: int | float
) -> Array:
    """A windowed reduction as one of shifted images: first of rows, then of columns."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    h, w = count(x.shape[1:3], window, strides)
    (p, q), (s, t) = window, strides
    rows = [x[:, i : i + (h - 1) * s + 1 : s] for i in range(p)]
    x = functools.reduce(combine, rows)
    return functools.reduce(combine, [x[:, :, j : j + (w - 1) * t + 1 : t] for j in range(q)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _overlapping(x: Array, window: tuple[int, int], strides: tuple[int, int], pads: Pads) -> Array:
    """`max_pool` of windows that overlap; a maximum of two shares its gradient between equals, so not that of JAX."""
    return _shifted(x, window, strides, pads, jnp.maximum, -jnp.inf)


def _overlapping_backward(
    window: tuple[int, int], strides: tuple[int, int], pads: Pads, x: Array, dy: Array
) -> tuple[Array]:
    return jax.vjp(lambda x: plain_max_pool(x, window, strides, pads), x)[1](dy)


_overlapping.defvjp(lambda x, *rest: (_overlapping(x, *rest), x), _overlapping_backward)


def _side_by_side(x: Array, window: tuple[int, int]) -> Array:
    (p, q), (h, w) = window, count(x.shape[1:3], window, window)
    return _window_max(x[:, : h * p, : w * q].reshape(-1, h, p, w, q, x.shape[3]))


@jax.custom_jvp
def _window_max(x: Array) -> Array:
    """`jnp.max(x, (2, 4))` of [B, h, p, w, q, C], whose gradient goes to the first maximum, row by row."""
    return jnp.max(x, (2, 4))


@_window_max.defjvp
def _window_max_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (largest, _), (dlargest, _) = jax.jvp(_max_and_place, primals, tangents)
    return largest, dlargest


@jax.custom_jvp
def _max_and_place(x: Array) -> tuple[Array, Array]:
    """The first maximum of each window, which is NaN where there is one, and its place, counted row by row."""

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


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def first_max(x: Array, axes: tuple[int, ...]) -> Array:
    """`jnp.max(x, axes)` of a matrix product, whose gradient goes to the first maximum.

    Faster than finding value and place in one reduction, but only for what XLA will not compute twice: a second time
    the maximum may differ in its last bit, and then no place has it.
    """
    return jnp.max(x, axes)


@first_max.defjvp
def first_max_jvp(axes: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    sizes = [n if axis in axes else 1 for axis, n in enumerate(x.shape)]
    position = jnp.arange(math.prod(sizes), dtype=jnp.int32).reshape(sizes)
    largest = jnp.max(x, axes, keepdims=True)
    # Reductions, because XLA would compute an unrolled argmax again inside everything that reads it.
    first = jnp.min(jnp.where(x == largest, position, position.size), axes, keepdims=True)
    return jnp.squeeze(largest, axes), jnp.sum(jnp.where(first == position, dx, 0), axes)
