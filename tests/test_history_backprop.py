"""The chain rule by hand, and descents."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn import normal

from dlc import losses
from dlc.models.mlp import MLP
from dlc.optim import descent, lowest_descents
from experiments.history import backprop

RNG = np.random.default_rng(0)


def by_hand(params, x, label):
    loss, inputs, error = backprop.forward(params, x, label)
    return loss, backprop.backward(params, inputs, error)


@pytest.mark.parametrize("sizes", [(4, 3), (4, 6, 3), (4, 6, 5, 3)])
def test_the_derivatives_are_those_of_small_changes(sizes):
    params = [(RNG.normal(size=(i, o)), RNG.normal(size=o)) for i, o in itertools.pairwise(sizes)]
    x, label = RNG.normal(size=(7, 4)), RNG.integers(0, 3, 7)
    leaves, tree = jax.tree.flatten(params)
    change = [RNG.normal(size=leaf.shape) for leaf in leaves]

    def moved(step):
        return by_hand(jax.tree.unflatten(tree, [a + step * b for a, b in zip(leaves, change, strict=True)]), x, label)[
            0
        ]

    with jax.enable_x64(True):
        grads = jax.tree.leaves(by_hand(params, x, label)[1])
        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
        expected = sum(float((a * b).sum()) for a, b in zip(grads, change, strict=True))
        assert float(slope) == pytest.approx(expected, rel=1e-7)


def test_the_loss_and_its_derivatives_are_those_of_the_library():
    sizes, x, label = (4, 6, 5, 3), normal(7, 4), RNG.integers(0, 3, 7)
    params = [(normal(i, o), normal(o)) for i, o in itertools.pairwise(sizes)]
    layers = {f"dense{i}": {"kernel": weight, "bias": bias} for i, (weight, bias) in enumerate(params, 1)}

    @jax.jit
    def loss(layers):
        return losses.cross_entropy(MLP(sizes[1:-1], sizes[-1]).apply({"params": layers}, x), label).mean()

    theirs, ours = jax.value_and_grad(loss)(layers), by_hand(params, x, label)
    assert float(ours[0]) == pytest.approx(float(theirs[0]), rel=1e-6)
    for (weight, bias), layer in zip(ours[1], theirs[1].values(), strict=True):
        np.testing.assert_allclose(weight, layer["kernel"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(bias, layer["bias"], rtol=1e-4, atol=1e-6)


def test_a_descent_is_the_formula():
    path = descent(backprop.bowl, optax.sgd(0.03), jnp.array([2.0, 1.0]), 10)
    powers = np.arange(11)
    np.testing.assert_allclose(path, np.stack([2 * 0.97**powers, (1 - 0.03 * backprop.STEEP) ** powers], 1), rtol=1e-4)


def test_the_lowest_descent_has_the_best_rate():
    starts = RNG.normal(size=(3, 1, 2)).astype("f4")
    paths, height = lowest_descents(backprop.bowl, optax.sgd, [1e-4, 0.05, 10.0], starts, 30)
    assert paths.shape == (3, 31, 1, 2)
    assert height.shape == (31,)
    alone, _ = lowest_descents(backprop.bowl, optax.sgd, [0.05], starts, 30)
    np.testing.assert_allclose(paths, alone, rtol=1e-5)
    assert height[-1] < 0.5 * height[0]
