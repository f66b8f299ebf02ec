"""Attention, the positions it is given, and what the attention models share: dropout and dense layers.

Models of attention are in test_attention_models.py, their writing in test_generate.py.
"""

import functools
import math

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc import layers
from dlc.errors import UserError
from dlc.layers.attention import (
    Attention,
    KeyValue,
    Stretch,
    attention,
    attention_weights,
    padding_mask,
    plain_attention,
    rotary,
    sinusoidal,
)
from dlc.models.gpt import GPT, GPTConfig, modern

SMALL = {"vocab": 40, "context": 12, "layers": 2, "heads": 2, "width": 16}
GPTS = {
    "default": GPT(GPTConfig(**SMALL)),
    "modern": modern(**SMALL, hidden=32, kv_heads=1),
}
WINDOWED = modern(**SMALL, hidden=32, kv_heads=1, window=4, tied=False)
both = pytest.mark.parametrize("model", GPTS.values(), ids=GPTS)


def arrays(*shapes, dtype=jnp.float32):
    """Normal numbers of these shapes, others for each."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@functools.cache
def weights(model):
    """Weights of a GPT that are far from its initial ones: none is zero or one."""
    return {"params": drawn.variables(model, jnp.zeros((1, 12), int))["params"]}


def by_the_book(query, key, value, causal=False, mask=None):
    """Attention in NumPy: one text, one head, one query at a time."""
    (B, T, N, H), (_, S, K, _) = query.shape, key.shape
    result = np.zeros((B, T, N, H))
    for b, n, t in np.ndindex(B, N, T):
        k = n // (N // K)
        seen = np.ones(S, bool) if mask is None else np.broadcast_to(mask, (B, N, T, S))[b, n, t].copy()
        if causal:
            seen &= np.arange(S) <= t
        scores = key[b, :, k] @ query[b, t, n] / math.sqrt(H)
        scores = np.exp(np.where(seen, scores - scores[seen].max(initial=-np.inf, where=True), -np.inf))
        result[b, t, n] = scores / scores.sum() @ value[b, :, k]
    return result


# heads of queries, of keys, queries, keys, causal, masked
CASES = {
    "plain": (4, 4, 7, 7, False, False),
    "causal": (4, 4, 7, 7, True, False),
    "masked": (4, 4, 7, 7, False, True),
    "causal and masked": (4, 4, 7, 7, True, True),
    "grouped": (4, 2, 7, 7, True, True),
    "one head of keys": (4, 1, 7, 7, False, False),
    "another memory": (4, 4, 3, 7, False, True),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def operands(case, dtype):
    N, K, T, S, causal, masked = case
    mask = None
    if masked:  # the first key always remains
        mask = np.random.default_rng(1).random((2, 1, T, S)) < 0.6
        mask[..., 0] = True
        mask = jnp.asarray(mask)
    return arrays((2, T, N, 8), (2, S, K, 8), (2, S, K, 8), dtype=dtype), {"causal": causal, "mask": mask}


@every_case
def test_attention_is_the_equation_in_float64(case):
    with jax.enable_x64(True):
        inputs, how = operands(case, jnp.float64)
        mask = None if how["mask"] is None else np.asarray(how["mask"])
        expected = by_the_book(*map(np.asarray, inputs), how["causal"], mask)
        for form in (attention, plain_attention):
            np.testing.assert_allclose(
                jax.jit(functools.partial(form, **how))(*inputs), expected, rtol=1e-12, atol=1e-13
            )


@pytest.mark.parametrize("case", [CASES[name] for name in ("causal and masked", "grouped", "another memory")])
def test_attention_and_its_gradients_are_those_of_jax(case):
    """`jax.nn.dot_product_attention` is another's implementation of the same, with scores of float32."""
    with jax.enable_x64(True):
        inputs, how = operands(case, jnp.float64)
        (towards,) = arrays((2, case[2], case[0], 8), dtype=jnp.float64)

        def gradients(form):
            return jax.jit(jax.value_and_grad(lambda inputs: jnp.sum(form(inputs) * towards)))(inputs)

        ours = gradients(lambda inputs: attention(*inputs, **how))
        theirs = gradients(
            lambda inputs: jax.nn.dot_product_attention(*inputs, mask=how["mask"], is_causal=how["causal"])
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


@pytest.mark.parametrize("length", [128, 131])
def test_a_long_causal_text_in_halves_equals_the_plain_form(length):
    with jax.enable_x64(True):
        *inputs, towards = arrays(
            (2, length, 4, 8), (2, length, 2, 8), (2, length, 2, 8), (2, length, 4, 8), dtype=jnp.float64
        )

        def gradients(form):
            return jax.jit(jax.value_and_grad(lambda inputs: jnp.sum(form(*inputs, causal=True) * towards)))

        halves, plain = gradients(attention), gradients(plain_attention)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), halves(inputs), plain(inputs)
        )
        assert f"f64[2,4,{length},{length}]" not in halves.lower(inputs).as_text("hlo")
        assert f"f64[2,4,{length},{length}]" in plain.lower(inputs).as_text("hlo")


