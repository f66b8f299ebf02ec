"""Text from a model of the next token, one token at a time: by chance, by the best guess, or by beam search.

Glossary: B batch, P tokens of a prompt, V vocabulary, C capacity of a cache, K beams, L tokens, N = B K.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from dlc.errors import UserError

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
    emit: Emit | None = None,
) -> Int[Array, "B L"]:
    """The prompt and `length` tokens after it, [B, P + length], each drawn given those before it.

    A token is drawn from softmax(logits / temperature) as `filtered` leaves it; at temperature 0 it is the most likely
    one. Token i is drawn by `fold_in(key, i)`.

    A text that outgrows the model's context slides: whenever the cache is full, the last half of a context is read
    again into it, as if the text began there. Of a prompt longer than the context only its last half context is read,
    though all of it is returned. So the model always sees between half of its context and all of it.

    `emit(tokens)` is called on the host with the tokens [B] of every place as soon as they are drawn, in order. The
    last calls may come after `sample` has returned; `jax.effects_barrier()` waits for them.

    All of it is one program, compiled once for the model, the shapes, `length`, `top_k`, `emit` (the same function, not
    one that looks like it) and whether there is a temperature and a `top_p`. `model` is one such as `GPT`: hashable,
    with `model.cache(batch, capacity)`, `model.apply({"params": params}, tokens, cache=cache) -> (logits, cache)` and
    `model.config.context`.

    Raises UserError if the prompt is empty or an option is out of its range.
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
    heat = None if temperature == 0 else jnp.float32(temperature)
    share = None if top_p is None or heat is None else jnp.float32(top_p)
    return _sample(model, params, prompt, key, heat, share, length=length, top_k=top_k, emit=emit)


