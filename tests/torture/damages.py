"""Every file of a run, of data sets, of weights and of the records: flipped, cut, emptied, zeroed and deleted.

Each time a folder is copied, one file in the copy is harmed, and the copy is used. What comes out must be what comes
out of the whole folder, to the bit, or a sentence that refuses it; where older checkpoints are there, also what they
give. A few files have no checksum, which SECURITY.md says: of these a change within the content cannot be seen, and
only the other harms must be.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.torture._programs import Stuck, inside
from tests.torture._table import How, Row

ROOT = Path(__file__).parents[2]
EPOCHS = ("--epochs", "3", "--save-every", "0")


class Subject(NamedTuple):
    """What is harmed.

    Attributes:
        whole: a folder.
        use: what comes out of such a folder, as JSON holds it. Raises UserError.
        files: the names of those that are harmed; all by default.
        blind: a piece of the names of files that have no checksum.
        also: other things that may come out.
    """

    whole: Path
    use: Callable[[Path], Any]
    files: str = "*"
    blind: tuple[str, ...] = ()
    also: tuple[Any, ...] = ()


def bit(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def some_bytes(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(content))
    content[at : at + 8] = rng.randbytes(len(content[at : at + 8]))


def zeros(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(content))
    length = min(rng.choice([16, 512, len(content)]), len(content) - at)
    content[at : at + length] = bytes(length)


def cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def emptied(content: bytearray, rng: random.Random) -> None:
    content.clear()


HARMS: dict[str, Any] = {
    "bit": bit,
    "bytes": some_bytes,
    "zeros": zeros,
    "cut": cut,
    "emptied": emptied,
    "deleted": None,
}
WITHIN = ("bit", "bytes", "zeros")


def rows(how: How) -> Iterator[Row]:
    how.folder.mkdir(parents=True)
    for i, what in enumerate(SUBJECTS):
        began = time.monotonic()
        seconds = how.seconds() / (len(SUBJECTS) - i)
        try:
            counts = inside(_harmed, str(how.folder / str(i)), what, 12 * how.times, how.seed, seconds)
        except Stuck as error:
            counts = {"tried": 1, "notes": [str(error)]}
        survived = sum(counts.get(name, 0) for name in ("refused", "same", "earlier", "not visible"))
        told = [f"{counts[name]} {name}" for name in ("refused", "same", "earlier", "not visible") if counts.get(name)]
        yield Row(what, counts["tried"], survived, time.monotonic() - began, ", ".join(told + counts["notes"][:3]))


def _harmed(place: str, what: str, times: int, seed: int, seconds: float) -> dict[str, Any]:
    """How often what came out of a harmed copy."""
    warnings.simplefilter("ignore")
    end, rng, counts, notes = time.monotonic() + seconds, random.Random(f"{seed} {what}"), Counter[str](), []
    folder = Path(place)
    folder.mkdir()
    subject = SUBJECTS[what](folder / "whole")
    every = [path for path in sorted(subject.whole.rglob(subject.files)) if path.is_file() and path.name != ".lock"]
    pairs = [(path.relative_to(subject.whole), harm) for path in every for harm in HARMS]
    rng.shuffle(pairs)
    copy = folder / "copy" / subject.whole.name
    expected = _used(subject, copy)
    for i in range(times):
        if time.monotonic() > end and i >= len(HARMS):
            break
        name, harm = pairs[i % len(pairs)]
        state = rng.getstate()
        outcome, words = _outcome(subject, copy, expected, name, harm, rng)
        counts[outcome] += 1
        counts["tried"] += 1
        if outcome in ("wrong", "traceback"):
            notes.append(f"{outcome.upper()} {name} {harm}: {words[:150]}")
            kept = folder / f"{outcome}-{i}"
            shutil.copytree(copy, kept, dirs_exist_ok=True)
            (kept / "words.txt").write_text(f"{words}\n{state[0]}\n")
    return {**counts, "notes": notes}


def _outcome(subject: Subject, copy: Path, expected: Any, name: Path, harm: str, rng: random.Random) -> tuple[str, str]:
    from dlc.errors import UserError

    try:
        found = _used(subject, copy, lambda: _harm(copy / name, harm, rng))
    except UserError as error:
        return ("refused", "") if str(error) and "Traceback" not in str(error) else ("traceback", str(error)[:300])
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "traceback", f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {str(error)[:2000]}"
    if _equal(found, expected):
        return "same", ""
    if any(_equal(found, other) for other in subject.also):
        return "earlier", ""
    if harm in WITHIN and any(word in str(name) for word in subject.blind):
        return "not visible", ""
    differing = [key for key in expected if found.get(key) != expected[key]] if isinstance(expected, dict) else ""
    return "wrong", f"{differing}"[:200]


def _used(subject: Subject, copy: Path, harm: Callable[[], None] = lambda: None) -> Any:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(subject.whole, copy)
    harm()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return subject.use(copy)


def _harm(path: Path, harm: str, rng: random.Random) -> None:
    if harm == "deleted":
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    if content:
        HARMS[harm](content, rng)
    path.write_bytes(content)


def _equal(found: Any, expected: Any) -> bool:
    """Whether two results agree; what a program itself called damaged need not."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return found.keys() == expected.keys() and all(found[key] in ("said", expected[key]) for key in expected)
    return found == expected


