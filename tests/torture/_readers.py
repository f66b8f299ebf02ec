"""The readers that are fuzzed: each function writes what a reader needs into a folder, and gives it and whole files.

fuzz.py imports this file while atheris watches: it counts the lines of the readers that a file reaches.
"""

import contextlib
import io
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from dlc import tokens, weights
from dlc.data import images, mnist
from dlc.errors import UserError
from dlc.models.gpt import GPT, GPTConfig
from dlc.models.mlp import MLP
from dlc.run import flags, log, pages, record
from dlc.weights import artifact, checkpoint, description, files
from experiments.attention import gpt
from experiments.mnist import mlp

ROOT = Path(__file__).parents[2]

Read = Callable[[bytes], Any]


def idx(folder: Path) -> tuple[Read, list[bytes]]:
    path = folder / "train-images-idx3-ubyte"
    image = b"\0\0\x08\3" + struct.pack(">3i", 2, 3, 4) + bytes(range(24))
    return lambda content: mnist.idx(_written(path, content)), [image, b"\0\0\x08\1" + struct.pack(">i", 5) + b"01234"]


def safetensors(folder: Path) -> tuple[Read, list[bytes]]:
    """A file or, beginning with a brace, the header of one, which gets its length and some numbers."""
    path = folder / "weights.safetensors"
    model = MLP((3,), num_classes=2)
    weights.save(path, model, model.init(jax.random.key(0), np.zeros((1, 4), np.float32)))
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    plain = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"x": "y"}})

    def read(content: bytes) -> None:
        if content[:1] == b"{":
            content = struct.pack("<Q", len(content)) + content + bytes(128)
        _written(path, content)
        with contextlib.ExitStack() as stack:
            for tensor in files.open_tensors(stack, path).tensors.values():
                tensor.read()
        weights.load(path)

    return read, [whole, whole[8 : 8 + length], plain.encode()]


def model(folder: Path) -> tuple[Read, list[bytes]]:
    """model.json, the description of a model, from which a class is looked up and constructed."""
    small = GPT(GPTConfig(vocab=10, context=8, layers=1, heads=1, width=4))
    described = [json.dumps(description.describe(each)).encode() for each in (MLP((3,)), small)]
    described += [b'{"path": "jax.nn.relu"}', b'{"partial": {"path": "jax.nn.gelu"}, "args": [], "keywords": {}}']
    described += [b'{"frozen": [[1, {"tuple": [{"dtype": "bfloat16"}]}]]}', b'{"dict": [[[1], 2]]}']
    path = folder / artifact.MODEL
    return lambda content: description.rebuild(artifact.read_description(_written(path, content).parent)), described


def saved(folder: Path) -> tuple[Read, list[bytes]]:
    """A checkpoint of which one file, the first byte says which, has other content."""
    state = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.int32(3)}
    writing = checkpoint.Checkpoints(folder / "whole")
    writing.save(3, state)
    writing.wait()
    writing.close()
    paths = sorted(path.relative_to(folder / "whole") for path in (folder / "whole").rglob("*") if path.is_file())

    def read(content: bytes) -> None:
        if not content:
            return
        place = folder / "damaged"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "whole", place)
        damaged = paths[content[0] % len(paths)]
        (place / damaged).write_bytes(content[1:])
        reading = checkpoint.Checkpoints(place)
        try:
            found = reading.restore(state, lambda line: None)
        finally:
            reading.close()
        if found and not all(np.array_equal(found[1][name], state[name]) for name in state):
            raise AssertionError(f"{damaged} gives other numbers")

    return read, [bytes([i]) + (folder / "whole" / path).read_bytes() for i, path in enumerate(paths)]


def picture(folder: Path) -> tuple[Read, list[bytes]]:
    seeds = []
    noise = np.random.default_rng(0).integers(256, size=(5, 7, 3), dtype=np.uint8)
    for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        for mode in ("RGB", "L"):
            file = io.BytesIO()
            Image.fromarray(noise).convert(mode).save(file, form)
            seeds.append(file.getvalue())
    for mode in ("RGBA", "P", "1", "I;16"):
        file = io.BytesIO()
        Image.fromarray(noise[..., 0].astype(np.uint16) if mode == "I;16" else noise).convert(mode).save(file, "PNG")
        seeds.append(file.getvalue())

    def read(content: bytes) -> None:
        whole = images.decode(content)
        if whole.ndim != 3 or whole.shape[2] != 3 or whole.dtype != np.uint8:
            raise AssertionError(f"{whole.shape} {whole.dtype}")
        images.decode_part(content, lambda height, width: (0.0, 0.0, float(width), float(height)), 8)

    return read, seeds


