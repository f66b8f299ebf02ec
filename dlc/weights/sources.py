"""One call that loads weights from any source: runs, Hugging Face folders, and files of other programs and authors."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dlc.errors import UserError
from dlc.models.bert import Bert, BertMaskedLM
from dlc.models.gpt import GPT
from dlc.models.vit import ViT
from dlc.weights import artifact, deep_compression, files, huggingface, images, llama2c
from dlc.weights.description import describe, difference, rebuild

LOADERS: dict[type[nn.Module], Any] = {
    GPT: huggingface.load_gpt2,
    Bert: huggingface.load_bert,
    BertMaskedLM: huggingface.load_bert_masked_lm,
    ViT: huggingface.load_vit,
}


def load(path: str | Path, model: nn.Module | None = None, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """The model and its variables, ready for `model.apply(variables, x)`.

    What the files hold decides how they are read:
    - The folder of a run, or its `weights.safetensors`: the model that was trained. A given `model` must equal it.
    - A Hugging Face folder with a GPT-2, Llama, Mistral, Qwen 2 or 3, BERT or ViT, or a file in it. A given `model`
      replaces its `config.json`.
    - A Llama in a file of llama2.c, or SqueezeNet 1.0 as its authors compressed it (`load_squeezenet_dc`). A given
      `model` must equal it.
    - A torchvision or timm state dict, which needs a `model`: load("resnet50.pth", resnet50()). The returned model
      has as many classes as the file. Not every other network can be told from it: see `load_state_dict`.

    The first bytes of a file, and not its name, say whether it is a safetensors file, a PyTorch pickle or an .npz, and
    whether it is compressed.

    `changes` are fields of the model (or of its configuration) to set differently, such as dtype="bfloat16". With
    `param_dtype` the weights are converted.

    Reading never uses the network and never runs code from a file. A run's model is rebuilt from its class, which must
    be in `dlc`, Flax or a module that is already imported.

    Raises UserError, in one sentence, if the files are missing, damaged or belong to another model.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: give the folder of a run or a published model, or a file of weights")
    kind = _kind(path)
    if kind == "deep_compression":
        _check_equal(path, describe(deep_compression.NETWORK), model)
        return deep_compression.load_squeezenet_dc(path, **changes)
    if kind == "run":
        return _from_run(path, model, changes)
    if kind == "llama2c":
        found, variables = llama2c.load_llama2c(path, **changes)
        _check_equal(path, describe(found), model)
        return found, variables
    loader = huggingface.loader_of(path) if model is None else LOADERS.get(type(model))
    if isinstance(model, GPT) and model.config.positions == "rotary":
        loader = huggingface.load_llama
    if loader:
        config = getattr(model, "config", None)
        if isinstance(model, ViT):
            config = dataclasses.replace(model.config, classes=huggingface.vit_classes(path))
        return loader(path, config, **changes)
    path = _state_dict(path)
    if model is None:
        raise UserError(f"{path} does not say which model it is for: give one, for example load(path, resnet50())")
    model = model.clone(**{"num_classes": images.published_classes(path, model), **changes})
    return model, images.load_state_dict(path, model)


def begin(variables: Any, path: str | Path, model: nn.Module | None = None) -> Any:
    """Variables to begin training from: those in `path`, in the form of `variables`.

    `variables` are those of the network to be trained, as `model.init` returns them, or their shapes and dtypes as
    `jax.eval_shape` does. The result has the same tree, shapes, dtypes and placement on devices. `path` is anything
    that `load` reads; only a state dict needs the `model`. If its number of classes differs from that of the `model`,
    the layers that tell the classes apart stay those of `variables`.

    Raises UserError that names the first array that is missing, unknown or wrongly shaped, and whatever `load` raises.
    """
    path = Path(path)
    if _kind(path) == "run":
        loaded, found = model, files.flat(artifact.read_variables(path))
    else:
        loaded, found = load(path, model)
        found = files.flat(found)
    expected = files.flat(variables)
    other_classes = model is not None and loaded != model  # `load` changes nothing else
    leaves = []
    for name, like in expected.items():
        if name not in found:
            raise UserError(f"{path} has no {name}: it is not from the same model")
        leaf = found[name]
        if leaf.shape != like.shape and other_classes:
            leaves.append(like)
            continue
        if leaf.shape != like.shape:
            raise UserError(f"{name} in {path} has shape {leaf.shape}, but the model expects {like.shape}")
        if not _same_kind(leaf.dtype, like.dtype):
            raise UserError(f"{name} in {path} is of type {leaf.dtype}, but the model expects {like.dtype}")
        leaf = leaf.astype(like.dtype)
        leaves.append(jax.device_put(leaf, like.sharding) if getattr(like, "committed", False) else leaf)
    if unknown := sorted(set(found) - set(expected)):
        raise UserError(f"{path} has {unknown[0]}, which the model does not have")
    return jax.tree.unflatten(jax.tree.structure(variables), leaves)


def names_its_model(path: Path) -> bool:
    """Whether `load` knows the model of this file or folder without being given one, and takes no other."""
    return _kind(path) in ("deep_compression", "run")


def _kind(path: Path) -> Literal["deep_compression", "run", "llama2c", "published"]:
    """What wrote the file or folder: the one place that decides it, in an order in which none is taken for another."""
    if deep_compression.is_squeezenet_dc(path):  # its first bytes can look like those of a safetensors file
        return "deep_compression"
    if artifact.is_artifact(path):
        return "run"
    return "llama2c" if path.is_file() and llama2c.is_llama2c(path) else "published"


def _from_run(path: Path, model: nn.Module | None, changes: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    description = artifact.read_description(path)
    _check_equal(path, description, model)
    model = rebuild(description) if model is None else model
    variables = artifact.read_variables(path)
    config = getattr(model, "config", None)
    if changes and dataclasses.is_dataclass(config):
        model = model.clone(config=dataclasses.replace(config, **changes))  # type: ignore[type-var]
    elif changes:
        model = model.clone(**changes)
    if "param_dtype" in changes and "params" in variables:
        dtype = jnp.dtype(changes["param_dtype"])
        variables["params"] = jax.tree.map(lambda leaf: leaf.astype(dtype), variables["params"])
    return model, variables


def _check_equal(path: Path, description: Any, model: nn.Module | None) -> None:
    """Raises UserError if a model is given that is not the one described."""
    if model is not None and (differs := difference(description, describe(model))):
        field, theirs, given = differs
        raise UserError(f"the model in {path} has {field} = {theirs}, but the given model has {field} = {given}")


def _state_dict(path: Path) -> Path:
    """The file itself, or the one in a folder as timm and our runs of ImageNet write it."""
    if not path.is_dir():
        return path
    for name in (huggingface.WEIGHTS, artifact.WEIGHTS, "pytorch_model.bin"):
        if (path / name).is_file():
            return path / name
    if parts := sorted(path.glob(f"*/{artifact.MODEL}")):
        raise UserError(f"{path} is a run of several parts: give one of them, for example {parts[0].parent}")
    raise UserError(f"there are no weights in {path}: give the folder of a run, or a file of weights")


def _same_kind(one: Any, other: Any) -> bool:
    return one == other or all(jnp.issubdtype(dtype, jnp.floating) for dtype in (one, other))
