"""Attention over query, key and value, its cache, and positions, which attention alone cannot see.

Shapes: B batch, T queries, S keys and values, N heads of queries, K heads of keys and values (N unless grouped),
H width of a head, D width of the model, C capacity of a cache.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from dlc.errors import UserError
from dlc.layers import basic, cpu

Mask = Bool[Array, "#B #N #T S"]

# From this number of tokens on, halves pay off on a CPU: with 128, a whole training step on one core took 0.92 of the
# time, with 64 it took 1.01.
_LONG = 128


Axes = dict[str, tuple[str | None, ...]]

# What devices that share a model divide among them (`dlc.sharding`): the logical axes of the weights of `Attention`, by
# the ends of their paths. References: Shoeybi et al. 2019, "Megatron-LM", section 3; `_joined` says what differs.
AXES: Axes = {
    "query_key_value/kernel": ("rows", None),
    "key_value/kernel": ("rows", None),
    "query/kernel": (None, "heads"),
    "query/bias": ("heads",),
    "out/kernel": ("heads", None),
}


class KeyValue(NamedTuple):
    """The keys and the values of a sequence, [B, S, K, H] each; in a cache [B, C, K, H], whose unused part is empty."""

    key: Shaped[Array, "B S K H"]
    value: Shaped[Array, "B S K H"]


class Cache(NamedTuple):
    """What a model has read so far: the keys and values of every layer, and the number of positions that are filled."""

    layers: tuple[KeyValue, ...]
    length: Int[Array, ""]


class Stretch(NamedTuple):
    """How Llama 3.1 makes slow rotations slower, for texts longer than the `context` it was first trained with.

    A pair of features that turns less than `low` times in this context gets its angle divided by `factor`; one that
    turns more than `high` times keeps it; in between, the frequency is interpolated.

    References: Grattafiori et al. 2024, "The Llama 3 herd of models", section 3.4.2, which gives no formula; this is
    that of the code published with it (`apply_scaling`).
    """

    factor: float
    low: float
    high: float
    context: int


def empty_cache(
    batch: int, capacity: int, *, layers: int, heads: int, head_width: int, dtype: DTypeLike = jnp.float32
) -> Cache:
    """An empty cache of `capacity` positions for `layers` layers, each with `heads` heads of keys and values."""
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
    """softmax(query key^T / sqrt(H)) value, separately for each head.

    A query attends to the keys where `mask` is True and, if `causal`, only to those up to its own position. A query
    that may attend to no key attends to all of them equally. With K < N heads, each head of keys and values serves
    N / K neighbouring heads of queries. The softmax is computed in float32.

    On a GPU in half precision this is cuDNN's fused kernel, which never writes the weights to memory, wherever cuDNN
    supports the sizes. Elsewhere it is `plain_attention`; on a CPU, a long causal text is split into two halves, which
    saves a quarter of the work.

    References: Vaswani et al. 2017, "Attention is all you need", equation 1; grouped queries are Ainslie et al. 2023.
    """
    plain = functools.partial(plain_attention, causal=causal, mask=mask)
    if _is_fused(query, key, mask):
        fused = functools.partial(jax.nn.dot_product_attention, mask=mask, is_causal=causal, implementation="cudnn")
        return lax.platform_dependent(query, key, value, cuda=fused, default=plain)
    known = isinstance(
        query.shape[1], int
    )  # and not a symbol, as in a program that is exported for texts of any length
    if causal and mask is None and known and query.shape[1] == key.shape[1] >= _LONG:
        halves = functools.partial(cpu.causal_in_halves, plain_attention)
        return lax.platform_dependent(query, key, value, cpu=halves, default=plain)
    return plain(query, key, value)


def _is_fused(query: Array, key: Array, mask: Array | None) -> bool:
    """Whether cuDNN's kernel is available and takes these sizes, as JAX checks them; only Hopper takes wider heads."""
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
    """`attention`, written as the equation."""
    return weighted(attention_weights(query, key, causal=causal, mask=mask), value)


