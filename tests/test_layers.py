"""The fast forms equal the plain ones, and run only where they are meant to."""

import functools
import math

import chex
import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dlc import layers
from dlc.layers import cpu, pooling


def plain_conv_max_pool(x, kernel, bias, window):
    return pooling.plain_max_pool(layers.plain_conv(x, kernel) + bias.reshape(1, 1, 1, -1), window)


# name -> (image, kernel, fast form, plain form): the shapes of the lecture's network, of LeNet-5, and awkward ones.
CASES = {
    "lecture 1": ((3, 28, 28, 1), (5, 5, 1, 32), (3, 3)),
    "lecture 2": ((3, 8, 8, 32), (5, 5, 32, 64), (2, 2)),
    "dropped rows": ((2, 13, 11, 2), (3, 2, 2, 5), (2, 3)),
    "one window": ((2, 7, 6, 3), (3, 3, 3, 4), (5, 4)),
    "large": ((1, 64, 64, 24), (3, 3, 24, 2), (2, 2)),
}
CONVOLUTIONS = {
    "lenet 1": ((2, 32, 32, 1), (5, 5, 1, 6), (1, 1), "VALID"),
    "lenet 2": ((2, 14, 14, 6), (5, 5, 6, 16), (1, 1), "VALID"),
    "lenet 3": ((2, 5, 5, 16), (5, 5, 16, 120), (1, 1), "VALID"),
    "same": ((2, 9, 10, 3), (3, 4, 3, 5), (1, 1), "SAME"),
    "strided": ((2, 12, 11, 3), (5, 3, 3, 4), (2, 3), "SAME"),
    "pads": ((2, 6, 5, 3), (3, 3, 3, 4), (1, 2), ((2, 0), (0, 1))),
    "large": ((1, 64, 64, 8), (3, 3, 8, 2), (1, 1), "VALID"),
    "few channels": ((2, 8, 6, 16), (3, 3, 16, 16), (1, 1), "SAME"),
    "few channels, odd": ((2, 7, 5, 16), (3, 3, 16, 16), (1, 1), ((1, 1), (1, 1))),
    "more channels": ((2, 7, 6, 24), (3, 3, 24, 64), (1, 1), "SAME"),
    "many channels": ((2, 6, 5, 128), (3, 3, 128, 136), (1, 1), "SAME"),
    "many channels, unpadded": ((2, 7, 8, 128), (3, 3, 128, 128), (1, 1), "VALID"),
    "many channels, pads": ((2, 3, 4, 128), (3, 3, 128, 128), (1, 1), ((2, 0), (0, 1))),
}
POOLS = {"lecture": ((3, 24, 24, 4), (3, 3)), "dropped": ((2, 7, 8, 3), (2, 3)), "whole": ((2, 4, 5, 3), (4, 5))}


def arrays(*shapes, ties=False, dtype=np.float32):
    """Random arrays; with `ties`, of so few integers that most windows have equal maxima."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.integers(-1, 2, shape) if ties else rng.standard_normal(shape), dtype) for shape in shapes]


def outputs_and_gradients(f, *operands):
    """f's value, and the gradients of a sum in which every output has a weight of its own."""
    y, pullback = jax.vjp(f, *operands)
    weights = np.random.default_rng(1).integers(1, 9, y.shape)
    return y, pullback(jnp.asarray(weights, y.dtype))


def assert_same(fast, plain, operands, tolerance):
    fast = jax.jit(functools.partial(outputs_and_gradients, fast))(*operands)
    plain = jax.jit(functools.partial(outputs_and_gradients, plain))(*operands)
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


precision = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])


def precisely(cases, *single):
    """All cases in float64, where no mistake hides behind rounding; those named also in float32, as users run them."""
    rows = [(case, np.float64, 1e-12) for case in cases] + [(case, np.float32, 1e-5) for case in single]
    return pytest.mark.parametrize(("case", "dtype", "tolerance"), rows)


