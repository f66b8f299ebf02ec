"""The names and the outputs of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc.analysis import features
from dlc.errors import UserError
from dlc.models.convnet import Convnet
from dlc.models.resnet_cifar import CifarResNet

LAYERS = {"conv1": (2, 8, 8, 32), "conv2": (2, 2, 2, 64), "dense1": (2, 200), "dense2": (2, 10)}


@pytest.fixture(scope="module")
def network():
    model, pixels = Convnet(), jnp.asarray(np.random.default_rng(0).normal(size=(2, 28, 28, 1)), jnp.float32)
    return model, model.init(jax.random.key(0), pixels), pixels


def test_layers_have_names_and_shapes_in_their_order(network):
    model, variables, pixels = network
    assert list(features.shapes(model.apply, variables, pixels).items()) == list(LAYERS.items())


def test_activations_are_what_the_layers_return(network):
    model, variables, pixels = network
    found = jax.jit(lambda *args: features.activations(model.apply, *args, ["dense2", "conv1"]))(variables, pixels)
    assert {name: array.shape for name, array in found.items()} == {name: LAYERS[name] for name in ("conv1", "dense2")}
    np.testing.assert_allclose(found["dense2"], model.apply(variables, pixels), rtol=1e-5)


def test_layers_inside_blocks_have_paths():
    model, pixels = CifarResNet((1, 1, 1)), jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), pixels)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    names = list(features.shapes(model.apply, variables, pixels))
    assert names[:2] == ["conv", "norm"]
    assert names.index("stage1_block1/conv2") < names.index("stage1_block1") < names.index("stage2_block1/conv1")


def test_a_layer_that_does_not_exist_is_one_sentence(network):
    model, variables, pixels = network
    with pytest.raises(UserError, match=r"no layer 'conv9': choose from conv1, conv2, dense1, dense2$"):
        features.activations(model.apply, variables, pixels, ["conv9"])
