"""The transformer: an encoder reads the source, a decoder writes the target and attends to what was read.

Glossary: B batch, S source tokens, T target tokens, V vocabulary, D width, F width of the feed-forward part.

References:
    [1] Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin 2017, "Attention is all you need",
        section 3, table 3; its norm comes after each branch ("post-norm").
    [2] Norm before each branch, which trains without a long warm-up: Xiong et al. 2020, "On layer normalization in the
        transformer architecture".
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dlc import layers
from dlc.layers.attention import AXES, Attention, Axes, Cache, KeyValue, empty_cache, padding_mask, sinusoidal


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a transformer. The defaults are the base model of table 3, with one vocabulary for both sides."""

    vocab: int = 37_000
    layers: int = 6  # of the encoder, and the same number of the decoder
    heads: int = 8
    width: int = 512
    hidden: int = 2048
    dropout: float = 0.1
    norm_first: bool = False
    dtype: Any = None
    param_dtype: Any = "float32"
    remat: bool = False  # compute the activations of a layer again in the backward pass instead of keeping them


class Memory(NamedTuple):
    """The source as the decoder reads it: its keys and values for each layer, and a mask of what is not padding."""

    layers: tuple[KeyValue, ...]
    mask: Bool[Array, "B 1 1 S"]


class Transformer(nn.Module):
    """From source and target tokens to logits of the next target token at every position.

    Source, target and output share one embedding (section 3.4). Token 0 is padding, to which nothing attends.
    """

    config: TransformerConfig = TransformerConfig()
    axes: ClassVar[Axes] = {
        **AXES, "up/kernel": (None, "hidden"), "up/bias": ("hidden",), "down/kernel": ("hidden", None),
        "embed/embedding": ("vocab", None),
    }  # fmt: skip

    def setup(self) -> None:
        c = self.config
        kinds = {"dtype": c.dtype, "param_dtype": c.param_dtype}
        self.embed = nn.Embed(c.vocab, c.width, embedding_init=nn.initializers.normal(c.width**-0.5), **kinds)
        self.drop = layers.Dropout(c.dropout)
        self.encoder = [_Layer(c) for _ in range(c.layers)]
        self.decoder = [_Layer(c, cross=True) for _ in range(c.layers)]
        if c.norm_first:  # no later norm covers the outputs of the last branches
            self.encoder_norm, self.decoder_norm = _norm(c), _norm(c)

    def __call__(
        self, source: Int[Array, "B S"], target: Int[Array, "B T"], *, train: bool = False
    ) -> Float[Array, "B T V"]:
        """Logits of the token after each token of `target`, which begins with the start token."""
        memory = self.read(self.encode(source, train=train), source)
        return self._decode(self._embedded(target, 0, train), memory, train=train)[0]

    def encode(self, source: Int[Array, "B S"], *, train: bool = False) -> Float[Array, "B S D"]:
        """The source as the decoder's cross-attention reads it."""
        x, mask = self._embedded(source, 0, train), padding_mask(source)
        for layer in self.encoder:
            x = layers.remat(layer, self.config.remat)(x, mask=mask, train=train)
        return self.encoder_norm(x) if self.config.norm_first else x

    def read(self, encoded: Float[Array, "B S D"], source: Int[Array, "B S"]) -> Memory:
        """The keys and values of the encoded source for every layer of the decoder."""
        return Memory(tuple(layer.cross_attention.read(encoded) for layer in self.decoder), padding_mask(source))

    def start(self, source: Int[Array, "B S"], length: int) -> tuple[Memory, Cache]:
        """The arguments of the first `step`, for up to `length` tokens: the encoded source and an empty cache."""
        c = self.config
        cache = empty_cache(
            source.shape[0], length, layers=c.layers, heads=c.heads, head_width=c.width // c.heads,
            dtype=c.dtype or c.param_dtype,
        )  # fmt: skip
        return self.read(self.encode(source), source), cache

    def step(self, token: Int[Array, " B"], memory: Memory, cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Logits of the token after `token`, which is added to the cache.

        B may be K times the number of sentences in the memory. The K hypotheses of a sentence are adjacent and share
        its memory.
        """
        logits, filled = self._decode(self._embedded(token[:, None], cache.length, False), memory, cache)
        return logits[:, 0], Cache(filled, cache.length + 1)

    def _decode(self, x: Array, memory: Memory, cache: Cache | None = None, train: bool = False) -> tuple[Array, Any]:
        """Logits, and the updated layers of the cache."""
        filled = []
        for i, (layer, read) in enumerate(zip(self.decoder, memory.layers, strict=True)):
            known: dict[str, Any] = {"memory": read, "memory_mask": memory.mask, "train": train}
            if cache is None:
                x = layers.remat(layer, self.config.remat)(x, **known)
            else:
                x, entry = layer(x, **known, cache=cache.layers[i], at=cache.length)
                filled.append(entry)
        return self.embed.attend(self.decoder_norm(x) if self.config.norm_first else x), tuple(filled)

    def _embedded(self, tokens: Array, at: Any, train: bool) -> Array:
        """sqrt(D) times the embedding, plus the sinusoid of its position."""
        D = self.config.width
        x = self.embed(tokens)
        places = sinusoidal(at + jnp.arange(tokens.shape[1]), D).astype(x.dtype)
        return self.drop(x * jnp.asarray(D**0.5, x.dtype) + places[None], train=train)


def transformer_base(vocab: int = 37_000, **changes: Any) -> Transformer:
    """The base model of table 3, 63,082,496 weights with the paper's 37,000 shared tokens (the table says 65 M)."""
    return Transformer(TransformerConfig(vocab, **changes))


def transformer_big(vocab: int = 37_000, **changes: Any) -> Transformer:
    """The big model of table 3, 214,245,376 weights (the table says 213 M)."""
    big = {"heads": 16, "width": 1024, "hidden": 4096, "dropout": 0.3}
    return Transformer(TransformerConfig(vocab, **{**big, **changes}))


class _Layer(nn.Module):
    """Self-attention, with `cross` attention to the memory, then a feed-forward part; each with shortcut and norm."""

    config: TransformerConfig
    cross: bool = False

    def setup(self) -> None:
        c = self.config
        kinds = {"dtype": c.dtype, "param_dtype": c.param_dtype}
        dense: Any = functools.partial(
            layers.Dense, **kinds, kernel_init=nn.initializers.xavier_uniform(), bias_init=nn.initializers.zeros
        )
        self.attention = Attention(c.width, c.heads, **kinds)
        self.attention_norm = _norm(c)
        if self.cross:
            self.cross_attention = Attention(c.width, c.heads, cross=True, **kinds)
            self.cross_norm = _norm(c)
        self.up, self.down, self.norm = dense(c.hidden), dense(c.width), _norm(c)
        self.drop = layers.Dropout(c.dropout)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        mask: Any = None,
        memory: KeyValue | None = None,
        memory_mask: Any = None,
        cache: KeyValue | None = None,
        at: Any = 0,
        train: bool = False,
    ) -> Any:
        """y; with a `cache` (y, cache)."""
        entry = None

        def attend(x: Array) -> Array:
            nonlocal entry
            y = self.attention(x, causal=self.cross, mask=mask, cache=cache, at=at, train=train)
            y, entry = y if cache is not None else (y, None)
            return y

        def cross(x: Array) -> Array:
            assert memory is not None
            # The adjacent hypotheses of a sentence share its memory: they become more queries of that sentence.
            sentences, T = memory.key.shape[0], x.shape[1]
            beams = 1 if x.shape[0] == sentences else x.shape[0] // sentences
            queries = x.reshape(sentences, beams * T, x.shape[-1])
            return self.cross_attention(queries, memory, mask=memory_mask, train=train).reshape(x.shape)

        def feed_forward(x: Array) -> Array:
            return self.down(nn.relu(self.up(x)))

        branches = [(attend, self.attention_norm), (feed_forward, self.norm)]
        if self.cross:
            branches.insert(1, (cross, self.cross_norm))
        for branch, norm in branches:
            if self.config.norm_first:
                x = x + self.drop(branch(norm(x)), train=train)
            else:
                x = norm(x + self.drop(branch(x), train=train))
        return x if cache is None else (x, entry)


def _norm(c: TransformerConfig) -> nn.LayerNorm:
    return nn.LayerNorm(1e-5, dtype=c.dtype, param_dtype=c.param_dtype)
