"""A recurrent encoder and decoder with attention between them, which learns to align as it learns to translate.

Glossary: B batch, S source tokens, T target tokens, V vocabulary, m embedding, n width, l maxout; N = B times K beams.

References:
    [1] Bahdanau, Cho, Bengio 2014, "Neural machine translation by jointly learning to align and translate", appendices
        A and B.1. It omits the biases "to increase readability"; here every sum before a nonlinearity has one. Instead
        of its two vocabularies there is one, with an embedding for each side as in the paper.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dlc import layers


@dataclass(frozen=True)
class Seq2SeqConfig:
    """The sizes of the model. The defaults are RNNsearch's, except that one vocabulary replaces two of 30,000 words."""

    vocab: int = 30_000
    embedding: int = 620
    width: int = 1000  # of each direction of the encoder, the decoder, and the alignment's hidden layer
    maxout: int = 500
    dropout: float = 0.0  # after embeddings and the maxout layer; the paper has none
    dtype: Any = None
    param_dtype: Any = "float32"


class Memory(NamedTuple):
    """The source as the decoder reads it: each annotation h_j, already multiplied by all the matrices it will meet."""

    keys: Float[Array, "B S n"]  # U_a h_j, for the alignment
    values: Float[Array, "B S E"]  # [C h_j, C_o h_j], E = 3 n + 2 l, for the decoder's state and its output
    mask: Bool[Array, "B S"]
    first: Float[Array, "B n"]  # the decoder's first state


class Seq2Seq(nn.Module):
    """From source and target tokens to logits of the next target token at every position. Token 0 is padding.

    Products that do not depend on the decoder's state are computed for all positions at once: those of the embeddings,
    of the annotations (C c_i is the sum of alpha_ij C h_j) and of the output layer. The recurrence contains only the
    attention and three products with the state, one of which is for the alignment and both gates together.

    The alignment alpha, [B, T, S], is sown as "weights". Get it with
    `model.apply(variables, ..., mutable=["intermediates"])`.
    """

    config: Seq2SeqConfig = Seq2SeqConfig()

    def setup(self) -> None:
        c = self.config
        n, kinds = c.width, {"dtype": c.dtype, "param_dtype": c.param_dtype}
        embed = partial(nn.Embed, c.vocab, c.embedding, embedding_init=_normal, **kinds)
        dense: Any = partial(layers.Dense, kernel_init=_normal, bias_init=nn.initializers.zeros, **kinds)
        matrix = partial(self.param, dtype=c.param_dtype)

        def recurrent(name: str, init: Callable = _orthogonal, count: int = 1) -> Array:
            return matrix(name, _beside(init, count), (n, n * count))

        self.source_embed, self.target_embed = embed(), embed()
        self.source_in = dense(6 * n)  # W, of both directions
        self.forward_gates, self.forward_state = recurrent("U_zr_forward", count=2), recurrent("U_forward")
        self.backward_gates, self.backward_state = recurrent("U_zr_backward", count=2), recurrent("U_backward")
        self.initial = dense(n)  # W_s
        self.target_in = dense(3 * n)  # W of the decoder
        self.decoder_gates, self.decoder_state = recurrent("U_zr", count=2), recurrent("U")
        self.align_state = recurrent("W_a", _tiny)
        self.align_memory = dense(n, kernel_init=_tiny)  # U_a
        self.align_out = matrix("v_a", nn.initializers.zeros, (n,))
        self.memory_in = dense(3 * n, use_bias=False)  # C
        self.memory_out = dense(2 * c.maxout, use_bias=False)  # C_o
        self.state_out = dense(2 * c.maxout)  # U_o
        self.target_out = dense(2 * c.maxout, use_bias=False)  # V_o
        self.out = dense(c.vocab)  # W_o
        self.drop = layers.Dropout(c.dropout)

    def __call__(
        self, source: Int[Array, "B S"], target: Int[Array, "B T"], *, train: bool = False
    ) -> Float[Array, "B T V"]:
        """Logits of the token after each token of `target`, which begins with the start token."""
        return self.decode(target, self.encode(source, train=train), train=train)

    def encode(self, source: Int[Array, "B S"], *, train: bool = False) -> Memory:
        """Reads the source in both directions; padding at its end does not change the state (A.2.1)."""
        mask = source != 0
        x = self.source_in(self.drop(self.source_embed(source.T), train=train))
        (ahead, back), steps = jnp.split(x, 2, axis=-1), mask.T[..., None]
        forward = _read(ahead, steps, *self._cast(self.forward_gates, self.forward_state))
        backward = _read(back, steps, *self._cast(self.backward_gates, self.backward_state), reverse=True)
        h = jnp.moveaxis(jnp.concatenate([forward, backward], axis=-1), 0, 1)
        values = jnp.concatenate([self.memory_in(h), self.memory_out(h)], axis=-1)
        return Memory(self.align_memory(h), values, mask, jnp.tanh(self.initial(backward[0])))

    def decode(self, target: Int[Array, "B T"], memory: Memory, *, train: bool = False) -> Float[Array, "B T V"]:
        """Logits [B, T, V] of the token after each token of `target`, given those up to it (A.2.2)."""
        y = self.drop(self.target_embed(target), train=train)
        weights = self._weights()

        def step(state: Array, x: Array) -> tuple[Array, tuple[Array, Array]]:
            new, alignment, _ = _write(weights, memory, state, x)
            return new, (state, alignment)

        _, (before, alignment) = lax.scan(step, memory.first, jnp.moveaxis(self.target_in(y), 1, 0))
        before, alignment = jnp.moveaxis(before, 0, 1), jnp.moveaxis(alignment, 0, 1)
        self.sow("intermediates", "weights", alignment)
        context = alignment @ memory.values[..., 3 * self.config.width :]
        return self._logits(before, y, context, train=train)

    def start(self, source: Int[Array, "B S"], length: int | None = None) -> tuple[Memory, Float[Array, "B n"]]:
        """The arguments of the first `step`: the encoded source, and the decoder's state as its "cache".

        `length` exists for other models, whose caches have a capacity. It has no effect here.
        """
        memory = self.encode(source)
        return memory, memory.first

    def step(
        self, token: Int[Array, " N"], memory: Memory, cache: Float[Array, "N n"]
    ) -> tuple[Float[Array, "N V"], Float[Array, "N n"]]:
        """Logits of the token after `token`, and the next state.

        N may be K times the number B of sentences in the memory. The K hypotheses of a sentence are adjacent and share
        its memory.
        """
        y = self.target_embed(token)
        new, _, context = _write(self._weights(), memory, cache, self.target_in(y))
        return self._logits(cache, y, context[..., 3 * self.config.width :]), new

    def _logits(self, before: Array, y: Array, context: Array, *, train: bool = False) -> Array:
        """W_o t_i, where t_i is the larger of each pair in U_o s_{i-1} + V_o E y_{i-1} + C_o c_i."""
        t = self.state_out(before) + self.target_out(y) + context
        t = jnp.maximum(t[..., 0::2], t[..., 1::2])
        return self.out(self.drop(t, train=train))

    def _weights(self) -> Any:
        state = jnp.concatenate([self.align_state, self.decoder_gates], axis=-1)
        return self._cast(state, self.decoder_state, self.align_out)

    def _cast(self, *weights: Array) -> Any:
        return nn.dtypes.promote_dtype(*weights, dtype=self.config.dtype)


