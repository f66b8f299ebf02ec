"""BERT: an encoder that reads a text in both directions, trained to predict masked words.

Glossary: B batch, T tokens, V vocabulary, D width.

References:
    [1] Devlin, Chang, Lee, Toutanova 2018, "BERT: pre-training of deep bidirectional transformers for language
        understanding", section 3; dropout and initial weights are in appendix A.2 and in the authors' program.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dlc import layers
from dlc.errors import UserError
from dlc.layers.attention import AXES, Attention, Axes, padding_mask

PAD = 0  # the token that pads short texts, and to which nothing attends


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT. The defaults are BERT-base (uncased)."""

    vocab: int = 30_522
    context: int = 512
    segments: int = 2
    layers: int = 12
    heads: int = 12
    width: int = 768
    hidden: int = 3072
    dropout: float = 0.1
    dtype: Any = None
    param_dtype: Any = "float32"
    remat: bool = False  # compute the activations of a block again in the backward pass instead of keeping them


AXES_OF_BERT: Axes = {
    **AXES, "up/kernel": (None, "hidden"), "up/bias": ("hidden",), "down/kernel": ("hidden", None),
    "token/embedding": ("vocab", None), "head_bias": ("vocab",),
}  # fmt: skip


class Bert(nn.Module):
    """The encoder: from tokens to a vector at every position, and one for the whole text, read at the first position.

    Returns (sequence [B, T, D], pooled [B, D]), where pooled = tanh(dense(sequence at the first position)).

    Raises UserError if there are more tokens than the context allows, or the heads do not divide the width.
    """

    config: BertConfig = BertConfig()
    axes: ClassVar[Axes] = AXES_OF_BERT

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segments: Int[Array, "B T"] | None = None,
        *,
        mask: Bool[Array, "B T"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
        """`segments`: which of two texts each token belongs to (0); `mask`: the tokens to attend to (all but PAD)."""
        x, _ = _encode(self.config, tokens, segments, mask, train)
        return x, nn.tanh(_dense(self.config)(self.config.width, name="pooler")(x[:, 0]))


class BertMaskedLM(nn.Module):
    """The encoder without its pooler, and a head that predicts the token at every position.

    The head is a dense layer, GELU, a norm and the transposed embedding with a bias of its own. All other weights have
    the same names as in `Bert`, so that they can be transferred.

    Raises UserError as `Bert` does.
    """

    config: BertConfig = BertConfig()
    axes: ClassVar[Axes] = AXES_OF_BERT

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segments: Int[Array, "B T"] | None = None,
        *,
        mask: Bool[Array, "B T"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B T V"]:
        """Logits. See `Bert` for the arguments."""
        c = self.config
        x, embed = _encode(c, tokens, segments, mask, train)
        x = _norm(c, "head_norm")(nn.gelu(_dense(c)(c.width, name="head")(x), approximate=False))
        bias = self.param("head_bias", nn.initializers.zeros, (c.vocab,), c.param_dtype)
        logits = embed.attend(x)
        return logits + bias.astype(logits.dtype)[None, None]


def bert_base(**changes: Any) -> Bert:
    """109,482,240 weights; as a `BertMaskedLM` 109,514,298."""
    return Bert(BertConfig(**changes))


def bert_large(**changes: Any) -> Bert:
    """335,141,888 weights; as a `BertMaskedLM` 335,174,458."""
    return Bert(BertConfig(**{"layers": 24, "heads": 16, "width": 1024, "hidden": 4096, **changes}))


def _encode(c: BertConfig, tokens: Array, segments: Array | None, mask: Array | None, train: bool) -> Any:
    """The sequence [B, T, D] and the embedding of tokens; the layers belong to the module that calls this."""
    if tokens.shape[1] > c.context:
        raise UserError(f"{tokens.shape[1]} tokens do not fit into a context of {c.context}")
    segments = jnp.zeros_like(tokens) if segments is None else segments
    places = jnp.arange(tokens.shape[1])[None]
    seen = padding_mask(tokens, PAD) if mask is None else mask[:, None, None]
    table = functools.partial(nn.Embed, embedding_init=_normal, dtype=c.dtype, param_dtype=c.param_dtype)
    embed = table(c.vocab, c.width, name="token")
    x = embed(tokens) + table(c.segments, c.width, name="segment")(segments)
    x = _norm(c, "norm")(x + table(c.context, c.width, name="position")(places))
    x = layers.Dropout(c.dropout)(x, train=train)
    for i in range(c.layers):
        x = layers.remat(_Block(c, name=f"block{i}"), c.remat)(x, seen, train=train)
    return x, embed


class _Block(nn.Module):
    """norm(x + attention(x)), then norm(x + feed-forward(x))."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B 1 1 T"], *, train: bool) -> Any:
        c = self.config
        drop = functools.partial(layers.Dropout(c.dropout), train=train)
        attend = Attention(
            c.width, c.heads, dropout=c.dropout, dtype=c.dtype, param_dtype=c.param_dtype, kernel_init=_normal,
            name="attention",
        )  # fmt: skip
        x = _norm(c, "norm1")(x + drop(attend(x, mask=mask, train=train)))
        y = nn.gelu(_dense(c)(c.hidden, name="up")(x), approximate=False)
        return _norm(c, "norm2")(x + drop(_dense(c)(c.width, name="down")(y)))


def _dense(c: BertConfig) -> Any:
    kinds = {"dtype": c.dtype, "param_dtype": c.param_dtype}
    return functools.partial(layers.Dense, **kinds, kernel_init=_normal, bias_init=nn.initializers.zeros)


def _norm(c: BertConfig, name: str) -> nn.Module:
    return nn.LayerNorm(1e-12, dtype=c.dtype, param_dtype=c.param_dtype, name=name)


_normal = nn.initializers.truncated_normal(0.02)
