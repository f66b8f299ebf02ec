"""What happens to images on their way into a model, inside the compiled step.

Glossary: N examples, B batch, H W height and width, C channels.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8


def mean_and_std(images: UInt8[np.ndarray, "N H W C"]) -> tuple[float, float]:
    """Mean and standard deviation over all pixels of all images, on the scale 0 to 1 (MNIST: 0.1307 and 0.3081)."""
    total = squares = 0.0
    for part in np.array_split(images.reshape(-1), max(1, images.size // 2**20)):  # pieces that stay in the cache
        values = part.astype(np.float64)  # whole numbers, so that the sums are exact
        total += float(values.sum())
        squares += float(values @ values)
    mean = total / images.size
    return float(mean / 255), float(np.sqrt(squares / images.size - mean**2) / 255)


def standardise(mean: float, std: float) -> Callable[[Any], Any]:
    """uint8 images [B, H, W, C] to float32 ones of mean 0 and standard deviation 1, given those on the scale 0 to 1."""

    def prepare(images: UInt8[Array | np.ndarray, "B H W C"]) -> Float[Array, "B H W C"]:
        return (jnp.asarray(images, jnp.float32) / 255 - mean) / std

    return prepare
