"""Names -> arrays: `load("mnist")` gives the whole data set, prepared once and then mapped into memory.

    from dlc.data import load
    train = load("mnist").train          # {"image": uint8 [60000, 28, 28, 1], "label": int32 [60000]}

`load` looks in turn for: the array cache (0.1 s); a folder that TensorFlow Datasets prepared; the published files in
`<data dir>/sources/<name>/`; the network. Each gives the same arrays, in the order of the published files.
`load("tfds:NAME")` reads other image classification sets of TensorFlow Datasets.

`python -m dlc.data` lists what is there; DLC_DATA moves the data directory. Sets of pictures that stay on disk are in
`dlc.data.pictures`, texts in `dlc.data.text`. To add a set, write a file such as `mnist.py` and add it to `SETS`.
"""

from dlc.data import _arrays, _cache, _tfds, cifar, digits, mnist
from dlc.data._dataset import Dataset, Split
from dlc.data._directory import data_dir
from dlc.data._errors import DataDamaged, DataUnavailable
from dlc.errors import UserError

__all__ = [
    "NAMES", "OFFLINE", "DataDamaged", "DataUnavailable", "Dataset", "Split", "check_name", "data_dir", "is_ready",
    "load",
]  # fmt: skip

SETS = {
    "mnist": mnist.MNIST,
    "fashion_mnist": mnist.FASHION_MNIST,
    "cifar10": cifar.CIFAR10,
    "cifar100": cifar.CIFAR100,
    "digits": digits.DIGITS,
    "digits32": digits.DIGITS32,
}
NAMES = tuple(SETS)
OFFLINE = tuple(name for name, data in SETS.items() if not data.published.files)  # need no download


def load(name: str) -> Dataset:
    """The data set `name`, one of `NAMES` or "tfds:NAME", prepared first if necessary.

    "tfds:NAME", "tfds:NAME/CONFIG" and "tfds:NAME:1.0.0" are image classification sets of TensorFlow Datasets with
    images of one size, in the order of its records; its validation split stands in for a missing test split. Prepared
    sets are read as they are; others are prepared if that is possible without TensorFlow.

    Returns:
        `train` and `test` as `{"image": uint8 [N, H, W, C], "label": int32 [N]}`: [60000 or 10000, 28, 28, 1] for
        mnist and fashion_mnist, [50000 or 10000, 32, 32, 3] for cifar10 and cifar100 (its 100 fine labels),
        [1437 or 360, 28, 28, 1] for digits, [1437 or 360, 32, 32, 3] for digits32, the same digits in the shape of
        CIFAR. The arrays may be written to; that changes only this process's copy.

    Raises:
        DataUnavailable: the set is not on this machine and cannot be downloaded.
        DataDamaged: a file it would come from differs from the published one.
        UserError: there is no such data set, or the data directory cannot be used.
    """
    check_name(name, *NAMES)
    if name.startswith(_tfds.PREFIX):
        spec = _tfds.parse(name)
        return _arrays.cached(spec.key, lambda root: _tfds.dataset(root, spec))._replace(name=name)
    return _arrays.load(SETS[name])


def is_ready(name: str) -> bool:
    """Whether `load` finds the set prepared. The files themselves are not read."""
    check_name(name, *NAMES)
    if name.startswith(_tfds.PREFIX):
        return _cache.folder(data_dir(), _tfds.parse(name).key).is_dir()
    return _arrays.is_ready(SETS[name])


def check_name(name: str, *choices: str) -> str:
    """`name` itself, if it is one of `choices` or names a set of TensorFlow Datasets as "tfds:NAME".

    Raises UserError for any other name.
    """
    if name.startswith(_tfds.PREFIX):
        _tfds.parse(name)
    elif name not in choices:
        raise UserError(f"there is no data set {name!r}: choose from {', '.join(choices)}, or tfds:NAME")
    return name
