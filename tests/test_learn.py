"""Small networks trained at once: they learn, and several seeds are those that are trained alone."""

import jax
import numpy as np
import optax
import pytest

from dlc import data, metrics
from dlc.models.mlp import MLP
from dlc.prepare import standardise
from dlc.tasks import images


@pytest.mark.parametrize("shuffle", [False, True])
def test_several_seeds_are_those_trained_alone_and_learn(shuffle):
    task = images.Task(data.load("digits"), MLP((16,)), standardise(0.1, 0.3))
    both = images.learn(task, optax.adam(1e-2), images.Epochs(3, 50, shuffle, seed=3, seeds=2))
    second = images.learn(task, optax.adam(1e-2), images.Epochs(3, 50, shuffle, seed=4))
    jax.tree.map(lambda one, of: np.testing.assert_allclose(one[1], of, atol=1e-5), both, second)
    test = task.dataset.test
    assert metrics.error(task.model.apply(second, task.prepare(test["image"])), test["label"]) < 0.4


def test_training_begins_with_what_is_given():
    task = images.Task(data.load("digits"), MLP(), standardise(0.1, 0.3))
    zero = jax.tree.map(np.zeros_like, images.learn(task, optax.sgd(0.1), images.Epochs(0, 50)))
    same = images.learn(task, optax.sgd(0.1), images.Epochs(0, 50), begun=zero)
    jax.tree.map(np.testing.assert_array_equal, same, zero)