def digest(tree: Any) -> str:
    """A checksum of arrays in nested dictionaries, lists and tuples, and of anything that has a repr."""
    import jax
    import numpy as np

    told = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        content = repr(leaf).encode() if array.dtype == object or array.dtype.kind == "U" else array.tobytes()
        told.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode() + content)
    return told.hexdigest()


# Runs


def launched(*words: Any) -> str:
    """What an experiment says on stderr, in this process. Raises UserError if it ends with another code than 0."""
    from dlc.errors import UserError
    from dlc.run.launch import launch
    from experiments.mnist import mlp

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            launch(mlp.train, mlp.Config(), mlp.SMOKE, mlp.show, argv=[str(word) for word in words])
        except SystemExit as stopped:
            if stopped.code:
                raise UserError(said.getvalue()) from None
    return said.getvalue()


def a_run(whole: Path) -> Path:
    """The folder of a run of two epochs, each with its checkpoint."""
    with contextlib.redirect_stdout(io.StringIO()):
        launched("--smoke", "--save-every", 0, "--out", whole.parent / "out")
    (folder,) = (whole.parent / "out").glob("*/*")
    return folder.rename(whole)


def loaded(whole: Path) -> Subject:
    from dlc import weights
    from dlc.weights.description import describe

    def use(folder: Path) -> Any:
        model, variables = weights.load(folder)
        return {"model": json.dumps(describe(model)), "variables": digest(variables)}

    a_run(whole)
    stopped = whole.parent / "stopped"
    shutil.copytree(whole, stopped)
    (stopped / "weights.safetensors").unlink()
    shutil.rmtree(stopped / "checkpoints" / "28")
    return Subject(whole, use, also=(use(stopped),))


def killed_and_loaded(whole: Path) -> Subject:
    subject = loaded(whole)
    (whole / "weights.safetensors").unlink()
    return subject


def resumed(whole: Path) -> Subject:
    """Trained for a third epoch. What is said to be damaged may be missing from the log and the record."""
    from dlc import files, weights
    from dlc.run import log

    def use(folder: Path) -> Any:
        said = launched("--resume", folder, *EPOCHS)
        record = files.unsealed((folder / "result.json").read_bytes())
        lines = [{k: v for k, v in line.items() if "second" not in k} for line in log.read(folder)]
        _, variables = weights.load(folder)
        keys = ("figures", "config", "seeds", "train_flops", "claim", "dataset", "steps")
        found = {key: json.dumps(record.get(key)) for key in keys}
        found["versions"] = "said" if "origins.json is damaged" in said else json.dumps(record["versions"])
        found["log"] = "said" if "log.jsonl is damaged" in said else json.dumps(lines)
        return found | {"variables": digest(variables)}

    return Subject(a_run(whole), use)


def shown(whole: Path) -> Subject:
    from dlc import files

    def use(folder: Path) -> Any:
        out = folder.parent / "shown"
        shutil.rmtree(out, ignore_errors=True)
        launched("--weights", folder, "--out", out)
        (path,) = out.glob("*/*/result.json")
        record = files.unsealed(path.read_bytes())
        return {key: json.dumps(record.get(key)) for key in ("figures", "config", "dataset")}

    a_run(whole)
    earlier = whole.parent / "earlier" / "whole"
    shutil.copytree(whole, earlier)
    (earlier / "weights.safetensors").unlink()
    shutil.rmtree(earlier / "checkpoints" / "28")
    found = use(earlier)
    return Subject(whole, use, also=(found,))