def test_causal_attention_can_be_exported_for_texts_of_any_length():
    """And one of 130 tokens, which a CPU splits into halves, has second derivatives under vmap."""
    (length,) = jax.export.symbolic_shape("t")
    text = jax.ShapeDtypeStruct((1, length, 2, 4), jnp.float32)
    apply = jax.jit(functools.partial(attention, causal=True))
    exported = jax.export.export(apply)(text, text, text)
    inputs = arrays((1, 130, 2, 4), (1, 130, 2, 4), (1, 130, 2, 4))
    np.testing.assert_allclose(exported.call(*inputs), apply(*inputs), rtol=1e-5, atol=1e-5)

    def second(form):
        def along(inputs):
            return jax.jvp(lambda *inputs: form(*inputs, causal=True).sum(), inputs, inputs)[1]

        return jax.jit(jax.vmap(jax.grad(along)))(tuple(x[None] for x in inputs))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), second(attention), second(plain_attention)
    )


def test_attention_under_vmap_is_a_loop_and_forward_mode_agrees_with_reverse():
    inputs, how = operands(CASES["grouped"], jnp.float32)
    several = [np.stack([a, 2 * a, a + 1]) for a in map(np.asarray, inputs)]
    apply = jax.jit(functools.partial(attention, **how))
    mapped = jax.vmap(apply)(*several)
    for i in range(3):
        np.testing.assert_allclose(mapped[i], apply(*(a[i] for a in several)), rtol=1e-5, atol=1e-6)
    value = jax.jit(lambda inputs: attention(*inputs, **how).sum())
    tangents = [np.cos(a) for a in map(np.asarray, inputs)]
    _, forward = jax.jit(lambda inputs, tangents: jax.jvp(value, (inputs,), (tangents,)))(inputs, tangents)
    reverse = sum(np.vdot(g, t) for g, t in zip(jax.jit(jax.grad(value))(inputs), tangents, strict=True))
    np.testing.assert_allclose(forward, reverse, rtol=1e-4)


def test_the_weights_of_a_query_sum_to_one_and_are_zero_where_it_may_not_look():
    (query, key, _), how = operands(CASES["causal and masked"], jnp.float32)
    rows = np.asarray(attention_weights(query, key, **how))
    np.testing.assert_allclose(rows.sum(-1), 1, rtol=1e-6)
    seen = np.tril(np.ones((7, 7), bool)) & np.asarray(how["mask"])
    assert (rows[~np.broadcast_to(seen, rows.shape)] == 0).all()
    assert (rows[np.broadcast_to(seen, rows.shape)] > 0).all()


def test_a_query_that_may_attend_to_nothing_attends_to_everything_alike():
    query, key, value = arrays(*[(1, 3, 2, 4)] * 3)
    nothing = jnp.zeros((1, 1, 3, 3), bool)
    seen = jax.jit(lambda query: attention(query, key, value, mask=nothing))
    np.testing.assert_allclose(
        seen(query), np.broadcast_to(np.asarray(value).mean(1, keepdims=True), value.shape), rtol=1e-5
    )
    assert np.isfinite(jax.jit(jax.grad(lambda query: seen(query).sum()))(query)).all()


def test_attention_in_bfloat16_is_near_float32_and_its_softmax_sums_to_one():
    inputs, how = operands(CASES["grouped"], jnp.float32)
    half = [jnp.asarray(np.asarray(a), jnp.bfloat16) for a in inputs]
    y = attention(*half, **how)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(y), jax.jit(functools.partial(attention, **how))(*inputs), atol=0.03)
    long = arrays((1, 1, 1, 8), (1, 4096, 1, 8), dtype=jnp.bfloat16)
    total = np.float32(attention_weights(*long)).sum()
    np.testing.assert_allclose(total, 1, atol=0.01)  # summed in bfloat16 it would be far off


# The module


