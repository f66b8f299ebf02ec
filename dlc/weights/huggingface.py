"""GPT-2, Llama, Mistral, Qwen, BERT and ViT as Hugging Face publishes them: folders of weights to our variables.

Weights are read from a local `*.safetensors` file or from a folder in Hugging Face's layout: `model.safetensors`
(or the parts that `model.safetensors.index.json` lists) beside `config.json`. Saving writes the same layout, which
transformers' `from_pretrained(folder)` loads. Nothing here uses the network.

    model, variables = load_gpt2("gpt2/")
    logits = model.apply(variables, tokens)

`huggingface_tables.py` has one table per model, which serves both directions. A missing, unknown or wrongly shaped
weight raises a UserError that names it, and so does a configuration that describes a different computation from ours.

GPT-2 and BERT have several dropout rates. Our models have one, which is that of the residual branches. Llama and its
like have none there.
"""

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlc.errors import UserError
from dlc.layers.attention import Stretch
from dlc.models.bert import Bert, BertConfig, BertMaskedLM
from dlc.models.gpt import GPT, GPTConfig
from dlc.models.vit import ViT, ViTConfig
from dlc.weights import files
from dlc.weights.files import Tensor, some
from dlc.weights.huggingface_tables import (
    ABSENT,
    BERT,
    BERT_MASKED_LM,
    GPT2,
    LLAMAS,
    ROTATIONS,
    SIZES,
    VIT,
    VIT_TIMM,
    VIT_TORCHVISION,
    WHOLE,
    Format,
    Row,
    number,
)

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLED = r"pytorch_model.*\.bin"  # what folders had before safetensors


def load_gpt2(path: str | Path, config: GPTConfig | None = None, **changes: Any) -> tuple[GPT, dict[str, Any]]:
    """GPT-2 as `GPT2LMHeadModel` or `GPT2Model` writes it. Returns the model and its variables {"params": ...}.

    The sizes come from `config` if it is given, and otherwise from `config.json` in the folder (or beside the file).
    `changes` override fields of the configuration, such as dtype="bfloat16". Weights are converted one at a time to
    `param_dtype`, which is float32 unless changed.

    Raises UserError as described at the top of this file.
    """
    return _load(GPT2, GPT, Path(path), config, changes)


def load_llama(path: str | Path, config: GPTConfig | None = None, **changes: Any) -> tuple[GPT, dict[str, Any]]:
    """Llama, Mistral, Qwen 2 or Qwen 3 as `LlamaForCausalLM` and its like write them; see `load_gpt2`.

    Which of them it is, `config.json` says, which must be there. With param_dtype="bfloat16" the weights take as much
    memory as the published files, which are usually of this precision; with the default they take twice as much.
    """
    path = Path(path)
    if not _beside(path).is_file():
        _files(path)  # raises if the weights are missing, too
        raise UserError(f"{_beside(path)} does not exist: fetch it, because it says which model this is")
    form = LLAMAS.get(str(files.read_json(_beside(path)).get("model_type")), LLAMAS["llama"])
    return _load(form, GPT, path, config, changes)


def load_bert(path: str | Path, config: BertConfig | None = None, **changes: Any) -> tuple[Bert, dict[str, Any]]:
    """BERT's encoder with its pooler, as `BertModel` or `BertForPreTraining` writes it; see `load_gpt2`."""
    return _load(BERT, Bert, Path(path), config, changes)


def load_bert_masked_lm(
    path: str | Path, config: BertConfig | None = None, **changes: Any
) -> tuple[BertMaskedLM, dict[str, Any]]:
    """BERT with its masked-language head, as `BertForMaskedLM` or `BertForPreTraining` writes it; see `load_gpt2`."""
    return _load(BERT_MASKED_LM, BertMaskedLM, Path(path), config, changes)


def load_vit(path: str | Path, config: ViTConfig | None = None, **changes: Any) -> tuple[ViT, dict[str, Any]]:
    """ViT as `ViTForImageClassification`, timm or torchvision writes it; see `load_gpt2`.

    Files from timm and torchvision need a `config`. torchvision's may be a *.pth: reading it needs PyTorch, and runs
    no code.
    """
    return _load(VIT, ViT, Path(path), config, changes)