def as_a_program(whole: Path) -> Subject:
    """The same in processes of their own, of which the exit code and stderr are read."""
    from dlc import files
    from dlc.errors import UserError

    def use(folder: Path) -> Any:
        command = [sys.executable, "-m", "experiments.mnist.mlp", "--resume", str(folder), *EPOCHS]
        told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if told.returncode:
            raise UserError(told.stderr)
        if "Traceback" in told.stderr:
            raise AssertionError(told.stderr[told.stderr.index("Traceback") :])
        record = files.unsealed((folder / "result.json").read_bytes())
        return {key: json.dumps(record.get(key)) for key in ("figures", "config", "seeds", "train_flops")}

    return Subject(a_run(whole), use)


# Data sets


def small_set(whole: Path, packed: bool) -> Any:
    """Images and labels in idx files, as they are published or unpacked by hand."""
    import gzip

    import numpy as np

    from dlc.data import _arrays, mnist
    from dlc.data._published import File, Published

    rng = np.random.default_rng(0)
    place = whole / "sources" / "small"
    place.mkdir(parents=True)
    published = []
    for name, shape in zip(mnist.FILES, ((60, 28, 28), (60,), (20, 28, 28), (20,)), strict=True):
        values = rng.integers(10, size=shape, dtype=np.uint8)
        content = b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values.tobytes()
        zipped = gzip.compress(content, mtime=0)
        sums = [hashlib.sha256(one).hexdigest() for one in (zipped, content)]
        published.append(File(f"{name}.gz", "https://localhost/", len(zipped), *sums))
        (place / (f"{name}.gz" if packed else name)).write_bytes(zipped if packed else content)
    known = Published("small", tuple(published), instead="it is small", closed="it is made up")
    return _arrays.Arrays(known, mnist.parse, _arrays.images(28, 28, 1), (60, 20), tuple("0123456789"))


def arrays_of(data: Any) -> Callable[[Path], Any]:
    from dlc.data import _arrays

    def use(folder: Path) -> Any:
        os.environ["DLC_DATA"] = str(folder)
        found = _arrays.load(data)
        return digest((found.train, found.test, found.classes))

    return use


def idx(whole: Path) -> Subject:
    return Subject(whole, arrays_of(small_set(whole, packed=True)))


def idx_by_hand(whole: Path) -> Subject:
    return Subject(whole, arrays_of(small_set(whole, packed=False)))


def cache(whole: Path) -> Subject:
    use = arrays_of(small_set(whole, packed=True))
    use(whole)
    return Subject(whole, use)


def cache_alone(whole: Path) -> Subject:
    subject = cache(whole)
    shutil.rmtree(whole / "sources")
    return subject


def cifar_pickles(whole: Path) -> Subject:
    import pickle

    import numpy as np

    from dlc.data import cifar

    rng = np.random.default_rng(0)
    whole.mkdir()
    for name in cifar.TORCHVISION:
        batch = {
            b"data": rng.integers(256, size=(20, 3072), dtype=np.uint8),
            b"labels": rng.integers(10, size=20).tolist(),
        }
        (whole / name).write_bytes(pickle.dumps(batch, protocol=3))
        cifar.TORCHVISION[name] = hashlib.md5((whole / name).read_bytes(), usedforsecurity=False).hexdigest()
    return Subject(whole, lambda folder: digest(cifar.parse_torchvision(folder)))


def example(features: dict[str, bytes | int]) -> bytes:
    """A tf.train.Example in the encoding of Protocol Buffers."""

    def field(number: int, content: bytes) -> bytes:
        size, length = b"", len(content)
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    pairs = b""
    for name, value in features.items():
        held = field(1, field(1, value)) if isinstance(value, bytes) else field(3, field(1, bytes([value])))
        pairs += field(1, field(1, name.encode()) + field(2, held))
    return field(1, pairs)


