"""Attention over query, key and value, and the positions that it does not know of by itself.

Shapes: B batch, T queries, S keys and values, N heads of queries, K heads of keys and values (N unless grouped),
H width of a head, D width of the model, C capacity of a cache.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from dlc import layers
from dlc.errors import UserError
from dlc.layers import cpu

Mask = Bool[Array, "#B #N #T S"]

# Tokens from which on halves pay on a CPU: 128 took 0.92 of the time of the whole training step on one core, 64 1.01.
_LONG = 128


class KeyValue(NamedTuple):
    """The keys and the values of a sequence, [B, S, K, H] each; as a cache [B, C, K, H], of which the rest is empty."""

    key: Shaped[Array, "B S K H"]
    value: Shaped[Array, "B S K H"]


class Cache(NamedTuple):
    """What a model has read so far: the keys and values of every layer, and how many positions of them are filled."""

    layers: tuple[KeyValue, ...]
    length: Int[Array, ""]


def empty_cache(
    batch: int, capacity: int, *, layers: int, heads: int, head_width: int, dtype: DTypeLike = jnp.float32
) -> Cache:
    """A cache of `capacity` positions, none of them filled, for `layers` layers of `heads` heads of keys and values."""
    shape = (batch, capacity, heads, head_width)
    return Cache(tuple(KeyValue(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(layers)), jnp.int32(0))


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    causal: bool = False,
    mask: Mask | None = None,
) -> Float[Array, "B T N H"]:
    """softmax(query key^T / sqrt(H)) value, each head by itself.

    A query attends to the keys where `mask` is True, and if it is `causal` only to those up to its own place. A query
    that may attend to nothing attends to everything alike. With K < N heads each serves N / K heads of queries that lie
    side by side. Softmax is float32.

    On a GPU, in half precision, it is cuDNN's fused kernel where that knows the sizes, which never writes the weights
    to memory; elsewhere
    `plain_attention`, on a CPU of two halves of a long causal text, which spares a quarter of the work.

    References: Vaswani et al. 2017, "Attention is all you need", equation 1; grouped queries are Ainslie et al. 2023.
    """
    if _is_fused(query, key, mask):
        return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal, implementation="cudnn")
    if causal and mask is None and cpu.is_default() and query.shape[1] == key.shape[1] >= _LONG:
        return _in_halves(query, key, value)
    return plain_attention(query, key, value, causal=causal, mask=mask)


def _is_fused(query: Array, key: Array, mask: Array | None) -> bool:
    """Whether cuDNN's kernel is there and takes these sizes, as JAX checks them; Hopper alone takes wider heads."""
    T, S, H = query.shape[1], key.shape[1], query.shape[3]
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    return jax.default_backend() == "gpu" and half and H % 8 == 0 and H <= 128 and (mask is None or T % 2 == S % 2 == 0)


def plain_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    causal: bool = False,
    mask: Mask | None = None,
) -> Float[Array, "B T N H"]:
    """`attention` as the equation says it."""
    return weighted(attention_weights(query, key, causal=causal, mask=mask), value)


def _in_halves(query: Array, key: Array, value: Array) -> Array:
    """Causal `plain_attention` of a text to itself, whose first half does not even multiply with the second."""
    T, half = query.shape[1], query.shape[1] // 2
    first = plain_attention(query[:, :half], key[:, :half], value[:, :half], causal=True)
    earlier = (jnp.arange(T)[None] <= jnp.arange(half, T)[:, None])[None, None]
    return jnp.concatenate([first, plain_attention(query[:, half:], key, value, mask=earlier)], axis=1)


def attention_weights(
    query: Float[Array, "B T N H"], key: Float[Array, "B S K H"], *, causal: bool = False, mask: Mask | None = None
) -> Float[Array, "B N T S"]:
    """softmax(query key^T / sqrt(H)), in the dtype of the query: how much of each value a query takes."""
    (B, T, N, H), (_, S, K, _) = query.shape, key.shape
    grouped = query.reshape(B, T, K, N // K, H) / jnp.asarray(math.sqrt(H), query.dtype)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, key).reshape(B, N, T, S)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if causal:
        earlier = jnp.tril(jnp.ones((1, 1, T, S), bool))
        mask = earlier if mask is None else mask & earlier
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores).astype(query.dtype)


