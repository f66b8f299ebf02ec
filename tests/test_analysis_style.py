"""Losses of style and content, and the two ways to minimise them."""

from functools import partial

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc.analysis import style

MAPS = drawn.normal(2, 4, 5, 3)


def test_a_gram_matrix_does_not_know_places():
    flat = np.asarray(MAPS).reshape(2, 20, 3)
    np.testing.assert_allclose(style.gram(MAPS), np.einsum("bpc,bpd->bcd", flat, flat) / 20, rtol=1e-4, atol=1e-6)
    mixed = flat[:, np.random.default_rng(0).permutation(20)].reshape(2, 5, 4, 3)
    np.testing.assert_allclose(style.gram(jnp.asarray(mixed)), style.gram(MAPS), rtol=1e-5, atol=1e-6)


def test_distances_are_relative():
    np.testing.assert_allclose(style.distance(jnp.zeros_like(MAPS), MAPS), 1, rtol=1e-6)
    np.testing.assert_allclose(style.distance(1.5 * MAPS, MAPS), 0.25, rtol=1e-5)
    assert not style.distance(MAPS, MAPS).any()
    wanted = [style.gram(MAPS), style.gram(MAPS[:, :2])]
    np.testing.assert_allclose(style.style_distance([MAPS, 0 * MAPS], wanted), 0.5, rtol=1e-5)


def test_an_even_image_does_not_vary():
    assert not style.variation(jnp.full((2, 4, 4, 1), 9.0)).any()
    board = 255.0 * (jnp.indices((1, 4, 4, 1)).sum(0) % 2)
    np.testing.assert_allclose(style.variation(board), 2)


@pytest.fixture(scope="module")
def valley():
    """A sum of squares, a hundred times steeper in some pixels than in others."""
    steep, best = jnp.logspace(0, 2, 48).reshape(1, 4, 4, 3), 10 * drawn.normal(1, 4, 4, 3)
    return lambda pixels: (steep * jnp.square(pixels - best)).sum()


def test_lbfgs_finds_the_bottom_of_a_valley_where_descent_does_not(valley):
    start = jnp.zeros((1, 4, 4, 3))
    newton = jax.jit(lambda: style.lbfgs(valley, start, 30))()
    evaluations = int(newton.evaluations[-1])
    plain, adam = (jax.jit(partial(by, valley, start, 60))(rate=2.0) for by in (style.descend, style.adam))
    assert newton.losses[0] == plain.losses[0] == valley(start)
    assert evaluations <= 60
    assert (jnp.diff(newton.evaluations) >= 1).all()
    assert newton.losses[-1] < 1e-4 * newton.losses[0]
    assert newton.losses[-1] < 0.1 * min(plain.losses[-1], adam.losses[-1])
    assert plain.losses[-1] < 0.9 * plain.losses[0]
    np.testing.assert_array_equal(plain.evaluations, jnp.arange(1, 61))
    assert valley(newton.pixels) <= newton.losses[-1]


def test_with_x64_it_works_as_well():
    with jax.enable_x64(True):
        found = style.lbfgs(lambda pixels: jnp.square(pixels - 3).sum(), np.zeros((1, 2, 2, 1), np.float32), 3)
    np.testing.assert_allclose(found.pixels, 3, rtol=1e-6)