@pytest.fixture(autouse=True)
def _x64(request):
    if "dtype" in request.fixturenames and request.getfixturevalue("dtype") == np.float64:
        with jax.enable_x64(True):
            yield
    else:
        yield


@pytest.mark.parametrize("ties", [False, True], ids=["random", "ties"])
@precisely(CASES, "lecture 1", "dropped rows")
def test_conv_max_pool_equals_the_plain_one(case, ties, dtype, tolerance):
    image, kernel, window = CASES[case]
    operands = arrays(image, kernel, kernel[-1:], ties=ties, dtype=dtype)
    fast = functools.partial(layers.conv_max_pool, window=window)
    assert_same(fast, functools.partial(plain_conv_max_pool, window=window), operands, tolerance)


@precisely(CONVOLUTIONS, "lenet 2", "strided", "large", "few channels", "more channels", "many channels")
def test_conv_equals_the_plain_one(case, dtype, tolerance):
    image, kernel, strides, padding = CONVOLUTIONS[case]
    kwargs = {"strides": strides, "padding": padding}
    fast, plain = (functools.partial(f, **kwargs) for f in (layers.conv, layers.plain_conv))
    assert_same(fast, plain, arrays(image, kernel, dtype=dtype), tolerance)


def test_tiles_in_groups_equal_all_at_once(monkeypatch):
    operands = arrays((6, 5, 6, 128), (3, 3, 128, 128))
    monkeypatch.setattr(cpu, "_LARGEST", 2 * cpu._held(operands[0], (3, 3, 128, 128)))
    fast, plain = (functools.partial(f, padding="SAME") for f in (layers.conv, layers.plain_conv))
    assert_same(fast, plain, operands, 1e-5)


def test_a_layer_of_many_channels_under_vmap_and_in_scan():
    """The kernels have a leading axis, as over seeds, and the images do not."""
    x, kernels = arrays((2, 4, 6, 64), (3, 3, 3, 64, 64))

    def descend(f, kernel):
        def body(kernel, _):
            loss, g = jax.value_and_grad(lambda k: jnp.square(f(x, k, padding="SAME")).mean())(kernel)
            return kernel - 0.01 * g, loss

        return jax.lax.scan(body, kernel, length=3)

    fast, plain = (jax.jit(jax.vmap(functools.partial(descend, f)))(kernels) for f in (layers.conv, layers.plain_conv))
    chex.assert_trees_all_close(fast, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ties", [False, True], ids=["random", "ties"])
@precisely(POOLS, "lecture")
def test_max_pool_equals_the_plain_one(case, ties, dtype, tolerance):
    image, window = POOLS[case]
    fast, plain = (functools.partial(f, window=window) for f in (pooling.max_pool, pooling.plain_max_pool))
    assert_same(fast, plain, arrays(image, ties=ties, dtype=dtype), tolerance)


def test_of_equal_maxima_the_first_gets_the_gradient():
    gradient = jax.jit(jax.grad(lambda x: pooling.max_pool(x, (2, 2)).sum()))(jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], np.tile([[1, 0], [0, 0]], (2, 2)))


def test_the_lectures_max_pool():
    image = jnp.array([[1, 2, 3, 1], [1, 1, 1, 1], [2, 3, 1, 6], [8, 1, 4, 5]], jnp.float32)
    np.testing.assert_array_equal(pooling.max_pool(image[None, :, :, None], (2, 2))[0, :, :, 0], [[2, 3], [8, 6]])


def test_the_lectures_convolution():
    rows = ["0111000", "0011100", "0001110", "0001100", "0011000", "0110000", "1100000"]
    image, kernel = (np.float32([[float(c) for c in row] for row in rows]) for rows in (rows, ["101", "010", "101"]))
    y = jax.jit(layers.conv)(image[None, :, :, None], kernel[:, :, None, None])
    expected = ["14341", "12433", "12341", "13311", "33110"]
    np.testing.assert_array_equal(np.asarray(y)[0, :, :, 0], [[int(c) for c in row] for row in expected])


