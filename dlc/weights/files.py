"""Files of named tensors: safetensors, and PyTorch pickles that hold nothing but tensors."""

import contextlib
import errno
import functools
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dlc.errors import UserError

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
# From dtypes to the names that safetensors uses.
FLOATS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Tensor(NamedTuple):
    """A tensor in an open file: `dtype` is "F32" and so on, `read` returns the array."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def open_safetensors(stack: contextlib.ExitStack, path: Path) -> dict[str, Tensor]:
    """The tensors of a file, which stays open until the stack closes. Raises UserError if the file is damaged."""
    file = _opened(stack, path)
    found = {}
    for name in file.keys():  # noqa: SIM118, it is not a mapping
        kind = file.get_slice(name)
        read = functools.partial(lambda name: np.asarray(file.get_tensor(name)), name)
        found[name] = Tensor(tuple(kind.get_shape()), str(kind.get_dtype()), read)
    return found


def metadata(path: Path) -> dict[str, str]:
    """The strings in the header of a safetensors file. Raises UserError if the file is damaged."""
    with contextlib.ExitStack() as stack:
        return _opened(stack, path).metadata() or {}


def is_pickle(path: Path) -> bool:
    """Whether a file is a PyTorch pickle, judged by its first bytes, or by its name if they match neither format.

    A safetensors file begins with the length of its header, eight bytes, and the header, which is JSON.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if head[8:] == b"{":
        return False
    return head.startswith((b"PK\x03\x04", b"\x80")) or path.suffix in PICKLES


def open_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that `torch.save` wrote, read by PyTorch in the mode that runs no code.

    Raises UserError if PyTorch is not installed, or if the file is damaged or holds anything but tensors.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(
            f"{path} is a PyTorch pickle, which only PyTorch can read: pip install -e .[peers], or save it elsewhere "
            "with safetensors.torch.save_file"
        ) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is damaged, or it holds more than plain tensors and reading it could run any program: fetch it "
            "again from its publisher, as a state dict"
        ) from None
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # damaged files raise errors of many kinds
        reason = (str(error).splitlines() or ["it ends too early"])[0]
        raise UserError(f"{path} is not a PyTorch file, or it is truncated: fetch it again\n{reason}") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # the checkpoint of a training run
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path} is not a state dict, which maps names to tensors: save `model.state_dict()`")

    def tensor(value: Any) -> Tensor:
        dtype = str(value.dtype).removeprefix("torch.")
        # PyTorch cannot pass bfloat16 to NumPy. float32 represents every bfloat16 number.
        read = lambda: (value.float() if dtype == "bfloat16" else value).detach().numpy()  # noqa: E731
        return Tensor(tuple(value.shape), FLOATS.get(dtype, dtype), read)

    return {str(name): tensor(value) for name, value in content.items()}


def save_safetensors(
    path: Path,
    tensors: dict[str, np.ndarray],
    *,
    header: Mapping[str, str] = MappingProxyType({}),
    mode_of: Path | None = None,
) -> None:
    """Writes a file that PyTorch can read too, either completely or not at all.

    The strings of `header` become its metadata. The file gets the permissions of the file `mode_of`,
    or else rw-r--r--. Raises OSError if it cannot be written.
    """
    fresh = path.with_name(f".{path.name}")  # renamed once it is complete
    try:
        # The writer ignores strides, so arrays must be contiguous. `np.ascontiguousarray` would give scalars an axis.
        ready = {name: np.asarray(array, order="C") for name, array in tensors.items()}
        save_file(ready, fresh, {"format": "pt", **header})
    except SafetensorError as error:
        fresh.unlink(missing_ok=True)
        code = re.search(r"os error (\d+)", str(error))  # all that the writer says about a full disk
        raise OSError(int(code[1]) if code else errno.EIO, str(error), str(path)) from None
    if mode_of:
        shutil.copymode(mode_of, fresh)
    else:
        fresh.chmod(0o644)  # the writer makes it readable by the owner only
    fresh.replace(path)


def flat(tree: Any) -> dict[str, Any]:
    """The leaves of nested dicts by path, joined by slashes. Raises UserError if there are other containers."""
    leaves = {}
    for at, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names: list[Any] = [getattr(key, "key", None) for key in at]
        if not names or not all(isinstance(name, str) and name and "/" not in name for name in names):
            at_fault = jax.tree_util.keystr(at) or "a single array"
            raise UserError(f"variables must be nested dicts whose keys are names without slashes, not {at_fault}")
        leaves["/".join(names)] = leaf
    return leaves


def check(path: Path, name: str, tensor: Tensor, expected: tuple[int, ...], by: str) -> None:
    """Raises UserError unless a tensor has the expected shape and holds floating-point numbers."""
    if tensor.shape != expected:
        raise UserError(f"{name} in {path} has shape {tensor.shape}, but {by} expects {expected}")
    if tensor.dtype not in FLOATS.values():
        raise UserError(f"{name} in {path} is {tensor.dtype}: only floats of 16, 32 or 64 bits can be read as weights")


def some(names: list[str]) -> str:
    """The first three names of a list, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def put(tree: dict[str, Any], path: str, leaf: Any) -> None:
    """Inserts a leaf at a path joined by slashes."""
    *folders, name = path.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[name] = leaf


def _opened(stack: contextlib.ExitStack, path: Path) -> Any:
    try:
        return stack.enter_context(safe_open(path, "numpy"))
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file, or it is truncated: fetch it again\n{error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
