"""The original files: what was published (names, addresses, checksums) and how to read it.

The constants are a copy of what TensorFlow Datasets 4.9.10 registers (url_checksums/*.txt), so that originals can be
checked without importing it; tests hold the copy to the registry.
"""

import gzip
import hashlib
import io
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlc.data._dataset import DataDamaged, Split


class Original(NamedTuple):
    """One published file; `unpacked` is the sha256 of what a .gz holds, where we could compute it."""

    file: str
    url: str
    size: int
    sha256: str
    unpacked: str = ""


class Published(NamedTuple):
    """A data set as published: its version in TFDS, files, image shape [H, W, C], train and test counts, classes."""

    version: str
    originals: tuple[Original, ...]
    shape: tuple[int, int, int]
    counts: tuple[int, int]
    classes: tuple[str, ...]


_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _idx(address: str, *files: tuple[Any, ...]) -> tuple[Original, ...]:
    return tuple(Original(f"{name}.gz", f"{address}{name}.gz", *rest) for name, rest in zip(_IDX, files, strict=True))


def _archive(file: str, size: int, sha256: str) -> tuple[Original, ...]:
    return (Original(file, f"https://www.cs.toronto.edu/~kriz/{file}", size, sha256),)


PUBLISHED = {
    "mnist": Published(
        "3.0.1",
        _idx(
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
             "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
            (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
             "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
            (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
             "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
            (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
             "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
        ),
        (28, 28, 1), (60000, 10000), tuple("0123456789"),
    ),
    "fashion_mnist": Published(
        "3.0.1",
        _idx(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
        (28, 28, 1), (60000, 10000),
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": Published(
        "3.0.2",
        _archive("cifar-10-binary.tar.gz", 170052171,
                 "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
        (32, 32, 3), (50000, 10000),
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "cifar100": Published(
        "3.0.2",
        _archive("cifar-100-binary.tar.gz", 168513733,
                 "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
        (32, 32, 3), (50000, 10000),
        tuple("""
            apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
            can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
            dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
            lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
            pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
            seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
            tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
            worm
        """.split()),
    ),
}  # fmt: skip

# torchvision's folder: its published md5, checked before a single byte is unpickled.
TORCHVISION = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_CIFAR_FILES = {
    "cifar10": ([f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]),
    "cifar100": (["train.bin"], ["test.bin"]),
}


def find(name: str, folder: Path) -> list[tuple[Original, Path | None]]:
    """Each published file of `name` and where it lies in `folder`, packed or not, or None."""
    found: list[tuple[Original, Path | None]] = []
    for original in PUBLISHED[name].originals:
        names = [original.file]
        if original.file.endswith("ubyte.gz"):
            names += [original.file[:-3], original.file[:-3].replace("-idx", ".idx")]  # the second is gunzip -N's
        found.append((original, next((folder / n for n in names if (folder / n).is_file()), None)))
    return found


def missing(name: str, folder: Path) -> list[Original]:
    """The published files of `name` that `folder` does not have."""
    return [original for original, path in find(name, folder) if path is None]


def read(name: str, paths: Sequence[Path]) -> tuple[Split, Split]:
    """Checks the published files of `name` at `paths`, in the order of `PUBLISHED`, and reads them.

    Returns:
        train and test: `image` uint8 [N, H, W, C] and `label` int32 [N]; cifar100 also has `coarse_label` int32 [N].

    Raises:
        DataDamaged: a file is not the published one.
    """
    contents = [check(original, path) for original, path in zip(PUBLISHED[name].originals, paths, strict=True)]
    if name in _CIFAR_FILES:
        return _read_cifar(name, contents[0], paths[0])
    images, labels, test_images, test_labels = (_parse_idx(c, p) for c, p in zip(contents, paths, strict=True))
    return (
        {"image": images[..., None], "label": labels.astype(np.int32)},
        {"image": test_images[..., None], "label": test_labels.astype(np.int32)},
    )


def read_torchvision(folder: Path) -> tuple[Split, Split]:
    """Reads `cifar-10-batches-py/`: six pickles of `{b"data": uint8 [10000, 3072], b"labels": list of int}`."""
    batches: list[Split] = []
    for file, md5 in TORCHVISION.items():
        if not (folder / file).is_file():
            raise DataDamaged(f"{folder} has no {file}: fetch the folder again, for example through torchvision")
        content = (folder / file).read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise DataDamaged(f"{folder / file} is not the published file (its md5 differs): delete the folder "
                              "and fetch it again, for example through torchvision")  # fmt: skip
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        image = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        batches.append({"image": image, "label": np.asarray(batch[b"labels"], np.int32)})
    return {key: np.concatenate([b[key] for b in batches[:-1]]) for key in batches[0]}, batches[-1]


def check(original: Original, path: Path) -> bytes:
    """The content of `path`, unpacked where it is an idx file, once its checksum is the published one."""
    again = f"delete it and fetch it again from {original.url}"
    packed = path.suffix == ".gz"
    if packed and path.stat().st_size != original.size:
        size = path.stat().st_size
        raise DataDamaged(f"{path} is damaged: it has {size:,} bytes instead of {original.size:,}; {again}")
    content = path.read_bytes()
    expected = original.sha256 if packed else original.unpacked
    if expected and hashlib.sha256(content).hexdigest() != expected:
        raise DataDamaged(f"{path} is not the published file: its sha256 differs; {again}")
    return gzip.decompress(content) if packed and original.file.endswith("ubyte.gz") else content


def _parse_idx(content: bytes, path: Path) -> np.ndarray:
    """An idx file of bytes: 0, 0, 8 (uint8), the number of dimensions, each as a big-endian int32, the values."""
    rank = content[3] if content[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(content[4 : 4 + 4 * rank], ">i4").tolist()
    if rank not in (1, 3) or len(shape) != rank or len(content) != 4 + 4 * rank + int(np.prod(shape)):
        raise DataDamaged(f"{path} is damaged: its length is not what an idx file's header says; fetch it again")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _read_cifar(name: str, content: bytes, path: Path) -> tuple[Split, Split]:
    """The binary version: records of one label (cifar100: a coarse, then a fine one) and 3,072 channels-first bytes."""
    keys = ["coarse_label", "label"] if name == "cifar100" else ["label"]
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {Path(m.name).name: m for m in archive.getmembers() if m.isfile()}

        def split(names: list[str]) -> Split:
            data = b"".join(archive.extractfile(files[n]).read() for n in names)  # type: ignore[union-attr]
            records = np.frombuffer(data, np.uint8).reshape(-1, len(keys) + 3072)
            image = records[:, len(keys) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            return {"image": image} | {key: records[:, i].astype(np.int32) for i, key in enumerate(keys)}

        train, test = _CIFAR_FILES[name]
        return split(train), split(test)


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can build NumPy arrays and nothing else, should a md5 ever be made to collide."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return lambda kind, align, copy: np.dtype(kind, align=bool(align))  # NumPy 2.4 warns of align=0
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of arrays")
