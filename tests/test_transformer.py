"""The encoder-decoder transformer: exact counts, one step at a time, padding, causality, and what the paper says."""

import functools
import math

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlc import losses, train
from dlc.errors import UserError
from dlc.models import transformer
from dlc.models.transformer import Transformer, TransformerConfig

V, D, F = 20, 16, 32
ATTENTION, NORM, DENSE = 4 * (D * D + D), 2 * D, 2 * D * F + F + D
SOURCE = jnp.array([[3, 4, 5, 6, 0, 0], [7, 8, 9, 10, 11, 12]])
TARGET = jnp.array([[1, 4, 5, 6, 9], [1, 8, 9, 10, 11]])

every = pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])


@functools.cache
def made(norm_first, dropout=0.0):
    model = Transformer(TransformerConfig(V, 2, 4, D, F, dropout, norm_first))
    return model, drawn.variables(model, SOURCE, TARGET)


@functools.cache
def run(norm_first):
    return jax.jit(made(norm_first)[0].apply)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@every
def test_parameters(norm_first):
    _, variables = made(norm_first)
    layers = 2 * (ATTENTION + DENSE + 2 * NORM) + 2 * (2 * ATTENTION + DENSE + 3 * NORM)
    assert count(variables) == V * D + layers + 2 * NORM * norm_first


@every
def test_one_token_at_a_time_equals_all_at_once_and_hypotheses_share_a_memory(norm_first):
    model, variables = made(norm_first)
    logits = run(norm_first)(variables, SOURCE, TARGET)
    memory, cache = jax.jit(lambda variables: model.apply(variables, SOURCE, 8, method="start"))(variables)
    step = jax.jit(functools.partial(model.apply, method="step"))
    # Two hypotheses about each sentence: the target, and the other sentence's target.
    cache = jax.tree.map(lambda leaf: jnp.asarray(np.repeat(leaf, 2, axis=0)) if leaf.ndim else leaf, cache)
    both = np.stack([TARGET, TARGET[::-1]], axis=1).reshape(4, -1)
    stepped = []
    for token in both.T:
        out, cache = step(variables, token, memory, cache)
        stepped.append(out)
    assert int(cache.length) == 5
    np.testing.assert_allclose(np.stack(stepped, 1)[::2], logits, rtol=1e-4, atol=1e-5)
    crossed = run(norm_first)(variables, SOURCE, TARGET[::-1])
    np.testing.assert_allclose(np.stack(stepped, 1)[1::2], crossed, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing():
    _, variables = made(False)
    short = run(False)(variables, SOURCE[:1, :4], TARGET[:1])
    whole = np.asarray(run(False)(variables, SOURCE, TARGET))
    np.testing.assert_allclose(whole[:1], short, rtol=1e-5, atol=1e-6)


def test_causality():
    """The gradient of the logits at place 2 is exactly zero for the embedding of a token that comes only after it."""
    model, variables = made(True)
    target = jnp.array([[1, 2, 3, 4, 5]])  # each token once, and none of them in the source

    def logit(params):
        # Only through the inputs: the output layer shares the embedding, and is held constant.
        out, kept = model.apply({"params": params}, SOURCE[1:], target, capture_intermediates=True)
        del out
        return jnp.square(kept["intermediates"]["decoder_1"]["__call__"][0][0, 2]).sum()

    rows = jax.jit(jax.grad(logit))(variables["params"])["embed"]["embedding"]
    sizes = np.abs(rows).sum(1)
    assert (sizes[[4, 5]] == 0).all()
    assert (sizes[[1, 2, 3]] > 0).all()
    assert (sizes[np.asarray(SOURCE[1])] > 0).all()


def test_permuting_the_source_permutes_the_encoder_without_positions(monkeypatch):
    monkeypatch.setattr(transformer, "sinusoidal", lambda places, width: jnp.zeros((len(places), width)))
    model, variables = made(True)
    order, source = np.array([3, 0, 5, 1, 4, 2]), np.asarray(SOURCE[1:])
    encode = jax.jit(functools.partial(model.apply, method="encode"))
    encoded = np.asarray(encode(variables, source))
    np.testing.assert_allclose(encode(variables, source[:, order]), encoded[:, order], rtol=1e-4, atol=1e-5)


def test_attention_rows_sum_to_one():
    model, variables = made(False)
    _, kept = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))(variables, SOURCE, TARGET)
    weights = jax.tree.leaves(kept["intermediates"])
    assert len(weights) == 2 + 2 * 2
    for each in weights:
        np.testing.assert_allclose(np.sum(each, -1), 1, rtol=1e-5)
    (cross,) = kept["intermediates"]["decoder_1"]["cross_attention"]["weights"]
    assert (np.asarray(cross)[0, :, :, 4:] == 0).all()  # where the source is padding


def test_begins_near_log_v_and_learns_a_batch_by_heart():
    model, _ = made(True)
    variables = drawn.initial(model, SOURCE, TARGET)
    batch = {"source": SOURCE, "target": jnp.array([[1, 4, 5, 6, 2, 0], [1, 8, 9, 10, 11, 2]])}
    step = train.make_step(losses.sequence(model), optax.adam(1e-2))
    state = jax.jit(train.init, static_argnums=1)(variables["params"], optax.adam(1e-2), jax.random.key(0))
    _, metrics = train.compiled(train.scanned(step))(
        state, jax.tree.map(lambda leaf: np.broadcast_to(leaf, (100, *leaf.shape)), batch)
    )
    assert abs(float(metrics["loss"][0]) - math.log(V)) < 1
    assert metrics["loss"][-1] < 0.02
    assert metrics["error"][-1] == 0


def test_dropout_acts_in_training_alone():
    model, variables = made(False, dropout=0.5)
    np.testing.assert_array_equal(
        jax.jit(model.apply)(variables, SOURCE, TARGET), run(False)(variables, SOURCE, TARGET)
    )
    apply = jax.jit(functools.partial(model.apply, train=True))
    first, second = (apply(variables, SOURCE, TARGET, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 1))
    assert not np.allclose(first, second)


def test_bfloat16_computes_near_float32():
    _, variables = made(True)
    half = Transformer(TransformerConfig(V, 2, 4, D, F, 0.0, True, "bfloat16"))
    # By default XLA may leave out roundings to bfloat16, which could hide sums of too little precision.
    apply = jax.jit(half.apply, compiler_options={"xla_allow_excess_precision": False})
    out = apply(variables, SOURCE, TARGET)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(out), run(True)(variables, SOURCE, TARGET), atol=0.15)


def test_heads_that_do_not_divide_the_width():
    model = Transformer(TransformerConfig(V, 1, 3, D, F))
    with pytest.raises(UserError, match="3 heads do not divide a width of 16"):
        jax.eval_shape(model.init, jax.random.key(0), SOURCE, TARGET)
