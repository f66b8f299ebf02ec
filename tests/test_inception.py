"""Networks with auxiliary heads: what they return, and which files fit them. No network is run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc import weights
from dlc.errors import UserError
from dlc.models import googlenet, inception, inception_v4

pytestmark = pytest.mark.usefixtures("_plain")


def image(size):
    return jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)


@functools.cache
def shapes(model, size):
    return jax.eval_shape(model.init, jax.random.key(0), image(size))


def outputs(model, variables, size, **options):
    def apply(variables, x):
        return model.apply(variables, x, **options, rngs={"dropout": jax.random.key(0)})

    return jax.eval_shape(apply, variables, image(size))


@pytest.mark.parametrize(
    ("make", "size", "heads"),
    [(googlenet.googlenet, 224, 2), (inception.inception_v3, 299, 1)],
)
def test_heads_speak_in_training_alone(make, size, heads):
    model = make(num_classes=10)
    variables = shapes(model, size)
    assert outputs(model, variables, size).shape == (2, 10)
    found, _ = outputs(model, variables, size, train=True, mutable=["batch_stats"])
    assert [head.shape for head in found] == [(2, 10)] * (1 + heads)
    without, fewer = model.clone(aux=False), shapes(model.clone(aux=False), size)
    assert outputs(without, fewer, size, train=True, mutable=["batch_stats"])[0].shape == (2, 10)
    assert {name for name in variables["params"] if name.startswith("aux")} == set(variables["params"]) - set(
        fewer["params"]
    )


def test_a_file_with_heads_fits_a_model_without_but_not_the_other_way(tmp_path):
    whole = googlenet.googlenet_bn(num_classes=5)
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes(whole, 224))
    weights.save_state_dict(tmp_path / "whole.safetensors", whole, variables)
    bare = whole.clone(aux=False)
    found = weights.load_state_dict(tmp_path / "whole.safetensors", bare)
    assert jax.tree.structure(found) == jax.tree.structure(dict(shapes(bare, 224)))
    weights.save_state_dict(tmp_path / "bare.safetensors", bare, found)
    with pytest.raises(UserError, match="aux=False"):
        weights.load_state_dict(tmp_path / "bare.safetensors", whole)
    with pytest.raises(UserError, match=r"googlenet_bn\(\)"):
        weights.load_state_dict(tmp_path / "bare.safetensors", googlenet.googlenet())


@pytest.mark.parametrize(
    ("model", "least"),
    [
        (googlenet.googlenet(), 79),
        (inception.inception_v3(), 299),
        (inception.inception_v3(aux=False), 75),
        (inception_v4.inception_v4(), 75),
    ],
)
def test_images_below_the_least_size_are_refused(model, least):
    shapes(model, least)
    with pytest.raises(UserError, match="larger than its image"):
        shapes(model, least - 1)


def test_half_precision_computes_in_it_and_keeps_its_weights():
    model = inception.bn_inception(num_classes=4, dtype="bfloat16")
    variables = shapes(model, 64)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert outputs(model, variables, 64).dtype == jnp.bfloat16
