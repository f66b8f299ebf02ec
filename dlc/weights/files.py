"""Files of named tensors: safetensors, PyTorch pickles that hold nothing but tensors, and NumPy's .npz.

A file is what its first bytes say, whatever its name. It may be compressed by gzip, bzip2 or xz.
"""

import argparse
import bz2
import contextlib
import errno
import functools
import gzip
import json
import lzma
import pickle
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from tokenize import TokenError
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dlc.errors import UserError
from dlc.files import BOMB, most_unpacked

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
# From dtypes to the names that safetensors uses.
FLOATS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}

# The first bytes of files, and what they are
BEGINNINGS = {
    b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x80": "pickle",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive: unpack it first",
    b"\x93NUMPY": "a single array: save the named arrays of a model with numpy.savez",
    b"\x89HDF": "an HDF5 file, as Keras writes it: save the weights with safetensors",
    b"GGUF": "a GGUF file: fetch the model's safetensors",
    b"version https://git-lfs": "a pointer of Git LFS and not the weights: fetch them with `git lfs pull`",
    b"<": "a web page: fetch the file again, from its download link",
}  # fmt: skip
DAMAGED = (ValueError, SyntaxError, TokenError)  # what NumPy raises for the header of an array
UNPACK: dict[str, Callable[..., Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}

# Under what keys training programs keep a state dict, and the name of its network
OUTER = (
    "state_dict", "model", "model_state_dict", "model_state", "net", "network", "params", "weights", "module",
    "state_dict_ema", "model_ema", "ema", "ema_state_dict", "params_ema",
    "student", "teacher", "backbone", "encoder",
)  # fmt: skip
NAMES = ("arch", "architecture", "model_name", "model")
# Arguments of timm's models that change nothing in an evaluation, or nothing but shapes, and how ours pool
POOLS = ("avg", "token", None)
HARMLESS = {"global_pool", "num_classes", "in_chans", "img_size", "drop_rate", "drop_path_rate", "zero_init_last"}
# What wrappers put into the names of tensors: anywhere, or before all of them
INSIDE = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
BEFORE = {"model", "net", "network", "backbone", "encoder", "base_model", "student", "teacher", "state_dict", "params"}


class Tensor(NamedTuple):
    """A tensor in an open file: `dtype` is "F32" and so on, `read` returns the array."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class Content(NamedTuple):
    """The tensors of an open file, by their names without those of wrappers, and the network that the file names."""

    tensors: dict[str, Tensor]
    network: str | None = None


def open_tensors(stack: contextlib.ExitStack, *paths: Path) -> Content:
    """The content of the files of a model, which stay open until the stack closes.

    Raises UserError if a file is damaged or holds anything but tensors, or if PyTorch is needed and missing.
    """
    found: dict[str, Tensor] = {}
    for path in paths:
        tensors, network = _content(stack, path)
        found |= tensors
    return Content(_without_wrappers(found, paths[0]), network)


def _content(stack: contextlib.ExitStack, path: Path) -> Content:
    """The content of one file, with the names that are in it."""
    file, kind = path, kind_of(path)
    if kind in UNPACK:
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "unpacked"
        _unpack(path, UNPACK[kind], file)
        kind = kind_of(file)
    if kind in UNPACK or " " in kind:
        raise UserError(f"{path} is {kind}" + " inside another archive: unpack it first" * (kind in UNPACK))
    if kind == "zip" and _check_zip(file, path):
        return Content(_npz(file, path))
    if kind in ("zip", "pickle"):
        return _pickled(file, path)
    opened = _opened(stack, file, path)
    return Content(_safetensors(opened), _network(opened.metadata() or {}))


def open_safetensors(stack: contextlib.ExitStack, path: Path) -> dict[str, Tensor]:
    """The tensors of a file by their own names. It stays open until the stack closes; see `open_tensors`."""
    return _safetensors(_opened(stack, path, path))


def metadata(path: Path) -> dict[str, str]:
    """The strings in the header of a safetensors file. Raises UserError if the file is damaged."""
    with contextlib.ExitStack() as stack:
        return _opened(stack, path, path).metadata() or {}


def kind_of(path: Path) -> str:
    """What a file is by its first bytes: "safetensors", "zip", "pickle", "gzip", "bzip2", "xz", or a sentence.

    A safetensors file begins with the length of its header, eight bytes, and the header, which is JSON. If the bytes
    match nothing, the file is a damaged one of what its name says.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it, and give the file of weights in it"
    if head[8:9] == b"{" and not head.startswith(b"GGUF"):
        return "safetensors"
    known = [kind for beginning, kind in BEGINNINGS.items() if head.startswith(beginning)]
    if known and (known[0] != "zip" or zipfile.is_zipfile(path)):
        return known[0]
    if path.suffix.lower() not in PICKLES:
        return "safetensors"
    return "truncated: fetch it again" if known or not head else "pickle"  # known: a zip archive without its end


def _check_zip(file: Path, path: Path) -> bool:
    """Whether a zip archive is NumPy's; PyTorch's has a pickle. Raises UserError if a checksum in it differs.

    PyTorch itself does not compare them.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > most_unpacked(file.stat().st_size):
                raise UserError(f"{path} {BOMB}")
            if altered := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {altered} differs")
            return all(info.filename.endswith(".npy") for info in infos)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged: fetch it again\n{error}") from None


def _unpack(path: Path, opener: Callable[..., Any], to: Path) -> None:
    most = most_unpacked(path.stat().st_size)
    try:
        with opener(path) as packed, to.open("wb") as file:
            while part := packed.read(2**20):
                if file.tell() + len(part) > most:
                    raise UserError(f"{path} {BOMB}")
                file.write(part)
    except UserError:
        raise
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if getattr(error, "errno", None):
            raise UserError(f"{path} cannot be unpacked: {error.strerror}") from None  # type: ignore[union-attr]
        raise UserError(f"{path} is damaged, or it is truncated: fetch it again") from None


def _safetensors(file: Any) -> dict[str, Tensor]:
    found = {}
    for name in file.keys():  # noqa: SIM118, it is not a mapping
        kind = file.get_slice(name)
        read = functools.partial(lambda name: np.asarray(file.get_tensor(name)), name)
        found[name] = Tensor(tuple(kind.get_shape()), str(kind.get_dtype()), read)
    return found


def _npz(file: Path, path: Path) -> dict[str, Tensor]:
    try:
        with np.load(file) as archive:  # without pickles
            arrays = dict(archive)
    except (*DAMAGED, OSError, EOFError, MemoryError, OverflowError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not an .npz of plain arrays, or it is truncated: fetch it again\n{error}") from None
    return {
        name: Tensor(array.shape, FLOATS.get(str(array.dtype), str(array.dtype)), functools.partial(np.asarray, array))
        for name, array in arrays.items()
    }


def _pickled(file: Path, path: Path) -> Content:
    """A state dict that `torch.save` wrote, read by PyTorch in the mode that runs no code."""
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(
            f"{path} is a PyTorch pickle, which only PyTorch can read: pip install -e .[peers], or save it elsewhere "
            "with safetensors.torch.save_file"
        ) from None
    try:
        # Training programs store their options beside the weights. A namespace is nothing but values.
        options = torch.serialization.safe_globals([argparse.Namespace])
        with options, file.open("rb") as opened:  # PyTorch would judge a path by its name
            content = torch.load(opened, map_location="cpu", weights_only=True)
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

    def tensor(name: str, value: Any) -> Tensor:
        dtype = str(value.dtype).removeprefix("torch.")
        if value.layout is not torch.strided or value.is_meta:
            kind = "has no values" if value.is_meta else "is sparse"
            raise UserError(f"{name} in {path} {kind}: save the model again, with plain tensors")
        # PyTorch cannot pass bfloat16 to NumPy. float32 represents every bfloat16 number.
        read = lambda: (value.float() if dtype == "bfloat16" else value).detach().numpy()  # noqa: E731
        return Tensor(tuple(value.shape), FLOATS.get(dtype, dtype), read)

    def is_state_dict(content: Any) -> bool:
        return isinstance(content, Mapping) and all(isinstance(value, torch.Tensor) for value in content.values())

    def inside(content: Any) -> list[str]:
        """The keys of `content` that lead to weights."""
        inner = {key: content.get(key) for key in OUTER} if isinstance(content, Mapping) else {}
        found = {key: value for key, value in inner.items() if isinstance(value, Mapping) and value}
        return [key for key, value in found.items() if is_state_dict(value) or inside(value)]

    def unwrapped(content: Any, network: str | None = None) -> Content:
        """The one state dict in the checkpoint of a training run."""
        if is_state_dict(content):
            return Content({str(name): tensor(str(name), value) for name, value in content.items()}, network)
        inner = inside(content)
        if len(inner) > 1:
            raise UserError(
                f"{path} has several sets of weights, {' and '.join(inner)}: save one of them in a file of its own, "
                f"for example torch.save(torch.load(FILE)[{inner[-1]!r}], NEW)"
            )
        if not inner:
            keys = f"; it has {some(sorted(map(str, content)))}" if isinstance(content, Mapping) else ""
            raise UserError(f"{path} is not a state dict, which maps names to tensors: save `model.state_dict()`{keys}")
        return unwrapped(content[inner[0]], network or _network(content))

    return unwrapped(content)


def _network(labels: Mapping[str, Any]) -> str | None:
    """The name of the network that a file is for, if it says so."""
    return next((labels[key] for key in NAMES if isinstance(labels.get(key), str)), None)


def _without_wrappers(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors by the names that they have in the bare model: DataParallel, torch.compile and others add to them."""
    found: dict[str, Tensor] = {}
    before: dict[str, str] = {}
    for name, tensor in tensors.items():
        bare = ".".join(part for part in name.split(".") if part not in INSIDE)
        if bare in found:
            raise UserError(f"{path} has both {before[bare]} and {name}: save only one of them")
        if bare != "n_averaged":  # a count that torch.optim.swa_utils.AveragedModel keeps
            found[bare], before[bare] = tensor, name
    while len(first := {name.partition(".")[:2] for name in found}) == 1 and first <= {(word, ".") for word in BEFORE}:
        found = {name.partition(".")[2]: tensor for name, tensor in found.items()}
    return found


def check_network(path: Path, named: str | None, allowed: str, ours: str) -> None:
    """Raises UserError if a file of weights says that it is for another network than `allowed`, a regular expression.

    The name is in the file or, for the folders that timm publishes, in `config.json` beside it.
    """
    config = path.parent / "config.json"
    beside = read_json(config) if path.stem in ("model", "pytorch_model") and config.is_file() else {}
    for source, name in ((path, named), (config, beside.get("architecture"))):
        if isinstance(name, str) and not any(re.fullmatch(allowed, part) for part in re.split(r"[./]", name.lower())):
            raise UserError(
                f"{source} says that the weights are for {name}, not for {ours}: names and shapes may agree where the "
                "computation does not. If it is the same network, save the state dict alone in a file of its own"
            )
    changed = beside.get("model_args") or {}
    pools = isinstance(changed, dict) and [beside.get("global_pool"), changed.get("global_pool")]
    if not pools or not set(changed) <= HARMLESS or not all(pool in POOLS for pool in pools):
        raise UserError(
            f"{config} has model_args = {short(changed)} and global_pool = {short(beside.get('global_pool'))}, "
            "which change what the network computes"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: fetch it again\n{error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object: fetch it again")
    return content


def save_safetensors(
    path: Path,
    tensors: dict[str, np.ndarray],
    *,
    header: Mapping[str, str] = MappingProxyType({}),
    mode_of: Path | None = None,
) -> None:
    """Writes a file that PyTorch can read too, either completely or not at all.

    The strings of `header` become its metadata. The file gets the permissions of the file `mode_of`,
    or else rw-r--r--. Raises OSError if it cannot be written, and UserError if its name promises another format.
    """
    if path.suffix.lower() in PICKLES | {".npz", ".npy", ".tar", ".gz", ".bz2", ".xz", ".h5", ".zip", ".json"}:
        raise UserError(f"weights are written as safetensors: give a name such as {path.stem}.safetensors")
    fresh = path.with_name(f".{path.name}")  # renamed once it is complete
    try:
        # The writer ignores strides, so arrays must be contiguous. `np.ascontiguousarray` would give scalars an axis.
        ready = {name: np.asarray(array, order="C") for name, array in tensors.items()}
        save_file(ready, fresh, {"format": "pt", **header})
        _in_order(fresh)
    except SafetensorError as error:
        fresh.unlink(missing_ok=True)
        code = re.search(r"os error (\d+)", str(error))  # all that the writer says about a full disk
        raise OSError(int(code[1]) if code else errno.EIO, str(error), str(path)) from None
    if mode_of:
        shutil.copymode(mode_of, fresh)
    else:
        fresh.chmod(0o644)  # the writer makes it readable by the owner only
    fresh.replace(path)


def _in_order(path: Path) -> None:
    """Sorts the metadata of a safetensors file, whose writer has a random order: equal weights are equal files."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(content) <= size:
            file.seek(8)
            file.write(content.ljust(size))


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


def lacks(missing: list[str], found: Collection[str]) -> str:
    """What to say of missing tensors; where a wrapper that is not known here put a word before all, the word, too."""
    before = (name.removesuffix(missing[0]) for name in found if name.endswith(f".{missing[0]}"))
    word = next((word for word in before if all(word + name in found for name in missing)), "")
    return f"it lacks {some(missing)}" + (
        f", but has {word}{missing[0]}: save it without {word[:-1]!r}" if word else ""
    )


def classes(path: Path, name: str, tensors: Mapping[str, Tensor]) -> int:
    """The number of classes: the length of the head's bias."""
    if len(tensors[name].shape) != 1:
        raise UserError(f"{name} in {path} has shape {tensors[name].shape}, but a bias has one axis")
    return tensors[name].shape[0]


def some(names: list[str]) -> str:
    """The first three names of a list, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def short(value: Any) -> str:
    """A value of a configuration in a sentence, cut if it is long."""
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def put(tree: dict[str, Any], path: str, leaf: Any) -> None:
    """Inserts a leaf at a path joined by slashes."""
    *folders, name = path.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[name] = leaf


def _opened(stack: contextlib.ExitStack, file: Path, path: Path) -> Any:
    """An open safetensors file; its errors name `path`."""
    try:
        return stack.enter_context(safe_open(file, "numpy"))
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file, or it is truncated: fetch it again\n{error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
