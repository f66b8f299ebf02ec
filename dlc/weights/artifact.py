"""The weights that a run leaves: one file `weights.safetensors` with the variables and a description of their model.

    save("runs/mine", model, variables)
    model, variables = load("runs/mine")    # without the run's configuration or optimizer

The tensors are named by their paths, "params/conv1/kernel" and "batch_stats/norm1/mean", and keep their dtypes. The
metadata in the file's header has, as JSON under the key "dlc", the model's description (`description.py`), its
checksum and that of each tensor.

A run writes `model.json`, the description without the weights, when it starts. The weights of a run that was killed
are read from its newest checkpoint.
"""

import contextlib
import json
import warnings
import zlib
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dlc.errors import UserError
from dlc.files import sealed, unsealed, write_whole
from dlc.weights import files
from dlc.weights.checkpoint import Checkpoints
from dlc.weights.description import describe, rebuild

WEIGHTS, MODEL = "weights.safetensors", "model.json"
KEY = "dlc"  # in the file's metadata
DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64 complex64".split()


def save(path: str | Path, model: nn.Module, variables: Any) -> None:
    """Writes a model and its variables, either completely or not at all.

    `path` is a file, or a folder that gets a file `weights.safetensors`. `variables` are nested dicts of arrays, as
    `model.init` returns them: all collections are saved.

    Raises UserError if the model cannot be described (see `describe`), or if the variables are not arrays that
    safetensors can hold; OSError if the disk is full.
    """
    path = Path(path)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} does not exist: create it first")
    description = describe(model)
    leaves = files.flat(variables)
    for name, leaf in leaves.items():
        if str(getattr(leaf, "dtype", type(leaf).__name__)) not in DTYPES:
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            raise UserError(f"{name} is of type {kind}, which a file of weights cannot hold: leave it out")
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    checksums = {name: _checksum(array) for name, array in arrays.items()}
    header = {"model": description, "model_crc32": _text_checksum(description), "crc32": checksums}
    files.save_safetensors(path, arrays, header={KEY: json.dumps(header)})


def load(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """The model and variables from a run's folder, or from the file that `save` wrote.

    Raises UserError if there is no such file, if it is damaged, or if its model cannot be rebuilt (see `rebuild`).
    """
    path = Path(path)
    return rebuild(read_description(path)), read_variables(path)


def write_model(folder: str | Path, model: nn.Module) -> None:
    """Writes `model.json` to a folder, either completely or not at all. Raises UserError as `describe` does."""
    write_whole(Path(folder) / MODEL, sealed(describe(model)))


def is_artifact(path: Path) -> bool:
    """Whether `path` is a file that `save` wrote, or a run's folder with such a file or with `model.json`."""
    if path.is_dir():
        return is_artifact(path / WEIGHTS) or (path / MODEL).is_file()
    return path.is_file() and files.kind_of(path) == "safetensors" and KEY in files.metadata(path)


def read_description(path: Path) -> Any:
    """The description of the model in a file or a run's folder. Raises UserError if there is none."""
    if path.is_dir() and not (path / WEIGHTS).is_file():
        path = path / MODEL
        try:
            return unsealed(path.read_bytes())
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from None
    return _header(_file(path))["model"]


def read_variables(path: Path) -> dict[str, Any]:
    """The variables in a file or a run's folder, as nested dicts of JAX arrays; see `load`."""
    if path.is_dir() and not (path / WEIGHTS).is_file():
        return _from_checkpoint(path)
    path = _file(path)
    checksums = _header(path)["crc32"]
    variables: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        tensors = files.open_safetensors(stack, path)
        if differing := sorted(set(tensors) ^ set(checksums)):
            raise UserError(f"{path} is damaged: {files.some(differing)} is missing or unknown")
        for name, tensor in tensors.items():
            array = tensor.read()
            if _checksum(array) != checksums[name]:
                raise UserError(
                    f"{path} is damaged, or was changed after it was written: the checksum of {name} differs"
                )
            if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
                raise UserError(f"{name} in {path} is {array.dtype}: set JAX_ENABLE_X64=1 to load it unchanged")
            try:
                files.put(variables, name, jnp.array(array))
            except (TypeError, AttributeError):
                raise UserError(f"{path} is damaged: {name} is inside another array") from None
    return variables


def _header(path: Path) -> dict[str, Any]:
    """What `save` wrote to the file's metadata."""
    text = files.metadata(path).get(KEY)
    if text is None:
        raise UserError(f"{path} does not describe its model: it was not written by dlc.weights.save")
    try:
        match json.loads(text):
            case {"model": dict(model), "model_crc32": int(crc32), "crc32": dict()} as header:
                if crc32 == _text_checksum(model):
                    return header
    except (ValueError, RecursionError):
        pass
    raise UserError(f"the description of the model in {path} is damaged")


def _checksum(array: np.ndarray) -> int:
    form = f"{array.dtype} {array.shape}".encode()
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, zlib.crc32(form))


def _text_checksum(description: Any) -> int:
    return zlib.crc32(json.dumps(description, sort_keys=True).encode())


def _file(path: Path) -> Path:
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"there is no file {path}: give the folder of a run, or a file of weights")
    return path


def _from_checkpoint(folder: Path) -> dict[str, Any]:
    """The variables of a run that was stopped before its end, from its newest checkpoint."""
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        arrays = checkpoints.read(("params/", "aux/", "step"), warn=warnings.warn)
    finally:
        checkpoints.close()
    if arrays is None:
        raise UserError(f"the run in {folder} has not saved any weights yet: wait for its first checkpoint")
    if "step" not in arrays:
        raise UserError(f"the checkpoints in {folder} hold more than one network: let the run finish with --resume")
    several = arrays.pop("step").ndim > 0  # seeds that were trained at once: the first is read
    variables: dict[str, Any] = {}
    for name, array in arrays.items():
        files.put(variables, name.removeprefix("aux/"), array[0] if several else array)
    return variables
