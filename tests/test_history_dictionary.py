"""Patches, and what the networks that learn atoms of them find."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc.analysis import atoms
from dlc.errors import UserError
from dlc.run.run import Run
from dlc.tasks import patches
from experiments.history import dictionary

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def test_patches_have_mean_0_and_contrast_1():
    found = patches.normalised(patches.at_random(IMAGES, 50, RNG))
    assert found.shape == (50, 64)
    np.testing.assert_allclose(found.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(1), 1, atol=1e-2)
    assert np.isfinite(patches.normalised(np.zeros((1, 64)))).all()  # of one grey


def test_the_patches_of_a_grid_are_those_of_the_image():
    found = patches.on_a_grid(IMAGES)
    assert found.shape == (5, 7, 7, 64)
    grey = IMAGES.mean(-1)
    np.testing.assert_array_equal(found[2, 3, 5].reshape(8, 8), grey[2, 12:20, 20:28])


def test_patches_at_random_are_patches_of_the_images():
    every = np.lib.stride_tricks.sliding_window_view(IMAGES.mean(-1), (8, 8), axis=(1, 2)).reshape(-1, 64)
    for patch in patches.at_random(IMAGES, 5, RNG):
        assert (every == patch).all(1).any()


def test_whitened_patches_are_uncorrelated():
    x = (RNG.normal(size=(500, 64)) @ RNG.normal(size=(64, 64))).astype(np.float32)
    white = x @ patches.whitening(x, least=0.0)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(64), atol=1e-3)


def test_a_linear_auto_encoder_finds_the_principal_subspace():
    axes = np.linalg.qr(RNG.normal(size=(8, 8)))[0]
    covariance = (axes * [9, 5, 3, 1, 0.5, 0.2, 0.1, 0.1]) @ axes.T
    decoder = jax.jit(patches.linear_auto_encoder, static_argnums=(2, 3))(
        jnp.float32(covariance), jax.random.key(0), 3, 1000
    )
    assert atoms.largest_angle(jnp.float32(axes[:, :3]), decoder.T) < 0.1


def test_too_few_patches_are_one_sentence():
    config = dictionary.Config(dataset="digits32", patches=10, atoms=20)
    with pytest.raises(UserError, match=r"^--patches must be at least --atoms, but 10 is less than 20$"):
        dictionary.train(config, Run())
    with pytest.raises(UserError, match=r"^--patches must be at least 64, as many as their pixels, not 63$"):
        dictionary.train(replace(config, patches=63), Run())
