"""With 64 bits allowed, what is computed in float64 stays float64, and what is computed in float32 stays float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlc import augment, generate, losses, metrics, train, views
from dlc.models.airbench import whitening
from dlc.models.bert import BertConfig, BertMaskedLM
from dlc.models.gpt import GPT, GPTConfig
from dlc.models.lenet import LeNet5
from dlc.models.resnet_cifar import cifar_resnet
from dlc.models.seq2seq import Seq2Seq, Seq2SeqConfig
from dlc.models.table import TABLE
from dlc.models.transformer import Transformer, TransformerConfig
from dlc.models.vit import attention_rollout

# The smallest model of each class
MODELS = {type(row.make()).__name__: row for row in sorted(TABLE, key=lambda row: -row.parameters)}
SIZES = {"vocab": 9, "layers": 1, "heads": 2, "width": 8}
KEY, WORDS = jax.random.key(0), jnp.ones((2, 6), "int32")
both = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(autouse=True)
def _64_bits():
    with jax.enable_x64(True):
        yield


def of(model, dtype):
    """The model with weights and computation in this dtype."""
    kinds = {"dtype": dtype, "param_dtype": dtype}
    if hasattr(model, "config"):
        return model.clone(config=dataclasses.replace(model.config, **kinds))
    return model.clone(**kinds)


def floats(tree):
    """The floating-point dtypes in a tree."""
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(tree)}
    return {str(dtype) for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)}


@pytest.mark.usefixtures("_plain")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_float64_has_weights_statistics_and_outputs_in_float64(name):
    row = MODELS[name]
    inputs = [x.astype("float64") if x.ndim == 4 else x for x in row.zeros()]
    assert floats(jax.eval_shape(of(row.make(), "float64").init_with_output, KEY, *inputs)) == {"float64"}


def image(side, channels, dtype):
    return {"image": jnp.zeros((2, side, side, channels), dtype), "label": jnp.zeros(2, "int32")}


# A loss of each kind, its model, and a batch of a dtype
LOSSES = {
    "classify": (losses.classify, cifar_resnet(8), functools.partial(image, 32, 3)),
    "maximum_a_posteriori": (
        functools.partial(losses.classify, criterion=losses.maximum_a_posteriori), LeNet5(),
        functools.partial(image, 32, 1),
    ),
    "next_token": (losses.next_token, GPT(GPTConfig(context=8, **SIZES)), lambda dtype: {"tokens": WORDS}),
    "masked_token": (
        functools.partial(losses.masked_token, mask_token=3, vocab=9),
        BertMaskedLM(BertConfig(context=8, hidden=8, **SIZES)), lambda dtype: {"tokens": WORDS},
    ),
    "sequence, recurrent": (
        functools.partial(losses.sequence, smoothing=0.1),
        Seq2Seq(Seq2SeqConfig(vocab=9, embedding=4, width=4, maxout=2, dropout=0.1)),
        lambda dtype: {"source": WORDS, "target": WORDS},
    ),
    "sequence": (
        losses.sequence, Transformer(TransformerConfig(hidden=8, **SIZES)),
        lambda dtype: {"source": WORDS, "target": WORDS},
    ),
}  # fmt: skip


@both
@pytest.mark.parametrize("name", LOSSES)
def test_training_keeps_its_precision(name, dtype):
    """Weights, gradients, optimizer, statistics, loss and metrics, by the forms for a CPU."""
    loss, model, batch_of = LOSSES[name]
    model, batch, tx = of(model, dtype), batch_of(dtype), optax.adam(0.1)
    inputs = [batch[part] for part in ("image", "tokens", "source", "target") if part in batch]

    def trained(batch, *inputs):
        variables = model.init(KEY, *inputs)
        state = train.init(variables.pop("params"), tx, KEY, variables)
        return train.make_step(loss(model), tx)(state, batch)

    assert floats(jax.eval_shape(trained, batch, *inputs)) == {dtype}


def mixed(mix):
    return lambda x: mix(KEY, {"image": x, "label": jnp.zeros(len(x), "int32")}, 1.0, 10)["image"]


# Functions of images [B, H, W, C]
IMAGES = {
    "color_jitter": lambda x: augment.color_jitter(KEY, x, 0.3, 0.3, 0.3),
    "color_noise": lambda x: augment.color_noise(KEY, x, np.eye(3, dtype="float32")),
    "translate": lambda x: augment.translate(KEY, x, 2),
    "mixup": mixed(augment.mixup),
    "cutmix": mixed(augment.cutmix),
    "views": lambda x: views.views(lambda x: x.mean((1, 2)), x),
    "over_crops": lambda x: views.over_crops(lambda x: x.mean((1, 2)), x, 6),
    "whitening": whitening,
    "attention_rollout": lambda x: attention_rollout([jnp.moveaxis(x, 3, 1)] * 2),
    "error": lambda x: metrics.error(x[0, 0], jnp.zeros(x.shape[2], "int32")),
    "filtered": lambda x: generate.filtered(x, 2, 0.9),
}


@both
@pytest.mark.parametrize("name", IMAGES)
def test_a_function_keeps_its_precision(name, dtype):
    assert floats(jax.eval_shape(IMAGES[name], jax.ShapeDtypeStruct((4, 8, 8, 3), dtype))) == {dtype}


@both
@pytest.mark.parametrize("mix", [augment.mixup, augment.cutmix])
def test_mixed_labels_keep_their_precision(mix, dtype):
    batch = {"image": jnp.zeros((4, 8, 8, 3), "uint8"), "label": jnp.zeros((4, 10), dtype)}
    assert floats(jax.eval_shape(lambda batch: mix(KEY, batch, 1.0, 10), batch)) == {dtype}


@both
def test_text_is_generated_in_the_models_precision(dtype):
    """Tokens are int32 in the loops of sampling and of beam search, and scores have the precision of the logits."""
    model = of(GPT(GPTConfig(context=8, **SIZES)), dtype)
    params = jax.eval_shape(model.init, KEY, WORDS)["params"]
    for options in ({"temperature": 0.0}, {"top_k": 3, "top_p": 0.9}):
        sample = functools.partial(generate.sample, model, prompt=WORDS, key=KEY, length=3, **options)
        assert jax.eval_shape(sample, params).dtype == jnp.int32
    logits = jnp.zeros((2 * 3, 9), dtype)
    search = functools.partial(generate.beam_search, batch=2, beams=3, length=4, start=1, end=2, vocab=9)
    answers, scores = jax.eval_shape(lambda: search(lambda token, cache: (logits, cache), jnp.zeros(6, dtype)))
    assert (answers.dtype, scores.dtype) == (jnp.int32, dtype)