def test_a_convolution_is_a_banded_matrix():
    """In one dimension: row i of the matrix holds the kernel, shifted i places."""
    signal, kernel = arrays((9,), (3,))
    toeplitz = np.stack([np.pad(kernel, (i, 6 - i)) for i in range(7)])
    y = jax.jit(layers.conv)(signal.reshape(1, 1, 9, 1), kernel.reshape(1, 3, 1, 1))
    np.testing.assert_allclose(np.ravel(y), toeplitz @ np.asarray(signal), rtol=1e-6)


def training_gradient(x, kernel, bias, kernel2):
    def loss(kernel, bias, kernel2):
        return jnp.square(pooling.max_pool(layers.conv(layers.conv_max_pool(x, kernel, bias, (3, 3)), kernel2), (2, 2)))

    return jax.grad(lambda *p: loss(*p).sum(), (0, 1, 2))(kernel, bias, kernel2)


OPERANDS = [jax.ShapeDtypeStruct(s, np.float32) for s in [(8, 28, 28, 1), (5, 5, 1, 32), (32,), (5, 5, 32, 64)]]


def test_the_cpu_program_is_fast():
    program = jax.jit(training_gradient).lower(*OPERANDS).compile().as_text()
    assert " dot(" in program
    for slow in ("conditional(", "reduce-window(", "select-and-scatter("):
        assert slow not in program


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_elsewhere_the_plain_program_runs(platform):
    program = jax.jit(training_gradient).trace(*OPERANDS).lower(lowering_platforms=(platform,)).as_text()
    for plain in ("stablehlo.convolution", "stablehlo.reduce_window", "stablehlo.select_and_scatter"):
        assert plain in program
    for fast in ("stablehlo.dot_general", "stablehlo.concatenate"):
        assert fast not in program


@pytest.mark.parametrize(
    ("call", "sizes"),
    [
        (lambda: layers.conv(jnp.ones((1, 4, 4, 1)), jnp.ones((5, 5, 1, 1))), ["5x5", "4x4"]),
        (lambda: layers.conv(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 2, 1))), ["2 channels", "1"]),
        (lambda: pooling.max_pool(jnp.ones((1, 4, 2, 1)), (3, 3)), ["3x3", "4x2"]),
        (lambda: layers.conv_max_pool(jnp.ones((1, 4, 4, 1)), jnp.ones((5, 5, 1, 1)), jnp.ones(1), (2, 2)), ["5x5"]),
        (lambda: layers.conv_max_pool(jnp.ones((1, 6, 6, 1)), jnp.ones((5, 5, 1, 1)), jnp.ones(1), (3, 3)), ["2x2"]),
        (lambda: layers.conv_max_pool(jnp.ones((1, 8, 8, 3)), jnp.ones((5, 5, 1, 1)), jnp.ones(1), (2, 2)), ["3"]),
    ],
)
def test_impossible_shapes_are_named(call, sizes):
    with pytest.raises(ValueError, match=r"^a (kernel|pooling window) ") as error:
        call()
    assert all(size in str(error.value) for size in sizes)


MODULES = {
    "dense": (layers.Dense(200), (2, 256), nn.Dense(200), 256),
    "conv": (layers.Conv(16, (5, 5)), (2, 14, 14, 6), nn.Conv(16, (5, 5), padding="VALID"), 150),
    "conv_max_pool": (layers.ConvMaxPool(32, (5, 5), (3, 3)), (2, 28, 28, 1), nn.Conv(32, (5, 5)), 25),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_have_linens_parameters_and_pytorchs_initial_values(name):
    module, shape, linen, fan_in = MODULES[name]
    variables = drawn.initial(module, jnp.ones(shape))
    theirs = jax.eval_shape(linen.init, jax.random.key(0), jnp.ones(shape))
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, theirs)
    bound = 1 / math.sqrt(fan_in)
    for leaf in jax.tree.leaves(variables):
        assert 0.7 * bound < np.abs(leaf).max() <= bound
    kernel = np.asarray(variables["params"]["kernel"])
    np.testing.assert_allclose(kernel.std(), bound / math.sqrt(3), rtol=0.1)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        variables, jax.eval_shape(module.init, jax.random.key(0), jnp.ones(shape))
    )


