"""Signals and gradients in a deep plain network of dense layers: how each layer changes their variance at the start.

Glossary: L layers with weights, M = L - 1 hidden layers, n units in a layer, m in the next, B batch, I inputs, K
classes, S seeds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dlc import losses
from dlc.train import LossFn


def flat(key: Key[Array, ""], shape: tuple[int, int]) -> Float[Array, "n m"]:
    """Uniform numbers of variance 1."""
    return jax.random.uniform(key, shape, minval=-(3**0.5), maxval=3**0.5)


def orthogonal(key: Key[Array, ""], shape: tuple[int, int]) -> Float[Array, "n m"]:
    """A part of a random rotation, scaled so that its numbers have variance 1."""
    side = max(shape)
    return jax.random.orthogonal(key, side)[: shape[0], : shape[1]] * side**0.5


class Initialisation(NamedTuple):
    """How weights from n inputs to m outputs begin: numbers of variance 1, times the root of a variance."""

    source: str
    variance: Callable[[int, int], float]
    draw: Callable[[Any, tuple[int, int]], Any] = jax.random.normal


# The uniform ones lie in +-1/sqrt(n), which Glorot and Bengio call the standard initialisation, and PyTorch's default.
INITIALISATIONS = {
    "2/n": Initialisation("He, Zhang, Ren, Sun 2015", lambda n, m: 2 / n),
    "1/n": Initialisation("LeCun, Bottou, Orr, Müller 1998", lambda n, m: 1 / n),
    "2/(n+m)": Initialisation("Glorot, Bengio 2010", lambda n, m: 2 / (n + m)),
    "1/n, orthogonal": Initialisation("Saxe, McClelland, Ganguli 2014", lambda n, m: 1 / max(n, m), orthogonal),
    "1/(3n), uniform": Initialisation("before 2010, and in PyTorch", lambda n, m: 1 / (3 * n), flat),
    "0.01²": Initialisation("Krizhevsky, Sutskever, Hinton 2012", lambda n, m: 0.0001),
}


def initial(how: Initialisation, key: Key[Array, ""], sizes: tuple[int, int, int], layers: int) -> dict[str, Any]:
    """Weights and biases, which are zero, of a network with `sizes` (I, n, K).

    Weights are [I, n] of "first", [L - 2, n, n] of "hidden", which is a stack of layers, and [n, K] of "last".
    """
    inputs, width, classes = sizes
    first, last, *between = jax.random.split(key, layers)

    def layer(key: Any, n: int, m: int) -> dict[str, Any]:
        return {"weight": how.draw(key, (n, m)) * how.variance(n, m) ** 0.5, "bias": jnp.zeros(m)}

    hidden = jax.vmap(lambda key: layer(key, width, width))(jnp.stack(between))
    return {"first": layer(first, inputs, width), "hidden": hidden, "last": layer(last, width, classes)}


def every_initial(keys: Key[Array, " S"], sizes: tuple[int, int, int], layers: int) -> dict[str, Any]:
    """Networks of each initialisation by name, whose leaves have a leading axis [S]."""
    return {
        name: jax.vmap(lambda key, how=how: initial(how, key, sizes, layers))(keys)
        for name, how in INITIALISATIONS.items()
    }


def forward(
    params: Any, x: Float[Array, "B I"], unit: Callable[[Any], Any], added: Any = None
) -> tuple[Float[Array, "B K"], Float[Array, "M B n"]]:
    """Logits, and what the units of each layer receive: weighted sums, and `added` [L - 1, B, n] if it is given."""

    def layer(x: Any, both: Any) -> tuple[Any, Any]:
        own, more = both
        y = x @ own["weight"] + own["bias"][None] + more
        return unit(y), y

    if added is None:
        added = jnp.zeros((len(params["hidden"]["bias"]) + 1, 1, 1))
    x, y = layer(x, (params["first"], added[0]))
    x, received = jax.lax.scan(layer, x, (params["hidden"], added[1:]))
    return x @ params["last"]["weight"] + params["last"]["bias"][None], jnp.concatenate([y[None], received])


def classify(unit: Callable[[Any], Any], prepare: Callable[[Any], Any]) -> LossFn:
    """The mean cross-entropy of a network, as `make_step` takes it. `prepare` makes vectors [B, I] of images."""

    def loss_fn(params: Any, aux: Any, batch: Any, key: Any) -> Any:
        logits, _ = forward(params, prepare(batch["image"]), unit)
        return losses.cross_entropy(logits, batch["label"]).mean(), (aux, {})

    return loss_fn


def deviations(
    params: Any, x: Float[Array, "B I"], label: Int[Array | np.ndarray, " B"], unit: Callable[[Any], Any]
) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """The root mean squares of what each layer's units receive, and of the loss's gradients for that.

    The loss is the mean cross-entropy of the logits.
    """

    def loss(added: Any) -> tuple[Any, Any]:
        logits, received = forward(params, x, unit, added)
        return losses.cross_entropy(logits, label).mean(), received

    layers, width = params["hidden"]["bias"].shape
    gradients, received = jax.grad(loss, has_aux=True)(jnp.zeros((layers + 1, len(x), width)))
    return _root_mean_square(received), _root_mean_square(gradients)


def _root_mean_square(y: Float[Array, "M B n"]) -> Float[Array, " M"]:
    top = jnp.abs(y).max((1, 2), keepdims=True)  # squares of small numbers are zero in float32
    return top[:, 0, 0] * jnp.sqrt(jnp.square(y / jnp.where(top > 0, top, 1)).mean((1, 2)))


def factors(signal: Any, gradient: Any) -> Any:
    """By how much a layer multiplies the variance, on average: of signals forwards, of gradients backwards, [2, ...].

    Takes the deviations [..., L - 1] of both.
    """
    signal, gradient = np.float64(signal), np.float64(gradient)
    ends = np.stack([signal[..., -1] / signal[..., 0], gradient[..., 0] / gradient[..., -1]])
    return ends ** (2 / (signal.shape[-1] - 1))
