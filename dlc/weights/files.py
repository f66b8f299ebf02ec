"""Files of named tensors: safetensors, and PyTorch's pickles as far as they hold nothing else."""

import contextlib
import errno
import functools
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dlc.errors import UserError

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
FLOATS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # by safetensors' names


class Tensor(NamedTuple):
    """A tensor of an open file: `dtype` is "F32" and so on, `read` gives the array."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def open_safetensors(stack: contextlib.ExitStack, path: Path) -> dict[str, Tensor]:
    """The tensors of a file, which stays open as long as the stack. Raises UserError if it is no whole file."""
    try:
        file = stack.enter_context(safe_open(path, "numpy"))
    except SafetensorError as error:
        raise UserError(f"{path} is no file of safetensors, or is cut short: fetch it again\n{error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    found = {}
    for name in file.keys():  # noqa: SIM118, it is no mapping
        kind = file.get_slice(name)
        read = functools.partial(lambda name: np.asarray(file.get_tensor(name)), name)
        found[name] = Tensor(tuple(kind.get_shape()), str(kind.get_dtype()), read)
    return found


def open_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that `torch.save` wrote, read by PyTorch in the mode that runs no code.

    Raises UserError without PyTorch, and if the file holds anything but tensors, is cut short, or is none of its.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(
            f"{path} is a pickle of PyTorch's, which only PyTorch reads: pip install -e .[peers], or save it elsewhere "
            "with safetensors.torch.save_file"
        ) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than plain tensors, and reading it could run any program, or it is damaged: fetch it "
            "from those who published it, as a state dict"
        ) from None
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # on damaged files it ends in errors of many kinds
        reason = (str(error).splitlines() or ["it ends too early"])[0]
        raise UserError(f"{path} is no file of PyTorch's, or is cut short: fetch it again\n{reason}") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # of a training run's checkpoint
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path} is no state dict, names with a tensor each: save `model.state_dict()`")

    def tensor(value: Any) -> Tensor:
        dtype = str(value.dtype).removeprefix("torch.")
        # NumPy has no bfloat16 of PyTorch's; float32 holds all its numbers.
        read = lambda: (value.float() if dtype == "bfloat16" else value).detach().numpy()  # noqa: E731
        return Tensor(tuple(value.shape), FLOATS.get(dtype, dtype), read)

    return {str(name): tensor(value) for name, value in content.items()}


def save_safetensors(path: Path, tensors: dict[str, np.ndarray], mode_of: Path | None = None) -> None:
    """Writes a file that PyTorch's readers take, whole or not at all, with the permissions of the file `mode_of`.

    Raises OSError if it cannot be written.
    """
    fresh = path.with_name(f".{path.name}")  # renamed when it is whole
    try:  # the writer takes the memory as it lies
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, fresh, {"format": "pt"})
    except SafetensorError as error:
        fresh.unlink(missing_ok=True)
        code = re.search(r"os error (\d+)", str(error))  # what it knows of a full disk
        raise OSError(int(code[1]) if code else errno.EIO, str(error), str(path)) from None
    if mode_of:
        shutil.copymode(mode_of, fresh)
    else:
        fresh.chmod(0o644)  # the writer leaves it to be read by nobody else
    fresh.replace(path)


def check(path: Path, name: str, tensor: Tensor, expected: tuple[int, ...], by: str) -> None:
    """Raises UserError unless a tensor is of the expected shape, and of real numbers."""
    if tensor.shape != expected:
        raise UserError(f"{name} in {path} is {tensor.shape}, and {by} wants {expected}")
    if tensor.dtype not in FLOATS.values():
        raise UserError(f"{name} in {path} is {tensor.dtype}: only weights of 16, 32 or 64 bits can be read")


def some(names: list[str]) -> str:
    """The first three of a list, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def put(tree: dict[str, Any], path: str, leaf: Any) -> None:
    """Puts a leaf at a path joined by slashes."""
    *folders, name = path.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[name] = leaf
