"""The recurrent encoder and decoder: counts from the paper's formulas, padding, causality, and one step at a time."""

import functools
import math

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlc import generate, losses, train
from dlc.models.seq2seq import Seq2Seq, Seq2SeqConfig

RNG = np.random.default_rng(0)
TINY = Seq2SeqConfig(vocab=13, embedding=6, width=8, maxout=5)
B, S, T = 3, 7, 6
LENGTHS = (7, 4, 2)
SOURCE = jnp.asarray(RNG.integers(1, 13, (B, S)) * (np.arange(S) < np.array(LENGTHS)[:, None]), jnp.int32)
TARGET = jnp.asarray(RNG.integers(1, 13, (B, T)), jnp.int32)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def formulas(V, m, n, l):  # noqa: E741
    """Appendix A of Bahdanau, Cho, Bengio 2014, equation by equation, with the biases that it leaves out."""
    embeddings = 2 * V * m
    unit = 3 * n * m + 3 * n * n  # W, W_z, W_r and U, U_z, U_r
    encoder = 2 * (unit + 3 * n)
    decoder = unit + 3 * n * 2 * n + 3 * n  # and C, C_z, C_r
    alignment = n + n * n + n * 2 * n + n  # v_a, W_a, U_a
    first = n * n + n  # W_s
    output = 2 * l * (n + m + 2 * n) + 2 * l + V * l + V  # U_o, V_o, C_o, W_o
    return embeddings + encoder + decoder + alignment + first + output


# model, parameters
MODELS = {
    "seq2seq": (Seq2Seq(), 80_443_000),  # RNNsearch with its 30,000 words a side; the symbol <UNK> is one of them
    "small": (Seq2Seq(Seq2SeqConfig(vocab=8000, embedding=256, width=256, maxout=128)), 7_228_480),
    "tiny": (Seq2Seq(TINY), formulas(13, 6, 8, 5)),
}


@pytest.mark.parametrize(("model", "parameters"), MODELS.values(), ids=MODELS)
def test_parameters(model, parameters):
    c = model.config
    params = jax.eval_shape(model.init, jax.random.key(0), SOURCE, TARGET)["params"]
    assert count(params) == formulas(c.vocab, c.embedding, c.width, c.maxout) == parameters


@functools.cache
def made(config=TINY):
    """A model far from its beginning, at which attention is even and nothing matters much."""
    model = Seq2Seq(config)
    leaves, structure = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0), SOURCE, TARGET))
    rng = np.random.default_rng(1)
    drawn = [jnp.asarray(rng.normal(size=leaf.shape) / 2, leaf.dtype) for leaf in leaves]
    return model, jax.tree.unflatten(structure, drawn)


@functools.cache
def begun():
    """A model as it begins, which is to learn."""
    model = Seq2Seq(Seq2SeqConfig(vocab=13, embedding=16, width=24, maxout=12, dropout=0.05))
    return model, drawn.initial(model, SOURCE, TARGET)["params"]


@functools.cache
def run(config=TINY):
    return jax.jit(made(config)[0].apply)


def test_the_loss_begins_near_that_of_a_guess():
    model, params = begun()
    batch = {"source": SOURCE, "target": TARGET}
    loss, (_, metrics) = jax.jit(losses.sequence(model, 0.1))(params, None, batch, jax.random.key(0))
    assert abs(loss - math.log(13)) < 0.01
    assert abs(metrics["nll"] - math.log(13)) < 0.01
    gates = np.asarray(params["U_zr"])
    np.testing.assert_allclose(gates[:, :24] @ gates[:, :24].T, np.eye(24), atol=1e-5)
    assert not np.allclose(gates[:, :24], gates[:, 24:])


