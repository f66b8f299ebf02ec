"""A Llama in the format of llama2.c: seven integers, and after them every weight as a float of 32 bits.

    model, variables = load_llama2c("stories260K.bin")
    tokenizer = tokens.load("FOLDER")  # of tok512.bin

References: Karpathy 2023, https://github.com/karpathy/llama2.c: `legacy_export` in export.py writes such files, and
`memory_map_weights` in run.c reads them.
"""

import dataclasses
import math
import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlc.errors import UserError
from dlc.models.gpt import GPT, GPTConfig

HEADER = ("width", "hidden", "layers", "heads", "kv_heads", "vocab", "context")
NEWER = 0x616B3432  # what files of later versions begin with
LARGEST = 2**24  # no size of a model is larger; other kinds of files begin with larger numbers, or with a zero


def is_llama2c(path: Path) -> bool:
    """Whether a file begins with sizes that a model may have, or as a later version of the format does."""
    try:
        sizes = _header(path)
    except UserError:
        return False
    return sizes["width"] == NEWER or all(0 < abs(size) < LARGEST for size in sizes.values())


def load_llama2c(path: str | Path, **changes: Any) -> tuple[GPT, dict[str, Any]]:
    """The model in a file of llama2.c's first format (`export.py --version 0`) and its variables {"params": ...}.

    `changes` override fields of the configuration, such as dtype="bfloat16".

    Raises UserError if the file is of another kind, or is not as long as its sizes say. Nothing else is read before.
    """
    path = Path(path)
    sizes = _header(path)
    if sizes["width"] == NEWER:
        raise UserError(f"{path} has a later format of llama2.c: export the model again with --version 0")
    tied, sizes["vocab"] = sizes["vocab"] > 0, abs(sizes["vocab"])  # a negative number says that it is not
    D, N, K = sizes["width"], sizes["heads"], sizes["kv_heads"]
    if not all(0 < size < LARGEST for size in sizes.values()) or D % (2 * N) or N % K:
        said = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(f"{path} is not a model of llama2.c, or it is damaged: it begins with the sizes {said}")
    parts = _parts(sizes, tied)
    expected, found = 28 + 4 * sum(map(math.prod, parts.values())), path.stat().st_size
    if found != expected:
        raise UserError(f"{path} has {found:,} bytes, but its sizes need {expected:,}: fetch it again")

    # The defaults of `epsilon` and `theta` are what llama2.c has.
    form: dict[str, Any] = {"positions": "rotary", "norm": "rms", "activation": "swiglu", "use_bias": False}
    model = GPT(dataclasses.replace(GPTConfig(**form, **sizes, tied=tied), **changes))
    numbers = np.memmap(path, "<f4", "r", offset=28)
    w, at = {}, 0
    for name, shape in parts.items():
        w[name] = numbers[at : (at := at + math.prod(shape))].reshape(shape)

    def kept(tree: dict[str, Any]) -> dict[str, Any]:
        return jax.tree.map(lambda array: jnp.array(array, model.config.param_dtype), tree)

    params = kept({"token": {"embedding": w["token"]}, "norm": {"scale": w["norm"]}})
    if not tied:
        params |= kept({"head": {"kernel": w["head"].T}})
    for i in range(sizes["layers"]):
        joined = np.concatenate([_halves(w["query"][i], N), _halves(w["key"][i], K), w["value"][i]])
        block = {
            "norm1": {"scale": w["norm1"][i]},
            "attention": {"query_key_value": {"kernel": joined.T}, "out": {"kernel": w["out"][i].T}},
            "norm2": {"scale": w["norm2"][i]},
            **{name: {"kernel": w[name][i].T} for name in ("gate", "up", "down")},
        }
        params[f"block{i}"] = kept(block)
    return model, {"params": params}


def _header(path: Path) -> dict[str, Any]:
    """The seven integers of a file, by name."""
    try:
        with path.open("rb") as file:
            head = file.read(28)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(head) < 28:
        raise UserError(f"{path} is not a model of llama2.c, or it is truncated: fetch it again")
    return dict(zip(HEADER, struct.unpack("<7i", head), strict=True))


def _parts(sizes: dict[str, int], tied: bool) -> dict[str, tuple[int, ...]]:
    """The tensors of a file, in their order, by our names; kernels are [out, in], as PyTorch's."""
    D, F, L, N, K, V, C = sizes.values()
    H = D // N
    parts: dict[str, tuple[int, ...]] = {
        "token": (V, D), "norm1": (L, D),
        "query": (L, D, D), "key": (L, K * H, D), "value": (L, K * H, D), "out": (L, D, D),
        "norm2": (L, D), "gate": (L, F, D), "down": (L, D, F), "up": (L, F, D), "norm": (D,),
        "cosines": (C, H // 2), "sines": (C, H // 2),
    }  # fmt: skip
    return parts if tied else {**parts, "head": (V, D)}


def _halves(kernel: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a kernel in another order: theirs turns features (2 i, 2 i + 1) of a head, ours (i, i + H/2)."""
    return kernel.reshape(heads, -1, 2, kernel.shape[1]).swapaxes(1, 2).reshape(kernel.shape)
