"""Power laws are found again, their intervals cover them, and the frontier is what the best network reaches."""

import numpy as np
import pytest

from dlc.analysis import power_law
from dlc.errors import UserError

RNG = np.random.default_rng(0)
X = 100 * 2.0 ** np.arange(6)


def noisy(factor, exponent, noise, seeds=4):
    return factor * X[:, None] ** -exponent * RNG.lognormal(0, noise, (len(X), seeds))


@pytest.mark.parametrize(("factor", "exponent"), [(3.0, 0.5), (0.01, -1.0), (7.0, 0.076)])
def test_an_exact_law_is_found(factor, exponent):
    law = power_law.fit(X, noisy(factor, exponent, 0))
    np.testing.assert_allclose(law, [factor, exponent, exponent, exponent, 1.0], rtol=1e-6)
    np.testing.assert_allclose(law(X), factor * X**-exponent)


def test_the_interval_contains_the_exponent_about_as_often_as_it_says():
    laws = [power_law.fit(X, noisy(2.0, 0.3, 0.1, seeds=8), resamples=200, seed=i) for i in range(100)]
    assert np.mean([law.low <= 0.3 <= law.high for law in laws]) > 0.8  # the bootstrap of few seeds is a little narrow
    assert all(law.low <= law.exponent <= law.high for law in laws)


def test_units_do_not_change_the_exponent():
    y = noisy(2.0, 0.3, 0.1)
    law, other = power_law.fit(X, y), power_law.fit(1e6 * X, 5 * y)
    np.testing.assert_allclose([other.exponent, other.low, other.high, other.r2], law[1:], rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (X[:1], np.ones((1, 2)), "at least two points"),
        (X, np.zeros((6, 2)), "positive"),
        (-X, np.ones((6, 2)), "positive"),
        (X, np.full((6, 2), np.nan), "positive"),
    ],
)
def test_what_is_no_law(x, y, said):
    with pytest.raises(UserError, match=said):
        power_law.fit(x, y)


def test_the_frontier_takes_the_best_network_at_each_amount():
    spent = np.array([[1.0, 2, 3, 4], [4, 8, 12, 16]])
    losses = np.array([[[4.0, 3, 3, 3.5]], [[3.5, 2, 1, 1.5]]])
    amounts, lowest = power_law.frontier(spent, losses, points=5)
    np.testing.assert_allclose(amounts, 4 * 2 ** np.array([0, 0.5, 1, 1.5, 2]))
    np.testing.assert_allclose(lowest[:, 0], [3, 3, 2, 2, 1])  # its lowest so far, of the better network


def test_the_frontier_never_rises():
    spent = np.outer([1.0, 3, 9], np.arange(1, 11))
    _, lowest = power_law.frontier(spent, RNG.random((3, 4, 10)))
    assert (np.diff(lowest.mean(1)) <= 0).all()