def test_it_is_the_paper_s_recurrence_written_out():
    """In plain NumPy, one sentence, one token at a time, with no product taken out of its place."""
    variables = made()[1]
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    n, sigmoid = 8, lambda x: 1 / (1 + np.exp(-x))

    def unit(x, state, gates, candidate):
        z, r = sigmoid(x[:n] + state @ gates[:, :n]), sigmoid(x[n : 2 * n] + state @ gates[:, n:])
        return (1 - z) * state + z * np.tanh(x[2 * n :] + (r * state) @ candidate)

    def dense(name, x):
        return x @ p[name]["kernel"] + p[name].get("bias", 0)

    for row, length in enumerate(LENGTHS):
        x = dense("source_in", p["source_embed"]["embedding"][np.asarray(SOURCE[row, :length])])
        ahead, back, state = [], [], np.zeros(n)
        for at in x[:, : 3 * n]:
            ahead.append(state := unit(at, state, p["U_zr_forward"], p["U_forward"]))
        state = np.zeros(n)
        for at in x[::-1, 3 * n :]:
            back.insert(0, state := unit(at, state, p["U_zr_backward"], p["U_backward"]))
        h, state = np.concatenate([ahead, back], 1), np.tanh(dense("initial", back[0]))
        expected = []
        for token in np.asarray(TARGET[row]):
            y = p["target_embed"]["embedding"][token]
            energy = np.tanh(state @ p["W_a"] + dense("align_memory", h)) @ p["v_a"]
            alpha = np.exp(energy) / np.exp(energy).sum()
            c = alpha @ h
            t = dense("state_out", state) + dense("target_out", y) + dense("memory_out", c)
            expected.append(dense("out", t.reshape(-1, 2).max(1)))
            state = unit(dense("target_in", y) + dense("memory_in", c), state, p["U_zr"], p["U"])
        np.testing.assert_allclose(run()(variables, SOURCE, TARGET)[row], np.stack(expected), rtol=1e-3, atol=1e-4)


def test_padding_changes_nothing():
    variables = made()[1]
    logits = np.asarray(run()(variables, SOURCE, TARGET))
    longer = run()(variables, np.pad(SOURCE, ((0, 0), (0, 4))), TARGET)
    np.testing.assert_allclose(longer, logits, rtol=1e-5, atol=1e-5)
    alone = run()(variables, np.asarray(SOURCE)[2:, : LENGTHS[2]], np.asarray(TARGET)[2:])
    np.testing.assert_allclose(alone, logits[2:], rtol=1e-4, atol=1e-5)


def test_alignments_are_shares_of_the_real_tokens():
    model, variables = made()
    _, seen = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))(variables, SOURCE, TARGET)
    weights = np.asarray(*seen["intermediates"]["weights"])
    assert weights.shape == (B, T, S)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    for row, length in enumerate(LENGTHS):
        assert (weights[row, :, length:] == 0).all()
        assert weights[row, :, :length].min() > 0
    assert np.ptp(weights[0], axis=0).max() > 0.05  # another place for another token


def test_no_token_sees_those_behind_it_and_all_see_the_whole_source():
    model, variables = made()

    def logits(source_embed, target_embed):
        params = variables["params"]
        embeds = {"source_embed": {"embedding": source_embed}, "target_embed": {"embedding": target_embed}}
        return model.apply({"params": {**params, **embeds}}, row(0, S, 1), row(0, T, 1))[0].sum(-1)

    def row(start, length, step):
        return jnp.arange(1 + start, 1 + start + length * step, step)[
            None
        ]  # every token once: its embedding is its own

    params = variables["params"]
    of_source, of_target = jax.jit(jax.jacobian(logits, (0, 1)))(
        params["source_embed"]["embedding"], params["target_embed"]["embedding"]
    )
    seen = np.abs(of_target).sum(-1)[:, 1 : 1 + T] > 0
    np.testing.assert_array_equal(seen, np.tril(np.ones((T, T), bool)))
    assert (np.abs(of_source).sum(-1)[:, 1 : 1 + S] > 0).all()


