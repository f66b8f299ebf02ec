"""GPT: a decoder-only transformer that predicts the next token, as in GPT-2 and as it is built today.

Glossary: B batch, T tokens, V vocabulary, D width, C context.

References:
    [1] Radford, Wu, Child, Luan, Amodei, Sutskever 2019, "Language models are unsupervised multitask learners",
        section 2.3 and table 2. Its "small" model has 124,439,808 weights, not the 117 M of the table.
    [2] Today's parts: rotary positions (Su et al. 2021), RMSNorm (Zhang, Sennrich 2019), norms of queries and keys
        (Henry et al. 2020), SwiGLU (Shazeer 2020), squared ReLU (So et al. 2021), grouped queries (Ainslie et al.
        2023), a sliding window (Jiang et al. 2023). Llama, Mistral and Qwen are made of them: `dlc.weights` reads them.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dlc import layers
from dlc.errors import UserError
from dlc.layers.attention import AXES, Attention, Axes, Cache, KeyValue, Stretch, empty_cache


@dataclass(frozen=True)
class GPTConfig:
    """The sizes and parts of a GPT. The defaults are GPT-2 small; `modern` uses the other parts."""

    vocab: int = 50_257
    context: int = 1024
    layers: int = 12
    heads: int = 12
    width: int = 768
    hidden: int | None = (
        None  # of the feed-forward part; the default is 4 width, or 8/3 width for SwiGLU, with as many weights
    )
    kv_heads: int | None = None  # grouped queries: fewer heads of keys and values
    head_width: int | None = None  # the default is width / heads
    dropout: float = 0.0
    use_bias: bool = True
    qkv_bias: bool | None = None  # of query, key and value; the default is use_bias
    positions: Literal["learnt", "rotary"] = "learnt"
    theta: float = 10_000.0  # the base of rotary positions
    stretch: Stretch | None = None  # of rotary positions, for texts longer than those of the first training
    window: int | None = None  # the number of tokens that a token attends to; the default is all
    norm: Literal["layer", "rms"] = "layer"
    epsilon: float = 1e-5  # of norms
    qk_norm: bool = False
    qk_epsilon: float = 1e-6  # of the norms of queries and keys
    activation: Literal["gelu", "swiglu", "relu2"] = "gelu"
    tied: bool = True  # whether the embedding is also the output layer
    dtype: Any = None
    param_dtype: Any = "float32"
    remat: bool = False  # compute the activations of a block again in the backward pass instead of keeping them


class GPT(nn.Module):
    """From tokens to logits of the next token at every position: embedding, blocks, norm, output layer.

    The output layer is the transposed embedding, if the two are tied, and otherwise has weights of its own.

    Weights begin as N(0, 0.02), those at the end of a branch as N(0, 0.02 / sqrt(2 layers)).

    Raises UserError if there are more tokens than the context allows, or the heads do not divide the width.
    """

    config: GPTConfig = GPTConfig()
    axes: ClassVar[Axes] = {
        **AXES, "up/kernel": (None, "hidden"), "up/bias": ("hidden",), "down/kernel": ("hidden", None),
        "gate/kernel": (None, "hidden"), "gate/bias": ("hidden",),
        "token/embedding": ("vocab", None), "head/kernel": (None, "vocab"),
    }  # fmt: skip

    def cache(self, batch: int, capacity: int) -> Cache:
        """An empty cache for `capacity` tokens of `batch` texts."""
        c = self.config
        return empty_cache(
            batch, capacity, layers=c.layers, heads=c.kv_heads or c.heads,
            head_width=c.head_width or c.width // c.heads, dtype=c.dtype or c.param_dtype,
        )  # fmt: skip

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"], *, cache: Cache | None = None, train: bool = False) -> Any:
        """Logits [B, T, V]; with a cache (logits, cache), where the tokens continue those already in the cache."""
        c = self.config
        length = tokens.shape[1] if cache is None else cache.layers[0].key.shape[1]
        if length > c.context:
            raise UserError(f"{length} tokens do not fit into a context of {c.context}")
        kinds = {"dtype": c.dtype, "param_dtype": c.param_dtype}
        at = 0 if cache is None else cache.length
        embed = nn.Embed(c.vocab, c.width, embedding_init=_normal, **kinds, name="token")
        x = embed(tokens)
        if c.positions == "learnt":
            table = nn.Embed(c.context, c.width, embedding_init=_normal, **kinds, name="position")
            x = x + table(at + jnp.arange(tokens.shape[1]))[None]
        x = layers.Dropout(c.dropout)(x, train=train)
        filled = []
        for i in range(c.layers):
            block = _Block(c, name=f"block{i}")
            if cache is None:
                x = layers.remat(block, c.remat)(x, train=train)
            else:
                x, entry = block(x, cache=cache.layers[i], at=at, train=train)
                filled.append(entry)
        x = _norm(c, "norm")(x)
        if c.tied:
            logits = embed.attend(x)
        else:
            logits = layers.Dense(c.vocab, use_bias=False, **kinds, kernel_init=_normal, name="head")(x)
        return logits if cache is None else (logits, Cache(tuple(filled), cache.length + tokens.shape[1]))


def gpt2(**changes: Any) -> GPT:
    """124,439,808 weights, the smallest model of table 2 [1]. `changes` are fields of `GPTConfig`."""
    return GPT(GPTConfig(**changes))


def gpt2_medium(**changes: Any) -> GPT:
    """354,823,168 weights."""
    return GPT(GPTConfig(**{"layers": 24, "heads": 16, "width": 1024, **changes}))


def gpt2_large(**changes: Any) -> GPT:
    """774,030,080 weights."""
    return GPT(GPTConfig(**{"layers": 36, "heads": 20, "width": 1280, **changes}))


def gpt2_xl(**changes: Any) -> GPT:
    """1,557,611,200 weights."""
    return GPT(GPTConfig(**{"layers": 48, "heads": 25, "width": 1600, **changes}))


def modern(**changes: Any) -> GPT:
    """A model of the size of GPT-2 small as it would be built today [2]."""
    today = {"positions": "rotary", "norm": "rms", "qk_norm": True, "activation": "swiglu", "use_bias": False}
    heads = changes.get("heads", 12)
    third = max(
        k for k in range(1, max(heads // 3, 1) + 1) if heads % k == 0
    )  # a third of the heads, or the next smaller number that divides them
    return GPT(GPTConfig(**{**today, "kv_heads": third, **changes}))


class _Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    config: GPTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, cache: KeyValue | None = None, at: Any = 0, train: bool) -> Any:
        c = self.config
        kinds = {"use_bias": c.use_bias, "dtype": c.dtype, "param_dtype": c.param_dtype}
        last = nn.initializers.normal(0.02 / (2 * c.layers) ** 0.5)
        dense: Any = functools.partial(layers.Dense, **kinds, kernel_init=_normal, bias_init=nn.initializers.zeros)
        drop = functools.partial(layers.Dropout(c.dropout), train=train)

        attend = Attention(
            c.width, c.heads, c.kv_heads, c.head_width, qkv_bias=c.qkv_bias,
            theta=c.theta if c.positions == "rotary" else None, stretch=c.stretch, window=c.window,
            qk_norm=c.qk_norm, qk_epsilon=c.qk_epsilon, dropout=c.dropout, **kinds,
            kernel_init=_normal, out_init=last, name="attention",
        )  # fmt: skip
        y = attend(_norm(c, "norm1")(x), causal=True, cache=cache, at=at, train=train)
        y, cache = y if cache is not None else (y, None)
        x = x + drop(y)

        y = _norm(c, "norm2")(x)
        if c.activation == "swiglu":
            hidden = c.hidden or 8 * c.width // 3
            y = nn.silu(dense(hidden, name="gate")(y)) * dense(hidden, name="up")(y)
        else:
            y = dense(c.hidden or 4 * c.width, name="up")(y)
            y = nn.gelu(y) if c.activation == "gelu" else jnp.square(nn.relu(y))
        x = x + drop(dense(c.width, kernel_init=last, name="down")(y))
        return x if cache is None else (x, cache)


def _norm(c: GPTConfig, name: str) -> nn.Module:
    kinds = {"dtype": c.dtype, "param_dtype": c.param_dtype}
    if c.norm == "rms":
        return nn.RMSNorm(c.epsilon, **kinds, name=name)
    return nn.LayerNorm(c.epsilon, use_bias=c.use_bias, **kinds, name=name)


_normal = nn.initializers.normal(0.02)
