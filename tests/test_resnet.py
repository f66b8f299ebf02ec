"""The residual networks for ImageNet: shortcuts, strides and first weights are what their fields say."""

import functools

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc.models.resnet import ResNet, resnet18, resnet50

tiny = functools.partial(ResNet, (1, 1, 0, 0), num_classes=3)


def outputs(model, image):
    """The shape of every module's output, by its path."""
    x = jax.ShapeDtypeStruct((1, *image, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def apply(variables, x):
        return model.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])[1]["intermediates"]

    flat = jax.tree_util.tree_leaves_with_path(jax.eval_shape(apply, variables, x))
    return {"/".join(str(key.key) for key in at[:-2]): leaf.shape[1:] for at, leaf in flat}


@pytest.mark.usefixtures("_plain")
def test_output_sizes_of_table_1():
    shapes = outputs(resnet50(), (224, 224))
    assert shapes["conv1"] == (112, 112, 64)
    last = [shapes[f"stage{i}_block{j}"] for i, j in ((1, 3), (2, 4), (3, 6), (4, 3))]
    assert last == [(56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)]


@pytest.mark.usefixtures("_plain")
@pytest.mark.parametrize(("stride_at", "conv1"), [("1x1", 28), ("3x3", 56)])
def test_where_a_bottleneck_halves_the_image(stride_at, conv1):
    shapes = outputs(resnet50(stride_at=stride_at), (224, 224))
    assert shapes["stage2_block1/conv1"][0] == conv1
    assert shapes["stage2_block1/conv2"][0] == 28


@pytest.mark.usefixtures("_plain")
@pytest.mark.parametrize(("shortcut", "projections"), [("A", 0), ("B", 3), ("C", 8), ("none", 0)])
def test_which_shortcuts_are_projections(shortcut, projections):
    shapes = outputs(resnet18(shortcut=shortcut), (64, 64))
    assert sum(path.endswith("/shortcut") for path in shapes) == projections


@pytest.mark.usefixtures("_plain")
def test_shortcuts_of_option_a_take_every_second_pixel_and_add_zeros():
    model = tiny(shortcut="A", zero_norm=True)  # blocks are their shortcuts at first
    x = drawn.normal(2, 16, 16, 3)
    variables = drawn.initial(model, x)
    look = functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    seen = jax.jit(look)(variables, x)[1]["intermediates"]
    before, after = (np.asarray(seen[f"stage{i}_block1"]["__call__"][0]) for i in (1, 2))
    np.testing.assert_array_equal(after[..., :64], before[:, ::2, ::2])
    assert not after[..., 64:].any()
    assert before.any()


@pytest.mark.usefixtures("_plain")
def test_without_shortcuts_a_block_that_ends_at_zero_passes_nothing():
    x = drawn.normal(2, 16, 16, 3)
    model = tiny(shortcut="none", zero_norm=True)
    logits = jax.jit(model.apply)(drawn.initial(model, x), x)
    np.testing.assert_array_equal(*np.split(np.asarray(logits), 2))


def test_kernels_begin_as_he_normal_of_their_outputs():
    x = jnp.zeros((1, 16, 16, 3))
    params = drawn.initial(tiny(), x)["params"]
    assert np.std(params["conv1"]["kernel"]) == pytest.approx((2 / (49 * 64)) ** 0.5, rel=0.05)
    assert np.std(params["stage2_block1"]["conv1"]["kernel"]) == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert (params["stage2_block1"]["norm2"]["scale"] == 1).all()