def config(folder: Path) -> tuple[Read, list[bytes]]:
    """config.json, log.jsonl, origins.json and result.json of a run: each reader reads whatever it is."""
    seeds = []
    for name, kind in (("mnist.mlp", mlp.Config), ("attention.gpt", gpt.Config)):
        flags.save(folder, name, kind(), f"python -m experiments.{name} --lr 0.1")
        seeds.append((folder / "config.json").read_bytes())
    seeds += [b'{"step": 3, "loss": {"mean": 1.0, "std": 0.1, "values": [1.0]}, "seconds": {"train": 2.5}}\n']
    results = sorted((ROOT / "results").glob("*.json"), key=lambda path: path.stat().st_size)
    seeds += [path.read_bytes() for path in results[:4]]
    seeds += [json.dumps([{"device": {"kind": "x"}, "versions": {"jax": "1"}, "commit": None}]).encode()]
    (folder / "results").mkdir()

    def read(content: bytes) -> None:
        for name in ("config.json", "log.jsonl", "origins.json", "result.json"):
            _written(folder / name, content)
        flags.run_of(folder)
        list(log.read(folder))
        record._origins(folder)
        for name, kind in (("mnist.mlp", mlp.Config), ("attention.gpt", gpt.Config)):
            with contextlib.suppress(UserError):
                flags.check(flags.expanded(flags.load(folder, name, kind)))
        _written(folder / "results" / "one.json", content)
        with contextlib.suppress(UserError):
            pages.tables(folder / "results")
        pages.add(folder, folder)

    return read, seeds


def huggingface(folder: Path) -> tuple[Read, list[bytes]]:
    """config.json beside published weights."""
    small = GPT(GPTConfig(vocab=10, context=8, layers=1, heads=1, width=4))
    weights.save_gpt2(folder, small, small.init(jax.random.key(0), np.zeros((1, 3), np.int32))["params"])
    path = folder / "config.json"
    llama = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama |= {"num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 10, "max_position_embeddings": 8}
    llama |= {"rms_norm_eps": 1e-5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}
    vit = {"model_type": "vit", "hidden_size": 8, "id2label": {"0": "a"}, "image_size": [8, 8], "patch_size": 4}

    def read(content: bytes) -> None:
        weights.load(_written(path, content).parent)

    return read, [path.read_bytes(), json.dumps(llama).encode(), json.dumps(vit).encode(), b'{"model_type": "bert"}']


def tokenizer(folder: Path) -> tuple[Read, list[bytes]]:
    """tokenizer.json and, if it does not begin with a brace, tok.bin of llama2.c."""
    tokens.Characters.of("abc").save(folder)
    seeds = [(folder / tokens.FILE).read_bytes()]
    tokens.train_words(["a b c d", "a b"], 8).save(folder)
    seeds.append((folder / tokens.FILE).read_bytes())
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(f"<0x{i:02X}>".encode() for i in range(256)), b"a", b"b", b"ab"]
    seeds.append(struct.pack("<i", 6) + b"".join(struct.pack("<fi", 0.0, len(piece)) + piece for piece in pieces))

    def read(content: bytes) -> None:
        for name in (tokens.FILE, "tok.bin"):
            (folder / name).unlink(missing_ok=True)
        _written(folder / (tokens.FILE if content[:1] == b"{" else "tok.bin"), content)
        found = tokens.load(folder)
        found.decode(found.encode("a"))

    return read, seeds


READERS = {
    "idx": idx,
    "safetensors": safetensors,
    "model": model,
    "checkpoint": saved,
    "picture": picture,
    "config": config,
    "huggingface": huggingface,
    "tokenizer": tokenizer,
}


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
