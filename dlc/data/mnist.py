"""MNIST and Fashion-MNIST: 60,000 + 10,000 grey images of 28 x 28 pixels in 10 classes, in idx files.

References:
    LeCun et al. 1998, "Gradient-based learning applied to document recognition".
    Xiao, Rasul, Vollgraf 2017, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms".
"""

import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dlc.data._arrays import Arrays, images
from dlc.data._dataset import Split
from dlc.data._errors import DataDamaged
from dlc.data._published import File, Published, content

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
OFFLINE = "`digits` is a data set of images that needs no download"


def parse(paths: Sequence[Path]) -> tuple[Split, Split]:
    """The four idx files -> train, test: `image` uint8 [N, 28, 28, 1] and `label` int32 [N].

    Raises DataDamaged if the length of a file disagrees with its header.
    """
    image, label, test_image, test_label = (idx(path) for path in paths)
    return (
        {"image": image[..., None], "label": label.astype(np.int32)},
        {"image": test_image[..., None], "label": test_label.astype(np.int32)},
    )


def idx(path: Path) -> np.ndarray:
    """An idx file of bytes: 0, 0, 8 (uint8), the number of dimensions, each as a big-endian uint32, the values."""
    data = content(path)
    rank = data[3] if data[:3] == b"\0\0\x08" and len(data) > 3 else 0
    sizes = data[4 : 4 + 4 * rank]
    shape = struct.unpack(f">{len(sizes) // 4}I", sizes[: len(sizes) // 4 * 4])
    if rank not in (1, 3) or len(shape) != rank or len(data) != 4 + 4 * rank + math.prod(shape):
        raise DataDamaged(f"{path} is damaged: its length disagrees with its header; fetch it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _files(address: str, *rest: tuple[int, str, str]) -> tuple[File, ...]:
    return tuple(File(f"{name}.gz", f"{address}{name}.gz", *of) for name, of in zip(FILES, rest, strict=True))


MNIST = Arrays(
    Published(
        "mnist",
        _files(
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
        instead=OFFLINE,
        tfds=("3.0.1",),
    ),
    parse, images(28, 28, 1), (60000, 10000), tuple("0123456789"),
)  # fmt: skip

FASHION_MNIST = Arrays(
    Published(
        "fashion_mnist",
        _files(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", ""),
            (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", ""),
            (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", ""),
            (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", ""),
        ),
        instead=OFFLINE,
        tfds=("3.0.1",),
    ),
    parse, images(28, 28, 1), (60000, 10000),
    ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)  # fmt: skip
