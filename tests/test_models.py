"""Every model: exact parameter counts, a loss that begins near log K, dtypes, jit, and what its paper says of it."""

import functools
import math
import re

import chex
import drawn
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlc import layers, losses, train
from dlc.models.airbench import Airbench, airbench94, partial_identity, whitening
from dlc.models.convnet import Convnet
from dlc.models.lenet import C3_TABLE, LeNet5, LeNet5Dense, PartialConv, Subsample, codes, squash
from dlc.models.mlp import MLP
from dlc.models.resnet_cifar import CifarResNet, cifar_plain, cifar_preact, cifar_resnet, wide_resnet

MNIST, PADDED, CIFAR = (28, 28, 1), (32, 32, 1), (32, 32, 3)

# Small models, which the tests below run; tests/test_table.py counts the parameters of all models
MODELS = {
    "softmax regression": (MLP(), MNIST),
    "mlp 300-100": (MLP((300, 100)), MNIST),
    "convnet": (Convnet(), MNIST),
    "lenet5": (LeNet5(), PADDED),
    "lenet5 dense": (LeNet5Dense(), PADDED),
    "a stage of a resnet": (CifarResNet((1,), (16,)), CIFAR),
}

every = pytest.mark.parametrize(("model", "image"), MODELS.values(), ids=MODELS)


def of(*names):
    """The models of these names: one of each kind, for tests that compile for seconds and ask the same of all."""
    return pytest.mark.parametrize(("model", "image"), [MODELS[name] for name in names], ids=names)


@functools.cache
def initial(model, image):
    """The initial variables of a model, drawn once for all tests."""
    return drawn.initial(model, jnp.zeros((1, *image)))


def trained_once(model, variables, x):
    """The outputs of a step of training, in which batch norms normalise by the batch."""
    return jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))(variables, x)[0]


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@every
def test_the_loss_begins_near_that_of_a_guess(model, image):
    if isinstance(model, LeNet5):
        pytest.skip("its penalties begin far from each other: a guess is not where it starts")
    x = drawn.normal(64, *image)
    logits = trained_once(model, initial(model, image), x)
    label = jnp.arange(64) % 10
    assert logits.shape == (64, 10)
    # Logits of variance v cost about v / 2 above log K; softmax regression begins with v = 1/3 on noise of variance 1.
    assert abs(losses.cross_entropy(logits, label).mean() - math.log(10)) < 0.25


@of("softmax regression", "lenet5", "a stage of a resnet")
def test_with_and_without_jit_are_the_same(model, image):
    x = drawn.normal(4, *image)
    variables = initial(model, image)
    np.testing.assert_allclose(model.apply(variables, x), jax.jit(model.apply)(variables, x), rtol=1e-4, atol=1e-5)


@of("mlp 300-100", "convnet", "lenet5", "a stage of a resnet")
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(model, image):
    x = drawn.normal(4, *image)
    small, variables = model.clone(dtype="bfloat16"), initial(model, image)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(small.init, jax.random.key(0), x), variables)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    exact = jax.jit(model.apply)(variables, x)
    # By default XLA may leave out roundings to bfloat16, which could hide sums of too little precision.
    near = jax.jit(small.apply, compiler_options={"xla_allow_excess_precision": False})(variables, x)
    np.testing.assert_allclose(near, exact, rtol=0.05, atol=0.05 * float(jnp.abs(exact).max()))
    half = jax.eval_shape(model.clone(param_dtype="bfloat16").init, jax.random.key(0), x)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half["params"]))


@of("softmax regression", "mlp 300-100", "lenet5", "a stage of a resnet")
def test_a_batch_can_be_overfitted(model, image):
    batch = {"image": drawn.normal(8, *image) / 2, "label": jnp.arange(8)}
    criterion = losses.maximum_a_posteriori if isinstance(model, LeNet5) else losses.cross_entropy
    loss_fn = losses.classify(model, criterion=criterion)
    tx = optax.adam(2e-3)
    variables = dict(initial(model, image))
    state = jax.jit(train.init, static_argnums=1)(variables.pop("params"), tx, jax.random.key(0), variables or None)
    _, metrics = train.compiled(train.scanned(train.make_step(loss_fn, tx)))(
        state, jax.tree.map(lambda leaf: np.broadcast_to(leaf[None], (150, *leaf.shape)), batch)
    )
    assert metrics["error"][0] > 0
    assert metrics["error"][-1] == 0


@every
def test_a_module_is_a_value(model, image):
    assert model == model.clone()
    assert hash(model) == hash(model.clone())


def test_lenet5_has_the_parameters_of_each_layer_that_section_2b_lists():
    params = jax.eval_shape(LeNet5().init, jax.random.key(0), jnp.zeros((1, *PADDED)))["params"]
    listed = {"C1": 156, "S2": 12, "C3": 1_516, "S4": 32, "C5": 48_120, "F6": 10_164}
    assert {name: count(layer) for name, layer in params.items()} == listed