def vit_classes(path: str | Path) -> int:
    """The number of classes of a ViT's weights, as Hugging Face, timm or torchvision writes them."""
    heads = ("classifier.bias", "head.bias", "heads.head.bias")
    with contextlib.ExitStack() as stack:
        found = _tensors(stack, VIT, _files(Path(path)))
        for head in heads:
            if head in found:
                return files.classes(Path(path), head, found)
    raise UserError(f"{path} is not a state dict of a ViT: it lacks {' or '.join(heads)}")


def loader_of(path: Path) -> Callable[..., tuple[Any, dict[str, Any]]] | None:
    """The function that loads a Hugging Face folder, or a file in one; None if `config.json` does not say.

    Raises UserError if the model is of a type that cannot be read here.
    """
    path = _beside(path)
    theirs = files.read_json(path) if path.is_file() else {}
    match theirs.get("model_type"):
        case None:
            return None
        case "gpt2":
            return load_gpt2
        case "vit":
            return load_vit
        case "bert":
            architectures = str(theirs.get("architectures"))
            return load_bert_masked_lm if re.search("BertFor(MaskedLM|PreTraining)", architectures) else load_bert
        case str(name) if name in LLAMAS:
            return load_llama
    described = files.short(theirs["model_type"]).strip("'")
    raise UserError(f"{path} describes a {described}: only gpt2, {', '.join(LLAMAS)}, bert and vit can be read")


def save_gpt2(path: str | Path, model: GPT, params: Any) -> None:
    """Writes a folder that transformers' `GPT2LMHeadModel.from_pretrained` loads.

    Raises UserError if the model has parts that GPT-2 does not have, or if the weights do not belong to the model.
    """
    _save(GPT2, Path(path), model, params)


def save_bert(path: str | Path, model: Bert | BertMaskedLM, params: Any) -> None:
    """Writes a folder that transformers' `BertModel` or `BertForMaskedLM` loads; see `save_gpt2`."""
    _save(BERT if isinstance(model, Bert) else BERT_MASKED_LM, Path(path), model, params)


def save_vit(path: str | Path, model: ViT, params: Any) -> None:
    """Writes a folder that transformers' `ViTForImageClassification.from_pretrained` loads; see `save_gpt2`."""
    _save(VIT, Path(path), model, params)


# Loading


def _beside(path: Path) -> Path:
    """The config.json in a folder, or beside a file."""
    return (path if path.is_dir() else path.parent) / CONFIG


