"""Images that excite a network: gradient ascent in the pixels.

    liked = lambda pixels: score(apply(variables, pixels))        # [B]: a class, a unit, `of_layer`
    images, rise = dream.ascend(liked, pixels, key)
    images = dream.octaves(liked, photographs, key)               # DeepDream, for networks that take images of any size

Pixels are numbers of 0 to 255. All functions are pure and can be compiled.

Glossary: B batch, H W height and width, C channels, U updates.

References:
    [1] Erhan, Bengio, Courville, Vincent 2009, "Visualizing higher-layer features of a deep network".
    [2] Simonyan, Vedaldi, Zisserman 2014, "Deep inside convolutional networks", section 2.
    [3] Mordvintsev, Olah, Tyka 2015, "Inceptionism: going deeper into neural networks", and its program DeepDream.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num

from dlc.analysis import saliency
from dlc.errors import UserError

Objective = Callable[[Any], Any]  # pixels [B, H, W, C] -> [B]
Pixels = Num[Array | np.ndarray, "B H W C"]


def of_layer(apply: Callable[..., Any], variables: Any, name: str) -> Objective:
    """The mean square of what the layer `name` of a Flax model returns: DeepDream's objective [3]."""
    forward = saliency.layer(apply, name)
    return lambda pixels: jnp.square(jax.lax.collapse(forward(variables, pixels), 1)).mean(-1)


def ascend(
    objective: Objective,
    pixels: Pixels,
    key: Key[Array, ""],
    updates: int = 100,
    rate: float = 2.0,
    jitter: int = 0,
    blur: float = 0.0,
) -> tuple[Float[Array, "B H W C"], Float[Array, "U B"]]:
    """Images after `updates` steps along the gradient, and their objective before each step.

    A step changes the pixels of an image by `rate` in the mean, less from step to step, and keeps them within 0 and
    255. Against patterns that only a network sees, the image is shifted by up to `jitter` pixels before each step and
    back after it [3], and the gradient is blurred by a Gaussian of that many pixels.
    """

    def update(pixels: Any, draw: Any) -> tuple[Any, Any]:
        share, key = draw
        shift = jax.random.randint(key, (2,), -jitter, jitter + 1)
        moved = jnp.roll(pixels, shift, (1, 2))
        slope, value = jax.grad(_sum_and_each(objective), has_aux=True)(moved)
        slope = blurred(slope, blur)
        slope = slope / jnp.maximum(jnp.abs(slope).mean((1, 2, 3), keepdims=True), 1e-20)
        return jnp.roll(jnp.clip(moved + rate * share * slope, 0, 255), -shift, (1, 2)), value

    shares = jnp.float32(1 - jnp.arange(updates) / updates)
    return jax.lax.scan(update, jnp.asarray(pixels, jnp.float32), (shares, jax.random.split(key, updates)))


def octaves(
    objective: Objective, pixels: Pixels, key: Key[Array, ""], count: int = 4, zoom: float = 1.4, **how: Any
) -> Float[Array, "B H W C"]:
    """Images that dream at `count` sizes, from small to their own: what was added at one size is enlarged and kept [3].

    `how` are options of `ascend`. Raises UserError if the smallest size has no pixels.
    """
    pixels = jnp.asarray(pixels, jnp.float32)
    height, width = pixels.shape[1:3]
    added = jnp.zeros_like(pixels)
    for i in reversed(range(count)):
        size = math.floor(height / zoom**i), math.floor(width / zoom**i)
        if min(size) < 1:
            raise UserError(
                f"an image of {height}x{width} cannot be made smaller {count - 1} times: take fewer octaves"
            )
        shape = (len(pixels), *size, pixels.shape[3])
        base, added = (jax.image.resize(images, shape, "linear") for images in (pixels, added))
        added = ascend(objective, base + added, jax.random.fold_in(key, i), **how)[0] - base
    return pixels + added


def blurred(images: Float[Array, "B H W C"], deviation: float) -> Float[Array, "B H W C"]:
    """Images blurred by a Gaussian of `deviation` pixels, whose weights sum to one at the edges, too; 0 is none."""
    if not deviation:
        return images
    down, across = (_gaussian(n, deviation).astype(images.dtype) for n in images.shape[1:3])
    return jnp.einsum("ih,bhwc,jw->bijc", down, images, across)


def _gaussian(n: int, deviation: float) -> Any:
    place = np.arange(n)
    weights = np.exp(-(((place[:, None] - place[None]) / deviation) ** 2) / 2)
    return jnp.asarray(weights / weights.sum(1, keepdims=True))


def _sum_and_each(objective: Objective) -> Callable[[Any], Any]:
    def both(pixels: Any) -> Any:
        each = objective(pixels)
        return each.sum(), each

    return both
