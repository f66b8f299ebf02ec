"""Names -> arrays: `load("mnist")` gives the whole data set, prepared once and then mapped into memory.

    from dlc.data import load
    train = load("mnist").train          # {"image": uint8 [60000, 28, 28, 1], "label": int32 [60000]}

`load` looks in turn for: the array cache (0.1 s); a folder that TensorFlow Datasets prepared; original files in
`<data dir>/sources/<name>/`; the network. Every route gives the same arrays in the order of the original files.
`python -m dlc.data` lists what is there; DLC_DATA moves the data directory.
"""

from pathlib import Path

import numpy as np

from dlc.data import cache, sources, tfds
from dlc.data._dataset import DataDamaged, Dataset, DataUnavailable, Split, data_dir, say, usable
from dlc.errors import UserError

__all__ = ["NAMES", "OFFLINE", "DataDamaged", "DataUnavailable", "Dataset", "data_dir", "is_ready", "load"]

OFFLINE = ("digits", "digits32")  # need no download
NAMES = (*sources.PUBLISHED, *OFFLINE)


def load(name: str) -> Dataset:
    """The data set `name`, one of `NAMES`, prepared first if it has to be.

    Returns:
        `train` and `test` as `{"image": uint8 [N, H, W, C], "label": int32 [N]}`: [60000 or 10000, 28, 28, 1] for
        mnist and fashion_mnist, [50000 or 10000, 32, 32, 3] for cifar10 and cifar100 (its 100 fine labels),
        [1437 or 360, 28, 28, 1] for digits, [1437 or 360, 32, 32, 3] for digits32, the same in the shape of CIFAR. The
        arrays may be written to; that changes this process's copy alone.

    Raises:
        DataUnavailable: it is nowhere on this machine and cannot be downloaded.
        DataDamaged: a file it would come from is not the one that was published.
        UserError: there is no such data set, or the data directory cannot be used.
    """
    if name not in NAMES:
        raise UserError(f"there is no data set {name!r}: choose from {', '.join(NAMES)}")
    if name in OFFLINE:
        return _digits(name)
    root = data_dir()
    with usable(root):
        try:
            if kept := cache.read(root, name):
                return kept
        except DataDamaged:
            pass  # looked at again, and said, under the lock: another process may be about to mend it
        with cache.lock(root, name) as held:
            return _prepare(root, name, held)


def is_ready(name: str) -> bool:
    """Whether `load` finds the set prepared, without looking into its files."""
    return name in OFFLINE or cache.folder(data_dir(), name).is_dir()


def _prepare(root: Path, name: str, held: int) -> Dataset:
    damage = None
    try:
        if kept := cache.read(root, name):
            return kept
    except DataDamaged as error:
        damage = error
        say(f"{error}; preparing them again")
    try:
        train, test, source = _find(root, name, held)
    except DataUnavailable as error:
        if damage:
            raise DataDamaged(f"{damage} and cannot be prepared again: {error}") from error
        raise
    cache.write(root, name, train, test, source)
    prepared = cache.read(root, name)
    assert prepared
    return prepared


def _find(root: Path, name: str, held: int) -> tuple[Split, Split, str]:
    official = f"tfds {name} {sources.PUBLISHED[name].version}"
    for folder in tfds.folders(root, name):
        try:
            return *tfds.read_folder(root, name, folder, held), official
        except UserError as error:
            say(f"{folder} is passed over: {error}")
    here = root / "sources" / name
    paths = [path for _, path in sources.find(name, here) if path]
    if len(paths) == len(sources.PUBLISHED[name].originals):
        return *sources.read(name, paths), f"original files in sources/{name}"
    if name == "cifar10" and (here / "cifar-10-batches-py").is_dir():
        return *sources.read_torchvision(here / "cifar-10-batches-py"), "cifar-10-batches-py in sources/cifar10"
    return *tfds.download(root, name, held), official


def _digits(name: str) -> Dataset:
    """scikit-learn's 1,797 handwritten digits: 8x8 of 0..16, resized bilinearly to 28x28 of 0..255.

    As digits32 they are 32x32, in three channels that are equal. They have no official split; here the first 1,437
    train and the last 360 test.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    side, channels = {"digits": (28, 1), "digits32": (32, 3)}[name]
    images, labels = load_digits(return_X_y=True)
    small = (Image.fromarray(image.reshape(8, 8).astype(np.float32)) for image in images)
    large = np.stack([np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)) for image in small])
    image = np.repeat(np.rint(large * (255 / 16)).astype(np.uint8)[..., None], channels, axis=3)
    label = labels.astype(np.int32)
    train, test = ({"image": image[part], "label": label[part]} for part in (slice(1437), slice(1437, None)))
    return Dataset(name, train, test, tuple("0123456789"), "scikit-learn digits")
