"""GPT-2, BERT and ViT as Hugging Face publishes them: folders of weights to our variables and back.

Weights are read from a local file `*.safetensors` or from a folder as Hugging Face publishes it: `model.safetensors`
(or the parts that `model.safetensors.index.json` lists) beside a `config.json`. Folders written here are such folders:
transformers' `from_pretrained(folder)` loads them. Nothing here uses the network.

    model, variables = load_gpt2("gpt2/")
    logits = model.apply(variables, tokens)

For each model there is one table of rows (our path, their names, how to turn one into the other), which serves both
directions. A weight that is missing, unknown or of another size is a UserError that names it; so is a configuration
that means another computation than our model's.

Only GPT-2's three kinds of dropout have one rate here, that of its residual branches; so have BERT's.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlc.errors import UserError
from dlc.models.bert import Bert, BertConfig, BertMaskedLM
from dlc.models.gpt import GPT, GPTConfig
from dlc.models.vit import ViT, ViTConfig
from dlc.weights import files
from dlc.weights.files import Tensor, some

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


def load_gpt2(path: str | Path, config: GPTConfig | None = None, **changes: Any) -> tuple[GPT, dict[str, Any]]:
    """GPT-2 as `GPT2LMHeadModel` or `GPT2Model` writes it: the model, and its variables {"params": ...}.

    Sizes are those of `config`, or else of the `config.json` in the folder (beside the file); `changes` are fields of
    the configuration to be set otherwise, such as dtype="bfloat16". Weights are converted to `param_dtype`, float32
    unless changed, one at a time.

    Raises UserError: see the head of this file.
    """
    return _load(GPT2, GPT, Path(path), config, changes)


def load_bert(path: str | Path, config: BertConfig | None = None, **changes: Any) -> tuple[Bert, dict[str, Any]]:
    """BERT's encoder with its pooler, as `BertModel` or `BertForPreTraining` writes it; see `load_gpt2`."""
    return _load(BERT, Bert, Path(path), config, changes)


def load_bert_masked_lm(
    path: str | Path, config: BertConfig | None = None, **changes: Any
) -> tuple[BertMaskedLM, dict[str, Any]]:
    """BERT with its head, as `BertForMaskedLM` or `BertForPreTraining` writes it; see `load_gpt2`."""
    return _load(BERT_MASKED_LM, BertMaskedLM, Path(path), config, changes)


def load_vit(path: str | Path, config: ViTConfig | None = None, **changes: Any) -> tuple[ViT, dict[str, Any]]:
    """ViT as `ViTForImageClassification` writes it, or timm or torchvision, which need a `config`; see `load_gpt2`.

    torchvision's may be a *.pth, which needs PyTorch and runs no code.
    """
    return _load(VIT, ViT, Path(path), config, changes)


def save_gpt2(path: str | Path, model: GPT, params: Any) -> None:
    """Writes a folder that transformers' `GPT2LMHeadModel.from_pretrained` loads.

    Raises UserError if the model has parts that GPT-2 has not, or the weights are not the model's.
    """
    _save(GPT2, Path(path), model, params)


def save_bert(path: str | Path, model: Bert | BertMaskedLM, params: Any) -> None:
    """Writes a folder that transformers' `BertModel` or `BertForMaskedLM` loads; see `save_gpt2`."""
    _save(BERT if isinstance(model, Bert) else BERT_MASKED_LM, Path(path), model, params)


def save_vit(path: str | Path, model: ViT, params: Any) -> None:
    """Writes a folder that transformers' `ViTForImageClassification.from_pretrained` loads; see `save_gpt2`."""
    _save(VIT, Path(path), model, params)


# The tables


class Turn(NamedTuple):
    """How to make our array of their arrays, and their arrays of ours; without copies where there need be none."""

    ours: Callable[[list[np.ndarray]], np.ndarray]
    theirs: Callable[[np.ndarray], list[np.ndarray]]


class Row(NamedTuple):
    ours: str  # the path in our params, joined by slashes
    theirs: tuple[str, ...]  # their names, without the prefix
    turn: Turn


class Format(NamedTuple):
    """How a published model is written. All names are without the prefix."""

    name: str
    model_type: str
    architecture: str
    prefix: str  # of all names but those that begin with `head`; some publish without it
    head: str  # what the names of the last layers begin with
    rows: Callable[[Any], list[Row]]
    config: type
    sizes: dict[str, str]  # our field of the configuration, and theirs
    fixed: dict[str, Any]  # what their configuration must say, if it says anything, for it to be our model
    tied: Mapping[str, str] = MappingProxyType({})  # second names of a weight
    ignored: str = "$^"  # what is no weight of this model, as a regular expression
    input: Callable[[Any], jax.ShapeDtypeStruct] = lambda c: jax.ShapeDtypeStruct((1, 1), jnp.int32)


