"""Signals in deep networks: weights begin with their variance, and that of signals follows the predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc import losses
from dlc.analysis import signals

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", signals.INITIALISATIONS)
def test_weights_have_their_variance(name):
    how = signals.INITIALISATIONS[name]
    params = signals.initial(how, KEY, (300, 200, 10), layers=4)
    for part, (n, m) in {"first": (300, 200), "hidden": (200, 200), "last": (200, 10)}.items():
        weight = np.asarray(params[part]["weight"])
        assert weight.shape[-2:] == (n, m)
        assert weight.var() == pytest.approx(how.variance(n, m), rel=0.1)
        assert not params[part]["bias"].any()


def test_orthogonal_weights_are_a_rotation():
    params = signals.initial(signals.INITIALISATIONS["1/n, orthogonal"], KEY, (9, 8, 8), layers=3)
    (rotation,) = params["hidden"]["weight"]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(8), atol=1e-5)


@pytest.mark.parametrize(("name", "factor"), [("2/n", 1.0), ("1/n", 0.5), ("0.01²", 0.5 * 400 * 1e-4)])
def test_relu_multiplies_the_variance_by_half_of_n_var(name, factor):
    params = signals.initial(signals.INITIALISATIONS[name], KEY, (400, 400, 10), layers=12)
    x = jax.random.normal(KEY, (40, 400))
    found = signals.deviations(params, x, jnp.arange(40) % 10, jax.nn.relu)
    np.testing.assert_allclose(signals.factors(*found), factor, rtol=0.1)


def test_forward_is_the_network_layer_by_layer_and_gradients_are_those_of_biases():
    params = signals.initial(signals.INITIALISATIONS["2/n"], KEY, (6, 5, 10), layers=4)
    x, label = jax.random.normal(KEY, (1, 6)), jnp.array([3])
    hidden = [{name: leaf[i] for name, leaf in params["hidden"].items()} for i in range(2)]
    y = x
    for place, layer in enumerate([params["first"], *hidden, params["last"]]):
        y = (jnp.tanh(y) if place else y) @ layer["weight"] + layer["bias"][None]
    logits, received = signals.forward(params, x, jnp.tanh)
    np.testing.assert_allclose(logits, y, rtol=1e-5)
    assert received.shape == (3, 1, 5)
    loss = lambda params: losses.cross_entropy(signals.forward(params, x, jnp.tanh)[0], label).mean()  # noqa: E731
    gradient = jax.grad(loss)(params)
    biases = np.concatenate([gradient["first"]["bias"][None], gradient["hidden"]["bias"]])
    _, found = signals.deviations(params, x, label, jnp.tanh)
    np.testing.assert_allclose(found, np.sqrt((biases**2).mean(1)), rtol=1e-4)
