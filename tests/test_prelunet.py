"""PReLU-net: the sizes of its paper's table, its pyramid, its slopes and its first weights."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_resnet import outputs

from dlc import layers
from dlc.errors import UserError
from dlc.models.prelunet import PReLUNet, prelunet_a, pyramid


def tiny(**changes):
    return PReLUNet(**{"depth": 1, "widths": (4, 5, 6), "hidden": 8, "num_classes": 3, **changes})


@pytest.mark.usefixtures("_plain")
def test_sizes_of_table_3():
    shapes = outputs(prelunet_a(), (224, 224))
    assert shapes["conv1"] == (112, 112, 96)
    stages = [{shapes[f"stage{i}_conv{j}"] for j in range(1, 6)} for i in (1, 2, 3)]
    assert stages == [{(56, 56, 256)}, {(28, 28, 512)}, {(14, 14, 512)}]
    assert sum("conv" in path or (path.startswith("dense") and "prelu" not in path) for path in shapes) == 19
    x = jax.ShapeDtypeStruct((1, 14, 14, 512), jnp.float32)
    assert jax.eval_shape(pyramid, x).shape == (1, 63 * 512)


def test_the_pyramid_holds_the_maxima_of_its_bins():
    x = np.random.default_rng(0).normal(size=(2, 14, 14, 3)).astype(np.float32)
    found = np.asarray(pyramid(jnp.asarray(x)))
    at = 0
    for n, window, stride in ((7, 2, 2), (3, 5, 4), (2, 7, 7), (1, 14, 14)):
        level = found[:, at : at + 3 * n * n].reshape(2, 3, n, n)
        for i in range(n):
            for j in range(n):
                bin = x[:, i * stride : i * stride + window, j * stride : j * stride + window]
                np.testing.assert_array_equal(level[:, :, i, j], bin.max((1, 2)))
        at += 3 * n * n
    assert at == found.shape[1]


@pytest.mark.parametrize("size", [(208, 224), (64, 64), (224, 192)])
def test_sizes_without_a_pyramid_are_refused(size):
    with pytest.raises(UserError, match="pixels into 7x7 bins: take images of 224x224"):
        jax.eval_shape(tiny().init, jax.random.key(0), jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))


@pytest.mark.usefixtures("_plain")
def test_slopes_are_learnt_one_for_each_channel():
    model, x = tiny(), drawn.normal(1, 112, 112, 3)
    params = drawn.initial(model, x)["params"]
    slopes = {path: tree["slope"] for path, tree in params.items() if "prelu" in path}
    assert {path: slope.shape for path, slope in slopes.items()} == {
        "prelu1": (96,), "stage1_prelu1": (4,), "stage2_prelu1": (5,), "stage3_prelu1": (6,),
        "dense_prelu1": (8,), "dense_prelu2": (8,),
    }  # fmt: skip
    assert all((np.asarray(slope) == 0.25).all() for slope in slopes.values())
    gradient = jax.jit(jax.grad(lambda params: jnp.square(model.apply({"params": params}, x)).sum()))(params)
    assert all(np.any(gradient[path]["slope"]) for path in slopes)


def test_a_slope_is_that_of_the_negative_half():
    x = jnp.array([[-2.0, -2.0], [3.0, 3.0]])
    y = layers.PReLU("float32").apply({"params": {"slope": jnp.array([0.25, -1.0])}}, x)
    np.testing.assert_array_equal(y, [[-0.5, 2.0], [3.0, 3.0]])


def test_equation_15_keeps_the_size_of_the_signal():
    params = drawn.initial(tiny(widths=(64, 64, 64)), jnp.zeros((1, 112, 112, 3)))["params"]
    assert np.std(params["stage2_conv1"]["kernel"]) == pytest.approx((2 / 1.0625 / (9 * 64)) ** 0.5, rel=0.02)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 512))
    for layer in range(10):  # only dense layers; with another rule each would lose or gain half of the variance
        x = x @ rng.normal(0, (2 / 1.0625 / 512) ** 0.5, (512, 512))
        x = np.where(x > 0, x, x / 4) if layer < 9 else x
    assert 0.7 < np.square(x).mean() / (2 / 1.0625) < 1.4
