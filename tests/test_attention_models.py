"""The models made of attention: exact parameter counts, no model missing, and what their papers say of them."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlc import layers, losses, train
from dlc.models import gpt
from dlc.models.bert import Bert, BertConfig, BertMaskedLM
from dlc.models.gpt import GPT, GPTConfig
from dlc.models.vit import ViT, ViTConfig, attention_rollout, patches

# Small models, to be run: model, parameters (D = 16, F = 32 or 64, two layers, V = 40, T = 12)
_ATTENTION, _NORM = 4 * 16 * 16 + 4 * 16, 2 * 16
_BLOCK32 = _ATTENTION + 2 * 16 * 32 + 32 + 16 + 2 * _NORM
_BLOCK64 = _ATTENTION + 2 * 16 * 64 + 64 + 16 + 2 * _NORM
_BERT = BertConfig(vocab=40, context=12, layers=2, heads=2, width=16, hidden=32)
_BERT_COUNT = (40 + 12 + 2) * 16 + _NORM + 2 * _BLOCK32
_GPT = GPTConfig(vocab=40, context=12, layers=2, heads=2, width=16)
_MODERN = {"vocab": 40, "context": 12, "layers": 2, "heads": 2, "width": 16, "hidden": 32, "kv_heads": 1}
_VIT = ViTConfig(image=12, patch=4, classes=10, layers=2, heads=2, width=16, dropout=0.0)
SMALL = {
    "bert": (Bert(_BERT), _BERT_COUNT + 16 * 16 + 16),
    "bert masked lm": (BertMaskedLM(_BERT), _BERT_COUNT + 16 * 16 + 16 + _NORM + 40),
    "gpt": (GPT(_GPT), (40 + 12) * 16 + 2 * _BLOCK64 + _NORM),
    "gpt modern": (gpt.modern(**_MODERN), 40 * 16 + 2 * (16 * 32 + 16 * 16 + 3 * 16 * 32 + 2 * 16 + 2 * 8) + 16),
    "vit": (ViT(_VIT), 48 * 16 + 16 + (1 + 10) * 16 + 2 * _BLOCK64 + _NORM + 170),
}
every = pytest.mark.parametrize(("model", "parameters"), SMALL.values(), ids=SMALL)
# One of each kind, for tests that compile much
KINDS = ("bert masked lm", "gpt", "vit")
each = pytest.mark.parametrize("model", [SMALL[name][0] for name in KINDS], ids=KINDS)


def example(model, batch=3):
    """What the model is called with."""
    c = model.config
    if isinstance(model, ViT):
        return (jax.random.normal(jax.random.key(1), (batch, c.image, c.image, 3)),)
    return (jax.random.randint(jax.random.key(1), (batch, 12), 1, min(40, c.vocab)),)


@functools.cache
def moved(model):
    """Variables of which no weight is zero, one, or the same as another: as if trained, and not drawn by a program."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0), *example(model))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.1, 0.3, leaf.shape), jnp.float32), shapes)


@functools.cache
def compiled(model, **settings):
    """One program for all tests that run a model on what has the same shapes."""
    return jax.jit(functools.partial(model.apply, **settings))


def run(model, *inputs, variables=None, **settings):
    return compiled(model)(variables or moved(model), *inputs, **settings)


def count(model):
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), *example(model, 1)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def first(outputs):
    return jax.tree.leaves(outputs)[0]


@every
def test_parameters(model, parameters):
    assert count(model) == parameters


@each
def test_with_and_without_jit_are_the_same(model):
    outputs = model.apply(moved(model), *example(model)), run(model, *example(model))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *outputs)


@each
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(model):
    small = type(model)(dataclasses.replace(model.config, dtype="bfloat16"))
    exact, near = (first(run(m, *example(model), variables=moved(model))) for m in (model, small))
    assert near.dtype == jnp.bfloat16
    np.testing.assert_allclose(near.astype(jnp.float32), exact, atol=0.1 * float(jnp.abs(exact).max()))
    made = jax.eval_shape(small.init, jax.random.key(0), *example(model))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(made))
    half = type(model)(dataclasses.replace(model.config, param_dtype="bfloat16"))
    made = jax.eval_shape(half.init, jax.random.key(0), *example(model))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(made))