def _load(form: Format, kind: Any, path: Path, config: Any, changes: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    paths = _files(path)
    beside = _beside(path)
    if config is None:
        config = _read_config(form, beside)
    elif beside.is_file() and "model_type" in files.read_json(beside):
        _check_computation(form, beside)  # the sizes are given, but what is computed with them is not
    model = kind(dataclasses.replace(config, **changes))
    _check_config(form, model.config)
    with contextlib.ExitStack() as stack:
        found = _tensors(stack, form, paths)
        if form is VIT:
            others = {"patch_embed.proj.weight": VIT_TIMM, "conv_proj.weight": VIT_TORCHVISION}
            form = next((other for name, other in others.items() if name in found), form)
        if model.config.layers > len(found):  # before that many are traced
            raise UserError(
                f"{path} has {len(found)} tensors, too few for the {model.config.layers} layers it should have"
            )
        largest = max((size for tensor in found.values() for size in tensor.shape), default=0)
        for ours in ("vocab", "width", "hidden", "heads", "kv_heads", "head_width"):
            if (getattr(model.config, ours, None) or 0) > largest:
                said = f"{form.sizes[ours]} of {getattr(model.config, ours)}"
                raise UserError(f"{path} has no tensor as large as the {said} that it should have")
        try:
            wanted = _shapes(model, form.input(model.config))
        except UserError as error:  # of the model, about its sizes
            raise UserError(f"{path} has sizes that do not fit together: {error}") from None
        rows = form.rows(model.config)
        _check_names(form, path, rows, found)
        for row in rows:
            _check_shapes(path, row, wanted[row.ours], found)
        if form is VIT_TIMM:
            c, sizes = model.config, "tiny|small|base|large|huge"
            ours = f"a ViT of patches of {c.patch} and images of {c.image}"
            files.check_network(paths[0], None, rf"(vit|deit)_({sizes})_patch{c.patch}_{c.image}", ours)
        for second, first in form.tied.items():
            shared = second in found and not any(second in row.theirs for row in rows)
            if shared and not np.array_equal(found[second].read(), found[first].read()):
                raise UserError(f"{path} has a separate {second}, but our {form.name} shares it with {first}")
        params: dict[str, Any] = {}
        for row in rows:  # one at a time, so that at most one weight is in memory twice
            array = row.turn.ours([found[name].read() for name in row.theirs])
            files.put(params, row.ours, jnp.array(array, wanted[row.ours].dtype))
    return model, {"params": params}


def _files(path: Path) -> list[Path]:
    """The weight files at a path."""
    advice = "save the model again with `save_pretrained`, which writes model.safetensors, or fetch that file"
    if re.fullmatch(PICKLED, path.name):
        raise UserError(f"{path} is a pickle, which may run any program when it is read: {advice}")
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} does not exist: give a folder with {WEIGHTS} and {CONFIG}, or a safetensors file")
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / INDEX).is_file():
        listed = files.read_json(path / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(part, str) for part in listed.values()):
            raise UserError(f"{path / INDEX} does not say in which file each weight is: fetch it again")
        parts = sorted({path / Path(part).name for part in listed.values()})
        missing = [part.name for part in parts if not part.is_file()]
        if missing or not parts:
            raise UserError(f"{path / INDEX} lists {', '.join(missing) or 'no files'}, not in the folder: fetch it")
        return parts
    if pickles := sorted(file.name for file in path.iterdir() if re.fullmatch(PICKLED, file.name)):
        raise UserError(f"{path / pickles[0]} is a pickle, which may run any program when it is read: {advice}")
    raise UserError(f"{path} has no {WEIGHTS}: fetch it, or give the path of the weight file")


def _tensors(stack: contextlib.ExitStack, form: Format, paths: list[Path]) -> dict[str, Tensor]:
    """All tensors of the files, under the names used in the tables."""
    found = {}
    for name, tensor in files.open_tensors(stack, *paths).tensors.items():
        known = name.removeprefix(form.prefix)
        # The names of norms in files that were converted from TensorFlow.
        known = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", known)
        known = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", known)
        # An older spelling in torchvision's files.
        known = re.sub(r"\.mlp\.linear_([12])\.", lambda at: f".mlp.{3 * int(at[1]) - 3}.", known)
        found[known] = tensor
    return found


def _check_names(form: Format, path: Path, rows: list[Row], found: Mapping[str, Tensor]) -> None:
    names = {name for row in rows for name in row.theirs}
    if missing := sorted(names - set(found)):
        raise UserError(f"{path} is not a complete {form.name}: {files.lacks(missing, found)}")
    unknown = sorted(name for name in set(found) - names - set(form.tied) if not re.fullmatch(form.ignored, name))
    if unknown:
        raise UserError(f"{path} has tensors that our {form.name} of {_layers(rows)} layers does not: {some(unknown)}")


def _check_shapes(path: Path, row: Row, ours: jax.ShapeDtypeStruct, found: Mapping[str, Tensor]) -> None:
    theirs = row.turn.theirs(np.broadcast_to(np.float32(0), ours.shape))
    for name, expected in zip(row.theirs, theirs, strict=True):
        files.check(path, name, found[name], expected.shape, "the configuration")


