"""Losses and metrics against their definitions, written out."""

import functools

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


class Heads:
    """A model whose parameters are the logits of three heads."""

    def apply(self, variables, image, *, train, mutable, rngs):
        return tuple(variables["params"]), {}


def test_auxiliary_heads_add_a_share_of_their_loss():
    heads, label = jnp.asarray(RNG.normal(size=(3, 6, 4)), jnp.float32), jnp.asarray(RNG.integers(0, 4, 6))
    each = [losses.cross_entropy(head, label) for head in heads]
    batch = {"image": jnp.zeros(6), "label": label}
    loss_fn = losses.classify(Heads(), criterion=losses.auxiliary(weight=0.3))
    loss, (_, measured) = loss_fn(heads, None, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, jnp.mean(each[0] + 0.3 * (each[1] + each[2])), rtol=1e-6)
    np.testing.assert_allclose(measured["error"], np.mean(heads[0].argmax(1) != label), rtol=1e-6)
    np.testing.assert_array_equal(losses.auxiliary()(heads[0], label), each[0])

    def smooth(logits, label):
        return losses.cross_entropy(logits, label, smoothing=0.1)

    found = losses.auxiliary(smooth, weight=1)((heads[0], heads[1]), label)
    np.testing.assert_allclose(found, smooth(heads[0], label) + smooth(heads[1], label), rtol=1e-6)


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


def test_masked_tokens_have_berts_proportions():
    """15 % are chosen; of those 80 % become the mask, 10 % any token, 10 % stay. Padding and special ones never are."""
    tokens = jnp.asarray(RNG.integers(0, 1000, (400, 500)))
    read, chosen = (np.asarray(a) for a in losses.mask_tokens(jax.random.key(0), tokens, 999, 1000, special=(1, 2)))
    open_to_it = ~np.isin(tokens, [0, 1, 2])
    assert not chosen[~open_to_it].any()
    np.testing.assert_array_equal(read[~chosen], np.asarray(tokens)[~chosen])
    np.testing.assert_allclose(chosen[open_to_it].mean(), 0.15, atol=0.003)  # 30,000 are chosen: four deviations
    masked, same = read[chosen] == 999, read[chosen] == np.asarray(tokens)[chosen]
    np.testing.assert_allclose([masked.mean(), same.mean()], [0.8, 0.1], atol=0.01)
    drawn = read[chosen][~masked & ~same]
    np.testing.assert_allclose(drawn.mean(), 499.5, atol=4 * 1000 / np.sqrt(12 * len(drawn)))
    assert (drawn.min(), drawn.max()) < (20, 999)
    again, other = (losses.mask_tokens(jax.random.key(i), tokens, 999, 1000, special=(1, 2))[0] for i in (0, 1))
    np.testing.assert_array_equal(again, read)
    assert (np.asarray(other) != read).any()


class Reader:
    """A model whose parameters are its logits [B, T, V]; it notes what it was given to read."""

    def apply(self, variables, tokens, segments, *, mask, train, mutable, rngs):
        assert train
        self.read, self.segments, self.mask = tokens, segments, mask
        return variables["params"], {}


def test_the_masked_token_loss_depends_on_the_chosen_places_alone():
    model, tokens = Reader(), jnp.asarray(RNG.integers(0, 7, (4, 9)))
    logits = jnp.asarray(RNG.normal(size=(4, 9, 7)), jnp.float32)
    loss_fn, batch = losses.masked_token(model, 6, 7, rate=0.4), {"tokens": tokens, "segments": jnp.ones_like(tokens)}
    (loss, (_, measured)), slope = jax.value_and_grad(loss_fn, has_aux=True)(logits, None, batch, jax.random.key(0))
    chosen = np.abs(slope).sum(-1) > 0
    assert 0 < chosen.sum() < np.sum(tokens != 0)
    label, said = np.asarray(tokens)[chosen], np.asarray(logits)[chosen]
    logp = said - np.log(np.exp(said).sum(-1, keepdims=True))
    np.testing.assert_allclose(loss, -logp[np.arange(len(label)), label].mean(), rtol=1e-5)
    np.testing.assert_allclose(measured["error"], np.mean(said.argmax(-1) != label), rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(model.read)[~chosen], np.asarray(tokens)[~chosen])
    np.testing.assert_array_equal(model.mask, tokens != 0)
    np.testing.assert_array_equal(model.segments, 1)


def test_without_a_chosen_token_the_masked_token_loss_is_zero():
    logits = jnp.zeros((2, 3, 7))
    loss, (_, measured) = losses.masked_token(Reader(), 6, 7)(
        logits, None, {"tokens": jnp.zeros((2, 3), int)}, jax.random.key(0)
    )
    assert loss == measured["error"] == 0


def test_among_top_k_finds_labels_among_the_first():
    logits = jnp.array([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    label = jnp.array([2, 0, 1])
    found = [1 - float(metrics.among_top_k(logits, label, k).mean()) for k in (2, 3, 4, 9)]
    assert found == pytest.approx([1 / 3, 1 / 3, 0, 0], abs=1e-6)
    assert metrics.among_top_k(logits, label, 1).tolist() == [False, False, False]
    draw = np.random.default_rng(0)
    several, answers = draw.normal(size=(2, 50, 7)), draw.integers(7, size=50)
    error = (~metrics.among_top_k(several, answers, 1)).mean(-1, dtype=jnp.float32)
    np.testing.assert_array_equal(error, metrics.error(several, answers))


@pytest.mark.parametrize(
    ("criterion", "unit"),
    [
        (losses.cross_entropy, "nats"),
        (functools.partial(losses.cross_entropy, smoothing=0.1), "nats"),
        (losses.maximum_a_posteriori, ""),  # of penalties
        (losses.auxiliary(), ""),  # a weighted sum
        (lambda outputs, label: ((outputs - label) ** 2).sum(-1), ""),
        (functools.partial(losses.maximum_a_posteriori, rubbish=1.0), ""),
    ],
)
def test_the_unit_of_a_loss_is_that_of_its_criterion(criterion, unit):
    assert losses.unit(criterion) == unit