@functools.partial(jax.jit, static_argnames=("model", "length", "top_k", "emit"))
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
    emit: Emit | None,
) -> Array:
    (batch, P), context = prompt.shape, model.config.context
    capacity, half = min(context, P + length), max(1, context // 2)
    seen = half if context < P else P

    def write(i: Any, text: Array, logits: Array) -> Array:
        """The text with token i of the answer in it."""
        logits = logits[:, -1].astype(jnp.float32)
        if heat is None:
            token = logits.argmax(-1)
        else:
            token = jax.random.categorical(jax.random.fold_in(key, i), filtered(logits / heat, top_k, top_p))
        token = token.astype(text.dtype)
        if emit is not None:
            jax.debug.callback(emit, token, ordered=True)
        return lax.dynamic_update_slice_in_dim(text, token[:, None], P + i, 1)

    def read(i: Any, text: Array, cache: Any, count: int) -> tuple[Array, Array, Any]:
        """Reads the `count` tokens before token i, and writes token i."""
        tokens = lax.dynamic_slice_in_dim(text, P + i - count, count, 1)
        logits, cache = model.apply({"params": params}, tokens, cache=cache)
        return i + 1, write(i, text, logits), cache

    def go_on(carry: Any) -> Any:
        i, text, cache = carry
        return read(i, text, cache, 1)

    def slide(carry: Any) -> Any:
        i, text, cache = carry
        return read(i, text, cache._replace(length=jnp.zeros_like(cache.length)), half)

    def has_room(carry: Any) -> Array:
        return (carry[0] < length) & (carry[2].length < capacity)

    # A `lax.cond` for every token would copy the cache for every token; this one comes once in half a context.
    def stretch(carry: Any) -> Any:
        carry = lax.while_loop(has_room, go_on, carry)
        return lax.cond(carry[0] < length, slide, lambda carry: carry, carry)

    text = jnp.pad(prompt, ((0, 0), (0, length)))
    if not length:
        return text
    carry = read(jnp.int32(0), text, model.cache(batch, capacity), seen)
    if P + length <= context:
        return lax.while_loop(has_room, go_on, carry)[1]
    return lax.while_loop(lambda carry: carry[0] < length, stretch, carry)[1]


def filtered(
    logits: Float[Array, "*B V"], top_k: int | None = None, top_p: float | Float[Array, ""] | None = None
) -> Float[Array, "*B V"]:
    """The logits, at least float32, of the tokens that may be drawn, and -inf for the others.

    `top_k` keeps the k most likely tokens. `top_p` keeps of those, made to sum to one, the nucleus: the smallest set
    whose probability reaches p, and so at least the most likely one. Of equals the first come first.

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
    """What beam search knows after some tokens: the K live hypotheses of each sentence, and its best K finished ones.

    A place that no hypothesis holds has the score -inf.
    """

    at: Any  # tokens that every live hypothesis has
    live: Any  # [B, K, L] tokens
    live_scores: Any  # [B, K] the sum of their log-probabilities
    finished: Any  # [B, K, L] tokens, `end` from the last on
    scores: Any  # [B, K] the same, divided by the length penalty; best first
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

    The score of an answer of n tokens, `end` among them, is the sum of their log-probabilities over the length penalty
    ((5 + n) / 6)^alpha. From its last token on an answer is filled with `end`. Where fewer than K answers were found,
    the scores are -inf and the tokens all `end`.

    Each step, of all ways to go on with the K live hypotheses of a sentence, the K best are kept that do not end; those
    that do end, and are among the K best of all, are put with the finished ones, which they leave only for better
    finished ones. At the last place everything ends. A sentence is done once its best finished answer has a score that
    no live hypothesis can reach any more, and the search once all sentences are; so a sentence's answers do not depend
    on the others in its batch. One beam with alpha = 0 takes the most likely token until that is `end`.

    `step(tokens, cache) -> (logits [N, V], cache)` reads one token [N] for each hypothesis, the first time `start`; the
    hypotheses of one sentence lie side by side, N = B K. The cache is reordered as hypotheses are dropped and doubled:
    leaves with axes have N as their first one, and those without any stay as they are. What all hypotheses of a
    sentence share, such as the source, belongs not into the cache but into the closure. With an encoder and decoder
    such as `Seq2Seq`:

        memory, cache = model.apply(variables, source, length, method="start")
        cache = jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0) if leaf.ndim else leaf, cache)

        def step(token, cache):
            return model.apply(variables, token, memory, cache, method="step")

    It is made to be called inside `jax.jit`: the loop is one `lax.while_loop`.

    Raises UserError if an option is out of its range.

    References: Wu et al. 2016, "Google's neural machine translation system", section 7 and equation 14, without the
    coverage penalty; the two kinds of hypotheses are those of Tensor2Tensor (Vaswani et al. 2018).
    """
    for wrong, sentence in (
        (beams < 1, f"beams must be 1 or more, not {beams}"),
        (length < 1, f"length must be 1 or more, not {length}"),
        (alpha < 0, f"alpha must be 0 or more, not {alpha}"),
        (not (0 <= start < vocab and 0 <= end < vocab), f"start and end must be 0 to {vocab - 1}, not {start}, {end}"),
    ):
        if wrong:
            raise UserError(sentence)

    def penalty(n: Any) -> Any:
        return ((5 + n) / 6) ** alpha

    def done(b: _Beams) -> Array:
        """Whether the best finished answer beats what the best live hypothesis has now, at the largest penalty."""
        return b.scores[:, 0] >= b.live_scores[:, 0] / penalty(length)

    def grow(b: _Beams) -> _Beams:
        last = lax.dynamic_index_in_dim(b.live, jnp.maximum(b.at - 1, 0), 2, keepdims=False)
        logits, cache = step(jnp.where(b.at == 0, start, last).reshape(-1), b.cache)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)).reshape(batch, beams, vocab)
        total = (b.live_scores - jax.nn.logsumexp(logits, -1))[..., None]
        # No hypothesis can have more than K + 1 children among the K best that end and the K best that do not.
        values, tokens = lax.top_k(logits, min(beams + 1, vocab))
        children, tokens = _flat(total + values), _flat(tokens)
        ended = total[..., 0] + logits[..., end]  # [B, K]
        worst = lax.top_k(children, beams)[0][:, -1:]
        ended = jnp.where((ended >= worst) | (b.at == length - 1), ended, -jnp.inf) / penalty(b.at + 1)
        ended = jnp.where(done(b)[:, None], -jnp.inf, ended)

        written = lax.dynamic_update_slice_in_dim(b.live, jnp.full((batch, beams, 1), end), b.at, 2)
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

    nothing = jnp.full((batch, beams, length), end)
    empty = jnp.full((batch, beams), -jnp.inf)
    begin = _Beams(jnp.int32(0), nothing, empty.at[:, 0].set(0.0), nothing, empty, cache)
    final = lax.while_loop(lambda b: (b.at < length) & ~done(b).all(), grow, begin)
    return jnp.where(jnp.isneginf(final.scores)[..., None], end, final.finished), final.scores


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _take(tokens: Array, rows: Array) -> Array:
    """Of tokens [B, M, L] the rows [B, K] of each sentence."""
    return jnp.take_along_axis(tokens, rows[..., None], axis=1)
