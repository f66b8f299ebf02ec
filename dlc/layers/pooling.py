"""Pooling over windows of an image: functions without weights.

Shapes: B batch, H W height and width, h w the same after the layer, C channels. Images are NHWC, [B, H, W, C].

As in `basic.py`, each function has a plain form, which is XLA's own and runs on GPU and TPU, and one in `cpu.py`.
"""

import functools
from collections.abc import Sequence

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
    """The maximum of each window. Windows lie side by side unless `strides` says otherwise.

    Padding is never chosen as the maximum. Rows and columns that do not fill a window are dropped; with `ceil` a
    partial window counts, too, unless it lies entirely in the padding (as in Caffe and PyTorch's `ceil_mode`). Of equal
    maxima, the first in row order receives the gradient, as in PyTorch.

    Raises UserError if the window is larger than the padded image.
    """
    strides = strides or window
    pads = _whole("pooling window", x, window, strides, padding, ceil)
    plain = functools.partial(plain_max_pool, window=window, strides=strides, padding=pads)
    fast = functools.partial(cpu.max_pool, window=window, strides=strides, pads=pads)
    return lax.platform_dependent(x, cpu=fast, default=plain) if cpu.is_default() else plain(x)


def avg_pool(
    x: Float[Array, "B H W C"],
    window: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: Pads = NONE,
    ceil: bool = False,
    count_padding: bool = True,
) -> Float[Array, "B h w C"]:
    """The mean of each window, placed as in `max_pool`.

    The zeros of the padding count as pixels unless `count_padding` is False. The pixels that `ceil` adds after the
    padding never count.

    Raises UserError if the window is larger than the padded image.
    """
    strides = strides or window
    pads = _whole("pooling window", x, window, strides, padding, ceil)
    plain = functools.partial(plain_sum_pool, window=window, strides=strides, padding=pads)
    shifted = functools.partial(cpu.window_reduce, window=window, strides=strides, pads=pads, combine=jnp.add, fill=0)
    counts = []
    for n, k, s, (before, after), (_, total) in zip(x.shape[1:3], window, strides, padding, pads, strict=True):
        first, last = (-before, n + after) if count_padding else (0, n)
        starts = s * np.arange((n + before + total - k) // s + 1) - before
        counts.append(np.minimum(starts + k, last) - np.maximum(starts, first))
    pixels = np.outer(*counts)[None, :, :, None]
    return lax.platform_dependent(x, cpu=shifted, default=plain) / pixels.astype(x.dtype)


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
    """The sum of each window by XLA's own windowed reduction."""
    return lax.reduce_window(x, 0.0, lax.add, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0)))


def count(image: Sequence[int], size: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The number of windows that fit, down and across."""
    return tuple((n - k) // s + 1 for n, k, s in zip(image, size, strides, strict=True))


def check_size(name: str, size: Sequence[int], image: Sequence[int]) -> None:
    """Raises UserError if a window is larger than its image."""
    if any(k > n for k, n in zip(size, image, strict=True)):
        raise UserError(f"a {name} of {size[0]}x{size[1]} is larger than its image of {image[0]}x{image[1]}")


def _whole(
    name: str, x: Array, window: Sequence[int], strides: Sequence[int], padding: Pads, ceil: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The padding, with the pixels that `ceil` adds after it."""
    padded = tuple(n + sum(pad) for n, pad in zip(x.shape[1:3], padding, strict=True))
    check_size(name, window, padded)
    pads = []
    for n, k, s, (before, after) in zip(x.shape[1:3], window, strides, padding, strict=True):
        windows = (n + before + after - k) // s + 1
        if ceil and (n + before + after - k) % s and windows * s < n + before:
            after += windows * s + k - (n + before + after)
        pads.append((before, after))
    return pads[0], pads[1]
