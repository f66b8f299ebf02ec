"""What `dlc.costs` counts, against counts by hand. The costs of the models are in test_table.py."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from dlc import costs, layers
from dlc.layers.attention import attention, plain_attention
from dlc.models.gpt import gpt2

PADDED = ((1, 1), (1, 1))


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def conv(x, kernel, strides=(1, 1), padding=PADDED, **options):
    form = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=form, **options)


# name: options, image, kernel, multiply-accumulates of the convolution and of each of its two gradients
CONVOLUTIONS = {
    "one group": ({}, (2, 8, 8, 3), (3, 3, 3, 5), 2 * 8 * 8 * 5 * 3 * 3 * 3),
    "four groups": ({"feature_group_count": 4}, (2, 8, 8, 32), (3, 3, 8, 32), 294_912),
    "depthwise": ({"feature_group_count": 32}, (2, 8, 8, 32), (3, 3, 1, 64), 2 * 8 * 8 * 64 * 3 * 3),
    "groups of images": ({"batch_group_count": 2}, (2, 8, 8, 32), (3, 3, 32, 16), 8 * 8 * 16 * 3 * 3 * 32),
    "strides": ({"strides": (2, 3)}, (2, 9, 9, 8), (3, 3, 8, 16), 2 * 5 * 3 * 16 * 3 * 3 * 8),
    "strides and groups": (
        {"strides": (2, 2), "feature_group_count": 2}, (2, 9, 9, 8), (3, 3, 4, 16), 2 * 5 * 5 * 16 * 3 * 3 * 4,
    ),
    "dilated": ({"rhs_dilation": (2, 2), "padding": "SAME"}, (2, 9, 9, 8), (3, 3, 8, 16), 2 * 9 * 9 * 16 * 3 * 3 * 8),
    "transposed": ({"lhs_dilation": (2, 2)}, (2, 8, 8, 8), (3, 3, 8, 16), 2 * 8 * 8 * 8 * 3 * 3 * 16),
    "transposed down": (
        {"lhs_dilation": (2, 1), "feature_group_count": 4}, (2, 8, 8, 8), (3, 3, 2, 16), 2 * 8 * 8 * 2 * 3 * 3 * 16,
    ),
}  # fmt: skip


OURS = {
    f"ours, {name}": ({"form": layers.conv, **options}, *rest)
    for name, options, *rest in (
        ("one group", {"padding": PADDED}, *CONVOLUTIONS["one group"][1:]),
        ("four groups", {"padding": PADDED, "groups": 4}, *CONVOLUTIONS["four groups"][1:]),
        ("strides", {"padding": PADDED, "strides": (2, 3)}, *CONVOLUTIONS["strides"][1:]),
    )
}
EVERY = CONVOLUTIONS | OURS


@pytest.mark.parametrize(("options", "image", "kernel", "count"), EVERY.values(), ids=EVERY)
def test_a_convolution_and_both_of_its_gradients_cost_the_same(options, image, kernel, count):
    options = dict(options)
    forward = functools.partial(options.pop("form", conv), **options)
    x, k = shape(*image), shape(*kernel)
    dy = jax.eval_shape(forward, x, k)

    def of_image(k, dy):
        return jax.linear_transpose(lambda x: forward(x, k), x)(dy)

    def of_kernel(x, dy):
        return jax.linear_transpose(lambda k: forward(x, k), k)(dy)

    counts = costs.macs(forward, x, k), costs.macs(of_image, k, dy), costs.macs(of_kernel, x, dy)
    assert counts == (count, count, count)


SQUARE, TRUTH = shape(4, 4), shape(dtype=bool)
ONE = 4**3


def power(x, n):
    return lax.scan(lambda x, _: (x @ x, None), x, None, length=n)[0]


@jax.custom_vjp
def squared(x):
    return x @ x


squared.defvjp(lambda x: (x @ x, x), lambda x, dy: (dy @ x.T + x.T @ dy,))

PROGRAMS = {
    "batches": (lambda a, b: a @ b, (shape(5, 3, 4), shape(5, 4, 6)), 5 * 3 * 4 * 6),
    "einsum": (
        lambda a, b: jnp.einsum("bthd,bshd->bhts", a, b), (shape(2, 5, 3, 4), shape(2, 6, 3, 4)), 2 * 3 * 5 * 6 * 4,
    ),
    "nested scans": (lambda x: lax.scan(lambda x, _: (power(x, 3), None), x, None, length=5)[0], (SQUARE,), 15 * ONE),
    "the gradient of a scan": (jax.grad(lambda x: power(x, 7).sum()), (SQUARE,), 7 * 3 * ONE),
    "fori_loop": (lambda x: lax.fori_loop(0, 5, lambda _, x: x @ x, x), (SQUARE,), 5 * ONE),
    "while_loop": (lambda x: lax.while_loop(lambda x: x.sum() < 5, lambda x: x @ x, x), (SQUARE,), ONE),
    "no rounds": (lambda x: power(x, 0), (SQUARE,), 0),
    "cond": (lambda p, x: lax.cond(p, lambda x: x @ x @ x, lambda x: x @ x, x), (TRUTH, SQUARE), 2 * ONE),
    "a loop inside a cond": (
        lambda p, x: lax.cond(p, lambda x: power(x, 7), lambda x: power(x, 2) @ x @ x, x), (TRUTH, SQUARE), 7 * ONE,
    ),
    "vmap": (jax.vmap(jnp.matmul), (shape(6, 4, 4), shape(6, 4, 4)), 6 * ONE),
    "vmap over kernels": (
        jax.vmap(functools.partial(conv, padding="VALID"), (None, 0)), (shape(2, 8, 8, 3), shape(6, 3, 3, 3, 7)),
        6 * 2 * 6 * 6 * 7 * 3 * 3 * 3,
    ),
    "remat": (jax.value_and_grad(lambda x: jax.checkpoint(squared)(x).sum()), (SQUARE,), 3 * ONE),
    "custom_vjp": (jax.value_and_grad(lambda x: squared(x).sum()), (SQUARE,), 3 * ONE),
}  # fmt: skip


@pytest.mark.parametrize(("program", "inputs", "count"), PROGRAMS.values(), ids=PROGRAMS)
def test_every_round_and_the_largest_branch_are_counted(program, inputs, count):
    assert costs.macs(program, *inputs) == count
    # XLA also counts the sums of these programs, and the conditions of their loops.
    assert 0 <= costs.flops(program, *inputs) - 2 * count < 2 * ONE


def test_long_causal_attention_is_counted_in_its_plain_form():
    """On a CPU it runs as two halves, which multiply less."""
    inputs = [shape(2, 256, 3, 8)] * 3

    def gradient(form):
        return jax.grad(lambda inputs: form(*inputs, causal=True).sum())

    assert costs.macs(functools.partial(attention, causal=True), *inputs) == 2 * (2 * 3 * 256 * 256 * 8)
    for count in (costs.macs, costs.flops):
        assert count(gradient(attention), inputs) == count(gradient(plain_attention), inputs)


def test_gpt_2_reading_1024_tokens():
    model, tokens = gpt2(), shape(1, 1024, dtype=jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    width = 768
    layers = 12 * (1024 * (4 + 8) * width**2 + 2 * 1024 * 1024 * width)
    assert costs.macs(model.apply, variables, tokens) == layers + 1024 * width * 50_257 == 145_824_153_600
