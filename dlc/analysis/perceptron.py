"""Rosenblatt's perceptron: a rule that learns from mistakes only, and how many it can make.

Glossary: N examples, E passes, D inputs, K classes.

References:
    [1] Rosenblatt 1958, "The perceptron: a probabilistic model for information storage and organization in the brain".
    [2] Novikoff 1962, "On convergence proofs on perceptrons".
    [3] Freund, Schapire 1999, "Large margin classification using the perceptron algorithm".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key

BLOCK = 50  # examples that are fetched at once, at most; the rule takes one after the other


class Learnt(NamedTuple):
    """Weights after the last example, their average over all times, which stands for the vote of [3], and mistakes."""

    weights: Float[Array, "K D"]
    average: Float[Array, "K D"]
    mistakes: Int[Array, " E"]  # of each pass


def learn(
    x: Any, label: Integer[Any, " N"], order: Integer[Any, "E M"], classes: int, see: Callable[[Any], Any] = jnp.asarray
) -> Learnt:
    """Learns the examples x [N, ...] in the `order` of each pass, which are their rows.

    The rule, for one unit a class: if the strongest response is a wrong one, the input is added to the weights of the
    right unit and subtracted from those of the strongest. With two classes, the difference of the two units is the
    perceptron of [1]. `see` turns some x [B, ...] into inputs [B, D].
    """

    def look(state: Any, example: Any) -> Any:
        (weights, later, time), (inputs, right) = state, example
        answer = jnp.argmax(weights @ inputs)
        change = jnp.outer(jax.nn.one_hot(right, classes) - jax.nn.one_hot(answer, classes), inputs)
        return (weights + change, later + time * change, time + 1), answer != right

    def block(state: Any, rows: Any) -> Any:
        return jax.lax.scan(look, state, (see(x[rows]), label[rows]))

    x, label = jnp.asarray(x), jnp.asarray(label)
    size = max(size for size in range(1, BLOCK + 1) if order.size % size == 0)
    blocks = jnp.reshape(order, (-1, size))
    nothing = jnp.zeros((classes, jax.eval_shape(see, x[:1]).shape[-1]))
    (weights, later, time), wrong = jax.lax.scan(block, (nothing, nothing, 0.0), blocks)
    return Learnt(weights, weights - later / time, wrong.reshape(order.shape).sum(1))


def association(key: Key[Array, ""], inputs: int, units: int, connections: int) -> Callable[[Any], Any]:
    """The layer of association units of [1]: x [B, inputs] -> [B, units], 1 where more excites than inhibits, else 0.

    Units are wired at random to as many inputs as `connections`, on average. Half of these excite, half inhibit.
    """
    drawn = jax.random.uniform(key, (inputs, units), minval=-1) * inputs / connections
    wires = jnp.sign(drawn) * (abs(drawn) < 1)
    return lambda x: (x @ wires > 0).astype(jnp.float32)


def novikoff(x: Float[np.ndarray, "N D"], sign: Integer[np.ndarray, " N"], plane: Float[np.ndarray, " D"]) -> float:
    """(R / margin)^2, the most mistakes that two classes of `sign` -1 and 1 can cost: theorem of [2].

    R is the length of the longest example, the margin its least distance from the plane through the origin whose normal
    is given. Infinite if that does not separate them.
    """
    margin = (sign * (x @ plane)).min() / np.linalg.norm(plane)
    return float((x**2).sum(1).max() / margin**2) if margin > 0 else np.inf