def test_a_memory_read_once_is_attended_to_as_its_projections():
    module = Attention(16, 4, cross=True)
    x, source = arrays((2, 3, 16), (2, 5, 16))
    params = drawn.variables(module, x, KeyValue(*[jnp.zeros((2, 5, 4, 4))] * 2))
    params["params"]["key_value"] = {"kernel": arrays((16, 32))[0], "bias": np.arange(32, dtype=np.float32) / 32}
    memory = jax.jit(functools.partial(module.apply, method="read"))(params, source)
    kernel, bias = map(np.asarray, (params["params"]["key_value"][name] for name in ("kernel", "bias")))
    both = np.asarray(source) @ kernel + bias[None, None]
    np.testing.assert_allclose(np.reshape(memory.key, (2, 5, 16)), both[..., :16], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.reshape(memory.value, (2, 5, 16)), both[..., 16:], rtol=1e-4, atol=1e-5)
    assert jax.eval_shape(module.apply, params, x, memory).shape == (2, 3, 16)


def test_weights_that_are_looked_at_are_those_that_were_used():
    module = Attention(16, 4, kv_heads=2, qk_norm=True, theta=100.0)
    (x,) = arrays((2, 5, 16))
    params = drawn.variables(module, x)
    params.pop("intermediates", None)
    apply = functools.partial(module.apply, causal=True)
    seen, state = jax.jit(functools.partial(apply, mutable=["intermediates"]))(params, x)
    np.testing.assert_allclose(seen, jax.jit(apply)(params, x), rtol=1e-5, atol=1e-6)
    (rows,) = state["intermediates"]["weights"]
    assert rows.shape == (2, 4, 5, 5)
    np.testing.assert_allclose(np.sum(rows, -1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "sentence"),
    [
        (3, None, "3 heads do not divide a width of 16"),
        (4, 3, "3 heads of keys and values do not divide 4 heads of queries"),
    ],
)
def test_heads_that_do_not_divide_are_named(heads, kv_heads, sentence):
    with pytest.raises(UserError, match=sentence):
        jax.eval_shape(Attention(16, heads, kv_heads).init, jax.random.key(0), jnp.zeros((1, 2, 16)))


# GPT


@both
def test_a_token_depends_on_nothing_after_it_and_on_all_before(model):
    """By gradients for the embeddings of a text in which no token comes twice: exactly zero, and not."""
    params = weights(model)["params"]

    def features(table):
        """One number for every place, of what comes out of the last norm, in front of the embedding."""
        changed = {"params": {**params, "token": {"embedding": table}}}
        _, kept = model.apply(
            changed, jnp.arange(12)[None], capture_intermediates=lambda module, _: module.name == "norm"
        )
        return kept["intermediates"]["norm"]["__call__"][0][0].sum(-1)

    by_token = np.asarray(jax.jit(jax.jacrev(features))(params["token"]["embedding"]))[:, :12]
    size = np.abs(by_token).sum(-1)
    assert (size[np.triu_indices(12, 1)] == 0).all()
    assert (size[np.tril_indices(12)] > 0).all()


@pytest.mark.parametrize("model", [*GPTS.values(), WINDOWED], ids=[*GPTS, "windowed"])
@pytest.mark.parametrize("pieces", [(12,), (5, 1, 1, 5)], ids=str)
def test_read_in_pieces_into_a_cache_it_is_the_same(model, pieces):
    tokens = np.random.default_rng(1).integers(0, 40, (3, 12))
    whole = jax.jit(model.apply)(weights(model), tokens)
    cache, parts, at = model.cache(3, 12), [], 0
    step = jax.jit(lambda tokens, cache: model.apply(weights(model), tokens, cache=cache))
    for length in pieces:
        logits, cache = step(tokens[:, at : at + length], cache)
        parts.append(logits)
        at += length
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=1e-4, atol=1e-4)
    assert cache.length == 12
    assert [entry.key.shape for entry in cache.layers] == [(3, 12, model.config.kv_heads or 2, 8)] * 2


@both
def test_more_tokens_than_the_context_has_places_are_refused(model):
    with pytest.raises(UserError, match="13 tokens do not fit into a context of 12"):
        model.apply(weights(model), jnp.zeros((1, 13), int))
    with pytest.raises(UserError, match="13 tokens do not fit into a context of 12"):
        model.apply(weights(model), jnp.zeros((1, 1), int), cache=model.cache(1, 13))


# Positions