def test_c3_sees_only_the_maps_of_table_1():
    """The gradient of map o with respect to input map i is exactly zero unless the table connects them."""
    assert [len(row) for row in C3_TABLE] == [3] * 6 + [4] * 9 + [6]
    layer, x = PartialConv(), drawn.normal(1, 14, 14, 6)
    variables = drawn.variables(layer, x)
    jacobian = jax.jit(jax.jacobian(lambda x: layer.apply(variables, x).sum((0, 1, 2))))(x)
    seen = np.abs(jacobian).sum((1, 2, 3)) > 0
    np.testing.assert_array_equal(seen, [[i in row for i in range(6)] for row in C3_TABLE])


def test_c3_is_the_convolution_with_the_missing_weights_at_zero():
    layer, x = PartialConv(), drawn.normal(2, 14, 14, 6)
    params = drawn.variables(layer, x)["params"]
    dense, at = np.zeros((5, 5, 6, 16), np.float32), 0
    for o, row in enumerate(C3_TABLE):
        for i in row:
            dense[:, :, i, o] = np.asarray(params["kernel"])[:, :, at]
            at += 1
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(x), (5, 5), (1, 2))  # [B, h, w, C, KH, KW]
    expected = np.einsum("bhwcij,ijco->bhwo", windows, dense) + np.asarray(params["bias"])[None, None, None]
    np.testing.assert_allclose(jax.jit(layer.apply)({"params": params}, x), expected, rtol=1e-4, atol=1e-5)


def test_subsampling_multiplies_the_sum_of_each_square():
    x = jnp.asarray([[1.0, 2, 3, 4], [5, 6, 7, 8]])[None, :, :, None]
    out = Subsample().apply({"params": {"kernel": jnp.array([2.0]), "bias": jnp.array([1.0])}}, x)
    np.testing.assert_array_equal(out[0, :, :, 0], [[2 * 14 + 1, 2 * 22 + 1]])


def test_squash_maps_one_to_one_and_saturates_at_1_7159():
    np.testing.assert_allclose(squash(jnp.array([-1.0, 0, 1])), [-1, 0, 1], atol=1e-4)
    np.testing.assert_allclose(squash(jnp.float32(50)), 1.7159)


def test_the_codes_are_ten_different_pictures():
    assert codes().shape == (10, 84)
    assert set(np.unique(codes())) == {-1, 1}
    distances = (codes()[:, None] != codes()[None]).sum(-1)
    assert distances[~np.eye(10, dtype=bool)].min() >= 4


def test_lenet5_is_right_when_f6_shows_the_code():
    """Its output is minus the squared distance to each code, so zero exactly for the class that is shown."""
    model = LeNet5()
    variables = initial(model, PADDED)
    look = jax.jit(functools.partial(model.apply, capture_intermediates=True))
    _, seen = look(variables, jnp.ones((2, *PADDED)))
    f6 = squash(seen["intermediates"]["F6"]["__call__"][0])
    expected = -((np.asarray(f6)[:, None] - codes()[None]) ** 2).sum(-1)
    np.testing.assert_allclose(seen["intermediates"]["__call__"][0], expected, rtol=1e-5)


@pytest.mark.parametrize("image", [(28, 28, 1), (32, 32, 3)])
def test_lenet5_refuses_images_of_another_size(image):
    with pytest.raises(ValueError, match=f"takes images of 32 x 32 x 1, not {image[0]} x {image[1]} x {image[2]}"):
        LeNet5().init(jax.random.key(0), jnp.zeros((1, *image)))


def test_every_layer_can_be_looked_at_without_code_in_the_model():
    look = functools.partial(Convnet().apply, capture_intermediates=True)
    _, seen = jax.eval_shape(look, initial(Convnet(), MNIST), jnp.zeros((2, *MNIST)))
    shapes = {name: layer["__call__"][0].shape for name, layer in seen["intermediates"].items() if name != "__call__"}
    assert shapes == {"conv1": (2, 8, 8, 32), "conv2": (2, 2, 2, 64), "dense1": (2, 200), "dense2": (2, 10)}


def test_initial_weights_are_those_of_pytorch_in_distribution():
    params = initial(Convnet(), MNIST)["params"]
    for name, fan_in in {"conv1": 25, "conv2": 800, "dense1": 256, "dense2": 200}.items():
        for leaf in params[name].values():
            values = np.asarray(leaf).ravel() * math.sqrt(fan_in)
            assert np.abs(values).max() <= 1
            if values.size > 500:
                assert abs(values.std() - 1 / math.sqrt(3)) < 0.03
    chex.assert_tree_all_finite(params)