def attention_weights(
    query: Float[Array, "B T N H"], key: Float[Array, "B S K H"], *, causal: bool = False, mask: Mask | None = None
) -> Float[Array, "B N T S"]:
    """softmax(query key^T / sqrt(H)), in the dtype of the query: the weight of each value for a query."""
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
    """Multi-head attention: project, attend in every head, concatenate the heads and project again.

    x attends to itself, or with `cross` to a memory. One kernel, [D, (N + 2 K) H], holds the weights of all heads for
    query, key and value, in this order, and is initialised as a whole; with `cross` there are two. (PyTorch does so,
    too.)

    The attention weights, [B, N, T, S], are sown as "weights". Get them with
    `model.apply(variables, ..., mutable=["intermediates"])`.

    Attributes:
        head_width: H, if it is not D / N.
        qkv_bias: whether query, key and value have a bias, if that is not `use_bias`.
        theta: the base of rotary positions, or None for no positions.
        stretch: how rotary positions are stretched, if they are.
        window: the number of tokens, itself included, that a token attends to in causal attention; None for all.
        qk_norm: whether queries and keys are normalised (RMS, with `qk_epsilon`) in each head.
        dropout: the fraction of attention weights that is dropped in training.

    References: Vaswani et al. 2017, section 3.2.2; the window is that of Jiang et al. 2023, "Mistral 7B", section 2.
    """

    width: int
    heads: int
    kv_heads: int | None = None
    head_width: int | None = None
    cross: bool = False
    use_bias: bool = True
    qkv_bias: bool | None = None
    theta: float | None = None
    stretch: Stretch | None = None
    window: int | None = None
    qk_norm: bool = False
    qk_epsilon: float = 1e-6
    dropout: float = 0.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    out_init: Initializer | None = None

    def setup(self) -> None:
        K = self.kv_heads or self.heads
        if self.head_width is None and self.width % self.heads:
            raise UserError(f"{self.heads} heads do not divide a width of {self.width}")
        if self.heads % K:
            raise UserError(f"{K} heads of keys and values do not divide {self.heads} heads of queries")
        if self.window is not None and self.window < 1:
            raise UserError(f"a window of {self.window} tokens is too small: a token attends to itself at least")
        inner, both = self.heads * self._head_width, 2 * K * self._head_width
        dense = functools.partial(
            basic.Dense,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=nn.initializers.zeros,
        )
        if self.cross and self.theta is not None:
            raise UserError(
                "rotary positions encode distances within one text, and cross-attention joins two: leave out `theta`"
            )
        qkv_bias = self.use_bias if self.qkv_bias is None else self.qkv_bias
        if self.cross:
            self.query, self.key_value = dense(inner, use_bias=qkv_bias), dense(both, use_bias=qkv_bias)
        else:
            self.query_key_value = dense(inner + both, use_bias=qkv_bias)
        self.out = dense(self.width, use_bias=self.use_bias, kernel_init=self.out_init or self.kernel_init)
        self.drop = basic.Dropout(self.dropout)
        if self.qk_norm:
            norm = functools.partial(nn.RMSNorm, self.qk_epsilon, dtype=self.dtype, param_dtype=self.param_dtype)
            self.query_norm, self.key_norm = norm(), norm()

    def read(self, memory: Float[Array, "B S E"]) -> KeyValue:
        """The keys and values of a memory (with `cross`): computed once, attended to many times."""
        return KeyValue(*self._joined(self.key_value, memory, 2))

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
        """y [B, T, D]; with a `cache`, (y, cache), where the tokens x have the positions `at`, `at` + 1, ...

        The keys and values of x are written into the cache. Attention with a cache is always causal. `at` + T must not
        exceed the capacity; this is not checked, because `at` is known only at run time.

        With `cross`, `memory` is the result of `read`, and there is no cache.
        """
        if self.cross:
            assert memory is not None
            (query,), (key, value) = self._split(self.query(x), 1), memory
        else:
            query, key, value = self._joined(self.query_key_value, x, 3)
        if self.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.theta is not None:
            places = at + jnp.arange(x.shape[1])
            turn = functools.partial(rotary, places=places, theta=self.theta, stretch=self.stretch)
            query, key = turn(query), turn(key)
        if cache is not None:
            key = lax.dynamic_update_slice_in_dim(cache.key, key, at, 1)
            value = lax.dynamic_update_slice_in_dim(cache.value, value, at, 1)
            cache = KeyValue(key, value)
        if cache is not None or (causal and self._outgrows_window(x.shape[1])):
            own = (0 if cache is None else at) + jnp.arange(x.shape[1])
            seen = _seen(own, jnp.arange(key.shape[1]), self.window)
            mask, causal = seen if mask is None else mask & seen, False
        if self.is_mutable_collection("intermediates") or (train and self.dropout):
            weights = attention_weights(query, key, causal=causal, mask=mask)
            self.sow("intermediates", "weights", weights)
            y = weighted(self.drop(weights, train=train), value)
        else:
            y = attention(query, key, value, causal=causal, mask=mask)
        y = self.out(y.reshape(*y.shape[:2], self.heads * self._head_width))
        return y if cache is None else (y, cache)

    def _joined(self, dense: basic.Dense, x: Float[Array, "B T D"], parts: int) -> list[Array]:
        """What `_split` makes of `dense(x)`. Where devices share the model, each computes that of its own heads.

        The kernel holds the queries of all heads before their keys, so no cut of its columns gives a device its heads.
        It lies cut along its rows (`AXES`), and goes from rows to heads here, by an all-to-all. That sends weights; the
        product of cut columns would send activations, which are more.
        """
        devices = jax.sharding.get_abstract_mesh()
        count = devices.shape["model"] if "model" in devices.auto_axes else 1
        if count == 1 or self.is_initializing():
            return self._split(dense(x), parts)
        copies = math.lcm(self.kv_heads or self.heads, count)  # of heads of keys and values: one for every device
        if self.heads % copies:
            raise UserError(f"{count} devices along the axis model cannot share {self.heads} heads equally")

        def by_head(leaf: Array, at_rest: str | None) -> Array:
            """[R, parts * heads * H] to [R, copies, heads of queries, keys and values for each, H]."""
            *query, key, value = (part[0] for part in self._split(leaf[None], parts))
            each = [part.reshape(len(leaf), copies, -1, self._head_width) for part in query]
            each += [jnp.repeat(part, copies // part.shape[1], axis=1)[:, :, None] for part in (key, value)]
            whole = lax.with_sharding_constraint(jnp.concatenate(each, axis=2), jax.P(at_rest))
            return lax.with_sharding_constraint(whole, jax.P(None, "model"))

        weights: list[Array] = [dense.get_variable("params", name) for name in ("kernel", "bias")[: 1 + dense.use_bias]]
        x, kernel, *bias = promote_dtype(x, *weights, dtype=self.dtype)
        y = jnp.einsum("btd,dkgh->btkgh", x, by_head(kernel, "model"))
        y = y + by_head(bias[0][None], None)[None] if bias else y
        ends = [y.shape[3] - 2, y.shape[3] - 1]
        found = jnp.split(y, ends if parts == 3 else ends[1:], axis=3)
        return [part.reshape(*x.shape[:2], -1, self._head_width) for part in found]

    @property
    def _head_width(self) -> int:
        return self.head_width or self.width // self.heads

    def _outgrows_window(self, length: Any) -> bool:
        """Whether texts of this length, which may be a symbol, need a mask for the window."""
        return self.window is not None and not (isinstance(length, int) and length <= self.window)

    def _split(self, x: Array, parts: int) -> list[Array]:
        """[B, T, ...] to query [B, T, N, H], key and value [B, T, K, H], or to only one or two of them."""
        H, inner = self._head_width, self.heads * self._head_width
        ends = {1: [], 2: [x.shape[-1] // 2], 3: [inner, (inner + x.shape[-1]) // 2]}[parts]
        return [part.reshape(*part.shape[:2], part.shape[-1] // H, H) for part in jnp.split(x, ends, axis=-1)]


def _seen(own: Int[Array, " T"], places: Int[Array, " S"], window: int | None) -> Bool[Array, "1 1 T S"]:
    """Whether a query at its `own` place sees a key: up to there and, with a window, no further back than that."""
    back = own[:, None] - places[None]
    seen = back >= 0 if window is None else (back >= 0) & (back < window)
    return seen[None, None]


def padding_mask(tokens: Int[Array, "B S"], pad: int = 0) -> Bool[Array, "B 1 1 S"]:
    """True for every token except `pad`: where there is something to attend to."""
    return (tokens != pad)[:, None, None, :]


def sinusoidal(places: Int[Array, " T"], width: int) -> Float[Array, "T D"]:
    """Positions as sines (the first half of the features) and cosines, with wavelengths from 2 pi to 10000 2 pi.

    The paper alternates sines and cosines, which differs only in the order of the features.

    Raises UserError if the width is odd.

    References: Vaswani et al. 2017, section 3.5.
    """
    if width % 2:
        raise UserError(f"sinusoidal positions need an even width, a sine and a cosine for every rate, not {width}")
    rates = jnp.exp(-math.log(10_000) * jnp.arange(width // 2) / (width // 2))
    angles = places[:, None] * rates[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def rotary(
    x: Float[Array, "B T N H"], places: Int[Array, " T"], theta: float = 10_000.0, stretch: Stretch | None = None
) -> Float[Array, "B T N H"]:
    """Rotates the pair of features (i, i + H/2) by the angle place / theta^(2 i / H), or as `stretch` changes it.

    The product of a query and a key then depends on the distance between them and not on where they are.

    References: Su et al. 2021, "RoFormer", section 3.2.2, with the features paired as in GPT-NeoX and Llama.

    Raises UserError if the width of a head is odd.
    """
    half = x.shape[-1] // 2
    if x.shape[-1] % 2:
        raise UserError(
            f"rotary positions rotate pairs of features: the width of a head must be even, not {x.shape[-1]}"
        )
    rates = theta ** (-jnp.arange(half) / half)
    if stretch is not None:
        turns = rates * (stretch.context / (2 * math.pi))
        kept = jnp.clip((turns - stretch.low) / (stretch.high - stretch.low), 0, 1)
        rates = rates * (kept + (1 - kept) / stretch.factor)
    angles = (places[:, None] * rates[None])[None, :, None, :]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
