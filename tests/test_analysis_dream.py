"""Gradient ascent in the pixels: it rises, stays in the box, and dreams at several sizes."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc.analysis import dream, saliency
from dlc.errors import UserError
from dlc.models.convnet import Convnet

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def liked():
    pixels = 127 + 20 * drawn.normal(2, 28, 28, 1)
    variables = drawn.variables(Convnet(), pixels)
    apply = lambda variables, pixels: Convnet().apply(variables, pixels / 255)  # noqa: E731
    score = saliency.of_class(np.array([3, 1]))
    return (lambda pixels: score(apply(variables, pixels))), pixels


@pytest.mark.parametrize("how", [{}, {"jitter": 2}, {"blur": 1.0}, {"jitter": 1, "blur": 0.5}], ids=str)
def test_what_is_liked_rises_and_pixels_stay_in_the_box(liked, how):
    objective, pixels = liked
    found, rise = jax.jit(lambda pixels: dream.ascend(objective, pixels, KEY, 20, 4.0, **how))(pixels)
    assert rise.shape == (20, 2)
    assert (objective(found) > objective(pixels) + 0.1).all()
    assert 0 <= found.min() < found.max() <= 255


def test_images_do_not_see_each_other(liked):
    _, pixels = liked
    objective = lambda pixels: jnp.square(pixels - 90).mean((1, 2, 3))  # noqa: E731
    both, _ = dream.ascend(objective, pixels, KEY, 3, jitter=2)
    one, _ = dream.ascend(objective, pixels[1:], KEY, 3, jitter=2)
    np.testing.assert_allclose(both[1:], one, rtol=1e-5)


def test_a_step_changes_pixels_by_the_rate_in_the_mean():
    weights = drawn.normal(1, 6, 6, 1)
    objective = lambda pixels: (weights * pixels).sum((1, 2, 3))  # noqa: E731
    found, _ = dream.ascend(objective, jnp.full((1, 6, 6, 1), 100.0), KEY, 1, 3.0)
    np.testing.assert_allclose(jnp.abs(found - 100).mean(), 3, rtol=1e-5)
    np.testing.assert_allclose(found - 100, 3 * weights / jnp.abs(weights).mean(), rtol=1e-4, atol=1e-4)


def test_one_octave_is_an_ascent_and_several_keep_the_size(liked):
    _, pixels = liked
    objective = lambda pixels: jnp.square(pixels[:, ::2]).mean((1, 2, 3))  # noqa: E731
    one = dream.octaves(objective, pixels, KEY, 1, updates=3, rate=1.0)
    np.testing.assert_allclose(one, dream.ascend(objective, pixels, jax.random.fold_in(KEY, 0), 3, 1.0)[0], atol=1e-3)
    assert dream.octaves(objective, pixels, KEY, 3, updates=1).shape == pixels.shape
    with pytest.raises(UserError, match=r"^an image of 28x28 cannot be made smaller 11 times: take fewer octaves$"):
        dream.octaves(objective, pixels, KEY, 12)


def test_a_blur_keeps_what_is_even_and_spreads_a_point():
    even = jnp.full((1, 5, 9, 2), 7.0)
    np.testing.assert_allclose(dream.blurred(even, 1.5), even, rtol=1e-6)
    point = jnp.zeros((1, 9, 9, 1)).at[0, 4, 4, 0].set(1.0)
    spread = dream.blurred(point, 1.0)[0, :, :, 0]
    assert spread[4, 4] == spread.max()
    np.testing.assert_allclose(spread[4, 3] / spread[4, 4], np.exp(-0.5), rtol=1e-3)  # a little cut at the edges
    np.testing.assert_array_equal(dream.blurred(point, 0.0), point)


def test_a_layer_is_liked_for_its_mean_square():
    pixels = drawn.normal(2, 28, 28, 1)
    variables = drawn.variables(Convnet(), pixels)
    maps = saliency.layer(Convnet().apply, "conv2")(variables, pixels)
    found = dream.of_layer(Convnet().apply, variables, "conv2")(pixels)
    np.testing.assert_allclose(found, jnp.square(maps).mean((1, 2, 3)), rtol=1e-5)
    with pytest.raises(UserError, match=r"^there is no layer 'conv9': choose from conv1, conv2, dense1, dense2$"):
        dream.of_layer(Convnet().apply, variables, "conv9")(pixels)


def test_with_x64_pixels_keep_their_type():
    with jax.enable_x64(True):
        found, _ = dream.ascend(lambda pixels: pixels.sum((1, 2, 3)), np.ones((1, 2, 2, 1), np.float32), KEY, 2)
    assert found.dtype == np.float32
    assert (found > 1).all()
