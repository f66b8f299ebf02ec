"""Images with wanted features: the style of one image with the content of another, and images back from a layer.

    loss = lambda pixels: content(...) + 100 * style(...)         # one number
    found = lbfgs(loss, noise, updates=100)                       # found.pixels, found.losses, found.evaluations

Both losses are relative: features of zero have a loss of 1, so that weights mean the same in every network. (In
[1] the content's is a sum over units, and the style's a mean over pairs of maps.)

Glossary: B batch, H W height and width, h w the same of a map, C channels, U updates.

References:
    [1] Gatys, Ecker, Bethge 2015, "A neural algorithm of artistic style", equations 1 to 7.
    [2] Mahendran, Vedaldi 2015, "Understanding deep image representations by inverting them", equations 1 to 3.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Num, UInt8

from dlc.analysis import features

Loss = Callable[[Any], Any]  # pixels -> one number
Pixels = Num[Array | np.ndarray, "B H W C"]


class Found(NamedTuple):
    """The pixels, the loss before each update, and how often it was evaluated up to and with that."""

    pixels: Any
    losses: Any
    evaluations: Any


def gram(maps: Float[Array, "B h w C"]) -> Float[Array, "B C C"]:
    """How strongly each two maps respond at the same places, in the mean over all places: the style of a layer [1]."""
    flat = maps.reshape(len(maps), -1, maps.shape[-1])
    return jnp.einsum("bpc,bpd->bcd", flat, flat) / flat.shape[1]


def distance(features: Float[Array, "B ..."], wanted: Float[Array | np.ndarray, "..."]) -> Float[Array, " B"]:
    """|features - wanted|^2 / |wanted|^2 for each image: the content loss, and the loss of an inversion [2].

    `wanted` are features of as many images, or of one for all.
    """
    wanted = jnp.asarray(wanted)
    apart, size = (jnp.square(jax.lax.collapse(x, 1)).sum(-1) for x in (features - wanted, wanted))
    return apart / jnp.maximum(size, 1e-20)


def style_distance(layers: Sequence[Array], wanted: Sequence[Array]) -> Float[Array, " B"]:
    """The mean over the layers, maps [B, h, w, C], of the `distance` of their Gram matrices from the `wanted` ones."""
    apart = [distance(gram(maps), matrix) for maps, matrix in zip(layers, wanted, strict=True)]
    return jnp.stack(apart).mean(0)


def losses(
    apply: Callable[..., Any], variables: Any, painted: Pixels, maps: Sequence[str], content: str
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The function from images and contents to their losses [B]: of content, in one layer, and of style, in `maps`.

    The style is that of the image `painted`. Layers are named as in `features.shapes`; their outputs are rectified.
    """

    def rectified(pixels: Any) -> dict[str, Any]:
        found = features.activations(apply, variables, pixels, dict.fromkeys((*maps, content)))
        return {name: jnp.maximum(each, 0) for name, each in found.items()}

    painting_maps = rectified(painted)
    wanted = [gram(painting_maps[name]) for name in maps]

    def both(pixels: Any, contents: Any) -> tuple[Any, Any]:
        found = rectified(pixels)
        apart = distance(found[content], rectified(contents)[content])
        return apart, style_distance([found[name] for name in maps], wanted)

    return both


def variation(pixels: Pixels) -> Float[Array, " B"]:
    """The mean square difference of neighbouring pixels, on the scale 0 to 1: small for smooth images [2]."""
    down, across = (jnp.square(jnp.diff(pixels / 255, axis=axis)).mean((1, 2, 3)) for axis in (1, 2))
    return down + across


def lbfgs(loss: Loss, pixels: Pixels, updates: int, rate: float = 5.0, memory: int = 10) -> Found:
    """Minimises by L-BFGS, as [1] does, with a line search that evaluates the loss at least once an update.

    The first step that it tries changes pixels by `rate`, in the root of the mean square.
    """
    tx = optax.lbfgs(memory_size=memory)  # whose first step has the length 1
    start: Any = jnp.asarray(pixels, float)  # with x64 the line search needs the loss in float64
    unit = rate * start.size**0.5
    scaled = lambda place: loss(unit * place)  # noqa: E731
    value_and_grad = optax.value_and_grad_from_state(scaled)

    def update(carry: Any, _: Any) -> tuple[Any, Any]:
        place, state, count = carry
        value, slope = value_and_grad(place, state=state)
        change, state = tx.update(slope, state, place, value=value, grad=slope, value_fn=scaled)
        more = optax.tree.get(state, "num_linesearch_steps")
        return (place + change, state, count + jnp.int32(more)), (value, count)

    first: Any = (start / unit, tx.init(start), jnp.int32(1))
    (found, *_), (losses, counts) = jax.lax.scan(update, first, length=updates)
    return Found(unit * found, losses, counts)


def adam(loss: Loss, pixels: Pixels, updates: int, rate: Any) -> Found:
    """Minimises by Adam, with one evaluation an update."""
    return _descend(loss, pixels, updates, optax.adam(rate))


def descend(loss: Loss, pixels: Pixels, updates: int, rate: Any) -> Found:
    """Minimises by gradient descent with one evaluation an update; the first changes pixels by `rate` in the mean."""
    first = jnp.abs(jax.grad(loss)(jnp.asarray(pixels, jnp.float32))).mean()
    return _descend(loss, pixels, updates, optax.sgd(rate / jnp.maximum(first, 1e-20)))


def best_rate(method: Callable[..., Found], loss: Loss, pixels: Pixels, updates: int, rates: Any) -> Found:
    """What `adam` or `descend` finds with the rate that leaves the least loss."""
    found = jax.lax.map(lambda rate: method(loss, pixels, updates, rate), jnp.asarray(rates))
    best = jnp.nan_to_num(found.losses[:, -1], nan=jnp.inf).argmin()
    return jax.tree.map(lambda leaf: leaf[best], found)


def _descend(loss: Loss, pixels: Pixels, updates: int, tx: optax.GradientTransformation) -> Found:
    def update(carry: Any, _: Any) -> tuple[Any, Any]:
        pixels, state = carry
        value, slope = jax.value_and_grad(loss)(pixels)
        change, state = tx.update(slope, state, pixels)
        return (pixels + change, state), value

    pixels = jnp.asarray(pixels, jnp.float32)
    (pixels, _), losses = jax.lax.scan(update, (pixels, tx.init(pixels)), length=updates)
    return Found(pixels, losses, 1 + jnp.arange(updates))


def painting(size: int, channels: int = 3) -> UInt8[np.ndarray, "{size} {size} {channels}"]:
    """A made-up painting, for when there is none at hand: bands of blue and yellow that swirl."""
    y, x = np.mgrid[:size, :size] / size
    bend = 0.15 * np.sin(9 * x + 4 * np.sin(7 * y)) + 0.1 * np.sin(13 * y - 5 * x)
    band = 0.5 + 0.5 * np.sin(40 * (y + bend))[..., None]
    both = (1 - band) * np.array([20, 50, 140]) + band * np.array([250, 220, 90])
    return both[..., :channels].astype(np.uint8)
