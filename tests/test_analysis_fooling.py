"""Evolved images: elites never get worse, mutations are those of the paper, CPPNs stay feed-forward."""

import jax
import jax.numpy as jnp
import numpy as np

from dlc.analysis import fooling
from dlc.analysis.fooling import INPUTS

SHAPE, HIDDEN = (7, 9, 1), 4


def brightness(pixels):
    """Two classes: the left half is bright, or the right one."""
    left, right = pixels[:, :, :4].mean((1, 2, 3)), pixels[:, :, 5:].mean((1, 2, 3))
    return jnp.stack([left - right, right - left], axis=1) / 255


def test_elites_never_get_worse_and_are_what_their_scores_say():
    for encoding in (fooling.direct(SHAPE), fooling.cppn(SHAPE, 1)):
        run = jax.jit(lambda key, encoding=encoding: fooling.map_elites(key, encoding, brightness, 12, 16))
        elites, history = run(jax.random.key(0))
        assert history.shape == (12, 2)
        assert (np.diff(history, axis=0) >= 0).all()
        assert (history[-1] > history[0]).any()
        pixels = jax.vmap(encoding.pixels)(elites)
        assert pixels.shape == (2, *SHAPE)
        assert 0 <= pixels.min() <= pixels.max() <= 255
        np.testing.assert_allclose(np.diag(brightness(pixels)), history[-1], atol=1e-5)


def test_the_direct_encoding_changes_a_tenth_of_the_pixels_a_little():
    encoding = fooling.direct((100, 100, 1))
    image = jnp.full((100, 100, 1), 128.0)
    change = np.asarray(encoding.mutate(jax.random.key(1), image) - image)
    assert 0.08 < (change != 0).mean() < 0.12
    assert np.abs(change[change != 0]).mean() < 20


def test_polynomial_mutation_is_symmetric_and_the_stronger_the_smaller():
    uniform = np.linspace(0, 1, 101, dtype=np.float32)
    step = np.asarray(fooling.polynomial(uniform, 15.0))
    np.testing.assert_allclose(step, -step[::-1], atol=1e-5)
    np.testing.assert_allclose(step[[0, 50, 100]], [-1, 0, 1], atol=1e-5)
    assert (np.abs(step) <= np.abs(np.asarray(fooling.polynomial(uniform, 5.0))) + 1e-6).all()


def test_a_cppn_begins_without_hidden_nodes_and_only_grows_forward():
    encoding = fooling.cppn(SHAPE, HIDDEN)
    genome = encoding.draw(jax.random.key(0))
    nodes = INPUTS + HIDDEN + 1
    assert int(genome.alive.sum()) == INPUTS + 1
    assert int(genome.mask.sum()) == INPUTS
    mutate = jax.jit(encoding.mutate)
    for i in range(60):
        grown = mutate(jax.random.key(i), genome)
        assert (grown.alive | ~genome.alive).all()  # nothing is lost
        assert (grown.mask | ~genome.mask).all()
        genome = grown
    assert genome.alive.all()  # all places are in use at last
    assert not np.triu(genome.mask).any()  # nobody hears a later node
    assert not np.asarray(genome.mask)[:INPUTS].any()
    assert genome.mask.shape == (nodes, nodes)


def test_a_cppn_that_hears_only_the_distance_is_symmetric():
    encoding = fooling.cppn((9, 9, 1), 0)
    genome = encoding.draw(jax.random.key(3))._replace(weight=jnp.zeros((5, 5)).at[4, 2].set(1.5))
    image = np.asarray(encoding.pixels(genome))
    np.testing.assert_allclose(image, image[::-1], atol=1e-4)
    np.testing.assert_allclose(image, image.transpose(1, 0, 2), atol=1e-4)


def test_gradient_ascent_raises_the_score_of_each_class_within_the_bounds():
    start = jax.random.uniform(jax.random.key(0), (2, *SHAPE), maxval=255.0)
    found = fooling.ascend(jax.random.key(0), brightness, SHAPE, steps=40)
    assert found.shape == start.shape
    assert 0 <= found.min() <= found.max() <= 255
    assert (np.diag(brightness(found)) > np.diag(brightness(start)) + 0.5).all()