def prepared(whole: Path, kind: str) -> Subject:
    """A folder as TensorFlow Datasets prepares it."""
    import numpy as np
    from PIL import Image

    from dlc.data import _array_record, _tfds

    whole.mkdir()
    rng, splits = np.random.default_rng(0), []
    for split in ("train", "test"):
        records = []
        for _ in range(12):
            png = io.BytesIO()
            Image.fromarray(rng.integers(256, size=(8, 8), dtype=np.uint8)).save(png, "PNG")
            records.append(example({"image": png.getvalue(), "label": int(rng.integers(10))}))
        path = whole / f"small-{split}.{kind}-00000-of-00001"
        if kind == "array_record":
            from array_record.python.array_record_module import ArrayRecordWriter

            writer = ArrayRecordWriter(str(path), "group_size:1")
            for record in records:
                writer.write(record)
            writer.close()
        else:
            sealed = lambda one: one + _array_record.masked(_array_record.crc32c(one)).to_bytes(4, "little")  # noqa: E731
            path.write_bytes(b"".join(sealed(len(one).to_bytes(8, "little")) + sealed(one) for one in records))
        splits.append({"name": split, "shardLengths": ["12"]})
    (whole / "dataset_info.json").write_text(
        json.dumps({"fileFormat": kind, "disableShuffling": True, "splits": splits})
    )

    def use(folder: Path) -> Any:
        return digest([_tfds.images(folder, "small", split, (8, 8, 1), 12) for split in ("train", "test")])

    return Subject(whole, use, blind=("dataset_info",))


def pictures(whole: Path) -> Subject:
    import numpy as np
    from PIL import Image

    from dlc.data import _folder, images

    for i in range(24):
        place = whole / "train" / f"class{i % 2}" if i < 16 else whole / "val" / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(256, size=(16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / f"{i}.{('jpg', 'png')[i // 2 % 2]}")

    def use(folder: Path) -> Any:
        found = _folder.folder(folder)
        every = [path for path, _ in (*found.train, *found.validation)]
        here = {str(path.relative_to(folder)): digest(images.decode(path)) for path in every}
        names = [path.relative_to(whole) for path in whole.rglob("*.*")]
        gone = {str(name): "said" for name in names if not (folder / name).exists()}
        return here | gone  # that one was removed, only its owner knows

    return Subject(whole, use, blind=(".jpg",))


def a_text(whole: Path) -> Subject:
    import gzip

    from dlc.data import text

    whole.mkdir()
    words = " ".join(random.Random(0).choices(["to", "be", "or", "not", "é"], k=2000))
    (whole / "mine.txt.gz").write_bytes(gzip.compress(words.encode(), mtime=0))
    return Subject(whole, lambda folder: digest(text.read(folder / "mine.txt.gz").train))


# Weights


def state_dict(whole: Path, name: str, write: Callable[[Path, dict[str, Any]], None]) -> Subject:
    import jax
    import numpy as np

    from dlc import weights
    from dlc.models.squeezenet import squeezenet1_1

    model = squeezenet1_1(num_classes=2)
    whole.mkdir()
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32))
    drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    weights.save_state_dict(whole / "all.safetensors", model, drawn)
    from safetensors.numpy import load_file

    tensors = load_file(whole / "all.safetensors")
    (whole / "all.safetensors").unlink()
    write(whole / name, tensors)

    def use(folder: Path) -> Any:
        loaded, variables = weights.load(folder / name, model)
        return {"model": repr(loaded), "variables": digest(variables)}

    return Subject(whole, use, blind=() if "checked" in name or name[-3:] in ("npz", ".gz") else (name,))


def published_safetensors(whole: Path) -> Subject:
    from safetensors.numpy import save_file

    return state_dict(whole, "plain.safetensors", lambda path, tensors: save_file(tensors, path))


def packed_safetensors(whole: Path) -> Subject:
    import gzip

    from safetensors.numpy import save

    return state_dict(
        whole, "plain.gz", lambda path, tensors: path.write_bytes(gzip.compress(save(tensors), 1)) and None
    )


def torch_weights(whole: Path) -> Subject:
    import torch

    def write(path: Path, tensors: dict[str, Any]) -> None:
        torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, path)

    return state_dict(whole, "checked.pth", write)


def npz(whole: Path) -> Subject:
    import numpy as np

    return state_dict(whole, "plain.npz", lambda path, tensors: np.savez(path, **tensors))