SAME = Turn(lambda a: a[0], lambda a: [a])
LINEAR = Turn(lambda a: a[0].T, lambda a: [a.T])  # PyTorch's kernels are [out, in]
THREE = Turn(lambda a: np.concatenate([each.T for each in a], 1), lambda a: [each.T for each in np.split(a, 3, 1)])
THREE_BIASES = Turn(np.concatenate, lambda a: np.split(a, 3))


def _patches(c: ViTConfig) -> Turn:
    """A convolution's kernel [O, C, P, P], and ours for a row of P P C numbers."""
    square = (c.patch, c.patch, -1, c.width)
    return Turn(
        lambda a: a[0].transpose(2, 3, 1, 0).reshape(-1, a[0].shape[0]),
        lambda a: [a.reshape(square).transpose(3, 2, 0, 1)],
    )


def _both(ours: str, theirs: str, turn: Turn = LINEAR) -> list[Row]:
    """The two weights of a dense layer."""
    return [Row(f"{ours}/kernel", (f"{theirs}.weight",), turn), Row(f"{ours}/bias", (f"{theirs}.bias",), SAME)]


def _three(ours: str, theirs: str, names: tuple[str, str, str]) -> list[Row]:
    """The six weights of their query, key and value, which are two here."""
    kernels, biases = (tuple(f"{theirs}.{name}.{kind}" for name in names) for kind in ("weight", "bias"))
    return [Row(f"{ours}/kernel", kernels, THREE), Row(f"{ours}/bias", biases, THREE_BIASES)]


