"""How units respond to gratings, as physiologists measure the orientation selectivity of cells.

A grating drifts: its phase passes through a whole period. A unit's rate is its rectified activation above that for
plain grey, in the middle of the image, and its response the mean rate over the phases.

Glossary: F spatial frequencies, O orientations, P phases, S side of the image, U units.

References:
    [1] Hubel, Wiesel 1959, "Receptive fields of single neurones in the cat's striate cortex".
    [2] Mazurek, Kager, Van Hooser 2014, "Robust quantification of orientation selectivity and direction selectivity",
        for the vector sum.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

Values = Array | np.ndarray


def orientations(count: int) -> Float[np.ndarray, " O"]:
    """Equally many degrees apart, from 0 (horizontal bars) up to less than 180."""
    return np.arange(count) * 180 / count


def gratings(
    side: int, frequencies: Float[np.ndarray, " F"], count: int, phases: int
) -> Float[np.ndarray, "F O P S S 1"]:
    """Sinusoidal gratings of -1 to 1 in `count` orientations; frequencies are in periods a pixel. Grey is 0."""
    place = np.arange(side) - (side - 1) / 2
    angle = np.deg2rad(orientations(count))[:, None, None]
    # Rows go down, angles go up: across bars of that angle.
    across = np.sin(angle) * place + np.cos(angle) * place[:, None]
    wave = 2 * np.pi * (np.asarray(frequencies)[:, None, None, None] * across)[:, :, None]
    moved = wave + 2 * np.pi * np.arange(phases)[:, None, None] / phases
    return np.cos(moved).astype(np.float32)[..., None]


def curves(layer: Callable[[Any], Any], images: Float[Values, "F O P S S C"]) -> Float[Array, "U F O"]:
    """The responses of all units of `layer(pixels [B, S, S, C]) -> [B, h, w, U]` to gratings, for every frequency."""
    grey = _middle(layer(jnp.zeros_like(images[0, 0, :1])))
    drifting = jnp.asarray(images).reshape(-1, *images.shape[2:])
    rates = jax.lax.map(lambda phases: jax.nn.relu(_middle(layer(phases)) - grey).mean(0), drifting)
    return jnp.moveaxis(rates.reshape(*images.shape[:2], -1), -1, 0)


def at_best_frequency(responses: Float[Values, "U F O"]) -> Float[np.ndarray, "U O"]:
    """The tuning curve of each unit at the frequency of its largest response."""
    responses = np.asarray(responses)
    return responses[np.arange(len(responses)), responses.max(2).argmax(1)]


def responsive(responses: Float[Values, "U O"], share: float = 0.1) -> Int[np.ndarray, " V"]:
    """The units whose largest response is at least that share of the strongest unit's."""
    largest = np.asarray(responses).max(1)
    return np.flatnonzero(largest >= share * largest.max())


def selectivity(responses: Float[Values, "U O"]) -> tuple[Float[np.ndarray, " U"], Float[np.ndarray, " U"]]:
    """The preferred orientation in degrees, and the selectivity: 0 for equal responses, 1 if only one is not 0.

    They are direction and length of the mean of exp(2 i angle), weighted with the responses [2].
    """
    turned = np.exp(2j * np.deg2rad(orientations(responses.shape[-1])))
    mean = np.asarray(responses) @ turned / np.maximum(np.asarray(responses).sum(-1), 1e-12)
    return np.rad2deg(np.angle(mean)) / 2 % 180, abs(mean)


def shuffled(key: Key[Array, ""], kernel: Float[Values, "KH KW C U"]) -> Float[Array, "KH KW C U"]:
    """Filters whose pixels are in random order, another one for each filter and the same for all its channels."""
    places = jax.random.permutation(
        key, jnp.tile(jnp.arange(kernel[..., 0, 0].size)[:, None], kernel.shape[3]), 0, True
    )
    pixels = jnp.reshape(kernel, (-1, *kernel.shape[2:]))
    return jnp.take_along_axis(pixels, places[:, None], axis=0).reshape(kernel.shape)


def _middle(maps: Float[Array, "B h w U"]) -> Float[Array, "B U"]:
    return maps[:, maps.shape[1] // 2, maps.shape[2] // 2]
