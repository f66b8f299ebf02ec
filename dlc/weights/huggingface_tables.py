"""How Hugging Face, timm and torchvision name and lay out the weights of our transformers: one table per model.

Each row holds the path of a weight in our params, the published names, and the conversion between the two layouts.
The same table serves loading and saving (`huggingface.py`).
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlc.models.bert import BertConfig
from dlc.models.gpt import GPTConfig
from dlc.models.vit import ViTConfig


class Turn(NamedTuple):
    """The conversion of one weight in both directions. It copies only where the layout requires it."""

    ours: Callable[[list[np.ndarray]], np.ndarray]
    theirs: Callable[[np.ndarray], list[np.ndarray]]


class Row(NamedTuple):
    """One weight of ours and the published tensors that make it up."""

    ours: str  # the path in our params, joined by slashes
    theirs: tuple[str, ...]  # the published names, without the prefix
    turn: Turn


class Format(NamedTuple):
    """The published form of a model. All names are without the prefix."""

    name: str
    model_type: str
    architecture: str
    prefix: str  # of all names except those that begin with `head`; some files omit it
    head: str  # the beginning of the names of the last layers
    rows: Callable[[Any], list[Row]]
    config: type
    sizes: dict[str, str]  # from our configuration fields to the published ones
    fixed: dict[str, Any]  # values that the published configuration must have where it has the key
    parts: Mapping[str, Any] = MappingProxyType({})  # values of our configuration that are not defaults
    defaults: Mapping[str, Any] = MappingProxyType({})  # published values that go without saying
    tied: Mapping[str, str] = MappingProxyType({})  # second names of a weight
    ignored: str = "$^"  # a regular expression for tensors that are not weights of this model
    input: Callable[[Any], jax.ShapeDtypeStruct] = lambda c: jax.ShapeDtypeStruct((1, 1), jnp.int32)


SAME = Turn(lambda a: a[0], lambda a: [a])
LINEAR = Turn(lambda a: a[0].T, lambda a: [a.T])  # PyTorch's kernels are [out, in]
THREE = Turn(lambda a: np.concatenate([each.T for each in a], 1), lambda a: [each.T for each in np.split(a, 3, 1)])
THREE_BIASES = Turn(np.concatenate, lambda a: np.split(a, 3))


def _patches(c: ViTConfig) -> Turn:
    """Converts a convolution kernel [O, C, P, P] from and to our kernel for flattened patches [P P C, O]."""
    square = (c.patch, c.patch, -1, c.width)
    return Turn(
        lambda a: a[0].transpose(2, 3, 1, 0).reshape(-1, a[0].shape[0]),
        lambda a: [a.reshape(square).transpose(3, 2, 0, 1)],
    )


def _both(ours: str, theirs: str, turn: Turn = LINEAR) -> list[Row]:
    """The kernel and bias of a dense layer."""
    return [Row(f"{ours}/kernel", (f"{theirs}.weight",), turn), Row(f"{ours}/bias", (f"{theirs}.bias",), SAME)]


def _three(ours: str, theirs: str, names: tuple[str, str, str]) -> list[Row]:
    """The six tensors of separate query, key and value layers; ours are joined into one kernel and one bias."""
    kernels, biases = (tuple(f"{theirs}.{name}.{kind}" for name in names) for kind in ("weight", "bias"))
    return [Row(f"{ours}/kernel", kernels, THREE), Row(f"{ours}/bias", biases, THREE_BIASES)]


def _norm(ours: str, theirs: str) -> list[Row]:
    """The scale and bias of a norm."""
    return [Row(f"{ours}/scale", (f"{theirs}.weight",), SAME), Row(f"{ours}/bias", (f"{theirs}.bias",), SAME)]


def _one(ours: str, theirs: str) -> Row:
    """A weight with the same layout in both."""
    return Row(ours, (theirs,), SAME)


def _gpt2(c: GPTConfig) -> list[Row]:
    rows = [_one("token/embedding", "wte.weight"), _one("position/embedding", "wpe.weight"), *_norm("norm", "ln_f")]
    for i in range(c.layers):
        ours, theirs = f"block{i}", f"h.{i}"
        rows += _norm(f"{ours}/norm1", f"{theirs}.ln_1") + _norm(f"{ours}/norm2", f"{theirs}.ln_2")
        # GPT-2's `Conv1D` stores kernels as [in, out] and joins query, key and value.
        rows += _both(f"{ours}/attention/query_key_value", f"{theirs}.attn.c_attn", SAME)
        rows += _both(f"{ours}/attention/out", f"{theirs}.attn.c_proj", SAME)
        rows += _both(f"{ours}/up", f"{theirs}.mlp.c_fc", SAME) + _both(f"{ours}/down", f"{theirs}.mlp.c_proj", SAME)
    return rows


def _llama(c: GPTConfig) -> list[Row]:
    """Llama and what its parts make with biases (Qwen 2) or norms of queries and keys (Qwen 3)."""
    rows = [_one("token/embedding", "embed_tokens.weight"), _one("norm/scale", "norm.weight")]
    if not c.tied:
        rows += [Row("head/kernel", ("lm_head.weight",), LINEAR)]
    inner = c.heads * (c.head_width or c.width // c.heads)
    ends = [inner, inner + inner // c.heads * (c.kv_heads or c.heads)]
    joined = Turn(
        lambda a: np.concatenate(a).T, lambda a: [each.T for each in np.split(a, ends, -1)]
    )  # of kernels; a bias is its own transpose
    for i in range(c.layers):
        ours, theirs = f"block{i}", f"layers.{i}"
        for kind, name in [("kernel", "weight"), ("bias", "bias")][: 1 + bool(c.qkv_bias)]:
            three = tuple(f"{theirs}.self_attn.{one}_proj.{name}" for one in "qkv")
            rows += [Row(f"{ours}/attention/query_key_value/{kind}", three, joined)]
        if c.qk_norm:
            rows += [_one(f"{ours}/attention/query_norm/scale", f"{theirs}.self_attn.q_norm.weight")]
            rows += [_one(f"{ours}/attention/key_norm/scale", f"{theirs}.self_attn.k_norm.weight")]
        dense = {"attention/out": "self_attn.o_proj", **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")}}
        rows += [Row(f"{ours}/{a}/kernel", (f"{theirs}.{b}.weight",), LINEAR) for a, b in dense.items()]
        rows += [_one(f"{ours}/norm1/scale", f"{theirs}.input_layernorm.weight")]
        rows += [_one(f"{ours}/norm2/scale", f"{theirs}.post_attention_layernorm.weight")]
    return rows


def _bert_encoder(c: BertConfig) -> list[Row]:
    tables = {"token": "word", "position": "position", "segment": "token_type"}
    rows = [_one(f"{ours}/embedding", f"embeddings.{theirs}_embeddings.weight") for ours, theirs in tables.items()]
    rows += _norm("norm", "embeddings.LayerNorm")
    for i in range(c.layers):
        ours, theirs = f"block{i}", f"encoder.layer.{i}"
        rows += _three(f"{ours}/attention/query_key_value", f"{theirs}.attention.self", ("query", "key", "value"))
        rows += _both(f"{ours}/attention/out", f"{theirs}.attention.output.dense")
        rows += _norm(f"{ours}/norm1", f"{theirs}.attention.output.LayerNorm")
        rows += _both(f"{ours}/up", f"{theirs}.intermediate.dense") + _both(f"{ours}/down", f"{theirs}.output.dense")
        rows += _norm(f"{ours}/norm2", f"{theirs}.output.LayerNorm")
    return rows


def _bert(c: BertConfig) -> list[Row]:
    return _bert_encoder(c) + _both("pooler", "pooler.dense")


def _bert_masked_lm(c: BertConfig) -> list[Row]:
    head = "cls.predictions"
    rows = _both("head", f"{head}.transform.dense") + _norm("head_norm", f"{head}.transform.LayerNorm")
    return [*_bert_encoder(c), *rows, _one("head_bias", f"{head}.bias")]


def _vit(c: ViTConfig) -> list[Row]:
    rows = [_one("class", "embeddings.cls_token"), _one("position", "embeddings.position_embeddings")]
    rows += _both("patch", "embeddings.patch_embeddings.projection", _patches(c))
    rows += _norm("norm", "layernorm") + _both("head", "classifier")
    for i in range(c.layers):
        ours, theirs = f"block{i}", f"encoder.layer.{i}"
        rows += _three(f"{ours}/attention/query_key_value", f"{theirs}.attention.attention", ("query", "key", "value"))
        rows += _both(f"{ours}/attention/out", f"{theirs}.attention.output.dense")
        rows += _norm(f"{ours}/norm1", f"{theirs}.layernorm_before")
        rows += _norm(f"{ours}/norm2", f"{theirs}.layernorm_after")
        rows += _both(f"{ours}/up", f"{theirs}.intermediate.dense") + _both(f"{ours}/down", f"{theirs}.output.dense")
    return rows


def _vit_timm(c: ViTConfig) -> list[Row]:
    rows = [_one("class", "cls_token"), _one("position", "pos_embed")]
    rows += _both("patch", "patch_embed.proj", _patches(c)) + _norm("norm", "norm") + _both("head", "head")
    for i in range(c.layers):
        ours, theirs = f"block{i}", f"blocks.{i}"
        rows += _both(f"{ours}/attention/query_key_value", f"{theirs}.attn.qkv")
        rows += _both(f"{ours}/attention/out", f"{theirs}.attn.proj")
        rows += _norm(f"{ours}/norm1", f"{theirs}.norm1") + _norm(f"{ours}/norm2", f"{theirs}.norm2")
        rows += _both(f"{ours}/up", f"{theirs}.mlp.fc1") + _both(f"{ours}/down", f"{theirs}.mlp.fc2")
    return rows


def _vit_torchvision(c: ViTConfig) -> list[Row]:
    rows = [_one("class", "class_token"), _one("position", "encoder.pos_embedding")]
    rows += _both("patch", "conv_proj", _patches(c)) + _norm("norm", "encoder.ln") + _both("head", "heads.head")
    for i in range(c.layers):
        ours, theirs = f"block{i}", f"encoder.layers.encoder_layer_{i}"
        rows += [
            Row(f"{ours}/attention/query_key_value/kernel", (f"{theirs}.self_attention.in_proj_weight",), LINEAR),
            _one(f"{ours}/attention/query_key_value/bias", f"{theirs}.self_attention.in_proj_bias"),
        ]
        rows += _both(f"{ours}/attention/out", f"{theirs}.self_attention.out_proj")
        rows += _norm(f"{ours}/norm1", f"{theirs}.ln_1") + _norm(f"{ours}/norm2", f"{theirs}.ln_2")
        rows += _both(f"{ours}/up", f"{theirs}.mlp.0") + _both(f"{ours}/down", f"{theirs}.mlp.3")
    return rows


def number(value: Any) -> bool:
    """Whether a value of a configuration is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


