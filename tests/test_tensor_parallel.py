"""Devices that share each layer: what they exchange, and that they compute what one does."""

import re

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlc import losses, sharding, train
from dlc.errors import UserError
from dlc.models.bert import BertConfig, BertMaskedLM
from dlc.models.gpt import GPT, GPTConfig
from dlc.models.transformer import Transformer, TransformerConfig
from dlc.models.vit import vit_cifar

KINDS = {"dtype": "float64", "param_dtype": "float64"}
SIZES = {"layers": 1, "heads": 4, "width": 16, **KINDS}
QUICKLY = {"xla_backend_optimization_level": 0}


def text(length=9):
    tokens = np.random.default_rng(0).integers(1, 24, (4, length)).astype(np.int32)
    tokens[0, 5:] = 0
    return tokens


def of_text(model, loss, **names):
    batch = {name: jnp.asarray(text()) for name in names or {"tokens": 0}}
    return model, loss, batch, tuple(leaf[:, 1:] for leaf in batch.values())


TODAY = {
    "positions": "rotary",
    "norm": "rms",
    "qk_norm": True,
    "activation": "swiglu",
    "use_bias": False,
    "hidden": 32,
    "tied": False,
}

# name -> (a function that makes model, loss, batch and arguments of init; how often a step exchanges what).
# As in Megatron, a branch of a block sums its output once forward, and the gradient of its input once backward. One sum
# more is that of all gradients. Each kernel of queries, keys and values goes from rows to heads, and its gradient back;
# the gradient of its bias, a vector, is gathered.
CASES = {
    # and the sums of the embedding, of the gradient before the output layer, and two in the loss
    "gpt": (
        lambda: of_text(model := GPT(GPTConfig(24, 8, **SIZES)), losses.next_token(model)),
        {"all-reduce": 2 + 2 + 1 + 4, "all-to-all": 2, "all-gather": 1},
    ),
    # two heads of keys and values for four devices: each of them is computed by two
    "gpt of today": (
        lambda: of_text(model := GPT(GPTConfig(24, 8, kv_heads=2, **TODAY, **SIZES)), losses.next_token(model)),
        {"all-reduce": 2 + 2 + 1 + 4, "all-to-all": 2},
    ),
    # one sum more counts the hidden tokens; the most likely token is found among the best of each device
    "bert": (
        lambda: of_text(
            model := BertMaskedLM(BertConfig(24, 9, hidden=32, dropout=0.0, **SIZES)), losses.masked_token(model, 3, 24)
        ),
        {"all-reduce": 2 + 2 + 1 + 4 + 1, "all-to-all": 2, "all-gather": 1 + 2},
    ),
    # five branches, three kernels, two embedded texts, a maximum for the error
    "transformer": (
        lambda: of_text(
            model := Transformer(TransformerConfig(24, hidden=32, dropout=0.0, **SIZES)), losses.sequence(model),
            source=0, target=0,
        ),
        {"all-reduce": 15, "all-to-all": 3 * 2, "all-gather": 3},
    ),
    # without a vocabulary
    "vit": (
        lambda: (
            model := vit_cifar(image=8, patch=4, **SIZES), losses.classify(model),
            {"image": drawn.normal(4, 8, 8, 3, dtype="float64"), "label": jnp.arange(4)},
            (jnp.zeros((1, 8, 8, 3)),),
        ),
        {"all-reduce": 2 + 2 + 1, "all-to-all": 2, "all-gather": 1},
    ),
}  # fmt: skip


def begun(made):
    """A step, its first state and a batch."""
    model, loss_fn, batch, arguments = made()
    params, tx = drawn.variables(model, *arguments)["params"], optax.sgd(0.1, momentum=0.9)
    return train.make_step(loss_fn, tx), train.init(params, tx, jax.random.key(0)), batch, model.axes


def compiled(step, *arguments):
    call = jax.jit(lambda step, *arguments: step(*arguments), compiler_options=QUICKLY)
    return call.lower(step, *arguments).compile()


def exchanged(text):
    """How often a program has each collective."""
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    found = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}
    return {kind: count for kind, count in found.items() if count}


@pytest.mark.parametrize(("made", "expected"), CASES.values(), ids=CASES)
def test_devices_that_share_layers_exchange_what_they_must_and_compute_what_one_does(made, expected):
    with jax.enable_x64(True):
        step, state, batch, axes = begun(made)
        one, metrics = compiled(step, state, batch)(step, state, batch)

        mesh = sharding.mesh("data=2,model=4")
        spread = sharding.on_mesh(step, mesh, axes)
        placed = sharding.kept(state, mesh, axes), jax.device_put(batch, sharding.split(mesh))
        program = compiled(spread, *placed)
        eight, same = program(spread, *placed)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), metrics, same)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), one.params, eight.params)
        assert exchanged(program.as_text()) == expected


def test_every_weight_of_a_block_that_counts_heads_or_hidden_units_is_cut():
    model = GPT(GPTConfig(24, 8, layers=1, heads=4, width=16))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), int))["params"]
    places = sharding.layout(params, sharding.mesh("model=4"), model.axes)
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/"): place
        for path, place in jax.tree.leaves_with_path(places)
    }
    cut = {path for path, place in paths.items() if not place.is_fully_replicated}
    kernels = ("attention/query_key_value", "attention/out", "up", "down")
    assert cut == {*(f"block0/{name}/kernel" for name in kernels), "block0/up/bias", "token/embedding"}


def test_heads_that_devices_cannot_share():
    model = GPT(GPTConfig(24, 8, layers=1, heads=6, width=12))
    params = drawn.variables(model, jnp.zeros((1, 8), int))["params"]
    forward = sharding.shared(lambda params, tokens: model.apply({"params": params}, tokens), sharding.mesh("model=4"))
    with pytest.raises(UserError, match=r"^4 devices along the axis model cannot share 6 heads equally"):
        jax.eval_shape(forward, params, jnp.zeros((4, 8), jnp.int32))


def test_one_device_along_the_axis_multiplies_kernels_as_they_lie():
    with jax.enable_x64(True):
        step, state, batch, _ = begun(CASES["gpt"][0])
        mesh = sharding.mesh("data=2")
        text = jax.jit(lambda step, *rest: step(*rest)).lower(sharding.on_mesh(step, mesh), state, batch).as_text()
    assert "tensor<4x8x16xf64>, tensor<16x48xf64>" in text or "tensor<32x16xf64>, tensor<16x48xf64>" in text