def _read(
    x: Float[Array, "S B F"], mask: Bool[Array, "S B 1"], gates: Array, candidate: Array, *, reverse: bool = False
) -> Float[Array, "S B n"]:
    """The states of a gated recurrent unit that begins at zero; `x` is W x + b for its gates z, r and its candidate."""

    def step(state: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        x, real = at
        new = jnp.where(real, _unit(state, x, state @ gates, candidate), state)
        return new, new

    return lax.scan(step, jnp.zeros((x.shape[1], gates.shape[0]), x.dtype), (x, mask), reverse=reverse)[1]


def _unit(state: Array, x: Array, gates: Array, candidate: Array) -> Array:
    """(1 - z) s + z tanh(W x + U (r s)): appendix A.1.1."""
    n = state.shape[-1]
    z, r = jnp.split(nn.sigmoid(x[..., : 2 * n] + gates), 2, axis=-1)
    return (1 - z) * state + z * jnp.tanh(x[..., 2 * n :] + (r * state) @ candidate)


def _write(weights: Any, memory: Memory, state: Array, x: Array) -> tuple[Array, Array, Array]:
    """The next state [N, n], the alignment [N, S] and the sum of the values [N, E], given the last state and W y."""
    products, candidate, v = weights
    (N, n), sentences = state.shape, memory.keys.shape[0]
    beams = 1 if sentences == N else N // sentences
    query, gates = jnp.split(state @ products, [n], axis=-1)
    alignment = _align(query.reshape(sentences, beams, n), memory.keys, memory.mask, v)  # [B, K, S]
    context = (alignment @ memory.values).reshape(N, memory.values.shape[-1])
    new = _unit(state, x + context[..., : 3 * n], gates, candidate)
    return new, alignment.reshape(N, memory.keys.shape[1]), context


@jax.checkpoint  # recomputes the [B, S, n] tanhs of every token for the gradient instead of keeping them
def _align(query: Array, keys: Array, mask: Array, v: Array) -> Array:
    """softmax_j of v^T tanh(W s + U h_j) over the tokens that are not padding, in float32."""
    energy = jnp.tanh(query[:, :, None] + keys[:, None]) @ v
    energy = energy.astype(jnp.promote_types(energy.dtype, jnp.float32))
    energy = jnp.where(mask[:, None], energy, jnp.finfo(energy.dtype).min)
    return jax.nn.softmax(energy).astype(query.dtype)


def _beside(init: Callable, count: int) -> Callable:
    """An initialiser for `count` square matrices side by side, each drawn separately."""

    def made(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
        square = (shape[0], shape[0])
        return jnp.concatenate([init(part, square, dtype) for part in jax.random.split(key, count)], axis=-1)

    return made


# Appendix B.1: recurrent matrices orthogonal, the alignment's N(0, 0.001), v_a and biases zero, all others N(0, 0.01).
_orthogonal, _tiny, _normal = nn.initializers.orthogonal(), nn.initializers.normal(0.001), nn.initializers.normal(0.01)
