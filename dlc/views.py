"""Test-time views: the mean of a model's outputs over small changes of its image that do not change the class.

    predict = functools.partial(views, forward, level=2)            # CIFAR-10
    predict = functools.partial(over_crops, forward, size=224)      # ImageNet: ten crops

Sources: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv 2404.00498), section 3.5, where outputs
are averaged as logits; Krizhevsky, Sutskever, Hinton 2012, "ImageNet classification with deep convolutional neural
networks", section 4.1, where it is probabilities.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from dlc.errors import UserError

Forward = Callable[[Any], Any]  # images [B, H, W, C] -> outputs [B, ...]


def mirrored(forward: Forward) -> Forward:
    """The mean of `forward` on an image and on its mirror image, left to right."""
    return lambda images: (forward(images) + forward(images[:, :, ::-1])) / 2


def translated(forward: Forward) -> Forward:
    """The mean of `forward` on an image shifted by one pixel down and right, and by one pixel up and left.

    The image is mirrored at its edges to fill the new pixels.
    """

    def both(images: Shaped[Array | np.ndarray, "B H W C"]) -> Any:
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        return (forward(padded[:, :-2, :-2]) + forward(padded[:, 2:, 2:])) / 2

    return both


def views(forward: Forward, images: Shaped[Array | np.ndarray, "B H W C"], level: int = 2) -> Any:
    """Outputs [B, ...] for images of any dtype, from one forward pass at level 0, two at level 1 and six at level 2.

        0   f(x)
        1   m(x) = (f(x) + f(mirror x)) / 2
        2   m(x) / 2 + (m(up left of x) + m(down right of x)) / 4

    Raises UserError for other levels.
    """
    if level not in (0, 1, 2):
        raise UserError(f"the level of test-time views must be 0, 1 or 2, not {level}")
    if level == 0:
        return forward(images)
    mirror = mirrored(forward)
    return mirror(images) if level == 1 else (mirror(images) + translated(mirror)(images)) / 2


def centre(images: Shaped[Array | np.ndarray, "B H W C"], size: int) -> Shaped[Array, "B size size C"]:
    """The central square of side `size` of each image. Raises UserError if an image is smaller."""
    H, W = _larger(images, size)
    top, left = round((H - size) / 2), round((W - size) / 2)
    return jnp.asarray(images[:, top : top + size, left : left + size])


def ten_crops(images: Shaped[Array | np.ndarray, "B H W C"], size: int) -> Shaped[Array, "10 B size size C"]:
    """The squares of side `size` in the four corners and the centre of each image, then their mirror images.

    Raises UserError if an image is smaller.
    """
    H, W = _larger(images, size)
    corners = [images[:, y : y + size, x : x + size] for y in (0, H - size) for x in (0, W - size)]
    five = jnp.stack([*corners, centre(images, size)])
    return jnp.concatenate([five, five[:, :, :, ::-1]])


def over_crops(
    forward: Forward, images: Shaped[Array | np.ndarray, "B H W C"], size: int, crops: Literal[1, 10] = 10
) -> Float[Array, "B K"]:
    """The logits of the central square, or the logarithm of the mean probability over ten crops.

    `forward` maps images [B, size, size, C] to logits [B, K]. It is applied to one crop after another.
    """
    if crops == 1:
        return forward(centre(images, size))

    def log_probabilities(crop: Array) -> Array:
        logits = forward(crop)
        return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))

    logs = jax.lax.map(log_probabilities, ten_crops(images, size))
    return jax.nn.logsumexp(logs, axis=0) - math.log(10)


def _larger(images: Any, size: int) -> tuple[int, int]:
    H, W = images.shape[1:3]
    if size > min(H, W):
        raise UserError(f"a crop of {size}x{size} is larger than its image of {H}x{W}")
    return H, W