# What a size in a configuration must be: in words, and as a test. `WHOLE` is for those that are not in the table.
WHOLE = ("a whole number above 0", lambda value: type(value) is int and value > 0)
SMALL = ("a number above 0 and below 1", lambda value: number(value) and 0 < value < 1)
OR_NULL = ("a whole number above 0, or null", lambda value: value is None or WHOLE[1](value))
BOUNDED = ("a whole number above 0, below 2**31", lambda value: WHOLE[1](value) and value < 2**31)  # by no tensor
SIZES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "context": BOUNDED,
    "image": ("one whole number above 0, or two equal ones", BOUNDED[1]),
    "patch": ("one whole number above 0, or two equal ones", BOUNDED[1]),
    "hidden": OR_NULL,
    "kv_heads": OR_NULL,
    "head_width": OR_NULL,
    "window": OR_NULL,
    "dropout": ("a number from 0 to less than 1", lambda value: type(value) in (int, float) and 0 <= value < 1),
    "epsilon": SMALL,
    "qk_epsilon": SMALL,
    "theta": ("a number above 1", lambda value: number(value) and value > 1),
    "stretch": ("", lambda value: True),  # checked as a whole
    "tied": ("true or false", lambda value: type(value) is bool),
}

ABSENT: dict[str, Any] = {"quantization_config": None, "pruned_heads": {}}  # what no configuration may have