def test_modules_compute_what_linens_do():
    for name in ("dense", "conv"):
        module, shape, linen, _ = MODULES[name]
        (x,) = arrays(shape)
        variables = drawn.variables(module, x)
        ours, theirs = (jax.jit(m.apply)(variables, x) for m in (module, linen))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_bfloat16_computes_in_it_and_keeps_float32_weights(name):
    module, shape, _, _ = MODULES[name]
    (x,) = arrays(shape)
    half = module.clone(dtype=jnp.bfloat16)
    variables = drawn.variables(half, x)
    chex.assert_trees_all_equal_dtypes(variables, jax.tree.map(np.float32, variables))
    y, reference = (jax.jit(m.apply)(variables, x) for m in (half, module))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(y), reference, atol=0.05)
    gradients = jax.jit(jax.grad(lambda v: half.apply(v, x).sum().astype(jnp.float32)))(variables)
    chex.assert_tree_all_finite(gradients)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, variables)


@pytest.mark.parametrize("channels", [8, 256])
def test_the_gradient_of_a_pool_survives_what_is_computed_twice(channels):
    """XLA computes the pool's input again for the gradient, and what it finds may differ in the last bit."""
    shape = (8, 3, 3, channels)
    x, kernel = arrays(shape, (channels, channels))

    def loss(pool, bias):
        y, _, _ = layers.batch_norm((x.reshape(-1, channels) @ kernel).reshape(shape), jnp.ones(channels), bias, 1e-5)
        y = pool(nn.gelu(y, approximate=False), (3, 3))
        return jnp.sum(y * jnp.arange(y.size).reshape(y.shape))

    bias = jnp.zeros(channels)
    fast, plain = (
        jax.jit(jax.grad(functools.partial(loss, f)))(bias) for f in (pooling.max_pool, pooling.plain_max_pool)
    )
    np.testing.assert_allclose(fast, plain, rtol=1e-5, atol=1e-5 * np.abs(plain).max())


def test_batch_norm_keeps_the_share_and_the_variance_that_the_paper_says():
    """Running mean and unbiased variance, of which a step keeps 0.8; evaluation normalises by them."""
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (4, 5, 6, 7)), jnp.float32)
    norm = layers.BatchNorm(momentum=0.8, epsilon=1e-3)
    variables = drawn.initial(norm, x)
    y, updated = jax.jit(functools.partial(norm.apply, train=True, mutable=["batch_stats"]))(variables, x)
    flat, stats = np.asarray(x, np.float64).reshape(-1, 7), updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.2 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.8 + 0.2 * flat.var(0, ddof=1), rtol=1e-5)
    normal = (flat - flat.mean(0)[None]) / np.sqrt(flat.var(0) + 1e-3)[None]
    np.testing.assert_allclose(np.reshape(y, (-1, 7)), normal, rtol=1e-3, atol=1e-4)
    after = jax.jit(norm.apply)({**variables, **updated}, x)
    expected = (flat - np.asarray(stats["mean"])[None]) / np.sqrt(np.asarray(stats["var"]) + 1e-3)[None]
    np.testing.assert_allclose(np.reshape(after, (-1, 7)), expected, rtol=1e-4, atol=1e-4)


def test_a_pool_passes_nan_on_and_can_be_differentiated_twice():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)), jnp.float32)
    bad = np.array(x)
    bad[0, 1, 1, 0] = np.nan
    value, _ = jax.jit(jax.value_and_grad(lambda x: pooling.max_pool(x, (2, 2)).sum()))(bad)
    assert np.isnan(value)

    def penalty(pool, x):
        return jnp.square(jax.grad(lambda x: jnp.sum(pool(x, (2, 2)) ** 3))(x)).sum()

    twice = (
        jax.jit(jax.grad(functools.partial(penalty, pool)))(x) for pool in (pooling.max_pool, pooling.plain_max_pool)
    )
    np.testing.assert_allclose(*twice, rtol=1e-5)
