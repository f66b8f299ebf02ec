"""Activations that are computed again: the same model, the same draws and gradients, and less memory."""

import functools

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlc import costs, generate, losses, train
from dlc.models.bert import BertConfig, BertMaskedLM
from dlc.models.densenet import DenseNet
from dlc.models.gpt import GPT, GPTConfig
from dlc.models.resnet import ResNet
from dlc.models.resnet_cifar import CifarResNet
from dlc.models.transformer import Transformer, TransformerConfig
from dlc.models.vit import vit_cifar

SMALL = {"layers": 1, "heads": 2, "width": 16, "dropout": 0.2}
TOKENS = np.random.default_rng(0).integers(1, 20, (4, 9)).astype(np.int32)
TOKENS[0, 6:] = 0
TOKENS = jnp.asarray(TOKENS)
TEXT, PAIR = {"tokens": TOKENS}, {"source": TOKENS, "target": TOKENS}
IMAGES = {"image": drawn.normal(4, 16, 16, 3), "label": jnp.arange(4)}

# name -> (model with or without remat, loss, batch, arguments of init, blocks)
CASES = {
    "gpt": (lambda again: GPT(GPTConfig(20, 8, **SMALL, remat=again)), losses.next_token, TEXT, (TOKENS[:, 1:],), 1),
    "bert": (
        lambda again: BertMaskedLM(BertConfig(20, 9, hidden=32, **SMALL, remat=again)),
        functools.partial(losses.masked_token, mask_token=3, vocab=20), TEXT, (TOKENS,), 1,
    ),
    "transformer": (
        lambda again: Transformer(TransformerConfig(20, hidden=32, **SMALL, remat=again)),
        losses.sequence, PAIR, (TOKENS, TOKENS), 2,
    ),
    "vit": (lambda again: vit_cifar(image=16, **SMALL, remat=again), losses.classify, IMAGES, (IMAGES["image"],), 1),
    "resnet": (lambda again: ResNet((1,), remat=again), losses.classify, IMAGES, (IMAGES["image"],), 1),
    "resnet of small images": (
        lambda again: CifarResNet((1,), (8,), stem=8, preact=True, remat=again),
        losses.classify, IMAGES, (IMAGES["image"],), 1,
    ),
    "densenet": (
        lambda again: DenseNet((2,), growth=4, stem=8, remat=again), losses.classify, IMAGES, (IMAGES["image"],), 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "loss", "batch", "arguments", "blocks"), CASES.values(), ids=CASES)
def test_a_model_computes_the_same_with_less_kept(make, loss, batch, arguments, blocks):
    plain, again = make(False), make(True)
    assert plain != again
    variables = drawn.variables(plain, *arguments)
    shapes = jax.eval_shape(again.init, jax.random.key(0), *arguments)
    assert jax.tree.map(jnp.shape, dict(variables)) == jax.tree.map(lambda leaf: leaf.shape, dict(shapes))
    variables = dict(variables)
    params = variables.pop("params")

    def slopes(model, params):
        """Of a step of training, with what it changes in the statistics."""
        loss_fn, key = loss(model), jax.random.key(1)
        return jax.value_and_grad(lambda params: loss_fn(params, variables or None, batch, key), has_aux=True)(params)

    quickly = {"xla_backend_optimization_level": 0}
    one, two = (jax.jit(functools.partial(slopes, model), compiler_options=quickly)(params) for model in (plain, again))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(one[0][0]))

    def same(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(a).max()))

    jax.tree.map(same, one, two)
    traced = [jax.make_jaxpr(functools.partial(model.apply, train=True, mutable=["batch_stats"]))(
        {"params": params, **variables}, *arguments, rngs={"dropout": jax.random.key(0)}
    ) for model in (plain, again)]  # fmt: skip
    assert [sum(e.primitive.name == "remat2" for e in jaxpr.eqns) for jaxpr in traced] == [0, blocks]


def test_a_model_begins_with_the_same_weights():
    for make, _, _, arguments, _ in (CASES["gpt"], CASES["resnet of small images"]):
        plain, again = (drawn.initial(make(again), *arguments) for again in (False, True))
        jax.tree.map(np.testing.assert_array_equal, plain, again)


def gpt(**changes):
    return GPT(GPTConfig(**{"vocab": 20, "context": 64, "layers": 4, "heads": 2, "width": 16, **changes}))


def begun(model, tx, *arguments):
    variables = dict(drawn.variables(model, *arguments))
    return train.init(variables.pop("params"), tx, jax.random.key(0), aux=variables or None)


def test_a_deep_model_needs_a_fraction_of_the_memory():
    batch, tx, needed = {"tokens": jnp.ones((16, 65), jnp.int32)}, optax.sgd(0.1), {}
    for again in (False, True):
        model = gpt(remat=again)
        state = jax.eval_shape(lambda model=model: begun(model, tx, batch["tokens"][:, 1:]))
        step = train.compiled(train.make_step(losses.next_token(model), tx), state, batch)
        needed[again] = step.func.memory_analysis().temp_size_in_bytes
    assert needed[True] < needed[False] / 2


def test_seeds_in_one_program_of_several_steps_are_the_same():
    """Under vmap, scan and grad at once, with dropout and batch statistics that are carried on."""
    tx, found = optax.sgd(0.1, momentum=0.9), []
    for again in (False, True):
        model = CifarResNet((1,), (8,), stem=8, remat=again)
        state = begun(model, tx, IMAGES["image"])
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, state._replace(key=jax.random.key(1)))
        batches = jax.tree.map(lambda leaf: np.stack([leaf, leaf[::-1]]), IMAGES)
        step = train.scanned(train.over_seeds(train.make_step(losses.classify(model), tx)))
        found.append(train.compiled(step)(states, batches))
    (one, metrics), (two, _) = found
    assert metrics["loss"].shape == (2, 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one._replace(key=0), two._replace(key=0)
    )


def test_a_text_is_continued_as_before():
    prompt = jnp.asarray([[1, 2, 3]])
    params = drawn.variables(gpt(layers=1), prompt)["params"]
    written = [
        generate.sample(gpt(layers=1, remat=again), params, prompt, length=5, temperature=0.0, key=jax.random.key(0))
        for again in (False, True)
    ]
    np.testing.assert_array_equal(*written)


def test_the_names_of_the_operations_of_a_program():
    jaxpr = jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, x: (jnp.sin(c) + x, None), 0.0, x))(jnp.ones(3))
    assert {"scan", "sin", "add"} <= costs.operations(jaxpr.jaxpr)
    assert "remat2" not in costs.operations(jaxpr.jaxpr)
