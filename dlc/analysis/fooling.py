"""Images that a network is sure of and that show nothing: evolved by MAP-Elites, or found by gradient ascent.

Evolution keeps one elite for each class. In every generation children of random elites are mutated, and a child that
scores higher on a class takes that elite's place. A genome is the image itself, or a network that draws it (CPPN). A
whole run is one `lax.scan`: a CPPN has a fixed number of places for nodes, and masks say which are in use.

Glossary: B children, G generations, K classes, H W C of an image, N places for nodes of a CPPN.

References:
    [1] Nguyen, Yosinski, Clune 2015, "Deep neural networks are easily fooled: high confidence predictions for
        unrecognizable images".
    [2] Mouret, Clune 2015, "Illuminating search spaces by mapping elites".
    [3] Stanley 2007, "Compositional pattern producing networks: a novel abstraction of development".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from dlc.losses import cross_entropy

Shape = tuple[int, int, int]
INPUTS = 4  # of a CPPN: x, y, the distance from the centre, and 1


class Encoding(NamedTuple):
    """How a genome becomes an image: `draw(key)` one, `mutate(key, genome)`, `pixels(genome)` [H, W, C] in 0 to 255."""

    draw: Callable[[Any], Any]
    mutate: Callable[[Any, Any], Any]
    pixels: Callable[[Any], Any]


class Pattern(NamedTuple):
    """A CPPN. Row i of `weight` and `mask` has what node i hears of the nodes before it; `kind` is its function.

    The nodes are the inputs, the hidden ones, of which those in `alive` are in use, and one output for each channel.
    """

    weight: Float[Array, "N N"]
    mask: Bool[Array, "N N"]
    kind: Int[Array, " N"]
    alive: Bool[Array, " N"]


def map_elites(
    key: Key[Array, ""], encoding: Encoding, score: Callable[[Any], Any], generations: int, children: int
) -> tuple[Any, Float[Array, "G K"]]:
    """The genomes of the elites, each leaf [K, ...], and their scores in every generation.

    `score` maps images [B, H, W, C] to their scores [B, K]. The first generation is drawn, the others are mutated.
    """
    begin, evolve = jax.random.split(key)
    picture = jax.vmap(encoding.pixels)
    drawn = jax.vmap(encoding.draw)(jax.random.split(begin, children))
    scores = score(picture(drawn))
    elites = jax.tree.map(lambda leaf: leaf[scores.argmax(0)], drawn)

    def generation(state: Any, key: Any) -> Any:
        elites, best = state
        choose, change = jax.random.split(key)
        parents = jax.random.randint(choose, (children,), 0, len(best))
        brood = jax.tree.map(lambda leaf: leaf[parents], elites)
        brood = jax.vmap(encoding.mutate)(jax.random.split(change, children), brood)
        scores = score(picture(brood))
        winner, better = scores.argmax(0), scores.max(0) > best

        def replaced(old: Any, new: Any) -> Any:
            return jnp.where(better.reshape(-1, *[1] * (old.ndim - 1)), new[winner], old)

        best = jnp.maximum(best, scores.max(0))
        return (jax.tree.map(replaced, elites, brood), best), best

    state = (elites, scores.max(0))
    (elites, _), history = jax.lax.scan(generation, state, jax.random.split(evolve, generations))
    return elites, history


def ascend(
    key: Key[Array, ""], logits: Callable[[Any], Any], shape: Shape, steps: int = 200, rate: float = 8.0
) -> Float[Array, "K H W C"]:
    """An image for each class: gradient ascent of the logarithm of its probability by Adam, from uniform noise.

    `logits` maps images [B, H, W, C] to logits [B, K].
    """
    classes = jnp.arange(jax.eval_shape(logits, jnp.zeros((1, *shape))).shape[-1])
    tx = optax.adam(rate)
    start = jax.random.uniform(key, (len(classes), *shape), maxval=255.0)

    def step(state: Any, _: Any) -> Any:
        pixels, memory = state
        slope = jax.grad(lambda x: cross_entropy(logits(x), classes).sum())(pixels)
        updates, memory = tx.update(slope, memory)
        return (jnp.clip(pixels + updates, 0, 255), memory), None

    return jax.lax.scan(step, (start, tx.init(start)), None, steps)[0][0]


def direct(shape: Shape, share: float = 0.1, strength: float = 15.0) -> Encoding:
    """A genome is the image: each mutation changes a `share` of the numbers by polynomial mutation, as [1] does."""

    def mutate(key: Any, image: Any) -> Any:
        choose, change = jax.random.split(key)
        moved = image + 255 * polynomial(jax.random.uniform(change, shape), strength)
        return jnp.where(jax.random.bernoulli(choose, share, shape), jnp.clip(moved, 0, 255), image)

    return Encoding(lambda key: jax.random.uniform(key, shape, maxval=255.0), mutate, lambda image: image)


def polynomial(uniform: Any, strength: float) -> Any:
    """The step, -1 to 1, of Deb's polynomial mutation for numbers that are uniform in 0 to 1."""
    power = 1 / (strength + 1)
    return jnp.where(uniform < 0.5, (2 * uniform) ** power - 1, 1 - (2 - 2 * uniform) ** power)


