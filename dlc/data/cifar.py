"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 color images of 32 x 32 pixels, in 10 or 100 classes.

References: Krizhevsky 2009, "Learning multiple layers of features from tiny images".
"""

import hashlib
import io
import pickle
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dlc.data._arrays import Arrays, Folder, images
from dlc.data._dataset import Split
from dlc.data._errors import DataDamaged
from dlc.data._published import File, Published

ADDRESS = "https://www.cs.toronto.edu/~kriz/"
OFFLINE = "`digits32` is a data set of images that needs no download"
MEMBERS = {  # the files of the archives, train and test
    "cifar10": ([f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]),
    "cifar100": (["train.bin"], ["test.bin"]),
}
# torchvision's folder of pickles and its published md5 sums, which are checked before anything is unpickled.
TORCHVISION = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


def parse(name: str, paths: Sequence[Path]) -> tuple[Split, Split]:
    """The binary archive of `name` -> train, test: `image` uint8 [N, 32, 32, 3] and `label` int32 [N].

    A record is the label, for cifar100 a coarse label and then the fine one that is used, and 3,072 bytes, channels
    first.
    """
    labels = 2 if name == "cifar100" else 1
    with tarfile.open(paths[0]) as archive:
        files = {Path(member.name).name: member for member in archive.getmembers() if member.isfile()}

        def split(names: list[str]) -> Split:
            data = b"".join(archive.extractfile(files[n]).read() for n in names)  # type: ignore[union-attr]
            records = np.frombuffer(data, np.uint8).reshape(-1, labels + 3072)
            return {"image": _channels_last(records[:, labels:]), "label": records[:, labels - 1].astype(np.int32)}

        train, test = MEMBERS[name]
        return split(train), split(test)


def parse_torchvision(folder: Path) -> tuple[Split, Split]:
    """`cifar-10-batches-py/`: six pickles of `{b"data": uint8 [10000, 3072], b"labels": list of int}`.

    Raises DataDamaged if a file is missing or its md5 is not the published one.
    """
    batches: list[Split] = []
    for file, md5 in TORCHVISION.items():
        if not (folder / file).is_file():
            raise DataDamaged(f"{folder} has no {file}: fetch the folder again, for example with torchvision")
        content = (folder / file).read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise DataDamaged(f"{folder / file} is not the published file (its md5 differs): delete the folder "
                              "and fetch it again, for example with torchvision")  # fmt: skip
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        image = _channels_last(np.asarray(batch[b"data"], np.uint8))
        batches.append({"image": image, "label": np.asarray(batch[b"labels"], np.int32)})
    return {key: np.concatenate([batch[key] for batch in batches[:-1]]) for key in batches[0]}, batches[-1]


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can build NumPy arrays and nothing else, in case an md5 sum is forged."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return lambda kind, align, copy: np.dtype(kind, align=bool(align))  # NumPy 2.4 warns of align=0
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"{module}.{name} does not belong in a file of arrays")


def _archive(name: str, size: int, sha256: str) -> tuple[File, ...]:
    return (File(name, ADDRESS + name, size, sha256),)


CIFAR10 = Arrays(
    Published(
        "cifar10",
        _archive("cifar-10-binary.tar.gz", 170052171,
                 "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
        instead=OFFLINE,
        also="or torchvision's folder at {folder}/cifar-10-batches-py",
        tfds=("3.0.2",),
    ),
    partial(parse, "cifar10"), images(32, 32, 3), (50000, 10000),
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    folder=Folder("cifar-10-batches-py", parse_torchvision),
)  # fmt: skip

CIFAR100 = Arrays(
    Published(
        "cifar100",
        _archive("cifar-100-binary.tar.gz", 168513733,
                 "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
        instead=OFFLINE,
        tfds=("3.0.2",),
    ),
    partial(parse, "cifar100"), images(32, 32, 3), (50000, 10000),
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
)  # fmt: skip
