"""Generates text from a model of the next token: by sampling, greedily, or by beam search.

Glossary: B batch, P tokens of a prompt, V vocabulary, C capacity of a cache, K beams, L tokens, N = B K.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from dlc.errors import UserError

# Tokens of a long prompt that are read at once: attention weights and logits for all of them would fill the memory.
READ = 512

Emit = Callable[[Any], Any]
Step = Callable[[Any, Any], tuple[Any, Any]]


def sample(
    model: Any,
    params: Any,
    prompt: Int[Array | np.ndarray, "B P"],
    key: Key[Array, ""],
    *,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Sequence[int] = (),
    emit: Emit | None = None,
) -> Int[Array, "B L"]:
    """The prompt followed by `length` new tokens, [B, P + length], each drawn given all tokens before it.

    A text ends with the first of the tokens `stop` that is drawn. The rest of its row is `stop[0]`.

    A token is drawn from softmax(logits / temperature) after `filtered`; at temperature 0 it is the most likely token.
    Token i uses the key `fold_in(key, i)`.

    When a text outgrows the model's context, the window slides: whenever the cache is full, the last half context is
    read again into an empty cache, as if the text began there. Of a prompt longer than the context, only the last half
    context is read, but all of it is returned. The model therefore always sees between half of its context and all of
    it.

    `emit(tokens)` is called on the host with the tokens [B] of each position, in order, as soon as they are drawn,
    until all texts end. The last calls may come after `sample` has returned; `jax.effects_barrier()` waits for them.

    This is one program. It is compiled once for each combination of the model, the shapes, `length`, `top_k`, `stop`,
    `emit` (by identity) and the presence of a temperature and a `top_p`. `model` must be hashable, like `GPT`, and have
    `model.cache(batch, capacity)`, `model.apply({"params": params}, tokens, cache=cache) -> (logits, cache)` and
    `model.config.context`.

    Raises UserError if the prompt is empty or an option is out of range.
    """
    for wrong, sentence in (
        (prompt.shape[1] == 0, "a prompt needs at least one token: begin with the token that separates texts"),
        (length < 0, f"length must be 0 or more, not {length}"),
        (temperature < 0, f"temperature must be 0 or more, not {temperature}"),
        (top_k is not None and top_k < 1, f"top_k must be 1 or more, not {top_k}"),
        (top_p is not None and not 0 < top_p <= 1, f"top_p must be above 0 and at most 1, not {top_p}"),
    ):
        if wrong:
            raise UserError(sentence)
    heat = None if temperature == 0 else float(temperature)
    share = None if top_p is None or heat is None else float(top_p)
    return _sample(model, params, prompt, key, heat, share, length=length, top_k=top_k, stop=tuple(stop), emit=emit)


@functools.partial(jax.jit, static_argnames=("model", "length", "top_k", "stop", "emit"))
def _sample(
    model: Any,
    params: Any,
    prompt: Array,
    key: Array,
    heat: Array | None,
    top_p: Array | None,
    *,
    length: int,
    top_k: int | None,
    stop: tuple[int, ...],
    emit: Emit | None,
) -> Array:
    (batch, P), context = prompt.shape, model.config.context
    capacity, half = min(context, P + length), max(1, context // 2)
    seen = half if context < P else P

    def ended(i: Any, text: Array) -> Array:
        """Whether each text has ended before token i of the answer."""
        last = lax.dynamic_index_in_dim(text, P + i - 1, 1, keepdims=False)
        return (i > 0) & jnp.isin(last, jnp.asarray(stop, last.dtype))

    def write(i: Any, text: Array, logits: Array) -> Array:
        """The text with token i of the answer, drawn from logits [B, V], written into it."""
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if heat is None:
            token = logits.argmax(-1)
        else:
            token = jax.random.categorical(jax.random.fold_in(key, i), filtered(logits / heat, top_k, top_p))
        token = token.astype(text.dtype)
        if stop:
            token = jnp.where(ended(i, text), stop[0], token)
        if emit is not None:
            jax.debug.callback(emit, token, ordered=True)
        return lax.dynamic_update_slice_in_dim(text, token[:, None], P + i, 1)

    def read(i: Any, text: Array, cache: Any, count: int) -> tuple[Array, Array, Any]:
        """Reads the `count` tokens before token i, and writes token i."""

        def part(at: Any, size: int, cache: Any) -> tuple[Array, Any]:
            tokens = lax.dynamic_slice_in_dim(text, at, size, 1)
            logits, cache = model.apply({"params": params}, tokens, cache=cache)
            return logits[:, -1], cache

        first = (count - 1) % READ + 1
        begin = P + i - count + first
        carry = part(P + i - count, first, cache)
        if count > first:
            carry = lax.fori_loop(
                0, (count - first) // READ, lambda j, carry: part(begin + j * READ, READ, carry[1]), carry
            )
        return i + 1, write(i, text, carry[0]), carry[1]

    def go_on(carry: Any) -> Any:
        i, text, cache = carry
        return read(i, text, cache, 1)

    def slide(carry: Any) -> Any:
        i, text, cache = carry
        return read(i, text, cache._replace(length=jnp.zeros_like(cache.length)), half)

    def unfinished(carry: Any) -> Array:
        i, text, _ = carry
        return (i < length) & ~ended(i, text).all() if stop else i < length

    def has_room(carry: Any) -> Array:
        return unfinished(carry) & (carry[2].length < capacity)

    # A `lax.cond` in every step would copy the cache in every step; this one runs once in half a context.
    def stretch(carry: Any) -> Any:
        carry = lax.while_loop(has_room, go_on, carry)
        return lax.cond(unfinished(carry), slide, lambda carry: carry, carry)

    text = jnp.pad(prompt, ((0, 0), (0, length)), constant_values=stop[0] if stop else 0)
    if not length:
        return text
    carry = read(jnp.int32(0), text, model.cache(batch, capacity), seen)
    if P + length <= context:
        return lax.while_loop(has_room, go_on, carry)[1]
    return lax.while_loop(unfinished, stretch, carry)[1]


def filtered(
    logits: Float[Array, "*B V"], top_k: int | None = None, top_p: float | Float[Array, ""] | None = None
) -> Float[Array, "*B V"]:
    """The logits of the tokens that may be drawn, in float32 or wider, and -inf for the others.

    `top_k` keeps the k most likely tokens. Among those, renormalised, `top_p` keeps the nucleus: the smallest set whose
    probability reaches p, which has at least one token. Of equal logits the first are kept.

    References: Fan, Lewis, Dauphin 2018, "Hierarchical neural story generation", section 5.4 (top-k); Holtzman, Buys,
    Du, Forbes, Choi 2019, "The curious case of neural text degeneration", section 3.1 (the nucleus).
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    V = logits.shape[-1]
    if (top_k is None or top_k >= V) and top_p is None:
        return logits
    kept, places = lax.top_k(logits, min(top_k or V, V))
    if top_p is not None:
        p = jax.nn.softmax(kept)
        kept = jnp.where(jnp.cumsum(p, -1) - p < top_p, kept, -jnp.inf)
    return jnp.put_along_axis(jnp.full_like(logits, -jnp.inf), places, kept, -1, inplace=False)