@pytest.mark.parametrize(
    ("make", "depth", "sentence"),
    [
        (cifar_resnet, 21, "6n + 2"),
        (cifar_plain, 2, "6n + 2"),
        (cifar_preact, 18, "6n + 2"),
        (wide_resnet, 8, "6n + 4"),
    ],
)
def test_an_impossible_depth_is_named(make, depth, sentence):
    with pytest.raises(ValueError, match=f"a depth of {depth} is not {re.escape(sentence)}: choose one of "):
        make(depth)


def test_a_shortcut_of_zeros_passes_every_second_pixel_on():
    """With all convolutions at zero a residual network is its stem, its shortcuts and its last layer."""
    model = cifar_resnet(8)
    x = drawn.normal(2, *CIFAR)
    random = drawn.variables(model, x)
    ones = ("scale", "var")
    variables = jax.tree_util.tree_map_with_path(lambda at, a: np.full(a.shape, at[-1].key in ones, a.dtype), random)
    variables["params"] |= {name: random["params"][name] for name in ("conv", "dense")}
    params = variables["params"]
    stem = nn.relu(layers.plain_conv(x, params["conv"]["kernel"], padding="SAME") / math.sqrt(1 + 1e-5))
    pooled = np.pad(np.asarray(stem)[:, ::4, ::4].mean((1, 2)), ((0, 0), (0, 48)))
    expected = pooled @ np.asarray(params["dense"]["kernel"]) + np.asarray(params["dense"]["bias"])[None]
    logits = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_first_filters_of_the_record_pass_their_input_on():
    x = drawn.normal(2, 6, 6, 5)
    kernel = jax.jit(partial_identity, static_argnums=1)(jax.random.key(1), (3, 3, 5, 8))
    y = layers.plain_conv(x, kernel, padding="SAME")
    np.testing.assert_allclose(np.asarray(y)[..., :5], x, rtol=1e-6, atol=1e-6)
    others = np.abs(np.asarray(kernel)[..., 5:])
    assert others.max() <= 1 / math.sqrt(45)
    assert others.min() > 0


@pytest.mark.usefixtures("_plain")
def test_the_whitening_kernel_is_frozen():
    """It is carried through a step of training and not changed by it."""
    model, tx = Airbench((8, 8, 8)), optax.sgd(1.0)
    batch = {"image": drawn.normal(8, *CIFAR), "label": jnp.arange(8)}
    variables = drawn.variables(model, batch["image"])
    variables["whitening"]["whitening"]["kernel"] = kernel = jax.jit(whitening)(batch["image"])
    state = train.init(variables.pop("params"), tx, jax.random.key(0), aux=variables)
    after, _ = train.fit(train.make_step(losses.classify(model), tx), state, [batch])
    np.testing.assert_array_equal(after.aux["whitening"]["whitening"]["kernel"], kernel)
    assert np.any(np.asarray(after.params["whitening"]["bias"]) != np.asarray(state.params["whitening"]["bias"]))
    assert np.any(after.aux["batch_stats"]["group1"]["norm1"]["mean"])


def test_mixed_precision_trains_like_float32():
    """Compute in bfloat16; weights, statistics and losses in float32: nearly the same losses, step by step."""
    label = jnp.arange(32) % 10  # which shows in the images' brightness
    batch = {"image": drawn.normal(32, *CIFAR) + label[:, None, None, None], "label": label}
    tx, model = optax.sgd(0.1, momentum=0.9), CifarResNet((1,), (8,), stem=8)
    variables = drawn.variables(model, batch["image"])
    params = variables.pop("params")
    history = {}
    for dtype in ("float32", "bfloat16"):
        step = train.scanned(train.make_step(losses.classify(model.clone(dtype=dtype)), tx))
        state = train.init(params, tx, jax.random.key(0), aux=variables)
        state, metrics = train.compiled(step)(state, jax.tree.map(lambda a: np.broadcast_to(a, (12, *a.shape)), batch))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((state.params, state.aux, metrics["loss"])))
        history[dtype] = np.asarray(metrics["loss"])
    assert history["float32"][-1] < 0.9 * history["float32"][0]
    np.testing.assert_allclose(history["bfloat16"], history["float32"], rtol=0.03)
    assert not np.array_equal(history["bfloat16"], history["float32"])


@pytest.mark.parametrize(
    ("model", "image", "sentence"),
    [
        (airbench94(), (24, 24, 3), "a pooling window of 3x3 is larger than its image of 2x2"),
        (cifar_resnet(8), (32, 32, 1), "the weights of conv are for inputs of 3 channels, not 1"),
        (Convnet(), (40, 40, 1), "the weights of dense1 are for inputs of 256 channels, not 1024"),
    ],
)
def test_images_of_another_shape_are_named(model, image, sentence):
    usual = (28, 28, 1) if isinstance(model, Convnet) else CIFAR
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *usual)))
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(model.apply, variables, jnp.zeros((1, *image)))