def deep_compression(whole: Path) -> Subject:
    from dlc import weights

    found = Path(os.environ.get("DLC_TEST_DATA", "")) / "weights_squeezenet_dc" / "compressed_SqueezeNet.net"
    whole.mkdir()
    if found.is_file():
        shutil.copyfile(found, whole / found.name)
        return Subject(whole, lambda folder: digest(weights.load(folder / found.name)[1]))
    (whole / "none").write_text("the file is not here")
    return Subject(whole, lambda folder: "", blind=("none",))


def huggingface(whole: Path) -> Subject:
    import jax
    import numpy as np

    from dlc import tokens, weights
    from dlc.models.gpt import GPT, GPTConfig

    model = GPT(GPTConfig(vocab=40, context=8, layers=2, heads=2, width=8))
    weights.save_gpt2(whole, model, model.init(jax.random.key(0), np.zeros((1, 3), np.int32))["params"])
    tokens.train_words([" ".join(f"w{i}" for i in range(35))] * 2, 40).save(whole)

    def use(folder: Path) -> Any:
        found, variables = weights.load(folder)
        ids = tokens.load(folder).encode("w1 w2 w30")
        return {"variables": digest(variables), "config": repr(found.config), "ids": digest(ids)}

    return Subject(whole, use, blind=("config.json", "tokenizer.json", "model.safetensors"))


def llama2c(whole: Path) -> Subject:
    import numpy as np

    from dlc import weights
    from dlc.weights import llama2c

    whole.mkdir()
    sizes = dict(zip(llama2c.HEADER, (8, 16, 2, 2, 1, 12, 8), strict=True))
    numbers = sum(int(np.prod(shape)) for shape in llama2c._parts(sizes, tied=True).values())
    content = (
        struct.pack("<7i", *sizes.values()) + np.random.default_rng(0).normal(size=numbers).astype("<f4").tobytes()
    )
    (whole / "stories.bin").write_bytes(content)

    def use(folder: Path) -> Any:
        found, variables = weights.load(folder / "stories.bin")
        return {"model": repr(found.config), "variables": digest(variables)}

    return Subject(whole, use, blind=("stories.bin",))


def exported(whole: Path) -> Subject:
    import jax
    import numpy as np

    from dlc import export
    from dlc.models.mlp import MLP

    model, x = MLP((4,), num_classes=3), np.ones((2, 5), np.float32)
    whole.mkdir()
    export.save(whole / "model.jax", model, model.init(jax.random.key(0), x), x)
    return Subject(whole, lambda folder: digest(export.load(folder / "model.jax")(x)))


# Records


def records(whole: Path) -> Subject:
    from dlc import files
    from dlc.run import pages

    whole.mkdir()
    for path in sorted((ROOT / "results").glob("*.json"))[::6]:
        (whole / path.name).write_text(files.sealed(json.loads(path.read_text())))
    pages_of = lambda folder: {"page": digest(list(pages.tables(folder)))}  # noqa: E731

    def use(folder: Path) -> Any:
        gone = {path.name for path in whole.iterdir()} - {path.name for path in folder.iterdir()}
        return "without its row" if gone else pages_of(folder)

    return Subject(whole, use, also=("without its row",))


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "a run, whose weights are loaded": loaded,
    "a run that was killed, whose weights are loaded": killed_and_loaded,
    "idx files": idx,
    "idx files, unpacked by hand": idx_by_hand,
    "prepared arrays": cache,
    "prepared arrays without their sources": cache_alone,
    "CIFAR's pickles": cifar_pickles,
    "array_record files": lambda whole: prepared(whole, "array_record"),
    "TFRecord files": lambda whole: prepared(whole, "tfrecord"),
    "folders of pictures": pictures,
    "a compressed text": a_text,
    "weights, safetensors": published_safetensors,
    "weights, safetensors in gzip": packed_safetensors,
    "weights, PyTorch's": torch_weights,
    "weights, .npz": npz,
    "weights, Deep Compression": deep_compression,
    "weights, Hugging Face's folder": huggingface,
    "weights, llama2.c": llama2c,
    "exported models": exported,
    "records": records,
    # The slow ones last: they get the time that the others leave.
    "a run that is shown": shown,
    "a run that trains on, as a program": as_a_program,
    "a run that trains on": resumed,
}
