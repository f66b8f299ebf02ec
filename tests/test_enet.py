"""ENet: the sizes of its paper's table, what its blocks see, and where unpooling puts its pixels."""

import functools

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from test_resnet import outputs

from dlc.errors import UserError
from dlc.layers import pooling
from dlc.models.enet import _Block, _transposed_conv, enet, enet_classifier, max_places, max_unpool


@pytest.mark.usefixtures("_plain")
def test_sizes_of_table_1():
    shapes = outputs(enet(num_classes=12), (512, 512))
    assert shapes["initial_norm"] == (256, 256, 16)
    assert shapes["full_conv"] == (512, 512, 12)
    blocks = {
        (128, 128, 64): [f"block1_{j}" for j in range(5)] + [f"block4_{j}" for j in range(3)],
        (64, 64, 128): [f"block2_{j}" for j in range(9)] + [f"block3_{j}" for j in range(1, 9)],
        (256, 256, 16): ["block5_0", "block5_1"],
    }
    found = {path for path in shapes if path.startswith("block") and "/" not in path}
    assert found == {path for paths in blocks.values() for path in paths}
    for shape, paths in blocks.items():
        assert {shapes[path] for path in paths} == {shape}


@pytest.mark.usefixtures("_plain")
def test_the_classifier_has_the_encoder_of_the_segmenter():
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    segmenter, classifier = (jax.eval_shape(m.init, jax.random.key(0), x) for m in (enet(), enet_classifier()))
    encoder = {name: tree for name, tree in classifier["params"].items() if name != "dense"}
    assert encoder == {name: segmenter["params"][name] for name in encoder}
    assert set(segmenter["params"]) - set(encoder) == {f"block4_{j}" for j in range(3)} | {
        "block5_0", "block5_1", "full_conv",
    }  # fmt: skip
    assert not any("bias" in leaf for module, leaf in _leaves(segmenter["params"]) if "norm" not in module)


def _leaves(tree):
    return [("/".join(str(k.key) for k in at[:-1]), at[-1].key) for at, _ in jax.tree_util.tree_leaves_with_path(tree)]


@pytest.mark.parametrize("middle", [1, 2, 16, "asymmetric"])
def test_what_one_pixel_sees_of_a_block(middle):
    """Its gradient is exactly zero elsewhere: a grid of 3x3 pixels so far apart, or 5x5 pixels."""
    block = _Block(8, "same", middle)
    x = drawn.normal(1, 41, 41, 8)
    variables = drawn.variables(block, x, train=False)
    gradient = jax.jit(jax.grad(lambda x: block.apply(variables, x, train=False)[0, 20, 20].sum()))(x)
    seen = np.argwhere(np.abs(gradient[0]).sum(-1) > 0) - 20
    steps = range(-2, 3) if middle == "asymmetric" else (-middle, 0, middle)
    assert {tuple(at) for at in seen.tolist()} <= {(i, j) for i in steps for j in steps}
    assert seen.min() == min(steps)
    assert seen.max() == max(steps)


def test_unpooling_puts_pixels_where_the_maxima_were():
    x = drawn.normal(2, 8, 6, 3)
    largest = pooling.max_pool(x, (2, 2))
    unpooled = jax.jit(lambda x, largest: max_unpool(largest, max_places(x)))
    maxima = np.repeat(np.repeat(largest, 2, axis=1), 2, axis=2) == x
    np.testing.assert_array_equal(unpooled(x, largest), np.where(maxima, x, 0))
    equal = unpooled(jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 1, 1, 1)))
    np.testing.assert_array_equal(np.asarray(equal)[0, :, :, 0], [[1, 0], [0, 0]])


@pytest.mark.parametrize("size", [2, 3])
def test_a_transposed_convolution_is_the_gradient_of_one_that_halves(size):
    layer = _transposed_conv(5, size)
    y = drawn.normal(1, 4, 6, 7)
    variables = drawn.variables(layer, y)
    kernel = np.asarray(variables["params"]["kernel"])[::-1, ::-1].swapaxes(2, 3)

    def halve(x):
        pads = ((size - 2, size - 2 if size == 2 else 1),) * 2
        return lax.conv_general_dilated(x, kernel, (2, 2), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    (back,) = jax.jit(lambda y: jax.vjp(halve, jnp.zeros((1, 8, 12, 5)))[1](y))(y)
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, y), back, atol=1e-5)


def test_dropout_takes_whole_channels():
    block = _Block(32, dropout=0.5)
    x = 100 + np.random.default_rng(0).random((8, 6, 6, 32), np.float32)  # so that the last PReLU changes nothing
    variables = drawn.variables(block, x, train=False)
    train = functools.partial(block.apply, train=True, mutable=["batch_stats"])
    y, _ = jax.jit(train)(variables, x, rngs={"dropout": jax.random.key(2)})
    changed = np.asarray(y != x)
    dropped = ~changed.any((1, 2))
    assert 0.3 < dropped.mean() < 0.7
    assert changed.mean((1, 2))[~dropped].min() > 0.9


@pytest.mark.parametrize("model", [enet(), enet_classifier()])
def test_sizes_that_cannot_be_halved_three_times(model):
    with pytest.raises(UserError, match="8 does not divide 64x60"):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 60, 3), jnp.float32))
