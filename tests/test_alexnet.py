"""AlexNet, VGG, SqueezeNet, network in network: how they begin, in which precision they run, what they refuse."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc.errors import UserError
from dlc.models.alexnet import alexnet
from dlc.models.nin import nin, nin_bn
from dlc.models.squeezenet import squeezenet1_0
from dlc.models.vgg import vgg11

MODELS = {"alexnet": alexnet, "nin": nin, "nin_bn": nin_bn, "squeezenet1_0": squeezenet1_0, "vgg11": vgg11}


def logits(model, side):
    return jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, side, side, 3)))[0]


def test_alexnet_begins_as_section_5_says():
    params = drawn.initial(alexnet(hidden=8), jnp.zeros((1, 67, 67, 3)))["params"]
    biases = {name: set(np.asarray(layer["bias"])) for name, layer in params.items()}
    ones = {"conv2", "conv4", "conv5", "dense1", "dense2"}
    assert biases == {name: {1.0} if name in ones else {0.0} for name in params}
    for layer in params.values():
        assert 0.009 < np.std(layer["kernel"]) < 0.011


@pytest.mark.usefixtures("_plain")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_half_precision_is_half_precision(make):
    model = make(num_classes=10, dtype="bfloat16")
    assert logits(model, 227).dtype == jnp.bfloat16
    assert logits(model, 227).shape == (1, 10)


@pytest.mark.parametrize("make", [alexnet, nin, squeezenet1_0, vgg11])  # nin_bn has padding enough for any
def test_an_image_that_is_too_small_is_refused(make):
    with pytest.raises(UserError, match="is larger than its image"):
        logits(make(), 16 if make is vgg11 else 8)


def test_an_image_of_another_size_meets_weights_for_224():
    model = vgg11(hidden=8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    with pytest.raises(UserError, match="the weights of dense1 are for inputs of 25088 channels, not 32768"):
        jax.eval_shape(model.apply, shapes, jnp.zeros((1, 256, 256, 3)))
