"""Adversarial examples: images changed so little that a person sees the same, and a network something else.

`apply(variables, pixels) -> logits` takes pixels from 0 to 255, and so do all functions here; what they return stays
between these bounds. Distances and `epsilon` are shares of that range, 0 to 1, as in the papers.

Glossary: B batch, H W height and width, C channels, K classes.

References:
    [1] Szegedy, Zaremba, Sutskever, Bruna, Erhan, Goodfellow, Fergus 2014, "Intriguing properties of neural networks".
    [2] Goodfellow, Shlens, Szegedy 2015, "Explaining and harnessing adversarial examples".
    [3] Madry, Makelov, Schmidt, Tsipras, Vladu 2018, "Towards deep learning models resistant to adversarial attacks".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from dlc.errors import UserError
from dlc.losses import cross_entropy

Apply = Callable[[Any, Any], Any]
Images = Array | np.ndarray
WHITE = 255.0


class Descent(NamedTuple):
    """How `pgd` walks: `steps` of length `step`, as a share of the range of a pixel."""

    steps: int = 40
    step: float = 0.01


class Search(NamedTuple):
    """How `minimal` searches: `rounds` weights of the loss, beginning with `first`, each with `steps` of L-BFGS."""

    rounds: int = 10
    steps: int = 20
    first: float = 1.0
    memory: int = 8


DESCENT, SEARCH = Descent(), Search()


def distortion(changed: Shaped[Images, "B ..."], pixels: Shaped[Images, "B ..."]) -> Float[Array, " B"]:
    """sqrt(mean of (x' - x)^2) over the pixels of each image, on the scale 0 to 1: the measure of [1], section 4.2."""
    difference = (jnp.asarray(changed, jnp.float32) - jnp.asarray(pixels, jnp.float32)) / WHITE
    return jnp.sqrt(jnp.square(difference).reshape(len(difference), -1).mean(-1))


def magnified(
    changed: Shaped[Images, "B H W C"], pixels: Shaped[Images, "B H W C"], size: float
) -> Float[Array, "B H W C"]:
    """The same change, made larger or smaller until its distortion is `size`, and then cut to the bounds."""
    _check("size", size)
    factor = size / jnp.maximum(distortion(changed, pixels), 1e-12)
    pixels = jnp.asarray(pixels, jnp.float32)
    return jnp.clip(pixels + factor[:, None, None, None] * (changed - pixels), 0, WHITE)


def fgsm(
    apply: Apply, variables: Any, pixels: Shaped[Images, "B H W C"], label: Int[Images, " B"], epsilon: Any
) -> Float[Array, "B H W C"]:
    """The fast gradient sign method: x + epsilon sign(gradient of the loss), section 3 of [2].

    Raises UserError if epsilon is negative.
    """
    return pgd(apply, variables, pixels, label, epsilon, Descent(1, epsilon))


def pgd(
    apply: Apply,
    variables: Any,
    pixels: Shaped[Images, "B H W C"],
    label: Int[Images, " B"],
    epsilon: Any,
    how: Descent = DESCENT,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "B H W C"]:
    """Projected gradient ascent of the loss in the ball |x' - x| <= epsilon of every pixel, section 2.1 of [3].

    It follows the sign of the gradient, and begins at a random point of the ball if there is a key, at x otherwise.
    Raises UserError if epsilon is negative.
    """
    _check("epsilon", epsilon)
    pixels = jnp.asarray(pixels, jnp.float32)
    low, high = jnp.maximum(pixels - WHITE * epsilon, 0), jnp.minimum(pixels + WHITE * epsilon, WHITE)
    slope = jax.grad(lambda x: cross_entropy(apply(variables, x), label).sum())
    start = pixels if key is None else jax.random.uniform(key, pixels.shape, minval=low, maxval=high)

    def ascend(_: Any, x: Any) -> Any:
        return jnp.clip(x + WHITE * how.step * jnp.sign(slope(x)), low, high)

    return jax.lax.fori_loop(0, how.steps, ascend, start)


def minimal(
    apply: Apply,
    variables: Any,
    pixels: Shaped[Images, "B H W C"],
    target: Int[Images, " B"],
    search: Search = SEARCH,
) -> tuple[Float[Array, "B H W C"], Bool[Array, " B"]]:
    """The nearest image that is taken for the class `target`, and whether one was found: section 4.1 of [1].

    Box-constrained L-BFGS minimises |x' - x|^2 + w loss(x', target), and a search finds the smallest weight w that
    leads to the target: by factors of ten first, then by bisection of its logarithm. (In [1] the distance is not
    squared, and the weight is that of the distance.) The images of a batch go through the network together, each with
    its own weight. Where none was found, the image is returned as it is.
    """
    origin = jnp.asarray(pixels, jnp.float32) / WHITE
    target = jnp.asarray(target)

    def objective(x: Any, weight: Any) -> Any:
        value = cross_entropy(apply(variables, WHITE * x), target)
        return jnp.square(x - origin).sum((1, 2, 3)) + weight * value

    def attempt(state: Any, _: Any) -> Any:
        best, found, low, high = state
        between = jnp.sqrt(jnp.maximum(low, high / 100) * high)
        weight = jnp.where(found, between, jnp.where(low > 0, 10 * low, search.first))
        reached = _lbfgs(lambda x: objective(x, weight), jnp.where(_wide(found), best, origin), search)
        hit = apply(variables, WHITE * reached).argmax(-1) == target
        nearer = hit & (~found | (distortion(reached, origin) < distortion(best, origin)))
        best = jnp.where(_wide(nearer), reached, best)
        return (best, found | hit, jnp.where(hit, low, weight), jnp.where(hit, weight, high)), None

    unknown = jnp.zeros(len(origin), origin.dtype)
    begun = (origin, unknown > 0, unknown, unknown)
    (best, found, _, _), _ = jax.lax.scan(attempt, begun, None, search.rounds)
    return jnp.where(_wide(found), WHITE * best, pixels), found


def _lbfgs(objective: Callable[[Any], Any], x: Any, search: Search) -> Any:
    """Minimises an objective [B] of images [B, H, W, C] in the box 0 to 1, each image on its own.

    L-BFGS gives the direction for the pixels that are free to move: those that are not held by a bound against which
    the gradient pushes. A step is halved until the projected point has decreased enough (Armijo).
    """
    tx = optax.scale_by_lbfgs(search.memory)

    def measured(x: Any) -> Any:
        value, pull = jax.vjp(objective, x)
        return value, pull(jnp.ones_like(value))[0]

    def inner(a: Any, b: Any) -> Any:
        return (a * b).sum((1, 2, 3))

    def step(state: Any, _: Any) -> Any:
        x, value, slope, memory = state
        held = ((x <= 0) & (slope > 0)) | ((x >= 1) & (slope < 0))
        free = jnp.where(held, 0, slope)
        along, memory = jax.vmap(tx.update)(free, memory, x)
        along = jnp.where(held, 0, -along)
        along = jnp.where(_wide(inner(along, free) < 0), along, -free)
        fall = -inner(along, free)

        def shorten(trial: Any) -> Any:
            length, done, *kept = trial
            moved = jnp.clip(x + length * along, 0, 1)
            new = moved, *measured(moved)
            good = ~done & (new[1] <= value + 1e-4 * inner(free, moved - x))
            kept = [jnp.where(good if a.ndim == 1 else _wide(good), a, b) for a, b in zip(new, kept, strict=True)]
            return length / 2, done | good, *kept

        # Where less is to be gained than float32 can tell, the image has arrived.
        begun = jnp.ones((), x.dtype), fall < 1e-6 * (1 + jnp.abs(value)), x, value, slope
        _, _, x, value, slope = jax.lax.while_loop(lambda trial: ~trial[1].all() & (trial[0] > 0.01), shorten, begun)
        return (x, value, slope, memory), None

    (x, *_), _ = jax.lax.scan(step, (x, *measured(x), jax.vmap(tx.init)(x)), None, search.steps)
    return x


def _wide(flags: Any) -> Any:
    """[B] as [B, 1, 1, 1]."""
    return flags[:, None, None, None]


def _check(name: str, value: Any) -> None:
    """Raises UserError for a negative number, and for one that is not a number, unless it is traced."""
    if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) >= 0):
        raise UserError(f"{name} must not be negative, as {value} is")
