"""Sets of photographs that are read one by one: in a folder for each class, or as TensorFlow Datasets prepared them.

    found = folder(Path("pictures"))      # pictures/train/<class>/* and pictures/val/<class>/*, or pictures/<class>/*
    found = load("imagenette")            # as found on this machine, else downloaded
    file, label = found.train[0]          # a path, or the bytes of a JPEG

`load` looks in turn for a folder that TensorFlow Datasets prepared, which is read without that package; an unpacked
archive; the archive in `<data dir>/sources/<name>/`; the network. DLC_DATA moves the data directory.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dlc.data import _archive, _arrays, _tfds, digits, imagenet, imagenette
from dlc.data._array_record import Labelled, Records, not_prepared
from dlc.data._dataset import Dataset, Pictures
from dlc.data._directory import data_dir, lock, usable
from dlc.data._folder import folder
from dlc.data._published import Published, unavailable
from dlc.errors import UserError

__all__ = ["NAMES", "OFFLINE", "Pictures", "folder", "load", "records", "state", "write"]


class Photographs(NamedTuple):
    """A set of photographs: the published files, how to load it from them, and its state for a listing."""

    published: Published
    load: Callable[[Path], Pictures]  # from the data directory
    state: Callable[[], tuple[str, str]]
    words: Callable[[tuple[str, ...]], tuple[str, ...]]  # class names of prepared folders -> words


def load(name: str) -> Pictures:
    """The set `name`, one of `NAMES`.

    Raises:
        DataUnavailable: it is not on this machine and cannot be downloaded.
        DataDamaged: an archive differs from the published one.
        UserError: there is no such set, or the data directory cannot be used.
    """
    if name not in SETS:
        raise UserError(f"there is no set of pictures {name!r}: choose from {', '.join(NAMES)}")
    root, data = data_dir(), SETS[name]
    with usable(root):
        for prepared in _tfds.folders(root, data.published):
            version = next(version for version in data.published.tfds if prepared.match(f"{name}/{version}"))
            found = records(prepared, name, f"tfds {name} {version}")
            return found._replace(classes=data.words(found.classes))
        return data.load(root)


def state(name: str) -> tuple[str, str]:
    """For a listing: "ready", "found" or "not here"; and from where, or what is to be done."""
    for prepared in _tfds.folders(data_dir(), SETS[name].published):
        return "ready", f"{prepared}"
    return SETS[name].state()


def records(prepared: Path, name: str, source: str) -> Pictures:
    """What TensorFlow Datasets prepared in the folder `prepared`, read without TensorFlow or that package.

    Raises DataDamaged if a file is missing or does not hold the records that it should.
    """
    train, validation = (Labelled(Records(prepared, name, split)) for split in ("train", "validation"))
    try:
        classes = tuple((prepared / "label.labels.txt").read_text("utf-8").split())
    except (OSError, ValueError) as error:
        raise not_prepared(prepared, error) from None
    return Pictures(name, train, validation, classes, source)


def _by_hand(root: Path) -> Pictures:
    raise unavailable(root, imagenet.PUBLISHED, imagenet.PUBLISHED.closed)


def write(dataset: Dataset, place: Path) -> None:
    """Writes a set of arrays as JPEG files: `place`/train/<class>/<number>.jpg, and the test set in `place`/val.

    `folder(place)` reads them. In the names of folders, everything but letters and digits becomes an underscore.
    """
    from PIL import Image

    names = [re.sub(r"\W", "_", name) for name in dataset.classes]
    for half, split in (("train", dataset.train), ("val", dataset.test)):
        width = len(str(len(split["label"])))
        for name in names:
            (place / half / name).mkdir(parents=True, exist_ok=True)
        for i, (image, label) in enumerate(zip(split["image"], split["label"], strict=True)):
            image = image[..., 0] if image.shape[-1] == 1 else image
            Image.fromarray(image).save(place / half / names[label] / f"{i:0{width}d}.jpg", quality=95)


def _digits(root: Path) -> Pictures:
    """The digits as JPEG files, written once."""
    place = root / "pictures" / "digits32"
    if not place.is_dir():
        with lock(root, "digits32"):
            if not place.is_dir():
                found = _arrays.load(digits.DIGITS32)
                _archive.written(root, "digits32", place, lambda temporary: write(found, temporary / "digits32"))
    return folder(place)._replace(source="scikit-learn digits, written as JPEG")


SETS = {
    "imagenet2012": Photographs(
        imagenet.PUBLISHED, _by_hand, lambda: ("not here", "to be fetched by hand"), imagenet.words
    ),
    "imagenette": Photographs(imagenette.PUBLISHED, imagenette.load, imagenette.state, imagenette.words),
    "digits32": Photographs(
        digits.DIGITS32.published, _digits, lambda: ("ready", "scikit-learn digits, needs no download"), tuple
    ),
}
NAMES = tuple(SETS)
OFFLINE = tuple(name for name, data in SETS.items() if not (data.published.files or data.published.closed))