@pytest.mark.parametrize("beams", [1, 3])
def test_one_step_at_a_time_is_teacher_forcing(beams):
    """Also where several hypotheses share the memory of their sentence."""
    model, variables = made()
    target = RNG.integers(1, 13, (B * beams, T)).astype(np.int32)
    expected = np.asarray(run()(variables, np.repeat(SOURCE, beams, 0), target))
    memory, cache = jax.jit(functools.partial(model.apply, method="start"))(variables, SOURCE)
    cache, step = jnp.asarray(np.repeat(cache, beams, 0)), jax.jit(functools.partial(model.apply, method="step"))
    for i in range(T):
        logits, cache = step(variables, target[:, i], memory, cache)
        np.testing.assert_allclose(logits, expected[:, i], rtol=1e-4, atol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights():
    half = Seq2SeqConfig(vocab=13, embedding=6, width=8, maxout=5, dtype="bfloat16")
    model, variables = made(half)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    logits = run(half)(variables, SOURCE, TARGET)
    assert logits.dtype == jnp.bfloat16
    exact = np.asarray(run()(variables, SOURCE, TARGET))
    np.testing.assert_allclose(np.float32(logits), exact, rtol=0.05, atol=0.05 * np.abs(exact).max())
    assert model == model.clone()


def test_a_batch_is_overfitted_and_beam_search_says_it():
    """Reverse the source, which takes the alignment; then search without being told the target."""
    (model, params), tx, start, end = begun(), optax.adam(1e-2), 1, 2
    rows = [np.concatenate([[start], np.asarray(SOURCE[i, :n])[::-1] % 10 + 3, [end]]) for i, n in enumerate(LENGTHS)]
    target = jnp.asarray([np.pad(row, (0, S + 2 - len(row))) for row in rows], jnp.int32)
    batch = {"source": SOURCE, "target": target}
    step = train.scanned(train.make_step(losses.sequence(model, 0.05), tx))
    state, metrics = train.compiled(step)(
        jax.jit(train.init, static_argnums=1)(params, tx, jax.random.key(0)),
        jax.tree.map(lambda a: np.broadcast_to(a, (150, *a.shape)), batch),
    )
    assert metrics["error"][0] > 0.5
    assert np.mean(metrics["error"][-10:]) < 0.02
    assert metrics["nll"][-1] < metrics["loss"][-1] < 0.5 * metrics["loss"][0]
    variables = {"params": state.params}

    @jax.jit
    def translated(source):
        memory, cache = model.apply(variables, source, S + 1, method="start")

        def step(token, cache):
            return model.apply(variables, token, memory, cache, method="step")

        return generate.beam_search(
            step, jnp.repeat(cache, 3, 0), batch=B, beams=3, length=S + 1, start=start, end=end, vocab=13
        )

    tokens, scores = translated(SOURCE)
    target = np.asarray(target)
    np.testing.assert_array_equal(np.asarray(tokens)[:, 0], np.where(target[:, 1:] == 0, end, target[:, 1:]))
    nll = -optax.losses.softmax_cross_entropy_with_integer_labels(
        jax.jit(model.apply)(variables, SOURCE, target[:, :-1]), target[:, 1:]
    )
    n, total = np.array(LENGTHS) + 1, (np.asarray(nll) * (target[:, 1:] != 0)).sum(1)
    np.testing.assert_allclose(np.asarray(scores)[:, 0], total / ((5 + n) / 6) ** 0.6, rtol=1e-3)


def test_the_loss_is_the_mean_over_real_tokens():
    class Table:
        def apply(self, variables, source, target):  # without a key the loss is that of an evaluation
            return variables["params"][target]

    logits = RNG.normal(size=(5, 5)).astype(np.float32)
    target = np.array([[1, 3, 2, 4, 2], [1, 4, 2, 0, 0]], np.int32)
    batch = {"source": jnp.zeros((2, 1), jnp.int32), "target": jnp.asarray(target)}
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    pairs = [(1, 3), (3, 2), (2, 4), (4, 2), (1, 4), (4, 2)]
    nll = np.mean([-log_p[a, b] for a, b in pairs])
    smooth = np.mean([-0.9 * log_p[a, b] - 0.1 * log_p[a].mean() for a, b in pairs])
    loss, (aux, metrics) = losses.sequence(Table(), 0.1)(jnp.asarray(logits), None, batch, None)
    np.testing.assert_allclose(loss, smooth, rtol=1e-5)
    np.testing.assert_allclose(metrics["nll"], nll, rtol=1e-5)
    np.testing.assert_allclose(metrics["error"], np.mean([logits[a].argmax() != b for a, b in pairs]), rtol=1e-6)
    assert aux is None
    plain, _ = losses.sequence(Table())(jnp.asarray(logits), None, batch, None)
    np.testing.assert_allclose(plain, nll, rtol=1e-5)
    nothing = {**batch, "target": jnp.zeros((2, 5), jnp.int32)}
    assert losses.sequence(Table())(jnp.asarray(logits), None, nothing, None)[0] == 0
