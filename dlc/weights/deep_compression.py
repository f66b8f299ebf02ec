"""SqueezeNet 1.0 with ImageNet's weights, compressed as its authors publish it: 676 kB.

    model, variables = load_squeezenet_dc("compressed_SqueezeNet.net")

The file holds 26 counts, uint32, one for each convolution. Then come for each convolution 256 values, float32; its
biases, float32; one byte for each weight that is listed, which says which of the values it has; and four bits for each,
how many places before it are not listed. Weights that are not listed have the first value, which is 0. Numbers are
little-endian, and the lower four bits of a byte come first. Kernels are in Caffe's layout [O, I, KH, KW].

The file has no name of its own in it: what begins with 26 counts that fit the network is taken for it.

References: Han, Mao, Dally 2016, "Deep compression: compressing deep neural networks with pruning, trained quantization
and Huffman coding", of which this is all but the last step; file and program (BSD licence) are in
https://github.com/songhan/SqueezeNet-Deep-Compression.
"""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dlc.data.imagenet import MEAN, STD
from dlc.errors import UserError
from dlc.models.squeezenet import FIRES, SqueezeNet, squeezenet1_0
from dlc.weights import files

NETWORK = squeezenet1_0(padded=True)
VALUES = 256  # that the weights of a convolution can have
BYTE_MEANS = (123, 117, 104)  # what the network was trained without, of red, green and blue in 0..255
# The one file that is published
LENGTH, SHA256 = 675763, "e4ab6960ae8cd81505e1c2136921201507e930966c53deaf15862a395b3a3261"
FETCH = "fetch compressed_SqueezeNet.net from https://github.com/songhan/SqueezeNet-Deep-Compression"


def _convolutions() -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """Our paths and the shapes [O, I, KH, KW] in the file, in its order."""
    yield "conv1", (96, 3, 7, 7)
    width = 96
    for i, (between, half) in FIRES.items():
        yield f"fire{i}/squeeze", (between, width, 1, 1)
        yield f"fire{i}/expand1x1", (half, between, 1, 1)
        yield f"fire{i}/expand3x3", (half, between, 3, 3)
        width = 2 * half
    yield "conv10", (NETWORK.num_classes, width, 1, 1)


SHAPES = dict(_convolutions())
SIZES = {name: math.prod(shape) for name, shape in SHAPES.items()}


def is_squeezenet_dc(path: Path) -> bool:
    """Whether a file begins with a count of weights for each convolution of SqueezeNet 1.0."""
    try:
        counts = _counts(path) if path.is_file() else []
    except OSError:
        return False
    return len(counts) == len(SIZES) and all(1 <= n <= size for n, size in zip(counts, SIZES.values(), strict=True))


def load_squeezenet_dc(path: str | Path, **changes: Any) -> tuple[SqueezeNet, dict[str, Any]]:
    """The network and its variables {"params": ...}. `changes` are fields of the model, such as dtype="bfloat16".

    It takes photographs prepared as for the other networks of ImageNet (`dlc.data.imagenet.standardised` with the
    default rule). The file's own first layer takes 0..255 without `BYTE_MEANS`, blue first. The scales, the difference
    of the means and the order of the colours are moved into its kernel and bias, which changes nothing else, because
    that layer has no padding.

    Raises UserError if the file is missing, another one, truncated, too long or damaged.
    """
    path, model = Path(path), NETWORK.clone(**changes)
    if (model.version, model.num_classes) != (NETWORK.version, NETWORK.num_classes):
        raise UserError(f"{path} is SqueezeNet {NETWORK.version} for {NETWORK.num_classes:,} classes, and no other")
    _check(path)
    content = path.read_bytes()
    if len(content) == LENGTH and hashlib.sha256(content).hexdigest() != SHA256:
        raise UserError(f"{path} is damaged: its sha256 is not that of the published file; {FETCH} again")
    at = 4 * len(SIZES)

    def take(count: int, dtype: str) -> np.ndarray:
        nonlocal at
        found = np.frombuffer(content, dtype, count, at)
        at += found.nbytes
        return found

    variables: dict[str, Any] = {}
    for count, (name, shape) in zip(_counts(path), SHAPES.items(), strict=True):
        values, bias = take(VALUES, "<f4"), take(shape[0], "<f4")
        listed, pairs = take(count, "u1"), take((count + 1) // 2, "u1")
        gaps = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(-1)[:count]
        places = np.cumsum(gaps + 1, dtype=np.int64) - 1
        if places[-1] >= SIZES[name] or not (np.isfinite(values).all() and np.isfinite(bias).all()):
            what = "places beyond its weights" if places[-1] >= SIZES[name] else "numbers that are not finite"
            raise UserError(f"{path} is damaged: {name} has {what}; {FETCH} again")
        codes = np.zeros(SIZES[name], np.uint8)
        codes[places] = listed
        kernel = values[codes].reshape(shape).transpose(2, 3, 1, 0)
        if name == "conv1":
            kernel, bias = _prepared(kernel, bias)
        for leaf, array in (("kernel", kernel), ("bias", bias)):
            files.put(variables, f"params/{name}/{leaf}", jnp.array(array, model.param_dtype))
    return model, variables


def _prepared(kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first layer for x = (red, green, blue / 255 - MEAN) / STD, instead of 255 (STD x + MEAN) - BYTE_MEANS."""
    kernel = kernel[:, :, ::-1].astype(np.float64)
    offset = 255 * np.asarray(MEAN) - BYTE_MEANS
    bias = bias + np.einsum("hwio,i->o", kernel, offset)
    return (kernel * 255 * np.asarray(STD)[:, None]).astype(np.float32), bias.astype(np.float32)


def _counts(path: Path) -> list[int]:
    """The numbers at the beginning of a file, as many as there are convolutions or fewer."""
    with path.open("rb") as file:
        head = file.read(4 * len(SIZES))
    return np.frombuffer(head, "<u4", len(head) // 4).tolist()


def _check(path: Path) -> None:
    """Raises UserError unless a file begins with counts that fit, and is as long as they say."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: {FETCH}")
    try:
        counts, length = _counts(path), path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if not is_squeezenet_dc(path):
        raise UserError(f"{path} is not SqueezeNet 1.0 as its authors compressed it: {FETCH}")
    each = ((n, shape[0]) for n, shape in zip(counts, SHAPES.values(), strict=True))
    needed = 4 * len(counts) + sum(4 * (VALUES + biases) + n + (n + 1) // 2 for n, biases in each)
    if length != needed:
        what = "truncated" if length < needed else "too long"
        raise UserError(f"{path} is {what}: it has {length:,} bytes instead of {needed:,}; {FETCH} again")