def test_rotary_products_depend_on_the_distance_alone():
    query, key = arrays((1, 1, 1, 16), (1, 1, 1, 16))
    turn = jax.jit(rotary)

    def product(i, j):
        return np.vdot(turn(query, np.array([i])), turn(key, np.array([j])))

    near = product(3, 1)
    np.testing.assert_allclose(product(40, 38), near, rtol=1e-4)
    np.testing.assert_allclose(product(1002, 1000), near, rtol=1e-3)
    assert abs(product(3, 0) - near) > 0.01
    np.testing.assert_array_equal(turn(query, np.array([0])), query)
    turned = turn(query, np.array([17]))
    np.testing.assert_allclose(np.linalg.norm(turned), np.linalg.norm(query), rtol=1e-5)


def test_stretched_rotations_are_those_of_llama():
    """Fast ones stay, slow ones are divided by the factor, and those between are interpolated."""
    stretch, theta, H = Stretch(8.0, 1.0, 4.0, 256), 1000.0, 32
    rates = []
    for i in range(H // 2):  # as in the published code
        rate = theta ** (-2 * i / H)
        wavelength = 2 * math.pi / rate
        if wavelength > 256 / 1.0:
            rate = rate / 8
        elif wavelength >= 256 / 4.0:
            smooth = (256 / wavelength - 1.0) / (4.0 - 1.0)
            rate = (1 - smooth) * rate / 8 + smooth * rate
        rates.append(rate)
    assert len({round(rate * theta ** (2 * i / H), 3) for i, rate in enumerate(rates)}) > 3  # all three are there
    x = jnp.zeros((1, 1, 1, H)).at[..., : H // 2].set(1.0)
    turned = rotary(x, jnp.array([100]), theta, stretch)[0, 0, 0]
    angles = 100 * np.array(rates)
    np.testing.assert_allclose(turned, np.concatenate([np.cos(angles), np.sin(angles)]), atol=1e-4)


def test_a_window_reaches_so_far_back_and_no_further():
    layer = Attention(16, 2, theta=100.0, window=4)
    (x,) = arrays((1, 12, 16))
    variables = drawn.variables(layer, x)

    @jax.jit
    def back(x):
        return jax.grad(lambda x: layer.apply(variables, x, causal=True)[0, 9].sum())(x)[0]

    assert np.flatnonzero(np.abs(back(x)).sum(-1)).tolist() == [6, 7, 8, 9]
    plain = Attention(16, 2, theta=100.0)
    short = x[:, :4]
    np.testing.assert_array_equal(
        layer.apply(variables, short, causal=True), plain.apply(variables, short, causal=True)
    )
    mask = jnp.asarray(np.tril(np.ones((1, 1, 12, 12), bool)) & ~np.tril(np.ones((1, 1, 12, 12), bool), -4))
    expected = plain.apply(variables, x, mask=mask)
    np.testing.assert_allclose(layer.apply(variables, x, causal=True), expected, rtol=1e-5, atol=1e-6)
    length = jax.export.symbolic_shape("T")[0]
    symbol = jax.ShapeDtypeStruct((1, length, 16), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: layer.apply(variables, x, causal=True)))(symbol)
    np.testing.assert_allclose(exported.call(x), expected, rtol=1e-5, atol=1e-6)


def test_heads_may_be_wider_than_their_share_and_biases_apart():
    layer = Attention(16, 4, 2, head_width=6, use_bias=False, qkv_bias=True, qk_norm=True, qk_epsilon=1e-3)
    (x,) = arrays((2, 3, 16))
    shapes = jax.tree.map(np.shape, drawn.variables(layer, x)["params"])
    assert shapes == {
        "query_key_value": {"kernel": (16, 6 * 8), "bias": (6 * 8,)}, "out": {"kernel": (24, 16)},
        "query_norm": {"scale": (6,)}, "key_norm": {"scale": (6,)},
    }  # fmt: skip
    assert layer.apply(drawn.variables(layer, x), x).shape == (2, 3, 16)


def test_sinusoids_are_those_of_the_paper():
    table = np.asarray(sinusoidal(jnp.arange(50), 8))
    for place, i in [(0, 0), (7, 1), (49, 3)]:
        angle = place / 10_000 ** (2 * i / 8)
        np.testing.assert_allclose(
            [table[place, i], table[place, 4 + i]], [math.sin(angle), math.cos(angle)], atol=1e-5
        )


def test_a_padding_mask_says_where_there_is_something():
    tokens = jnp.array([[5, 3, 0, 0], [0, 2, 2, 2]])
    np.testing.assert_array_equal(padding_mask(tokens)[:, 0, 0], tokens != 0)
    np.testing.assert_array_equal(padding_mask(tokens, pad=2)[:, 0, 0], tokens != 2)


# Dropout


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_expectation_and_drops_its_rate(rate, dtype):
    x = jnp.ones((101, 1001), dtype)  # an odd count: bits are drawn in pairs
    apply = functools.partial(layers.Dropout(rate).apply, train=True)
    y = jax.jit(apply)({}, x, rngs={"dropout": jax.random.key(0)})
    assert y.dtype == dtype
    y = np.asarray(y, np.float32)
    deviation = math.sqrt(rate * (1 - rate) / y.size)
    assert abs((y == 0).mean() - rate) < 4 * deviation
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=0.01)
    assert abs(y.mean() - 1) < 4 * deviation / (1 - rate) + (0.004 if dtype == jnp.bfloat16 else 0)
    # Neighbours share a word of random bits, and no more.
    pairs = (y == 0).reshape(-1)[:-1].reshape(-1, 2)
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.03


