"""Small digits in a larger field, where they are shifted and deformed; and the perceptron, which knows nothing of that.

Glossary: N digits.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from dlc.analysis.perceptron import learn
from dlc.data import Split

SIDE = 28  # of the field
DIRECTIONS = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x])


def field(images: np.ndarray) -> np.ndarray:
    """Digits [N, 28, 28, 1] (uint8) at half their size, in the middle of a field [N, 28, 28, 1]: 0 to 1."""
    small = images.reshape(-1, 14, 2, 14, 2).astype(np.float32).mean((2, 4)) / 255
    return np.pad(small, ((0, 0), (7, 7), (7, 7)))[..., None]


def some(split: Split, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` digits of a data set in their fields, at random, and their labels; all of them if there are fewer."""
    rows = rng.permutation(len(split["label"]))[:count]
    return field(split["image"][rows]), split["label"][rows]


def shifted(images: np.ndarray, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """Each image moved by that many pixels, in one of eight directions."""
    moves = pixels * DIRECTIONS[rng.integers(8, size=len(images))]
    return np.stack([np.roll(image, move, (0, 1)) for image, move in zip(images, moves, strict=True)])


def deformed(images: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    """Each image under a smooth random displacement of that many pixels (root mean square)."""
    offset = np.arange(SIDE)[:, None] - np.arange(SIDE)
    blur = np.exp(-(offset**2) / (2 * 3**2))  # by three pixels
    noise = blur @ rng.normal(size=(len(images), 2, SIDE, SIDE)) @ blur
    places = np.indices((SIDE, SIDE)) + pixels * noise / np.sqrt(np.square(noise).sum(1).mean())
    bend = jax.vmap(lambda image, place: map_coordinates(image, list(place), order=1))
    return np.asarray(bend(images[..., 0], places.astype(np.float32)))[..., None]


def perceptron(x: Any, label: Any, passes: int = 10) -> Any:
    """Weights [10, D] that Rosenblatt's rule learns from x [N, D], averaged over all steps."""
    return learn(x, label, jnp.tile(jnp.arange(len(x)), (passes, 1)), 10).average
