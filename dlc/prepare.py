"""Statistics of a training set, and the functions that prepare its images for a model.

Glossary: N examples, B batch, H W height and width, C channels.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, UInt8

Images = Array | np.ndarray


def mean_and_std(images: UInt8[np.ndarray, "N H W C"]) -> tuple[float, float]:
    """Mean and standard deviation over all pixels of all images, on the scale 0 to 1 (MNIST: 0.1307 and 0.3081)."""
    total, squares = (float(sums.sum()) for sums in _sums(images))
    mean = total / images.size
    return float(mean / 255), float(np.sqrt(squares / images.size - mean**2) / 255)


def channel_mean_and_std(
    images: UInt8[np.ndarray, "N H W C"],
) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
    """Mean and standard deviation of each channel on the scale 0 to 1, float32.

    CIFAR-10: (0.4914, 0.4822, 0.4465) and (0.2470, 0.2435, 0.2616).
    """
    pixels = images.size // images.shape[-1]
    mean, square = (sums / pixels for sums in _sums(images))
    return (mean / 255).astype(np.float32), (np.sqrt(square - mean**2) / 255).astype(np.float32)


def mean_image(images: UInt8[np.ndarray, "N H W C"]) -> Float[np.ndarray, "H W C"]:
    """The mean of each pixel over all images, on the scale 0 to 1, float32.

    Source: Krizhevsky, Sutskever, Hinton 2012, "ImageNet classification with deep convolutional neural networks",
    section 2, and He et al. 2015, "Deep residual learning for image recognition", section 4.2, which subtract it.
    """
    return (images.sum(0, dtype=np.int64) / (255 * len(images))).astype(np.float32)


def standardise(mean: float | np.ndarray, std: float | np.ndarray = 1.0) -> Callable[[Any], Any]:
    """A function from pixels [B, H, W, C], 0 to 255, to float32 images of mean 0 and standard deviation 1.

    `mean` and `std` are on the scale 0 to 1. Each is one number, one for each channel [C], or one for each pixel
    [H, W, C].
    """

    def spread(value: float | np.ndarray) -> Any:
        return np.asarray(value, np.float32).reshape((1,) * (4 - np.ndim(value)) + np.shape(value))

    # Numbers are not turned into arrays, so that the compiled program stays the same.
    shift, scale = (spread(value) if np.ndim(value) else value for value in (mean, std))

    def prepare(images: Num[Images, "B H W C"]) -> Float[Array, "B H W C"]:
        return (jnp.asarray(images, jnp.float32) / 255 - shift) / scale

    return prepare


def color_components(pixels: UInt8[np.ndarray, "N 3"]) -> Float[np.ndarray, "3 3"]:
    """The principal components of red, green and blue on the scale 0 to 1, float32, one in each row, largest first.

    Each is an eigenvector of the pixels' covariance times its eigenvalue. `augment.color_noise` adds multiples of them.
    """
    values, vectors = np.linalg.eigh(np.cov(pixels.T.astype(np.float64) / 255))
    return (values[::-1, None] * vectors.T[::-1]).astype(np.float32)


def _sums(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum of each channel and of its squares: whole numbers, without rounding."""
    C = images.shape[-1]
    total = squares = np.zeros(C)
    for part in np.array_split(images.reshape(-1, C), max(1, images.size // 2**20)):  # pieces that fit into the cache
        values = part.astype(np.float64)
        total = total + np.ones(len(values)) @ values
        squares = squares + np.diag(values.T @ values)
    return total, squares
