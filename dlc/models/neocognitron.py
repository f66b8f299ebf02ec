"""The neocognitron: layers of S-cells, which learn features without a teacher, and of C-cells, which tolerate shifts.

U0 -> S -> C -> S -> C -> S -> C. All cells of an S-plane look for one feature, each at its place. A C-cell sees a small
area of one S-plane.

What is Fukushima's: the responses of S- and C-cells with their shunting inhibition, learning only where a cell wins,
the amounts by which the winner's weights grow, and that all cells of a plane share them. What is simpler here: winners
are sought at the most active places one after another, instead of in overlapping columns of all planes at once; and
each layer learns after the one before it, in one pass, with a gain at which one lesson is enough. A new plane begins
where no plane responds, as in his later versions; in 1980 all planes began with small random weights.

Glossary: B batch, N patterns, H W height and width, C planes of the layer before, K planes, h window.

References: Fukushima 1980, "Neocognitron: a self-organizing neural network model for a mechanism of pattern recognition
unaffected by shift in position"; new planes: Fukushima 2003, "Neocognitron for handwritten digit recognition".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

SPREAD = 40.0  # sum of the weights of a C-cell: one active S-cell in the middle of its area nearly saturates it


class Planes(NamedTuple):
    """The weights of an S-layer. Of K planes the first `used` are in use; the others are zero and never respond."""

    excitatory: Float[Array, "K h h C"]
    inhibitory: Float[Array, " K"]
    used: Int[Array, ""]


class Stage(NamedTuple):
    """The sizes of an S-layer and the C-layer behind it, and how both respond."""

    planes: int  # at most
    window: int  # side of the area that an S-cell sees
    pool: int | None  # side of the area that a C-cell sees; None: the one cell of each plane sees all of it
    stride: int  # of C-cells
    selectivity: float  # r: an S-cell responds to what is like its feature by more than r / (1 + r)
    gain: float = 1000.0  # q: by how much a winner learns
    winners: int = 6  # places where a pattern is learnt


def decay(side: int, planes: int = 1) -> Float[Array, "h h"]:
    """Fixed weights that fall with the distance from the middle of an area. Over it and all `planes` they sum to 1."""
    offset = jnp.arange(side) - (side - 1) / 2
    weights = 0.8 ** jnp.hypot(offset[:, None], offset[None])
    return weights / weights.sum() / planes


def _windows(u: Float[Array, "B H W C"], side: int, stride: int = 1) -> Float[Array, "B Y X h h C"]:
    """The area around each cell; beyond the border all is zero."""
    low, (_, H, W, _) = (side - 1) // 2, u.shape
    u = jnp.pad(u, ((0, 0), (low, side - 1 - low), (low, side - 1 - low), (0, 0)))
    rows, columns = (np.arange(0, size, stride)[:, None] + np.arange(side) for size in (H, W))
    return u[:, rows][:, :, :, columns].transpose(0, 1, 3, 2, 4, 5)


def respond(planes: Planes, seen: Float[Array, "*n h h C"], selectivity: float) -> Float[Array, "*n K"]:
    """What S-cells that see `seen` answer: r relu((1 + e) / (1 + 2 r / (1 + r) b v) - 1).

    e is what they see, weighted by their excitatory weights, b their inhibitory weight, and v the root of the mean
    square of what they see, weighted by `decay`.
    """
    r = selectivity
    e = jnp.einsum("...ijc,kijc->...k", seen, planes.excitatory)
    inhibition = 2 * r / (1 + r) * jnp.einsum("...,k->...k", activity(seen), planes.inhibitory)
    return r * jax.nn.relu((1 + e) / (1 + inhibition) - 1)


def activity(seen: Float[Array, "*n h h C"]) -> Float[Array, "*n"]:
    """The response of the inhibitory cell that sees the same."""
    side, planes = seen.shape[-2:]
    return jnp.sqrt(jnp.einsum("...ijc,ij->...", jnp.square(seen), decay(side, planes)))


def s_layer(planes: Planes, u: Float[Array, "B H W C"], stage: Stage) -> Float[Array, "B H W K"]:
    """The S-cells of every place."""
    return respond(planes, _windows(u, stage.window), stage.selectivity)


def c_layer(u: Float[Array, "B H W K"], stage: Stage, saturation: float = 0.5) -> Float[Array, "B H2 W2 K"]:
    """psi((1 + s) / (1 + v) - 1) with psi(x) = relu(x) / (saturation + relu(x)).

    s is a plane's activity around the cell, weighted by decreasing weights, and v the mean of s over all planes.
    """
    if stage.pool is None:
        s = u.max((1, 2), keepdims=True)
    else:
        s = jnp.einsum("bhwijk,ij->bhwk", _windows(u, stage.pool, stage.stride), SPREAD * decay(stage.pool))
    x = jax.nn.relu((1 + s) / (1 + s.mean(-1, keepdims=True)) - 1)
    return x / (saturation + x)


def cascade(stages: Sequence[Stage], layers: Sequence[Planes], u: Float[Array, "B H W C"]) -> list[Array]:
    """What every layer answers: S, C, S, C, ... for as many stages as have planes."""
    found: list[Array] = []
    for stage, planes in zip(stages, layers, strict=False):
        found.append(s_layer(planes, u, stage))
        u = c_layer(found[-1], stage)
        found.append(u)
    return found


def grow(u: Float[Array, "N H W C"], stage: Stage) -> Planes:
    """The S-planes that self-organise while the patterns are shown once, one after another.

    Of each pattern the most active place is found, and there the plane that responds most wins: its weights grow in
    proportion to what it sees. If none responds, a new plane begins with what is seen there, as long as there are some
    left. The surroundings of the place are then left out, and the next one is found, `stage.winners` in all.
    """
    _, H, W, C = u.shape
    h = stage.window
    row, column = jnp.arange(H)[:, None], jnp.arange(W)[None]
    shares = decay(h, C)[..., None]

    def learn_one(planes: Planes, pattern: Array) -> tuple[Planes, None]:
        seen = _windows(pattern[None], h)[0]
        active = activity(seen)

        def learn_place(_: Any, carried: tuple[Planes, Array]) -> tuple[Planes, Array]:
            planes, free = carried
            best = jnp.argmax(active * free)
            y, x = best // W, best % W
            here, strength = seen[y, x], active[y, x] * free[y, x]
            answer = respond(planes, here, stage.selectivity)
            winner = jnp.where(answer.max() > 0, jnp.int32(jnp.argmax(answer)), planes.used)
            gain = jnp.where((strength > 0) & (winner < stage.planes), stage.gain, 0.0)
            winner = jnp.minimum(winner, stage.planes - 1)
            planes = Planes(
                planes.excitatory.at[winner].add(gain * shares * here),
                planes.inhibitory.at[winner].add(gain / 2 * strength),
                jnp.maximum(planes.used, jnp.where(gain > 0, winner + 1, 0)),
            )
            near = jnp.maximum(jnp.abs(row - y), jnp.abs(column - x)) <= h // 2
            return planes, free & ~near

        planes, _ = jax.lax.fori_loop(0, stage.winners, learn_place, (planes, jnp.ones((H, W), bool)))
        return planes, None

    empty = Planes(jnp.zeros((stage.planes, h, h, C)), jnp.zeros(stage.planes), jnp.zeros((), jnp.int32))
    return jax.lax.scan(learn_one, empty, u)[0]