def _norm(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/scale", (f"{theirs}.weight",), SAME), Row(f"{ours}/bias", (f"{theirs}.bias",), SAME)]


def _one(ours: str, theirs: str) -> Row:
    return Row(ours, (theirs,), SAME)


def _gpt2(c: GPTConfig) -> list[Row]:
    rows = [_one("token/embedding", "wte.weight"), _one("position/embedding", "wpe.weight"), *_norm("norm", "ln_f")]
    for i in range(c.layers):
        ours, theirs = f"block{i}", f"h.{i}"
        rows += _norm(f"{ours}/norm1", f"{theirs}.ln_1") + _norm(f"{ours}/norm2", f"{theirs}.ln_2")
        # Its `Conv1D` keeps kernels as [in, out], and query, key and value in one.
        rows += _both(f"{ours}/attention/query_key_value", f"{theirs}.attn.c_attn", SAME)
        rows += _both(f"{ours}/attention/out", f"{theirs}.attn.c_proj", SAME)
        rows += _both(f"{ours}/up", f"{theirs}.mlp.c_fc", SAME) + _both(f"{ours}/down", f"{theirs}.mlp.c_proj", SAME)
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


_ENCODER = {  # what the configurations of BERT and ViT have in common
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
        "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
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
    architecture="BertForMaskedLM", rows=_bert_masked_lm,
    tied={
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=r"(cls\.seq_relationship|pooler)\..*|embeddings\.position_ids",
)  # fmt: skip
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


# From theirs to ours


def _load(form: Format, kind: Any, path: Path, config: Any, changes: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    paths = _files(path)
    if config is None:
        config = _read_config(form, (path if path.is_dir() else path.parent) / CONFIG)
    model = kind(dataclasses.replace(config, **changes))
    _check_config(form, model.config)
    with contextlib.ExitStack() as stack:
        found = _tensors(stack, form, paths)
        if form is VIT:
            others = {"patch_embed.proj.weight": VIT_TIMM, "conv_proj.weight": VIT_TORCHVISION}
            form = next((other for name, other in others.items() if name in found), form)
        wanted = _shapes(form, model)
        rows = form.rows(model.config)
        _check_names(form, path, rows, found)
        for row in rows:
            _check_shapes(path, row, wanted[row.ours], found)
        for second, first in form.tied.items():
            if second in found and not np.array_equal(found[second].read(), found[first].read()):
                raise UserError(f"{path} has a {second} of its own, and in our {form.name} it is {first}")
        params: dict[str, Any] = {}
        for row in rows:  # one at a time, so that no more than one is in memory twice
            array = row.turn.ours([found[name].read() for name in row.theirs])
            files.put(params, row.ours, jnp.array(array, wanted[row.ours].dtype))
    return model, {"params": params}


def _files(path: Path) -> list[Path]:
    """The files of weights at a path."""
    advice = "save the model again with `save_pretrained`, which writes model.safetensors, or fetch that file"
    if path.suffix in files.PICKLES - {".pth"}:
        raise UserError(f"{path} is a pickle, which may run any program when it is read: {advice}")
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"there is no {path}: give a folder with {WEIGHTS} and {CONFIG}, or a file of safetensors")
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / INDEX).is_file():
        parts = sorted({path / part for part in _json(path / INDEX).get("weight_map", {}).values()})
        missing = [part.name for part in parts if not part.is_file()]
        if missing or not parts:
            raise UserError(f"{path / INDEX} lists {', '.join(missing) or 'nothing'}, which is not there: fetch it")
        return parts
    if pickles := sorted(file.name for file in path.iterdir() if file.suffix in files.PICKLES):
        raise UserError(f"{path / pickles[0]} is a pickle, which may run any program when it is read: {advice}")
    raise UserError(f"there is no {WEIGHTS} in {path}: fetch it, or give the path of the file")


def _tensors(stack: contextlib.ExitStack, form: Format, paths: list[Path]) -> dict[str, Tensor]:
    """All tensors of the files, by the names that the tables have."""
    found = {}
    for path in paths:
        opened = files.open_pickle(path) if path.suffix == ".pth" else files.open_safetensors(stack, path)
        for name, tensor in opened.items():
            known = name.removeprefix(form.prefix)
            # The names of norms in files that were converted from TensorFlow's.
            known = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", known)
            known = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", known)
            # An older spelling of torchvision's.
            known = re.sub(r"\.mlp\.linear_([12])\.", lambda at: f".mlp.{3 * int(at[1]) - 3}.", known)
            found[known] = tensor
    return found


def _check_names(form: Format, path: Path, rows: list[Row], found: Mapping[str, Tensor]) -> None:
    names = {name for row in rows for name in row.theirs}
    if missing := sorted(names - set(found)):
        raise UserError(f"{path} is no whole {form.name}: it has no {some(missing)}")
    unknown = sorted(name for name in set(found) - names - set(form.tied) if not re.fullmatch(form.ignored, name))
    if unknown:
        raise UserError(f"{path} has what our {form.name} of {_layers(rows)} layers has not: {some(unknown)}")


def _check_shapes(path: Path, row: Row, ours: jax.ShapeDtypeStruct, found: Mapping[str, Tensor]) -> None:
    theirs = row.turn.theirs(np.broadcast_to(np.float32(0), ours.shape))
    for name, expected in zip(row.theirs, theirs, strict=True):
        files.check(path, name, found[name], expected.shape, "the configuration")


def _read_config(form: Format, path: Path) -> Any:
    """Our configuration, from their config.json."""
    if not path.is_file():
        raise UserError(f"there is no {path}: fetch it, or give the sizes, as in config={form.config.__name__}(...)")
    theirs = _json(path)
    if theirs.get("model_type") != form.model_type:
        raise UserError(f"{path} is of a {theirs.get('model_type', 'model without a type')}, not of a {form.name}")
    for key, value in form.fixed.items():
        if theirs.get(key, value) != value:
            raise UserError(f"{path} says {key} = {theirs[key]!r}, and our {form.name} has {value!r}")
    if "classes" in form.sizes:
        theirs = {"num_labels": len(theirs.get("id2label", "01")), **theirs}
    sizes = {ours: theirs[key] for ours, key in form.sizes.items() if key in theirs}
    if missing := sorted(form.sizes[ours] for ours in set(form.sizes) - set(sizes) - {"hidden", "dropout"}):
        raise UserError(f"{path} does not say {some(missing)}")
    return form.config(**sizes)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is no JSON: fetch it again\n{error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object: fetch it again")
    return content


# From ours to theirs


def _save(form: Format, folder: Path, model: Any, params: Any) -> None:
    c = model.config
    _check_config(form, model.config)
    arrays = {"/".join(key.key for key in at): leaf for at, leaf in jax.tree_util.tree_leaves_with_path(params)}
    wanted = _shapes(form, model)
    if differing := sorted(set(arrays) ^ set(wanted)):
        raise UserError(f"the weights are not those of the model: {some(differing)}")
    tensors = {}
    for row in form.rows(c):
        if arrays[row.ours].shape != wanted[row.ours].shape:
            raise UserError(f"{row.ours} is {arrays[row.ours].shape}, and the model wants {wanted[row.ours].shape}")
        for name, array in zip(row.theirs, row.turn.theirs(np.asarray(arrays[row.ours])), strict=True):
            name = name if name.startswith(form.head) else form.prefix + name
            tensors[name] = array
    sizes = {key: getattr(c, ours) for ours, key in form.sizes.items()}
    sizes[form.sizes["hidden"]] = c.hidden or 4 * c.width
    theirs = {"model_type": form.model_type, "architectures": [form.architecture], **sizes, **form.fixed}
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give the path of a folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(theirs, indent=2) + "\n")
    files.save_safetensors(folder / WEIGHTS, tensors, mode_of=folder / CONFIG)


def _check_config(form: Format, c: Any) -> None:
    """Our models know parts that the published ones have not."""
    known = {*form.sizes, "dtype", "param_dtype"}
    for field in dataclasses.fields(c):
        if field.name not in known and getattr(c, field.name) != field.default:
            odd = f"{field.name} = {getattr(c, field.name)!r}"
            raise UserError(f"a {form.name} has no {odd}: only its own parts can be read or written")


def _shapes(form: Format, model: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of a model's weights, by their paths."""
    params = jax.eval_shape(model.init, jax.random.key(0), form.input(model.config))["params"]
    return {"/".join(key.key for key in at): leaf for at, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _layers(rows: list[Row]) -> int:
    return len({row.ours.split("/")[0] for row in rows if row.ours.startswith("block")})