def _read_config(form: Format, path: Path) -> Any:
    """Our configuration, read from config.json."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: fetch it, or give the sizes with config={form.config.__name__}(...)")
    theirs = {**form.defaults, **_check_computation(form, path)}
    if "classes" in form.sizes:
        names = theirs.get("id2label")  # without it, Hugging Face's default is two classes
        theirs = {"num_labels": len(names) if isinstance(names, dict) else 2, **theirs}
    sizes = {}
    for ours, key in form.sizes.items():
        if key in theirs:
            what, fits = SIZES.get(ours, WHOLE)
            value = theirs[key]
            if ours in ("image", "patch") and isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
                value = value[0]  # height and width
            if not fits(value):
                raise UserError(f"{path} has {key} = {files.short(value)}, but our {form.name} needs {what}")
            sizes[ours] = float(value) if ours == "theta" else value
    if missing := sorted(form.sizes[ours] for ours in set(form.sizes) - set(sizes) - {"hidden", "dropout"}):
        raise UserError(f"{path} lacks {some(missing)}")
    return form.config(**form.parts, **sizes)


def _check_computation(form: Format, path: Path) -> dict[str, Any]:
    """The content of a config.json. Raises UserError if it describes a model that computes something else."""
    theirs = files.read_json(path)
    if theirs.get("model_type") != form.model_type:
        described = files.short(theirs.get("model_type") or "model without a type").strip("'")
        raise UserError(f"{path} describes a {described}, not a {form.name}")
    for key, value in (ABSENT | form.fixed).items():
        if theirs.get(key, value) != value:
            raise UserError(f"{path} has {key} = {files.short(theirs[key])}, but our {form.name} has {value!r}")
    return _rotations(form, path, theirs) if "theta" in form.sizes else theirs


def _rotations(form: Format, path: Path, theirs: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a Llama, in which "rope_theta" is a number and "rope_scaling" a `Stretch` or None.

    Raises UserError if its positions are of another kind, or if its layers are of several kinds.
    """
    kinds = theirs.get("layer_types")
    if kinds is not None and not (isinstance(kinds, list) and set(map(str, kinds)) <= {"full_attention"}):
        raise UserError(f"{path} has layer_types = {files.short(kinds)}, but our {form.name} has 'full_attention' only")
    where = "rope_scaling" if theirs.get("rope_scaling") else "rope_parameters"
    rope = theirs.get(where) or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path} has {where} = {files.short(rope)}, but our {form.name} needs an object, or null")
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    if kind not in ROTATIONS:
        known = " and ".join(map(repr, ROTATIONS))
        raise UserError(f"{path} has rope_type = {files.short(kind)}, but our {form.name} has only {known}")
    if odd := sorted(set(rope) - {"rope_type", "type", "rope_theta", *ROTATIONS[kind]}):
        raise UserError(f"{path} has {some(odd)} in {where}, which our {form.name} does not have for {kind!r}")
    for name in ROTATIONS[kind]:
        if not (number(rope.get(name)) and rope[name] > 0):
            raise UserError(f"{path} has {name} = {files.short(rope.get(name))}, but it must be a number above 0")
    stretch = Stretch(*(rope[name] for name in ROTATIONS[kind])) if ROTATIONS[kind] else None
    if stretch and stretch.low >= stretch.high:
        raise UserError(f"{path} has a low_freq_factor of {stretch.low}, not less than the high_freq_factor")
    theta = rope.get("rope_theta", theirs.get("rope_theta", form.defaults["rope_theta"]))
    return {**theirs, "rope_theta": theta, "rope_scaling": stretch}


# Saving


def _save(form: Format, folder: Path, model: Any, params: Any) -> None:
    c = model.config
    _check_config(form, model.config)
    arrays = files.flat(params)
    wanted = _shapes(model, form.input(model.config))
    if differing := sorted(set(arrays) ^ set(wanted)):
        raise UserError(f"the weights do not belong to the model: {some(differing)}")
    tensors = {}
    for row in form.rows(c):
        if arrays[row.ours].shape != wanted[row.ours].shape:
            ours, expected = arrays[row.ours].shape, wanted[row.ours].shape
            raise UserError(f"{row.ours} has shape {ours}, but the model expects {expected}")
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
    """Refuses options of our models that the published ones do not have."""
    known = {*form.sizes, "dtype", "param_dtype"}
    for field in dataclasses.fields(c):
        if field.name not in known and getattr(c, field.name) != form.parts.get(field.name, field.default):
            odd = f"{field.name} = {getattr(c, field.name)!r}"
            raise UserError(f"{form.name} does not support {odd}: only its own options can be read or written")


@functools.cache
def _shapes(model: Any, batch: jax.ShapeDtypeStruct) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of a model's weights, by path."""
    return files.flat(jax.eval_shape(model.init, jax.random.key(0), batch)["params"])


def _layers(rows: list[Row]) -> int:
    return len({row.ours.split("/")[0] for row in rows if row.ours.startswith("block")})