def test_dropout_does_nothing_but_in_training_and_draws_by_its_key():
    (x,) = arrays((40, 50))
    module = layers.Dropout(0.5)
    np.testing.assert_array_equal(module.apply({}, x), x)
    np.testing.assert_array_equal(layers.Dropout(0.0).apply({}, x, train=True), x)
    draw = jax.jit(lambda key: module.apply({}, x, train=True, rngs={"dropout": key}))
    one, same, two = (np.asarray(draw(jax.random.key(i))) for i in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert ((one == 0) != (two == 0)).mean() > 0.4


# Dense


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (0, 5)], ids=str)
def test_a_dense_product_and_its_gradients_are_the_plain_ones(shape):
    with jax.enable_x64(True):
        x, kernel, towards = arrays(shape, (5, 7), (*shape[:-1], 7), dtype=jnp.float64)

        def results(form):
            def value(x, kernel):
                return jnp.sum(jnp.sin(form(x, kernel)) * towards)

            def all_three(x, kernel):
                tangent = jax.jvp(value, (x, kernel), (jnp.cos(x), jnp.cos(kernel)))[1]
                return form(x, kernel), jax.grad(value, (0, 1))(x, kernel), tangent

            return jax.jit(all_three)(x, kernel)

        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13),
            results(layers.dense),
            results(jnp.matmul),
        )


def test_dense_under_vmap_and_in_scan():
    x, kernels = arrays((6, 2, 5), (3, 5, 5))

    def trained(kernel):
        def step(kernel, x):
            return kernel - 0.1 * jax.grad(lambda kernel: jnp.square(layers.dense(x, kernel)).sum())(kernel), None

        return jax.lax.scan(step, kernel, x)[0]

    def plainly(kernel):
        for row in x:
            kernel = kernel - 0.1 * jax.grad(lambda kernel: jnp.square(row @ kernel).sum())(kernel)  # noqa: B023
        return kernel

    kernels, plain = 0.1 * np.asarray(kernels), jax.jit(plainly)
    mapped = jax.jit(jax.vmap(trained))(kernels)
    np.testing.assert_allclose(mapped, np.stack([plain(kernel) for kernel in kernels]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 7, 12, 16, 20])
def test_todays_gpt_has_groups_that_divide_its_heads(heads):
    model = modern(vocab=10, context=8, layers=1, heads=heads, width=8 * heads)
    assert heads % model.config.kv_heads == 0
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))


def test_odd_widths_are_said():
    with pytest.raises(UserError, match=r"need an even width, a sine and a cosine for every rate, not 33$"):
        sinusoidal(jnp.arange(3), 33)
    with pytest.raises(UserError, match=r"the width of a head must be even, not 9$"):
        rotary(jnp.zeros((1, 2, 1, 9)), jnp.arange(2))


@pytest.mark.parametrize(
    ("width", "masked", "tokens", "fused"),
    [(64, False, 9, True), (64, True, 8, True), (64, True, 9, False), (4, False, 8, False), (256, False, 8, False)],
)
def test_cudnn_is_asked_for_what_it_has(monkeypatch, width, masked, tokens, fused):
    asked = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, *_, **how: asked.append(how["implementation"]) or q)
    mask = jnp.ones((1, 1, tokens, tokens), bool) if masked else None
    for dtype in (jnp.bfloat16, jnp.float32):
        x = jax.ShapeDtypeStruct((1, tokens, 2, width), dtype)
        jax.eval_shape(lambda x: attention(x, x, x, mask=mask), x)
    assert asked == ["cudnn"] * fused