@every
def test_a_module_is_a_value(model, parameters):
    assert model == model.clone()
    assert hash(model) == hash(model.clone())


@each
def test_dropout_is_for_training_alone(model):
    often = type(model)(dataclasses.replace(model.config, dropout=0.5))
    apply = compiled(often, train=True)
    one, two = (first(apply(moved(model), *example(model), rngs={"dropout": jax.random.key(i)})) for i in (1, 2))
    assert float(jnp.abs(one - two).mean()) > 0.1 * float(jnp.abs(one).mean())
    outputs = (first(run(m, *example(model), variables=moved(model))) for m in (often, model))
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)


@each
def test_attention_weights_can_be_looked_at(model):
    _, seen = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))(moved(model), *example(model))
    weights = [seen["intermediates"][f"block{i}"]["attention"]["weights"][0] for i in range(2)]
    places = 10 if isinstance(model, ViT) else 12
    assert [layer.shape for layer in weights] == [(3, 2, places, places)] * 2
    np.testing.assert_allclose(weights[1].sum(-1), 1, rtol=1e-5)


def objective(model):
    """The loss of a model, on a batch that can be learnt."""
    if isinstance(model, ViT):
        image = jax.random.normal(jax.random.key(1), (10, 12, 12, 3)) / 2
        return losses.classify(model), {"image": image, "label": jnp.arange(10)}
    tokens = 2 + (jnp.arange(16)[:, None] + jnp.arange(12)[None]) % 36
    if isinstance(model, GPT):
        return losses.next_token(model), {"tokens": tokens}
    return losses.masked_token(model, mask_token=1, vocab=40, rate=0.3), {"tokens": tokens}


@pytest.mark.parametrize("kind", [GPT, BertMaskedLM, ViT])
def test_the_loss_begins_at_that_of_a_guess_and_a_batch_can_be_learnt(kind):
    usual = {GPT: _GPT, BertMaskedLM: _BERT, ViT: _VIT}[kind]
    model = kind(dataclasses.replace(usual, layers=1, dropout=0.0))
    loss_fn, batch = objective(model)
    tx, classes = optax.adam(1e-2), 10 if kind is ViT else 40
    key = jax.random.key(0, impl="unsafe_rbg")  # which compiles in a tenth of the time
    state = train.init(jax.jit(model.init)(key, *example(model))["params"], tx, key)
    _, metrics = train.compiled(train.scanned(train.make_step(loss_fn, tx)))(
        state, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (200, *leaf.shape)), batch)
    )
    assert abs(metrics["loss"][0] - math.log(classes)) < 0.1
    assert metrics["loss"][-20:].mean() < math.log(classes) / 2  # BERT sees others masked each time


# BERT


def test_padding_changes_nothing_in_bert():
    """Neither that it is there, nor how much of it, nor what stands in places that are masked."""
    model, (tokens,) = BertMaskedLM(_BERT), example(BertMaskedLM(_BERT))
    logits = run(model, tokens[:, :7])
    padded = jnp.pad(tokens[:, :7], ((0, 0), (0, 5)))
    np.testing.assert_allclose(run(model, padded)[:, :7], logits, rtol=1e-5, atol=1e-5)
    masked = run(model, tokens, mask=jnp.broadcast_to(jnp.arange(12) < 7, tokens.shape))
    np.testing.assert_allclose(masked[:, :7], logits, rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(run(model, tokens)[:, :7] - logits).max()) > 0.01


def test_bert_without_positions_does_not_know_the_order():
    model, (tokens,) = Bert(_BERT), example(Bert(_BERT))
    params = moved(model)["params"]
    lost = {"params": {**params, "position": jax.tree.map(jnp.zeros_like, params["position"])}}
    order = jax.random.permutation(jax.random.key(2), 12)
    for variables, same in ((lost, True), (moved(model), False)):
        inputs = (
            run(model, tokens, variables=variables)[0][:, order],
            run(model, tokens[:, order], variables=variables)[0],
        )
        assert np.allclose(*inputs, rtol=1e-4, atol=1e-5) == same


