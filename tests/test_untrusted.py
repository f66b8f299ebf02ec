"""Files from strangers: they run no code, write nowhere else, take no memory, and a terminal obeys nothing in them."""

import ast
import bz2
import gzip
import io
import json
import lzma
import re
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from cli import here
from PIL import Image

from dlc import errors, files, tokens, weights
from dlc.data import _archive, _array_record, _cache, _packing, images, mnist, recordings, text
from dlc.data._errors import DataDamaged
from dlc.errors import UserError
from dlc.models.gpt import GPT, GPTConfig
from dlc.models.resnet import resnet18
from dlc.run import flags, log, pages
from experiments.mnist import mlp

ROOT = Path(__file__).parents[1]
DEEP = b"[" * 100_000
HUGE = 10**12
MOST = 2**24  # bytes that a refusal may take

assert here


def refused(read, *arguments, match=None):
    """`read(*arguments)` raises UserError before it takes memory."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=match):
            read(*arguments)
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()


# No code


def calls():
    """(file, name of the function as it is written, keywords, arguments) of every call in dlc/ and experiments/."""
    for path in sorted([*(ROOT / "dlc").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                yield str(path.relative_to(ROOT)), ast.unparse(node.func), keywords, node


def test_no_file_can_choose_what_is_run():
    """No shell, and nothing is unpickled but by an allow list and by PyTorch's mode that reads weights only."""
    forbidden = (
        r"eval|exec|compile|os\.system|os\.popen|subprocess\.getoutput|(c?[pP]ickle|dill|joblib|marshal|shelve)\.\w+"
    )
    found = set()
    for path, name, keywords, node in calls():
        where = f"{path}:{node.lineno}"
        assert not re.fullmatch(forbidden, name) or name == "pickle.UnpicklingError", where
        assert keywords.get("shell", "False") == "False", where
        assert keywords.get("allow_pickle", "False") == "False", where
        assert not name.startswith("yaml."), where
        if name in ("torch.load", "tar.extractall"):
            found.add((path, name, keywords.get("weights_only"), keywords.get("filter")))
    assert found == {
        ("dlc/weights/files.py", "torch.load", "True", None),
        ("dlc/data/_archive.py", "tar.extractall", None, "_plain"),
    }
    pickles = {path for path in (ROOT / "dlc").rglob("*.py") if "import pickle" in path.read_text()}
    assert {path.name for path in pickles} == {"cifar.py", "files.py"}  # md5-checked batches, and the name of an error


# Archives


def tar_of(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            content = b"harm"
            member.size = len(content) if member.isfile() else 0
            tar.addfile(member, io.BytesIO(content))
    return path


def member(name, kind=tarfile.REGTYPE, target="", mode=0o644):
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, target, mode
    return made


EVIL = {
    "above": [member("../outside")],
    "above, further in": [member("set/../../outside")],
    "absolute": [member("/dlc-outside")],
    "through a link": [member("set/link", tarfile.SYMTYPE, "../.."), member("set/link/outside")],
    "through an absolute link": [member("set/link", tarfile.SYMTYPE, "/"), member("set/link/dlc-outside")],
    "a link within": [member("set/link", tarfile.SYMTYPE, "a.jpg")],
    "a hard link": [member("set/link", tarfile.LNKTYPE, "../../outside")],
    "a device": [member("set/null", tarfile.CHRTYPE)],
    "a pipe": [member("set/pipe", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("kind", EVIL)
def test_an_archive_writes_only_into_its_own_folder(kind, tmp_path):
    root = tmp_path / "data"
    (root / "arrays").mkdir(parents=True)
    (tmp_path / "outside").write_text("mine")
    archive = tar_of(tmp_path / "set.tgz", *EVIL[kind])
    place = root / "pictures" / "set"
    if kind == "absolute":  # the slash is left out, as tar does
        with pytest.raises(FileNotFoundError):
            _archive.unpacked(root, "set", archive, place)
    else:
        with pytest.raises(DataDamaged, match=r"set\.tgz cannot be unpacked: .*; fetch it again"):
            _archive.unpacked(root, "set", archive, place)
    assert (tmp_path / "outside").read_text() == "mine"
    assert not place.exists()
    assert not Path("/dlc-outside").exists()
    outside = {path for path in tmp_path.rglob("*") if path.is_file()} - {archive, tmp_path / "outside"}
    assert all(root / "arrays" in path.parents for path in outside)


def test_a_plain_archive_is_unpacked_and_a_cut_one_is_refused(tmp_path):
    root = tmp_path / "data"
    (root / "arrays").mkdir(parents=True)
    archive = tar_of(tmp_path / "set.tgz", member("set", tarfile.DIRTYPE, mode=0o755), member("set/a.jpg", mode=0o4777))
    place = _archive.unpacked(root, "set", archive, root / "pictures" / "set")
    assert (place / "a.jpg").read_bytes() == b"harm"
    assert not (place / "a.jpg").stat().st_mode & 0o4022  # as the owner's own files are
    archive.write_bytes(archive.read_bytes()[:-20])
    with pytest.raises(DataDamaged, match="cannot be unpacked"):
        _archive.unpacked(root, "set", archive, root / "pictures" / "other")


def test_the_index_of_published_weights_names_only_files_beside_it(tmp_path):
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "outside.safetensors").write_bytes(b"")
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors")):
        index = json.dumps({"weight_map": {"wte.weight": name}})
        (tmp_path / "gpt2" / "model.safetensors.index.json").write_text(index)
        with pytest.raises(UserError, match=r"lists outside\.safetensors, not in the folder"):
            weights.load(tmp_path / "gpt2")


# Bombs


def npz_bomb():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(2**22))
    return file.getvalue()


@pytest.mark.parametrize(
    ("pack", "suffix"),
    [(gzip.compress, "gz"), (bz2.compress, "bz2"), (lzma.compress, "xz"), (lambda content: npz_bomb(), "npz")],
)
def test_what_swells_when_it_is_unpacked_is_refused(pack, suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE", 2**20)
    path = tmp_path / "weights"
    path.write_bytes(pack(bytes(2**22)))
    refused(weights.load, path, resnet18(), match="becomes suspiciously large when it is unpacked")
    if suffix != "npz":
        refused(text.read, path, match="becomes suspiciously large when it is unpacked")
        lines = path.rename(tmp_path / f"lines.jsonl.{suffix}")
        refused(list, _packing.documents([lines]), match="becomes suspiciously large when it is unpacked")


def png(width, height):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1)])
def test_an_image_of_absurd_size_is_refused(size):
    refused(images.decode, png(*size), match="has too many pixels to be decoded: make it smaller")


