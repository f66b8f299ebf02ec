"""Pooling with strides, padding and ceil; averages that count padding or do not; local response normalisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc import layers
from dlc.layers import pooling
from dlc.layers.norms import local_response_norm

# window, strides, padding, ceil, an image's height and width
CASES = {
    "AlexNet's": ((3, 3), (2, 2), pooling.NONE, False, (13, 15)),
    "ResNet's": ((3, 3), (2, 2), ((1, 1), (1, 1)), False, (12, 9)),
    "GoogLeNet's": ((3, 3), (2, 2), pooling.NONE, True, (12, 9)),
    "of stride 1": ((3, 3), (1, 1), ((1, 1), (1, 1)), True, (5, 6)),
    "oblong": ((2, 3), (2, 1), ((0, 1), (1, 0)), False, (7, 8)),
    "with gaps": ((2, 2), (3, 3), pooling.NONE, True, (8, 10)),
    "a last window in the padding": ((2, 2), (2, 2), ((1, 1), (1, 1)), True, (5, 4)),
}
cases = pytest.mark.parametrize(("window", "strides", "padding", "ceil", "image"), CASES.values(), ids=CASES)


def by_hand(x, window, strides, padding, ceil, reduce):
    """One window after another, over the pixels that it sees of the padded image, NaN being what `ceil` adds."""
    (h, w), slack = x.shape[1:3], max(strides)
    pads = [(0, 0), *((before, after + slack) for before, after in padding), (0, 0)]
    inside = np.pad(np.zeros_like(x), [(0, 0), *padding, (0, 0)], constant_values=1)
    inside = np.pad(inside, [(0, 0), (0, slack), (0, slack), (0, 0)], constant_values=2)
    padded = np.pad(x, pads)

    def starts(n, k, s, pad):
        last = n + sum(pad) - k
        found = list(range(0, last + 1, s))
        if ceil and last % s and found[-1] + s < n + pad[0]:
            found.append(found[-1] + s)
        return found

    rows, columns = (starts(*each) for each in zip((h, w), window, strides, padding, strict=True))
    out = np.empty((len(x), len(rows), len(columns), x.shape[3]), x.dtype)
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            seen = (slice(None), slice(top, top + window[0]), slice(left, left + window[1]))
            out[:, i, j] = reduce(padded[seen], inside[seen])
    return out


@cases
def test_max_pool(window, strides, padding, ceil, image):
    x = np.random.default_rng(0).normal(size=(2, *image, 3)).astype(np.float32) - 3  # a zero of the padding would win
    expected = by_hand(x, window, strides, padding, ceil, lambda a, kind: np.where(kind, -np.inf, a).max((1, 2)))
    found = jax.jit(functools.partial(pooling.max_pool, window=window, strides=strides, padding=padding, ceil=ceil))(x)
    np.testing.assert_array_equal(found, expected)


@cases
@pytest.mark.parametrize("count_padding", [True, False])
def test_avg_pool(window, strides, padding, ceil, image, count_padding):
    x = np.random.default_rng(0).normal(size=(2, *image, 3)).astype(np.float32)

    def mean(a, kind):
        return a.sum((1, 2)) / (kind < (2 if count_padding else 1)).sum((1, 2))

    ours = jax.jit(lambda x: pooling.avg_pool(x, window, strides, padding, ceil, count_padding))(x)
    np.testing.assert_allclose(ours, by_hand(x, window, strides, padding, ceil, mean), rtol=1e-5, atol=1e-6)


@cases
def test_both_forms_have_one_gradient_that_goes_to_the_first_of_equal_maxima(window, strides, padding, ceil, image):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, *image, 3)), jnp.float32)  # many equals

    def weighted(pool, x):
        y = pool(x)
        return jnp.sum(y * jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape))

    fast = functools.partial(pooling.max_pool, window=window, strides=strides, padding=padding, ceil=ceil)
    pads = pooling._whole("window", x, window, strides, padding, ceil)
    plain = functools.partial(pooling.plain_max_pool, window=window, strides=strides, padding=pads)
    ours, theirs = (jax.jit(jax.grad(functools.partial(weighted, form)))(x) for form in (fast, plain))
    np.testing.assert_array_equal(ours, theirs)


def test_local_response_norm_is_equation_3_3():
    x = np.random.default_rng(0).normal(size=(1, 2, 2, 9)).astype(np.float32)
    expected = np.empty_like(x)
    for i in range(9):
        around = x[..., max(0, i - 2) : i + 3]
        expected[..., i] = x[..., i] / (2 + 0.1 * (around**2).sum(-1)) ** 0.75
    ours = local_response_norm(jnp.asarray(x), 5, 0.1, 0.75, 2)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    even = local_response_norm(jnp.asarray(x), 2, 0.1, 0.75, 2)  # the one before, as PyTorch has it
    np.testing.assert_allclose(
        np.asarray(even)[..., 1], x[..., 1] / (2 + 0.1 * (x[..., :2] ** 2).sum(-1)) ** 0.75, rtol=1e-5
    )


@pytest.mark.parametrize(("groups", "dilation"), [(2, (1, 1)), (4, (1, 1)), (1, (2, 2)), (2, (3, 1))])
def test_convolution_in_groups_and_with_gaps(groups, dilation):
    """Each group of outputs sees its own inputs; a kernel with gaps is a larger one with zeros between."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 9, 8, 8)), jnp.float32)
    kernel = rng.normal(size=(3, 3, 8 // groups, 12)).astype(np.float32)
    spread = np.zeros((*(2 * d + 1 for d in dilation), 8, 12), np.float32)
    for g in range(groups):
        outputs, inputs = slice(g * 12 // groups, (g + 1) * 12 // groups), slice(g * 8 // groups, (g + 1) * 8 // groups)
        spread[:: dilation[0], :: dilation[1], inputs, outputs] = kernel[..., outputs]
    conv = functools.partial(layers.conv, strides=(2, 1), padding="SAME", groups=groups, dilation=dilation)
    ours = jax.jit(conv)(x, kernel)
    expected = layers.plain_conv(x, jnp.asarray(spread), strides=(2, 1), padding="SAME")
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_groups_that_do_not_divide_the_channels_are_named():
    with pytest.raises(ValueError, match="3 groups do not divide 8 input and 12 output channels"):
        layers.Conv(12, (3, 3), groups=3).init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))