def test_bert_has_segments_and_pools_the_first_place():
    model, (tokens,) = Bert(_BERT), example(Bert(_BERT))
    sequence, pooled = run(model, tokens)
    dense = moved(model)["params"]["pooler"]
    np.testing.assert_allclose(pooled, np.tanh(sequence[:, 0] @ dense["kernel"] + dense["bias"][None]), rtol=1e-5)
    zeros = jnp.zeros_like(tokens)
    np.testing.assert_array_equal(run(model, tokens, zeros)[0], sequence)
    assert float(jnp.abs(run(model, tokens, zeros.at[:, 6:].set(1))[0] - sequence).max()) > 0.01


def test_what_bert_learnt_with_its_head_can_be_handed_over():
    head, encoder = (set(jax.eval_shape(m.init, jax.random.key(0), *example(m))["params"]) for m in
                     (BertMaskedLM(_BERT), Bert(_BERT)))  # fmt: skip
    assert head - encoder == {"head", "head_norm", "head_bias"}
    assert encoder - head == {"pooler"}


def test_bert_refuses_more_tokens_than_it_has_places():
    with pytest.raises(ValueError, match="13 tokens do not fit into a context of 12"):
        jax.eval_shape(Bert(_BERT).init, jax.random.key(0), jnp.ones((1, 13), int))


# ViT


@pytest.mark.parametrize(
    ("changes", "image", "sentence"),
    [
        ({}, (8, 12, 3), "this ViT has positions for images of 12x12, not 8x12: resize them, or set `image`"),
        ({"patch": 5}, (12, 12, 3), "patches of 5x5 do not divide an image of 12x12"),
        ({"heads": 3}, (12, 12, 3), "3 heads do not divide a width of 16"),
    ],
)
def test_vit_names_what_does_not_fit(changes, image, sentence):
    model = ViT(dataclasses.replace(_VIT, **changes))
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image)))


def test_patches_and_a_dense_layer_are_a_convolution():
    """[1]'s program has a convolution of stride P there."""
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 12, 12, 3), (4, 4, 3, 5)))
    expected = np.asarray(layers.plain_conv(x, kernel, strides=(4, 4))).reshape(2, 9, 5)
    np.testing.assert_allclose(np.asarray(patches(x, 4)) @ kernel.reshape(48, 5), expected, rtol=1e-4, atol=1e-5)


def test_vit_without_positions_does_not_know_where_a_patch_is():
    model, (image,) = ViT(_VIT), example(ViT(_VIT))
    lost = {"params": {**moved(model)["params"], "position": jnp.zeros((1, 10, 16))}}
    rows = jnp.concatenate([image[:, 4:], image[:, :4]], axis=1)
    for variables, same in ((lost, True), (moved(model), False)):
        assert (
            np.allclose(
                run(model, image, variables=variables), run(model, rows, variables=variables), rtol=1e-4, atol=1e-5
            )
            == same
        )


def test_rollout_is_the_product_of_half_attention_and_half_identity():
    weights = np.random.default_rng(0).dirichlet(np.ones(5), (3, 2, 4, 5)).astype(np.float32)
    rollout = np.asarray(jax.jit(attention_rollout)(list(jnp.asarray(weights))))
    halves = (weights.mean(2) + np.eye(5)) / 2
    np.testing.assert_allclose(rollout, halves[2] @ halves[1] @ halves[0], rtol=1e-5)
    np.testing.assert_allclose(rollout.sum(-1), 1, rtol=1e-5)
    itself = jnp.asarray(np.eye(5, dtype=np.float32) * np.ones((2, 4, 5, 5), np.float32))
    np.testing.assert_allclose(jax.jit(attention_rollout)([itself] * 3), np.eye(5)[None].repeat(2, 0), atol=1e-6)
