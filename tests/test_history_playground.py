"""Points of the playground, polynomials of them, and pictures of answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dlc.models import polynomial
from dlc.tasks import points

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("name", points.SETS)
def test_points_are_of_two_classes_and_mostly_in_the_picture(name):
    x, label = points.draw(name, seed=0, count=500, noise=0.1)
    assert x.shape == (500, 2)
    assert set(label) == {0, 1}
    assert 0.4 < label.mean() < 0.6
    assert (np.abs(x) < points.SIDE).mean() > 0.98
    again, _ = points.draw(name, seed=0, count=500, noise=0.1)
    np.testing.assert_array_equal(x, again)
    assert (x != points.draw(name, seed=1, count=500, noise=0.1)[0]).any()


def test_classes_are_what_the_playground_says():
    x, label = points.draw("circles", 0, 400, noise=0.0)
    np.testing.assert_array_equal(label, np.linalg.norm(x, axis=1) < 2.5)
    x, label = points.draw("XOR", 0, 400, noise=0.0)
    np.testing.assert_array_equal(label, x.prod(1) > 0)
    x, label = points.draw("spirals", 0, 400, noise=0.0)
    radius = np.linalg.norm(x, axis=1)
    turned = np.arctan2(x[:, 0], x[:, 1]) - 3.5 * np.pi * radius / 5 - np.pi * label
    np.testing.assert_allclose(np.cos(turned), 1, atol=1e-4)


@pytest.mark.parametrize("degree", [1, 2, 5])
def test_features_span_the_polynomials_of_the_degree(degree):
    x = RNG.uniform(-1, 1, (80, 2)).astype(np.float32)
    phi = np.asarray(polynomial.features(jnp.asarray(x), degree), np.float64)
    assert phi.shape[1] == (degree + 1) * (degree + 2) // 2
    monomials = np.stack([x[:, 0] ** i * x[:, 1] ** j for i in range(degree + 1) for j in range(degree + 1 - i)], 1)
    weights = np.linalg.lstsq(phi, monomials, rcond=None)[0]
    np.testing.assert_allclose(phi @ weights, monomials, atol=1e-5)


def test_newton_finds_what_scikit_learn_finds():
    x, label = points.draw("XOR", 0, 300, noise=0.3)
    phi = polynomial.features(x / points.SIDE, 4)
    w = polynomial.fit(phi, label, 1e-2)
    theirs = LogisticRegression(C=1 / (1e-2 * len(x)), fit_intercept=False, tol=1e-8, max_iter=1000).fit(phi, label)
    np.testing.assert_allclose(w, theirs.coef_[0], atol=2e-3)


@pytest.mark.parametrize("name", points.SETS)
def test_newton_ends_where_the_gradient_is_zero(name):
    x, label = points.draw(name, 0, 300, noise=0.0)  # separable, most of them
    phi = polynomial.features(x / points.SIDE, 6)
    w = polynomial.fit(phi, label)
    gradient = phi.T @ (jax.nn.sigmoid(phi @ w) - label) / len(phi) + 1e-4 * w
    assert np.abs(gradient).max() < 1e-5


def test_a_film_shows_the_answers_and_the_points():
    x = np.array([[[0.0, 0.0], [-5.9, 5.9]]] * 2)
    frames = points.film(x, np.array([[0, 1]] * 2), np.full((2, 3, len(points.GRID)), 100.0))
    assert frames.shape == (3, 2 * 96, 2 * 200, 3)
    assert frames.dtype == np.uint8
    seen = {tuple(colour) for colour in frames.reshape(-1, 3)}
    assert seen == {*map(tuple, points.INKS), (255, 255, 255), tuple(points.coloured(np.full(96 * 96, 100.0))[0, 0])}
