"""Orientation tuning of units whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc.analysis import tuning

FREQUENCIES = np.array([0.1, 0.2, 0.3], np.float32)


def gabor(degrees, side=9, frequency=0.2):
    """A filter that is a grating of its own under a Gaussian, [side, side]."""
    grating = tuning.gratings(side, np.array([frequency], np.float32), 180, 1)[0, degrees, 0, :, :, 0]
    place = np.arange(side) - side // 2
    return grating * np.exp(-(place**2 + place[:, None] ** 2) / 8)


def layer_of(filters):
    kernel = jnp.moveaxis(jnp.asarray(np.array(filters), jnp.float32), 0, -1)[:, :, None]
    return lambda pixels: jax.lax.conv_general_dilated(
        pixels, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def measured(filters, count=12):
    images = tuning.gratings(21, FREQUENCIES, count, 8)
    return tuning.curves(layer_of(filters), images)


def test_gratings_are_bars_of_their_orientation():
    flat, upright = tuning.gratings(9, FREQUENCIES, 2, 4)[0, :, 0, :, :, 0]
    np.testing.assert_allclose(flat, flat[:, :1].repeat(9, 1), atol=1e-3)  # horizontal bars: rows are constant
    np.testing.assert_allclose(upright, flat.T, atol=1e-3)
    rising = tuning.gratings(9, FREQUENCIES, 4, 1)[0, 1, 0, :, :, 0]  # 45 degrees: from bottom left to top right
    np.testing.assert_allclose(rising, rising.T[::-1, ::-1], atol=1e-3)
    np.testing.assert_allclose(np.fliplr(rising).diagonal(), 1, atol=1e-3)


@pytest.mark.parametrize("degrees", [0, 30, 90, 135, 165])
def test_a_gabor_filter_prefers_its_own_orientation_and_frequency(degrees):
    responses = measured([gabor(degrees)])
    preferred, index = tuning.selectivity(tuning.at_best_frequency(responses))
    assert abs((preferred[0] - degrees + 90) % 180 - 90) < 3
    assert index[0] > 0.5
    assert responses[0].max(1).argmax() == 1


def test_a_round_filter_has_no_preference():
    place = np.arange(9) - 4
    round_ = np.exp(-(place**2 + place[:, None] ** 2) / 4)
    _, index = tuning.selectivity(tuning.at_best_frequency(measured([round_ - round_.mean()])))
    assert index[0] < 0.05


def test_selectivity_of_known_curves():
    one, even = np.eye(8)[2], np.ones(8)
    preferred, index = tuning.selectivity(np.stack([one, even, 5 * one + even]))
    np.testing.assert_allclose(preferred[[0, 2]], 45, atol=1e-6)
    np.testing.assert_allclose(index, [1, 0, 5 / 13], atol=1e-6)


def test_turning_a_filter_by_a_quarter_turns_its_curve():
    one, turned = tuning.at_best_frequency(measured([gabor(30), np.rot90(gabor(30))]))
    np.testing.assert_allclose(np.roll(one, 6), turned, rtol=1e-3, atol=1e-4)


def test_a_silent_unit_has_selectivity_zero():
    _, index = tuning.selectivity(np.zeros((1, 12)))
    assert index[0] == 0


def test_shuffling_keeps_each_filters_values_and_moves_all_channels_alike():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(5, 5, 3, 4)), jnp.float32)
    moved = tuning.shuffled(jax.random.key(0), kernel)
    rows, places = (np.asarray(array).reshape(25, 3, 4) for array in (kernel, moved))
    for unit in range(4):
        assert set(map(tuple, rows[..., unit])) == set(map(tuple, places[..., unit]))  # pixels stay whole
    orders = [[np.abs(rows[..., u] - pixel).sum(1).argmin() for pixel in places[..., u]] for u in range(4)]
    assert len(set(map(tuple, orders))) == 4  # each filter has an order of its own


def test_units_that_hardly_respond_are_left_out():
    np.testing.assert_array_equal(tuning.responsive(np.array([[0, 10.0], [0.9, 0.2], [1.0, 0.0]])), [0, 2])