def test_an_image_whose_header_lies_is_refused():
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    at = jpeg.getvalue().index(b"\xff\xc0") + 5  # of the height and width
    lying = jpeg.getvalue()[:at] + b"\xff\xff\xff\xff" + jpeg.getvalue()[at + 4 :]
    refused(images.decode, lying, match="has too many pixels")


# Absurd numbers


GPT2 = {
    "model_type": "gpt2", "vocab_size": 10, "n_positions": 8, "n_embd": 4, "n_layer": 1, "n_head": 1, "n_inner": None,
}  # fmt: skip


@pytest.fixture
def published(tmp_path):
    model = GPT(GPTConfig(vocab=10, context=8, layers=1, heads=1, width=4))
    params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 3), np.int32))["params"]
    weights.save_gpt2(tmp_path / "gpt2", model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params))
    return tmp_path / "gpt2"


ABSURD = (
    [{name: value} for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head") for value in (HUGE, -1, 0)]
    + [{"n_layer": 10**9}, {"n_inner": HUGE}, {"n_embd": 1e300}, {"n_head": 10**400}, {"n_layer": "x" * 10**5}]
    + [{"layer_norm_epsilon": float("nan")}, {"n_layer": [[1]]}, {"n_embd": True}, {"n_positions": 2**63}]
)  # fmt: skip


@pytest.mark.parametrize("absurd", ABSURD, ids=lambda absurd: str(absurd)[:30])
def test_absurd_sizes_in_published_weights_are_refused(published, absurd):
    config = json.loads((published / "config.json").read_text())
    assert weights.load(published)
    (published / "config.json").write_text(json.dumps(config | absurd))
    refused(weights.load, published)


def safetensors(header, body=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + body


TENSORS = {
    "a header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{" * 100,
    "a header of a terabyte": struct.pack("<Q", HUGE) + b"{" * 100,
    "a header nested deeply": safetensors(b'{"a":' * 100_000),
    "a tensor of a terabyte": safetensors({"a": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}),
    "a tensor that is not there": safetensors(
        {"a": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4]}}, b"0000"
    ),
    "a negative shape": safetensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
    "tensors that overlap": safetensors(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, bytes(4)
    ),
    "a model nested deeply": safetensors({"__metadata__": {"dlc": '{"model": ' * 100_000}}),
    "llama2.c of 10**21 weights": struct.pack("<7i", *[2**23] * 7),
    "llama2.c of negative sizes": struct.pack("<7i", *[-4] * 7),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_absurd_files_of_tensors_are_refused(kind, tmp_path):
    (tmp_path / "weights").write_bytes(TENSORS[kind])
    refused(weights.load, tmp_path / "weights", resnet18() if "llama" not in kind else None)


def npy(shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(16)


def test_absurd_arrays_are_refused(tmp_path):
    (tmp_path / "sites.npy").write_bytes(npy((10**15, 10**3)))
    refused(recordings.sites, tmp_path / "sites.npy", 4, match=r"sites\.npy cannot be read")
    with zipfile.ZipFile(tmp_path / "weights.npz", "w") as archive:
        archive.writestr("fc.bias.npy", npy((10**15,)))
    with pytest.raises(UserError, match=r"is not an \.npz of plain arrays"):  # a map of nothing counts as memory
        weights.load(tmp_path / "weights.npz", resnet18())


@pytest.mark.parametrize(
    "sizes", [(), (2**31,), (2**31, 2**31, 4), (2**32 - 1, 2**32 - 2, 10), (65536,) * 3, (0, 9, 9)]
)
def test_absurd_idx_files_are_refused(sizes, tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(b"\0\0\x08" + bytes([max(len(sizes), 1)]) + struct.pack(f">{len(sizes)}I", *sizes) + bytes(20))
    refused(mnist.idx, path, match="is damaged: its length disagrees with its header")
    for cut in (b"", b"\0\0\x08", b"\0\0\x08\3\0\0"):
        path.write_bytes(cut)
        refused(mnist.idx, path, match="is damaged: its length disagrees with its header")


def tok_bin(*pieces):
    pieces = [b"<unk>", b"<s>", b"</s>", *(f"<0x{i:02X}>".encode() for i in range(256)), *pieces]
    return struct.pack("<i", 6) + b"".join(struct.pack("<fi", 0.0, len(piece)) + piece for piece in pieces)


VOCABULARIES = {
    "a huge id": ("tokenizer.json", '{"model": {"type": "WordLevel", "vocab": {"a": 4000000000}, "unk_token": "a"}}'),
    "an id beyond 64 bits": ("tokenizer.json", '{"model": {"type": "WordLevel", "vocab": {"a": 1e99}}}'),
    "a negative id": ("tokenizer.json", '{"model": {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}}'),
    "nested deeply": ("tokenizer.json", '{"a":' * 100_000),
    "characters that are a number": ("tokenizer.json", '{"characters": 1000000000000}'),
    "a long piece": ("tok.bin", tok_bin(b"a" * 10**6)),
    "a piece of two gigabytes": ("tok.bin", struct.pack("<ifi", 6, 0.0, 2**31 - 1) + b"a"),
    "a negative piece": ("tok.bin", struct.pack("<ifi", 6, 0.0, -5) + b"a"),
}


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_absurd_vocabularies_are_refused(kind, tmp_path):
    name, content = VOCABULARIES[kind]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(tokens.load, tmp_path)


def test_json_that_is_nested_deeply_is_damaged_wherever_it_lies(tmp_path):
    (tmp_path / "model.json").write_bytes(DEEP)
    (tmp_path / "config.json").write_bytes(DEEP)
    (tmp_path / "log.jsonl").write_bytes(DEEP)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_bytes(DEEP)
    (tmp_path / "arrays" / "mnist-1").mkdir(parents=True)
    (tmp_path / "arrays" / "mnist-1" / "meta.json").write_bytes(DEEP)
    (tmp_path / "dataset_info.json").write_bytes(DEEP)
    refused(weights.load, tmp_path, match=r"model\.json is damaged: it is nested too deeply")
    refused(flags.load, tmp_path, "mnist.mlp", mlp.Config, match=r"config\.json is damaged")
    refused(pages.tables, tmp_path / "results", match=r"a\.json is damaged: restore it, or delete it")
    refused(_cache.read, tmp_path, "mnist", match="are damaged")
    refused(_array_record.folder_info, tmp_path, match="is not a folder that TensorFlow Datasets prepared")
    assert flags.run_of(tmp_path) is None
    assert list(log.read(tmp_path)) == []
    content = {"experiment": "mnist.mlp", "command": "x", "config": {"hidden": 1}}
    nested = files.sealed(content, None).replace('"hidden": 1', '"hidden": ' + "[" * 900 + "]" * 900)
    nested = re.sub(r', "crc32": \d+', "", nested)
    (tmp_path / "config.json").write_text(nested)
    refused(flags.load, tmp_path, "mnist.mlp", mlp.Config)


def test_absurd_records_of_tensorflow_datasets_are_refused(tmp_path):
    path = tmp_path / "a.tfrecord"
    head = (2**62).to_bytes(8, "little")
    path.write_bytes(head + _array_record.masked(_array_record.crc32c(head)).to_bytes(4, "little") + bytes(100))
    refused(_array_record.TFRecords, [path], match="is cut short")
    for record in (b"\n\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x80" * 30, b"\x0b", b"\n\3\n\1\n"):
        with pytest.raises((ValueError, IndexError)):  # of which `Records` makes a DataDamaged
            _array_record.example(record)


# What a terminal shows


HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202egpj.exe\udcff"


def test_a_terminal_obeys_nothing_in_a_name(tmp_path, here):
    shown = errors.printable(HOSTILE)
    assert shown.isprintable()
    assert str(UserError(HOSTILE)) == shown == r"\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202egpj.exe\udcff"
    assert errors.printable("two\nlines\tand é \u2028 \N{SNOWMAN}") == "two\nlines\tand é \u2028 \N{SNOWMAN}"
    folder = tmp_path / f"run{HOSTILE[:-1]}; touch owned $(touch owned) `touch owned`"
    for words in (["--weights", folder], ["--resume", folder], ["--out", folder, "--smoke"]):
        code, out, err = here("experiments.mnist.mlp", *words)
        assert code == (0 if "--smoke" in words else 2), err
        assert not errors.CONTROL.search(out + err)
        assert "$(touch owned)" in out + err
    assert not list(tmp_path.rglob("owned"))
    assert not Path("owned").exists()