_ENCODER = {  # the configuration fields that BERT and ViT share
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "width": "hidden_size",
    "hidden": "intermediate_size",
    "dropout": "hidden_dropout_prob",
}

GPT2 = Format(
    name="GPT-2", model_type="gpt2", architecture="GPT2LMHeadModel", prefix="transformer.", head="lm_head.",
    rows=_gpt2, config=GPTConfig,
    sizes={
        "vocab": "vocab_size", "context": "n_positions", "layers": "n_layer", "heads": "n_head", "width": "n_embd",
        "hidden": "n_inner", "dropout": "resid_pdrop",
    },
    fixed={
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False, "tie_word_embeddings": True,
    },
    tied={"lm_head.weight": "wte.weight"}, ignored=r"h\.\d+\.attn\.(masked_)?bias",
)  # fmt: skip
BERT = Format(
    name="BERT", model_type="bert", architecture="BertModel", prefix="bert.", head="cls.",
    rows=_bert, config=BertConfig,
    sizes={"vocab": "vocab_size", "context": "max_position_embeddings", "segments": "type_vocab_size", **_ENCODER},
    fixed={
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0, "position_embedding_type": "absolute",
        "is_decoder": False, "add_cross_attention": False,
    },
    ignored=r"cls\..*|embeddings\.position_ids",
)  # fmt: skip
BERT_MASKED_LM = BERT._replace(
    architecture="BertForMaskedLM", rows=_bert_masked_lm, fixed={**BERT.fixed, "tie_word_embeddings": True},
    tied={
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=r"(cls\.seq_relationship|pooler)\..*|embeddings\.position_ids",
)  # fmt: skip
LLAMA = Format(
    name="Llama", model_type="llama", architecture="LlamaForCausalLM", prefix="model.", head="lm_head.",
    rows=_llama, config=GPTConfig,
    sizes={
        "vocab": "vocab_size", "context": "max_position_embeddings", "layers": "num_hidden_layers",
        "heads": "num_attention_heads", "width": "hidden_size", "hidden": "intermediate_size",
        "kv_heads": "num_key_value_heads", "head_width": "head_dim", "epsilon": "rms_norm_eps", "theta": "rope_theta",
        "stretch": "rope_scaling", "tied": "tie_word_embeddings",
    },
    fixed={
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "is_causal": True,
        "add_cross_attention": False, "partial_rotary_factor": 1.0, "rope_interleaved": False,
    },
    parts={"positions": "rotary", "norm": "rms", "activation": "swiglu", "use_bias": False},
    defaults={
        "num_key_value_heads": None, "head_dim": None, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
    },
    tied={"lm_head.weight": "embed_tokens.weight"}, ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)  # fmt: skip
MISTRAL = LLAMA._replace(
    name="Mistral", model_type="mistral", architecture="MistralForCausalLM",
    sizes={**LLAMA.sizes, "window": "sliding_window"}, defaults={**LLAMA.defaults, "sliding_window": 4096},
)  # fmt: skip
QWEN2 = LLAMA._replace(
    name="Qwen 2", model_type="qwen2", architecture="Qwen2ForCausalLM",
    fixed={**LLAMA.fixed, "use_sliding_window": False}, parts={**LLAMA.parts, "qkv_bias": True},
)  # fmt: skip
QWEN3 = LLAMA._replace(
    name="Qwen 3", model_type="qwen3", architecture="Qwen3ForCausalLM",
    sizes={**LLAMA.sizes, "qk_epsilon": "rms_norm_eps"}, defaults={**LLAMA.defaults, "head_dim": 128},
    fixed={**LLAMA.fixed, "use_sliding_window": False}, parts={**LLAMA.parts, "qk_norm": True},
)  # fmt: skip
# Kinds of rotary positions, and how the fields of a `Stretch` are called
ROTATIONS = {
    "default": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
LLAMAS = {form.model_type: form for form in (LLAMA, MISTRAL, QWEN2, QWEN3)}
VIT = Format(
    name="ViT", model_type="vit", architecture="ViTForImageClassification", prefix="vit.", head="classifier.",
    rows=_vit, config=ViTConfig,
    sizes={
        "image": "image_size", "patch": "patch_size", "classes": "num_labels", "epsilon": "layer_norm_eps", **_ENCODER,
    },
    fixed={"hidden_act": "gelu", "num_channels": 3, "qkv_bias": True},
    input=lambda c: jax.ShapeDtypeStruct((1, c.image, c.image, 3), jnp.float32),
)  # fmt: skip
VIT_TIMM = VIT._replace(rows=_vit_timm, prefix="", head="", name="timm's ViT")
VIT_TORCHVISION = VIT._replace(rows=_vit_torchvision, prefix="", head="", name="torchvision's ViT")
