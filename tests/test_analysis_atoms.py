"""Vectors as sums of few atoms, and angles between subspaces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import orthogonal_mp

from dlc.analysis import atoms

RNG = np.random.default_rng(0)
X = jnp.float32(RNG.normal(size=(20, 12)))


def unit(matrix):
    return jnp.float32(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))


def test_pursuit_is_that_of_scikit_learn():
    some = unit(RNG.normal(size=(30, 12)))
    found = jax.jit(atoms.left_over, static_argnums=2)(some, X, 6)
    for k in (1, 3, 6):
        codes = orthogonal_mp(np.float64(some.T), np.float64(X.T), n_nonzero_coefs=k).reshape(30, -1)
        np.testing.assert_allclose(found[:, k - 1], ((X.T - some.T @ codes) ** 2).sum(0), rtol=1e-3, atol=1e-5)


def test_of_orthonormal_atoms_the_largest_coefficients_are_taken():
    rotation = jnp.float32(np.linalg.qr(RNG.normal(size=(12, 12)))[0])
    found = atoms.left_over(rotation, X, 12)
    smallest_last = np.sort((X @ rotation.T) ** 2, axis=1)[:, ::-1]
    wanted = smallest_last.sum(1, keepdims=True) - np.cumsum(smallest_last, axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_what_is_left_never_grows_and_a_sum_of_three_atoms_is_found():
    some = unit(np.eye(12)[:8] + 0.05 * RNG.normal(size=(8, 12)))
    found = atoms.left_over(some, 2 * some[1:2] - some[3:4] + 3 * some[6:7], 8)
    assert (np.diff(found) <= 1e-6).all()
    assert found[0, 2] < 1e-6  # and with nothing left, nothing is divided by zero
    assert np.isfinite(found).all()


@pytest.mark.parametrize("degrees", [0.0, 0.01, 30.0, 90.0])
def test_the_angle_between_planes(degrees):
    turn = np.radians(degrees)
    one = np.eye(4)[:, :2]
    other = np.stack([np.eye(4)[0], np.cos(turn) * np.eye(4)[1] + np.sin(turn) * np.eye(4)[2]], axis=1)
    mixed = other @ np.array([[2.0, 1.0], [0.0, 3.0]])  # another basis of the same plane
    assert atoms.largest_angle(jnp.float32(one), jnp.float32(mixed)) == pytest.approx(degrees, abs=1e-4)


def test_with_x64_numbers_keep_their_type():
    with jax.enable_x64(True):
        assert atoms.left_over(jnp.eye(3, dtype=jnp.float32), jnp.ones((2, 3), jnp.float32), 2).dtype == jnp.float32