def weighted(weights: Float[Array, "B N T S"], value: Float[Array, "B S K H"]) -> Float[Array, "B T N H"]:
    """The sum of the values, each times its weight."""
    (B, N, T, S), (_, _, K, H) = weights.shape, value.shape
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights.reshape(B, K, N // K, T, S), value)
    return mixed.reshape(B, T, N, H)


class Attention(nn.Module):
    """Multi-head attention: project, attend in every head, put the heads side by side and project again.

    x attends to itself, or with `cross` to a memory. The weights of all heads lie in one kernel, [D, (N + 2 K) H] for
    query, key and value in this order, and begin as one; with `cross` in two. (PyTorch begins them so, too.)

    The attention weights, [B, N, T, S], are sown as "weights" for whoever asks for them with
    `model.apply(variables, ..., mutable=["intermediates"])`.

    Attributes:
        theta: the base of rotary positions, or None to go without.
        qk_norm: whether queries and keys are normalised (RMS) in each head.
        dropout: the share of attention weights that is dropped in training.

    References: Vaswani et al. 2017, section 3.2.2.
    """

    width: int
    heads: int
    kv_heads: int | None = None
    cross: bool = False
    use_bias: bool = True
    theta: float | None = None
    qk_norm: bool = False
    dropout: float = 0.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    out_init: Initializer | None = None

    def setup(self) -> None:
        K = self.kv_heads or self.heads
        if self.width % self.heads:
            raise UserError(f"{self.heads} heads do not divide a width of {self.width}")
        if self.heads % K:
            raise UserError(f"{K} heads of keys and values do not divide {self.heads} heads of queries")
        both = 2 * K * (self.width // self.heads)
        dense = functools.partial(
            layers.Dense,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=nn.initializers.zeros,
        )
        if self.cross and self.theta is not None:
            raise UserError(
                "rotary positions say how far places of one text are apart: cross-attention has no use for them"
            )
        if self.cross:
            self.query, self.key_value = dense(self.width), dense(both)
        else:
            self.query_key_value = dense(self.width + both)
        self.out = dense(self.width, kernel_init=self.out_init or self.kernel_init)
        self.drop = layers.Dropout(self.dropout)
        if self.qk_norm:
            norm = functools.partial(nn.RMSNorm, dtype=self.dtype, param_dtype=self.param_dtype)
            self.query_norm, self.key_norm = norm(), norm()

    def read(self, memory: Float[Array, "B S E"]) -> KeyValue:
        """The keys and values of a memory, to be read once and attended to often (with `cross`)."""
        return KeyValue(*self._split(self.key_value(memory), 2))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        memory: KeyValue | None = None,
        *,
        causal: bool = False,
        mask: Mask | None = None,
        cache: KeyValue | None = None,
        at: Int[Array, ""] | int = 0,
        train: bool = False,
    ) -> Any:
        """y [B, T, D]; with a `cache` (y, cache), where x stands at the places `at`, `at` + 1, ... and is put into it.

        With a cache it is causal in any case, and `at` + T must not go beyond the capacity, which nothing here can see.
        With `cross`, `memory` is what `read` has made of it, and there is no cache.
        """
        if self.cross:
            assert memory is not None
            (query,), (key, value) = self._split(self.query(x), 1), memory
        else:
            query, key, value = self._split(self.query_key_value(x), 3)
        if self.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.theta is not None:
            places = at + jnp.arange(x.shape[1])
            query, key = rotary(query, places, self.theta), rotary(key, places, self.theta)
        if cache is not None:
            key = lax.dynamic_update_slice_in_dim(cache.key, key, at, 1)
            value = lax.dynamic_update_slice_in_dim(cache.value, value, at, 1)
            cache, causal = KeyValue(key, value), False
            seen = (jnp.arange(key.shape[1])[None] <= at + jnp.arange(x.shape[1])[:, None])[None, None]
            mask = seen if mask is None else mask & seen
        if self.is_mutable_collection("intermediates") or (train and self.dropout):
            weights = attention_weights(query, key, causal=causal, mask=mask)
            self.sow("intermediates", "weights", weights)
            y = weighted(self.drop(weights, train=train), value)
        else:
            y = attention(query, key, value, causal=causal, mask=mask)
        y = self.out(y.reshape(*y.shape[:2], self.width))
        return y if cache is None else (y, cache)

    def _split(self, x: Array, parts: int) -> list[Array]:
        """[B, T, ...] to query [B, T, N, H], key and value [B, T, K, H], or those of them that there are."""
        H = self.width // self.heads
        ends = {1: [], 2: [x.shape[-1] // 2], 3: [self.width, (self.width + x.shape[-1]) // 2]}[parts]
        return [part.reshape(*part.shape[:2], -1, H) for part in jnp.split(x, ends, axis=-1)]


def padding_mask(tokens: Int[Array, "B S"], pad: int = 0) -> Bool[Array, "B 1 1 S"]:
    """Where there is something to attend to: True but for the token `pad`."""
    return (tokens != pad)[:, None, None, :]


def sinusoidal(places: Int[Array, " T"], width: int) -> Float[Array, "T D"]:
    """Places as sines (the first half of the features) and cosines, of wavelengths from 2 pi to 10000 2 pi.

    The paper takes sine and cosine in turn, which is the same up to the order of the features.

    References: Vaswani et al. 2017, section 3.5.
    """
    if width % 2:
        raise UserError(f"a sine and a cosine for every rate need an even width, not {width}")
    rates = jnp.exp(-math.log(10_000) * jnp.arange(width // 2) / (width // 2))
    angles = places[:, None] * rates[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def rotary(x: Float[Array, "B T N H"], places: Int[Array, " T"], theta: float = 10_000.0) -> Float[Array, "B T N H"]:
    """Turns the pair of features (i, i + H/2) by the angle place / theta^(2 i / H).

    The product of a query and a key then depends on how far they are apart, and not on where they are.

    References: Su et al. 2021, "RoFormer", section 3.2.2, with the features paired as GPT-NeoX and Llama do.
    """
    half = x.shape[-1] // 2
    if x.shape[-1] % 2:
        raise UserError(f"rotary positions turn pairs of features: a head of width {x.shape[-1]} is not even")
    rates = theta ** (-jnp.arange(half) / half)
    angles = (places[:, None] * rates[None])[None, :, None, :]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
