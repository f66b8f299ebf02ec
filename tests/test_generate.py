"""Generation against plain Python that computes everything anew, and beam search against all answers there are."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc import generate
from dlc.models.gpt import GPT, GPTConfig

RNG = np.random.default_rng(0)
TINY = GPTConfig(vocab=17, context=16, layers=1, heads=2, width=16)
PROMPT = jnp.asarray(RNG.integers(0, 17, (2, 5)), jnp.int32)


@functools.cache
def made(config=TINY):
    """A model whose weights are large, so that its guesses are not all alike."""
    model = GPT(config)
    leaves, structure = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0), PROMPT)["params"])
    rng = np.random.default_rng(1)
    large = [jnp.asarray(rng.normal(size=leaf.shape) / 3, leaf.dtype) for leaf in leaves]
    return model, jax.tree.unflatten(structure, large)


@functools.cache
def logits_of(model):
    return jax.jit(model.apply)


def greedy_without_cache(model, params, prompt, length):
    """The same rule in plain Python: what the model has read, from its first token, in one go for every token."""
    text, context = np.asarray(prompt), model.config.context
    capacity, half = min(context, prompt.shape[1] + length), context // 2
    first = 0 if prompt.shape[1] <= context else prompt.shape[1] - half
    for _ in range(length):
        if text.shape[1] - first > capacity:
            first = text.shape[1] - half
        seen = np.zeros(
            (len(text), context), np.int32
        )  # filled up, so that nothing compiles twice; causal, so no matter
        seen[:, : text.shape[1] - first] = text[:, first:]
        logits = logits_of(model)({"params": params}, seen)[:, text.shape[1] - first - 1]
        text = np.concatenate([text, logits.argmax(-1)[:, None]], 1)
    return text


def sample(*args, temperature=0.0, **options):
    return generate.sample(*args, jax.random.key(3), temperature=temperature, **options)


@pytest.mark.parametrize(
    ("prompt", "length"), [(5, 11), (5, 12), (5, 40), (24, 13)],
    ids=["up to the context", "one beyond", "slides three times", "long prompt"],
)  # fmt: skip
def test_greedy_with_a_cache_is_greedy_without(prompt, length):
    model, params = made()
    prompt = jnp.asarray(RNG.integers(0, 17, (2, prompt)), jnp.int32)
    expected = greedy_without_cache(model, params, prompt, length)
    np.testing.assert_array_equal(sample(model, params, prompt, length=length), expected)
    assert len(np.unique(expected)) > 4  # else everything would be equal


def test_rotary_positions_slide_too():
    model, params = made(GPTConfig(vocab=17, context=8, layers=1, heads=2, width=16, positions="rotary", norm="rms"))
    expected = greedy_without_cache(model, params, PROMPT, 12)
    np.testing.assert_array_equal(sample(model, params, PROMPT, length=12), expected)


@pytest.mark.parametrize("read", [3, 4, 8], ids=str)
def test_a_long_prompt_is_read_in_parts(read, monkeypatch):
    config = GPTConfig(vocab=17, context=16 + read, layers=1, heads=2, width=16)  # else it were compiled already
    model, params = made(config)
    prompt = jnp.asarray(RNG.integers(0, 17, (2, 8)), jnp.int32)
    expected = greedy_without_cache(model, params, prompt, 30)  # it slides, too
    calls = []
    monkeypatch.setattr(generate, "READ", read)
    monkeypatch.setattr(
        GPT, "apply", lambda *args, _own=GPT.apply, **kw: (calls.append(args[2].shape), _own(*args, **kw))[1]
    )
    np.testing.assert_array_equal(sample(model, params, prompt, length=30), expected)
    assert max(length for _, length in calls) == read


def test_a_text_ends_with_the_first_token_that_stops_it():
    model, params = made()
    plain = np.asarray(sample(model, params, PROMPT, length=30))
    stop = tuple({int(plain[0, 12]), int(plain[1, 9])})  # within the first window and after it
    ends = [next(i for i in range(5, 35) if row[i] in stop) for row in plain]
    seen = []
    text = sample(model, params, PROMPT, length=30, stop=stop, emit=lambda tokens: seen.append(np.asarray(tokens)))
    jax.effects_barrier()
    for row, whole, end in zip(np.asarray(text), plain, ends, strict=True):
        np.testing.assert_array_equal(row[: end + 1], whole[: end + 1])
        assert (row[end + 1 :] == stop[0]).all()
    assert len(seen) == max(ends) - 4
    never = next(i for i in range(17) if i not in plain)
    np.testing.assert_array_equal(sample(model, params, PROMPT, length=30, stop=(never,)), plain)
    begun = sample(model, params, plain[:, :13], length=5, stop=stop)  # what the prompt ends with ends nothing
    assert begun.shape == (2, 18)
    np.testing.assert_array_equal(begun[0, 13], plain[0, 13])


def test_no_tokens_are_the_prompt():
    np.testing.assert_array_equal(sample(*made(), PROMPT, length=0), PROMPT)


def test_the_same_key_gives_the_same_text_and_another_another():
    draw = functools.partial(generate.sample, *made(), PROMPT, length=11)
    text = draw(jax.random.key(0))
    text = np.asarray(text)
    np.testing.assert_array_equal(text[:, :5], PROMPT)
    np.testing.assert_array_equal(text, draw(jax.random.key(0)))
    assert not np.array_equal(text, draw(jax.random.key(1)))
    assert not np.array_equal(text[0, 5:], text[1, 5:])


def test_the_likeliest_token_alone_is_greedy():
    expected = sample(*made(), PROMPT, length=11)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-5}):
        np.testing.assert_array_equal(sample(*made(), PROMPT, length=11, **{"temperature": 1.0, **narrow}), expected)


def test_tokens_come_as_often_as_their_probability_says():
    model, params = made()
    prompt = jnp.tile(PROMPT[:1], (4000, 1))
    logits = np.asarray(logits_of(model)({"params": params}, PROMPT[:1]))[0, -1]
    drawn = np.asarray(sample(model, params, prompt, length=1, temperature=2.0, top_k=6))[:, -1]
    expected = jax.nn.softmax(generate.filtered(jnp.asarray(logits / 2), 6))
    np.testing.assert_allclose(np.bincount(drawn, minlength=17) / 4000, expected, atol=0.03)


def test_bfloat16_draws_from_float32_logits():
    model, params = made(GPTConfig(vocab=17, context=16, layers=1, heads=2, width=16, dtype="bfloat16"))
    text = sample(model, params, PROMPT, length=4, temperature=1.0, top_k=5, top_p=0.9)
    assert text.shape == (2, 9)
    assert text.dtype == PROMPT.dtype


def test_tokens_are_emitted_in_order():
    seen = []  # 20 tokens: within the context, then sliding
    text = sample(*made(), PROMPT, length=20, emit=lambda tokens: seen.append(np.asarray(tokens)))
    jax.effects_barrier()
    np.testing.assert_array_equal(np.stack(seen, 1), np.asarray(text)[:, 5:])


def test_one_program_serves_every_text_of_a_shape():
    calls = []

    class Counting(GPT):
        def apply(self, *args, **kwargs):
            calls.append(kwargs["cache"].length)
            return super().apply(*args, **kwargs)

    model, params = Counting(TINY), made()[1]
    sample(model, params, PROMPT, length=4)
    traced = len(calls)
    for seed, temperature in enumerate((0.5, 1.0)):
        generate.sample(model, params, PROMPT + seed, jax.random.key(seed), length=4, temperature=0.0)
        generate.sample(model, params, PROMPT, jax.random.key(seed), length=4, temperature=temperature)
    assert traced <= 3
    assert len(calls) == 2 * traced  # once without a temperature, once with any


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"length": -1}, "length must be 0 or more, not -1"),
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"top_k": 0}, "top_k must be 1 or more, not 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"prompt": PROMPT[:, :0]}, "a prompt needs at least one token"),
    ],
)
def test_options_out_of_range_are_named(options, sentence):
    options = {"length": 3, "prompt": PROMPT, **options}
    with pytest.raises(ValueError, match=sentence):
        sample(*made(), options.pop("prompt"), **options)


def reference_filter(logits, top_k, top_p):
    kept = np.full(len(logits), -np.inf)
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[: top_k or None]
    p = np.exp(logits[order] - np.max(logits))
    reached = 0.0
    for i, share in zip(order, p / p.sum(), strict=True):
        if top_p is not None and reached >= top_p:
            break
        kept[i], reached = logits[i], reached + share
    return kept


@pytest.mark.parametrize("top_p", [None, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("top_k", [None, 1, 3, 12, 30])
def test_filtered_is_the_plain_loop(top_k, top_p):
    logits = RNG.normal(size=(4, 5, 12)).astype(np.float32) * 2
    logits[0] = np.round(logits[0]) + 0.0  # equal ones, and no -0.0
    found = np.asarray(generate.filtered(jnp.asarray(logits), top_k, top_p))
    expected = [reference_filter(row, top_k, top_p) for row in logits.reshape(-1, 12).astype(np.float64)]
    np.testing.assert_allclose(found.reshape(-1, 12), np.stack(expected), rtol=1e-6)
    half = generate.filtered(jnp.asarray(logits, jnp.bfloat16), top_k, top_p)
    assert half.dtype == jnp.float32
    assert (np.isfinite(half).sum(-1) >= 1).all()


# Beam search on tables of the next token given the last two: [V, V, V] log-probabilities.
V, L, START, END = 3, 4, 1, 2


def table(seed, vocab=V):
    logits = np.random.default_rng(seed).normal(size=(vocab, vocab, vocab)).astype(np.float32) * 2
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def search(tables, beams, *, length=L, alpha=0.6, start=START, end=END):
    """One table for each sentence. The cache is the last token; the step counts its calls in a leaf without axes."""
    tables = jnp.asarray(np.stack(tables))
    batch, vocab = tables.shape[:2]
    sentence = jnp.repeat(jnp.arange(batch), beams)

    def step(token, cache):
        return tables[sentence, cache["last"], token], {"last": token, "calls": cache["calls"] + 1}

    cache = {"last": jnp.full(batch * beams, start), "calls": jnp.int32(0)}
    run = functools.partial(generate.beam_search, step, batch=batch, beams=beams, length=length, start=start, end=end,
                            vocab=vocab, alpha=alpha)  # fmt: skip
    return jax.tree.map(np.asarray, jax.jit(run)(cache))


def all_answers(log_p, length, alpha):
    """Every answer that ends, with its score, best first, padded."""
    answers = []
    others = [token for token in range(len(log_p)) if token != END]
    for n in range(1, length + 1):
        for head in itertools.product(others, repeat=n - 1):
            tokens, before, last, total = (*head, END), START, START, 0.0
            for token in tokens:
                total += log_p[before, last, token]
                before, last = last, token
            answers.append((total / ((5 + n) / 6) ** alpha, tokens + (END,) * (length - n)))
    return sorted(answers, reverse=True)


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_enough_beams_find_the_best_of_all_answers(alpha):
    tables = [table(seed) for seed in range(20)]
    tokens, scores = search(tables, V**L, alpha=alpha)
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    lengths = set()
    for i, log_p in enumerate(tables):
        answers = all_answers(log_p, L, alpha)
        np.testing.assert_allclose(scores[i, 0], answers[0][0], rtol=1e-5)
        assert tuple(tokens[i, 0]) == answers[0][1]
        known = {answer: score for score, answer in answers}
        for row, score in zip(tokens[i], scores[i], strict=True):
            if np.isfinite(score):  # every answer that is returned has the score that it is due
                np.testing.assert_allclose(score, known[tuple(row)], rtol=1e-5)
            else:
                assert (row == END).all()
        lengths.add(answers[0][1].index(END))
    assert len(lengths) > 1


def test_one_beam_is_greedy():
    for seed in range(4):
        log_p, end = table(seed, 6), 5
        (tokens,), (score,) = search([log_p], 1, length=8, alpha=0.0, end=end)
        before, last, expected, total = START, START, [], 0.0
        while len(expected) < 8 and end not in expected:
            token = int(log_p[before, last].argmax()) if len(expected) < 7 else end
            total += log_p[before, last, token]
            before, last = last, token
            expected.append(token)
        np.testing.assert_array_equal(tokens[0], expected + [end] * (8 - len(expected)))
        np.testing.assert_allclose(score[0], total, rtol=1e-5)


@pytest.mark.parametrize("beams", [1, 4])
def test_a_sentence_is_searched_as_if_alone(beams):
    tables = [table(seed, 7) for seed in range(3)]
    together = search(tables, beams, length=9, end=3)
    for i, alone in enumerate(tables):
        tokens, scores = search([alone], beams, length=9, end=3)
        np.testing.assert_array_equal(together[0][i], tokens[0])
        np.testing.assert_allclose(together[1][i], scores[0], rtol=1e-6)
        assert (tokens[0, :, -1] == 3).all()


def test_more_beams_are_no_worse_on_the_whole():
    tables = [table(seed, 7) for seed in range(30)]
    means = [search(tables, beams, length=9, end=3)[1][:, 0].mean() for beams in (1, 4)]
    assert means[0] < means[1]


def test_the_search_stops_when_nothing_can_win():
    """With `end` nearly certain the first answer is the best, and one step, or two, is all that is made."""
    calls = []
    logits = jnp.zeros((2, 5)).at[:, 4].set(20.0)

    def step(token, cache):
        jax.debug.callback(lambda: calls.append(1))
        return logits.astype(jnp.bfloat16), cache

    options = {"batch": 1, "beams": 2, "length": 50, "start": 0, "end": 4, "vocab": 5}
    tokens, scores = jax.jit(lambda: generate.beam_search(step, jnp.zeros((2, 3)), **options))()
    jax.effects_barrier()
    assert (tokens[0, 0] == 4).all()
    assert scores.dtype == jnp.float32
    assert len(calls) == 1


@pytest.mark.parametrize("wrong", [{"beams": 0}, {"length": 0}, {"alpha": -1.0}, {"end": 5}])
def test_options_of_the_search_out_of_range_are_named(wrong):
    options = {"batch": 1, "beams": 2, "length": 5, "start": 0, "end": 4, "vocab": 5, **wrong}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        generate.beam_search(lambda token, cache: (token, cache), None, **options)
