"""The perceptron's rule, its average, and Novikoff's bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc.analysis.perceptron import association, learn, novikoff

RNG = np.random.default_rng(0)


def separable(margin, inputs=5, examples=80):
    """Unit vectors at least `margin` from a plane, the side on which each is, and the plane."""
    plane = RNG.normal(size=inputs)
    plane /= np.linalg.norm(plane)
    x = RNG.normal(size=(4000, inputs))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x = x[abs(x @ plane) > margin][:examples]
    return x.astype("f4"), (x @ plane > 0).astype(int), plane


def test_the_rule_is_the_plain_loop():
    x, label = RNG.normal(size=(60, 4)).astype("f4"), RNG.integers(0, 3, 60)
    order = np.stack([RNG.permutation(60) for _ in range(3)])
    weights, total, mistakes = np.zeros((3, 4)), np.zeros((3, 4)), [0, 0, 0]
    for turn, rows in enumerate(order):
        for row in rows:
            answer = (weights @ x[row]).argmax()
            if answer != label[row]:
                weights[label[row]] += x[row]
                weights[answer] -= x[row]
                mistakes[turn] += 1
            total += weights
    found = learn(x, jnp.asarray(label), order, 3)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.average, total / order.size, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(found.mistakes, mistakes)


@pytest.mark.parametrize("margin", [0.02, 0.1, 0.3])
def test_mistakes_stay_within_the_bound_and_stop(margin):
    x, label, plane = separable(margin)
    order = np.stack([RNG.permutation(len(x)) for _ in range(200)])
    found = learn(x, jnp.asarray(label), order, 2)
    assert found.mistakes[-1] == 0
    assert found.mistakes.sum() <= novikoff(x, 2 * label - 1, plane) <= 1 / margin**2 * 1.001
    assert (np.argmax(x @ found.weights.T, 1) == label).all()


def test_a_contradiction_never_stops():
    x, label, _ = separable(0.3, examples=20)
    x, label = np.concatenate([x, x[:1]]), np.append(label, 1 - label[0])
    found = learn(x, jnp.asarray(label), np.tile(np.arange(21), (50, 1)), 2)
    assert found.mistakes.min() > 0


def test_the_bound_of_a_plane_that_does_not_separate_is_infinite():
    x, label, plane = separable(0.1)
    assert novikoff(x, 2 * label - 1, -plane) == np.inf


def test_inputs_may_be_made_of_examples_when_they_are_seen():
    x, label, _ = separable(0.1)
    order = np.arange(len(x))[None]
    twice = learn(x, jnp.asarray(label), order, 2, lambda some: jnp.concatenate([some, some], 1))
    once = learn(np.concatenate([x, x], 1), jnp.asarray(label), order, 2)
    np.testing.assert_array_equal(twice.weights, once.weights)


def test_association_units_are_wired_at_random():
    see = association(jax.random.key(0), 400, 500, connections=30)
    each = np.asarray(see(jnp.eye(400)))  # one input at a time excites the units that it is wired to by +1
    assert set(np.unique(each)) == {0, 1}
    assert each.sum(0).mean() == pytest.approx(15, abs=1)
    np.testing.assert_array_equal(see(jnp.zeros((1, 400))), 0)