def cppn(shape: Shape, hidden: int = 12) -> Encoding:
    """A genome is a network from a pixel's place to its brightness, so that images have symmetries and repetitions.

    It begins without hidden nodes. A mutation changes some weights, and sometimes a node's function (a sine, a sigmoid,
    a Gaussian, or none), adds a connection, or puts a new node between two others, up to `hidden` of them.
    """
    height, width, channels = shape
    count = INPUTS + hidden + channels
    places = jnp.arange(count)
    outputs = places >= INPUTS + hidden
    earlier = places[None, :] < places[:, None]
    y, x = jnp.meshgrid(jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width), indexing="ij")
    seen = jnp.stack([x, y, jnp.sqrt(x**2 + y**2), jnp.ones(x.shape)]).reshape(INPUTS, -1)

    def draw(key: Any) -> Pattern:
        weights, kinds = jax.random.split(key)
        alive = (places < INPUTS) | outputs
        mask = outputs[:, None] & (places < INPUTS)[None]
        return Pattern(
            2 * jax.random.normal(weights, (count, count)), mask, jax.random.randint(kinds, (count,), 0, 4), alive
        )

    def mutate(key: Any, old: Pattern) -> Pattern:
        chance, noise, which, node, source, target, kind = jax.random.split(key, 7)
        grown, joined, turned = jax.random.uniform(chance, (3,)) < jnp.array([0.2, 0.3, 0.2])
        weight = old.weight + jax.random.bernoulli(which, 0.3, old.mask.shape) * jax.random.normal(
            noise, old.mask.shape
        )
        # Between which two nodes, of those in use, the new node (or the new connection) goes.
        place = jax.random.randint(node, (), INPUTS, INPUTS + hidden)
        place = jnp.where(grown | old.alive[place], place, count - 1)
        before = _one_of(source, old.alive & (places < place))
        after = _one_of(target, old.alive & (places > jnp.where(grown, place, before)) & (places >= INPUTS))
        alive = old.alive | (grown & (places == place))
        through = ((places == place)[:, None] & (places == before)[None]) | (
            (places == after)[:, None] & (places == place)[None]
        )
        straight = (places == after)[:, None] & (places == before)[None]
        mask = old.mask | (earlier & ((grown & through) | (~grown & joined & straight)))
        some = jax.random.randint(kind, (2,), 0, jnp.array([count, 4]))
        kinds = jnp.where(turned & (places == some[0]), some[1], old.kind)
        return Pattern(weight, mask, kinds, alive)

    def pixels(genome: Pattern) -> Any:
        values = jnp.zeros((count, height * width)).at[:INPUTS].set(seen)
        heard = genome.weight * genome.mask
        for node in range(INPUTS, count):
            total = heard[node, :node] @ values[:node]
            values = values.at[node].set(_shaped(genome.kind[node], total))
        brightness = jnp.clip(jnp.abs(values[count - channels :]), 0, 1)
        return 255 * jnp.moveaxis(brightness.reshape(channels, height, width), 0, -1)

    return Encoding(draw, mutate, pixels)


def _one_of(key: Any, allowed: Any) -> Any:
    """A random place where `allowed` [N] is true."""
    return jnp.argmax(jnp.where(allowed, jax.random.uniform(key, allowed.shape), -1))


def _shaped(kind: Any, total: Any) -> Any:
    shapes = [jnp.sin(total), jax.nn.sigmoid(total), jnp.exp(-jnp.square(total)), total]
    return jnp.select([kind == i for i in range(4)], shapes)
