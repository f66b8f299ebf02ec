"""Losses and metrics against their definitions, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc import losses, metrics

RNG = np.random.default_rng(0)


class Bare:
    """A model that is its own parameters: apply gives the logits it is handed."""

    def apply(self, variables, image, *, train, mutable, rngs):
        assert train
        return variables["params"] + 0 * image[:, None], {}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_classification_loss_is_cross_entropy_in_float32(dtype):
    logits, label = jnp.asarray(RNG.normal(size=(6, 4)), dtype), jnp.asarray(RNG.integers(0, 4, 6))
    batch = {"image": jnp.zeros(6, dtype), "label": label}
    loss, (aux, measured) = losses.classify(Bare())(logits, None, batch, jax.random.key(0))
    exact = np.asarray(logits, np.float64)
    probability = np.exp(exact) / np.exp(exact).sum(1, keepdims=True)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, -np.log(probability[np.arange(6), label]).mean(), rtol=1e-6)
    np.testing.assert_allclose(measured["error"], np.mean(exact.argmax(1) != np.asarray(label)), rtol=1e-6)
    assert aux is None


def test_cross_entropy_of_a_distribution_is_its_definition():
    """-sum q log p, of a class written out, of one smoothed as Szegedy et al. 2015 do, and of a mixture."""
    logits, label = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32), jnp.asarray(RNG.integers(0, 4, 6))
    logp = np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    written_out, mixture = np.eye(4, dtype=np.float32)[label], RNG.dirichlet(np.ones(4), 6).astype(np.float32)
    for q in (written_out, mixture):
        np.testing.assert_allclose(losses.cross_entropy(logits, q), -(q * logp).sum(1), rtol=1e-5)
        smooth = 0.8 * q + 0.2 / 4
        np.testing.assert_allclose(losses.cross_entropy(logits, q, smoothing=0.2), -(smooth * logp).sum(1), rtol=1e-5)
    np.testing.assert_allclose(
        losses.cross_entropy(logits, label, smoothing=0.2),
        losses.cross_entropy(logits, written_out, smoothing=0.2),
        rtol=1e-6,
    )


def test_of_mixed_labels_the_larger_share_is_the_answer():
    logits = jnp.asarray([[2.0, 0, 0, 0], [0, 2, 0, 0]])
    batch = {"image": jnp.zeros(2), "label": jnp.asarray([[0.6, 0.4, 0, 0], [0.6, 0.4, 0, 0]])}
    _, (_, measured) = losses.classify(Bare())(logits, None, batch, jax.random.key(0))
    assert measured["error"] == 0.5


def test_maximum_a_posteriori_is_equation_9():
    y, label, j = RNG.uniform(0, 5, (6, 10)), RNG.integers(0, 10, 6), 0.3
    expected = [y[p, d] + np.log(np.exp(-j) + np.exp(-y[p]).sum()) for p, d in enumerate(label)]
    found = losses.maximum_a_posteriori(jnp.asarray(-y, jnp.float32), jnp.asarray(label), rubbish=j)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_error_and_criteria_keep_the_axis_of_the_seeds():
    logits, label = RNG.normal(size=(3, 8, 4)).astype(np.float32), RNG.integers(0, 4, 8)
    for measure in (metrics.error, losses.cross_entropy, losses.maximum_a_posteriori):
        together = measure(jnp.asarray(logits), jnp.asarray(label))
        alone = [measure(jnp.asarray(one), jnp.asarray(label)) for one in logits]
        np.testing.assert_allclose(together, alone, rtol=1e-6)
    np.testing.assert_allclose(metrics.error(jnp.asarray(logits[0]), jnp.asarray(logits[0].argmax(1))), 0)


def test_confusion_counts_rows_by_label_and_columns_by_answer():
    counts = metrics.confusion(jnp.array([0, 1, 1, 2]), jnp.array([0, 1, 2, 2]), 3)
    np.testing.assert_array_equal(counts, [[1, 0, 0], [0, 1, 0], [0, 1, 1]])