class _Beams(NamedTuple):
    """The state of beam search: the K live hypotheses of each sentence, and its best K finished ones.

    An unused slot has the score -inf.
    """

    at: Any  # the number of tokens in every live hypothesis
    live: Any  # [B, K, L] tokens
    live_scores: Any  # [B, K] the sums of their log-probabilities
    finished: Any  # [B, K, L] tokens, padded with `end`
    scores: Any  # [B, K] their sums divided by the length penalty, best first
    cache: Any  # leaves [N, ...]


def beam_search(
    step: Step,
    cache: Any,
    *,
    batch: int,
    beams: int,
    length: int,
    start: int,
    end: int,
    vocab: int,
    alpha: float = 0.6,
) -> tuple[Int[Array, "B K L"], Float[Array, "B K"]]:
    """The most likely answers of up to `length` tokens that end with `end`: tokens and scores, best first.

    The score of an answer of n tokens, including `end`, is the sum of their log-probabilities divided by the length
    penalty ((5 + n) / 6)^alpha. Answers are padded with `end`. If fewer than K answers are found, the remaining scores
    are -inf and their tokens all `end`.

    Each step extends the K live hypotheses of a sentence by every token. The K best extensions that do not end stay
    live. Those that end, and are among the K best of all, join the finished answers, of which only the K best are kept.
    At the last position every hypothesis ends. A sentence is done when no live hypothesis can still beat its best
    finished answer, and the search stops when all sentences are done. The answers to a sentence therefore do not depend
    on the others in its batch. One beam with alpha = 0 is greedy decoding.

    `step(tokens, cache) -> (logits [N, V], cache)` reads one token [N] for each hypothesis, `start` in the first step.
    The hypotheses of a sentence are adjacent, N = B K. The cache is reordered as hypotheses are dropped and copied:
    its leaves have N as their first axis, except scalars, which stay as they are. Keep what all hypotheses of a
    sentence share, such as the source, in the closure and not in the cache. For an encoder-decoder such as `Seq2Seq`:

        memory, cache = model.apply(variables, source, length, method="start")
        cache = jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0) if leaf.ndim else leaf, cache)

        def step(token, cache):
            return model.apply(variables, token, memory, cache, method="step")

    Call it inside `jax.jit`: the loop is one `lax.while_loop`.

    Raises UserError if an option is out of range.

    References: Wu et al. 2016, "Google's neural machine translation system", section 7 and equation 14, without the
    coverage penalty; live and finished hypotheses are kept apart as in Tensor2Tensor (Vaswani et al. 2018).
    """
    for wrong, sentence in (
        (beams < 1, f"beams must be 1 or more, not {beams}"),
        (length < 1, f"length must be 1 or more, not {length}"),
        (alpha < 0, f"alpha must be 0 or more, not {alpha}"),
        (not (0 <= start < vocab and 0 <= end < vocab), f"start and end must be 0 to {vocab - 1}, not {start}, {end}"),
    ):
        if wrong:
            raise UserError(sentence)

    # The first call is only asked for the dtype of its logits.
    logits, _ = jax.eval_shape(step, jnp.full(batch * beams, start, jnp.int32), cache)
    dtype = jnp.promote_types(logits.dtype, jnp.float32)

    def penalty(n: Any) -> Any:
        return ((5 + n) / 6) ** alpha

    def done(b: _Beams) -> Array:
        """Whether the best finished answer beats the best live hypothesis, scored with the largest penalty."""
        return b.scores[:, 0] >= b.live_scores[:, 0] / penalty(length)

    def grow(b: _Beams) -> _Beams:
        last = lax.dynamic_index_in_dim(b.live, jnp.maximum(b.at - 1, 0), 2, keepdims=False)
        logits, cache = step(jnp.where(b.at == 0, start, last).reshape(-1), b.cache)
        logits = logits.astype(dtype).reshape(batch, beams, vocab)
        total = (b.live_scores - jax.nn.logsumexp(logits, -1))[..., None]
        # Of one hypothesis, at most K + 1 children are among the K best that end or the K best that do not.
        values, tokens = lax.top_k(logits, min(beams + 1, vocab))
        children, tokens = _flat(total + values), _flat(tokens)
        ended = total[..., 0] + logits[..., end]  # [B, K]
        worst = lax.top_k(children, beams)[0][:, -1:]
        ended = jnp.where((ended >= worst) | (b.at == length - 1), ended, -jnp.inf) / penalty((b.at + 1).astype(dtype))
        ended = jnp.where(done(b)[:, None], -jnp.inf, ended)

        written = lax.dynamic_update_slice_in_dim(b.live, jnp.full((batch, beams, 1), end, jnp.int32), b.at, 2)
        scores, best = lax.top_k(jnp.concatenate([b.scores, ended], 1), beams)
        finished = _take(jnp.concatenate([b.finished, written], 1), best)

        live_scores, best = lax.top_k(jnp.where(tokens == end, -jnp.inf, children), beams)
        parent = best // (children.shape[1] // beams)
        token = jnp.take_along_axis(tokens, best, 1)[..., None]
        live = lax.dynamic_update_slice_in_dim(_take(b.live, parent), token, b.at, 2)
        if beams > 1:
            rows = (jnp.arange(batch)[:, None] * beams + parent).reshape(-1)
            cache = jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds") if leaf.ndim else leaf, cache)
        return _Beams(b.at + 1, live, live_scores, finished, scores, cache)

    nothing = jnp.full((batch, beams, length), end, jnp.int32)
    empty = jnp.full((batch, beams), -jnp.inf, dtype)
    begin = _Beams(jnp.int32(0), nothing, empty.at[:, 0].set(0.0), nothing, empty, cache)
    final = lax.while_loop(lambda b: (b.at < length) & ~done(b).all(), grow, begin)
    return jnp.where(jnp.isneginf(final.scores)[..., None], end, final.finished), final.scores


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _take(tokens: Array, rows: Array) -> Array:
    """The rows [B, K] of each sentence from tokens [B, M, L]."""
    return jnp.take_along_axis(tokens, rows[..., None], axis=1)
