"""Steps to a target, ratios with intervals, and corrected tests: known answers and properties."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from dlc.analysis import trials
from dlc.errors import UserError

RNG = np.random.default_rng(0)


def test_steps_to_a_target_lie_on_the_line_between_evaluations():
    steps, curves = np.array([10, 20, 30]), np.array([[3.0, 2, 1], [3, 1, 2], [0.5, 3, 3], [3, 3, 3], [np.inf, 1, 1]])
    np.testing.assert_allclose(trials.steps_to(steps, curves, 1.5), [25, 17.5, 10, np.inf, 20])
    np.testing.assert_allclose(trials.steps_to(steps, curves[0], 2.0), 20)  # exactly there
    np.testing.assert_array_equal(trials.steps_to(steps, np.full(3, np.nan), 1.0), np.inf)


def test_a_lower_target_takes_at_least_as_many_steps():
    curves = RNG.random((50, 12))
    needed = [trials.steps_to(np.arange(12), curves, target) for target in (0.5, 0.3, 0.1)]
    assert all((later >= earlier).all() for earlier, later in pairwise(needed))


def test_the_interval_of_a_mean_is_students():
    values = RNG.normal(3, 2, 9)
    mean, low, high = trials.mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose([mean, low, high], [values.mean(), *expected])


def test_a_ratio_has_the_interval_that_its_inverse_has():
    a, b = RNG.lognormal(0, 0.1, 8), RNG.lognormal(1, 0.3, 6)
    ratio, low, high = trials.ratio_interval(a, b)
    inverse = trials.ratio_interval(b, a)
    assert low < ratio < high < 1
    np.testing.assert_allclose(np.reciprocal(inverse), [ratio, high, low])
    np.testing.assert_allclose(trials.ratio_interval(10 * a, b), 10 * np.array([ratio, low, high]))


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says():
    inside = 0
    for _ in range(300):
        _, low, high = trials.ratio_interval(RNG.lognormal(0, 0.2, 6), RNG.lognormal(np.log(2), 0.1, 6))
        inside += low <= 0.5 <= high
    assert 0.90 < inside / 300 < 0.99


def test_a_trial_that_never_arrives_leaves_the_interval_open():
    assert trials.ratio_interval([1.0, np.inf], [1.0, 2.0])[1:] == (0.0, np.inf)
    assert trials.ratio_interval([2.0, 2.0], [4.0, 4.0]) == (0.5, 0.5, 0.5)


def test_pairs_are_tested_by_ranks_and_corrected():
    low, high = np.arange(6.0), 10 + np.arange(6.0)
    found = trials.pairwise({"low": low, "high": high, "never": np.full(6, np.inf)})
    assert set(found) == {("low", "high"), ("low", "never"), ("high", "never")}
    one = stats.mannwhitneyu(low, high).pvalue
    assert found["low", "high"] >= one  # corrected
    assert all(p < 0.02 for p in found.values())
    assert trials.pairwise({"a": low, "b": high})["a", "b"] == pytest.approx(one)  # one pair needs no correction
    assert trials.pairwise({"a": low, "b": low})["a", "b"] == pytest.approx(1)
    assert trials.pairwise({"a": low * 0, "b": low * 0})["a", "b"] == 1


def test_holms_correction_keeps_the_order_and_finds_nothing_in_noise():
    samples = {str(i): RNG.random(8) for i in range(6)}
    assert min(trials.pairwise(samples).values()) > 0.05
    assert max(trials.pairwise(samples).values()) <= 1


@pytest.mark.parametrize("values", [[], [1.0]])
def test_one_trial_has_no_interval(values):
    with pytest.raises(UserError, match="at least two trials"):
        trials.mean_interval(np.array(values))
