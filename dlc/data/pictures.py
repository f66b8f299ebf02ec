"""Sets of photographs that are read one by one: a folder for each class, or what TensorFlow Datasets prepared.

    found = folder(Path("pictures"))      # pictures/train/<class>/* and pictures/val/<class>/*, or pictures/<class>/*
    found = load("imagenette")            # as found on this machine, else downloaded
    file, label = found.train[0]          # a path, or the bytes of a JPEG

`load` looks in turn for a folder that TensorFlow Datasets prepared as array_record, which is read here without its
package; what an archive was unpacked to; the archive in `<data dir>/sources/<name>/`; the network. DLC_DATA moves the
data directory.
"""

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dlc.data import cache, imagenet, tfds
from dlc.data._dataset import DataDamaged, DataUnavailable, data_dir, readable, say, usable
from dlc.data._array_record import Records
from dlc.data._published import Original
from dlc.errors import UserError

OFFLINE = ("digits32",)  # scikit-learn's digits, written as pictures
NAMES = ("imagenet2012", "imagenette", *OFFLINE)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
HELD_OUT = 0.1  # the share of each class that is kept for evaluation where the folder itself does not say

VERSIONS = {"imagenet2012": ("5.1.0",), "imagenette": ("full-size-v2/1.0.0", "320px-v2/1.0.0", "160px-v2/1.0.0")}
# As TensorFlow Datasets 4.9.10 registers them. The one of 320 pixels is the one that is downloaded: enough for 224.
IMAGENETTE = tuple(
    Original(f"imagenette2{kind}.tgz", f"https://s3.amazonaws.com/fast-ai-imageclas/imagenette2{kind}.tgz", size, sha)
    for kind, size, sha in (
        ("", 1557161267, "6cbfac238434d89fe99e651496f0812ebc7a10fa62bd42d6874042bf01de4efd"),
        ("-320", 341663724, "569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c"),
        ("-160", 99003388, "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5"),
    )
)

WORDS = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
    "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
    "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip


class Pictures(NamedTuple):
    """A set of pictures on the disk.

    Attributes:
        name: the data set's, or the folder's.
        train, validation: sequences of (file, label): a path or a file's content, and a number below len(classes).
        classes: the names of the classes, in label order.
        source: where the pictures came from, for the record.
    """

    name: str
    train: Sequence[tuple[Path | bytes, int]]
    validation: Sequence[tuple[Path | bytes, int]]
    classes: tuple[str, ...]
    source: str


def load(name: str) -> Pictures:
    """The set `name`, one of `NAMES`.

    Raises:
        DataUnavailable: it is nowhere on this machine and cannot be downloaded.
        DataDamaged: an archive is not the one that was published.
        UserError: there is no such set, or the data directory cannot be used.
    """
    if name not in NAMES:
        raise UserError(f"there is no set of pictures {name!r}: choose from {', '.join(NAMES)}")
    root = data_dir()
    with usable(root):
        for version in VERSIONS.get(name, ()):
            for prepared in tfds.folders(root, name, version):
                return _in_words(records(prepared, name, f"tfds {name} {version}"))
        if name == "imagenet2012":
            raise _by_hand(root)
        place = _digits(root) if name == "digits32" else _imagenette(root)
        source = "scikit-learn digits, written as JPEG" if name == "digits32" else f"archive {place.name}"
        return _in_words(folder(place)._replace(name=name, source=source))


def state(name: str) -> tuple[str, str]:
    """Whether `load` would find a set that is no offline one, in a word or two; and from where, or what it takes."""
    root = data_dir()
    for version in VERSIONS[name]:
        if prepared := tfds.folders(root, name, version):
            return "ready", f"{prepared[0]}"
    if name == "imagenet2012":
        return "not here", "to be fetched by hand"
    for original in IMAGENETTE:
        if (root / "pictures" / original.file.removesuffix(".tgz")).is_dir():
            return "ready", f"archive {original.file.removesuffix('.tgz')}"
    if any((root / "sources" / name / original.file).is_file() for original in IMAGENETTE):
        return "at hand", f"to be unpacked from {root / 'sources' / name}"
    return "not here", f"{readable(IMAGENETTE[1].size)} to download"


def _in_words(found: Pictures) -> Pictures:
    """The same with words for WordNet's numbers, where they are known; ImageNet's 1,000 are in the published order."""
    if found.name == "imagenet2012" and len(found.classes) == len(imagenet.classes()):
        return found._replace(classes=imagenet.classes())
    return found._replace(classes=tuple(WORDS.get(name, name) for name in found.classes))


def folder(root: Path) -> Pictures:
    """The pictures in a folder for each class: `root/train/<class>/` and `root/val/<class>/`, or `root/<class>/`.

    Classes are numbered in the order of their names. Without `train` and `val` a tenth of the pictures is held out,
    by a hash of class and name, so that one more picture changes nothing for the others.

    Raises UserError if there is no folder, no class or only one, a class without a picture, a class in `val` alone, or
    too few pictures to hold some out.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give one that has a folder of pictures for each class")
    halves = [half for half in (root / "train", root / "val") if half.is_dir()]
    if len(halves) == 1:
        missing = {"train": "val", "val": "train"}[halves[0].name]
        raise UserError(
            f"{root} has a folder {halves[0].name} and no {missing}: add that, or put the classes in {root}"
        )
    files = {half: _by_class(half) for half in halves or [root]}
    classes = tuple(files[next(iter(files))])
    label = {name: i for i, name in enumerate(classes)}
    if not halves:
        both = [(file, label[name]) for name, found in files[root].items() for file in found]
        held = [_place(file) < HELD_OUT for file, _ in both]
        train = [one for one, out in zip(both, held, strict=True) if not out]
        validation = [one for one, out in zip(both, held, strict=True) if out]
        if not validation or {i for _, i in train} != set(label.values()):
            raise UserError(f"{root} has too few pictures to hold some out: add more, or make folders train and val")
        return Pictures(root.name, train, _mixed(validation), classes, "a folder of pictures, a tenth of them held out")
    for name in files[root / "val"]:
        if name not in label:
            raise UserError(
                f"the class {name} is in {root / 'val'} and not in {root / 'train'}: nothing could learn it"
            )
    train, validation = ([(file, label[name]) for name in found for file in found[name]] for found in files.values())
    return Pictures(root.name, train, _mixed(validation), classes, "a folder of pictures")


def records(prepared: Path, name: str, source: str) -> Pictures:
    """What TensorFlow Datasets prepared as array_record in the folder `prepared`, without TensorFlow and without it.

    Raises DataDamaged if a file is missing or does not hold the records that it should.
    """
    try:
        info = json.loads((prepared / "dataset_info.json").read_text())
        shards = {split["name"]: [int(n) for n in split["shardLengths"]] for split in info["splits"]}
        train, validation = (Records(prepared, name, split, shards[split]) for split in ("train", "validation"))
        classes = tuple((prepared / "label.labels.txt").read_text().split())
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataDamaged(
            f"{prepared} is not what TensorFlow Datasets prepares ({error!r}): prepare it again"
        ) from None
    return Pictures(name, train, validation, classes, source)


def _by_class(root: Path) -> dict[str, list[Path]]:
    """The pictures of each class below `root`, both in the order of their names."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise UserError(
            f"{root} has {len(folders)} folders of pictures: give each class a folder of its own, two or more"
        )
    found = {}
    for place in folders:
        found[place.name] = sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found[place.name]:
            raise UserError(f"{place} has no picture ({', '.join(SUFFIXES)}): remove it, or put some there")
    return found


def _place(file: Path) -> float:
    """A number from 0 to 1 that the names of a class and a picture give: as good as drawn, and always the same."""
    name = f"{file.parent.name}/{file.name}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:4]) / 2**32


def _mixed(examples: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    """The same in an order that mixes the classes, so that the first pictures are of many."""
    return sorted(examples, key=lambda example: _place(example[0]))


def _imagenette(root: Path) -> Path:
    """The folder of the unpacked archive, unpacked or downloaded first if it has to be."""
    places = [root / "pictures" / original.file.removesuffix(".tgz") for original in IMAGENETTE]
    for place in places:
        if place.is_dir():
            return place
    with cache.lock(root, "imagenette") as held:
        here = root / "sources" / "imagenette"
        at_hand = [i for i, original in enumerate(IMAGENETTE) if (here / original.file).is_file()]
        if not at_hand:
            wanted = IMAGENETTE[1]
            lines = "\n".join(f"  {o.url} ({readable(o.size)})" for o in IMAGENETTE)

            def away(reason: str) -> DataUnavailable:
                return DataUnavailable(
                    f"imagenette is not on this machine and cannot be downloaded: {reason}; `digits32` is a set that "
                    f"needs no download, and --images takes a folder of your own.\nTo bring it by hand, put one of\n"
                    f"{lines}\nin {here}",
                    reason,
                )

            tfds.fetch(root, "imagenette", [wanted], held, away)
            at_hand = [1]
        _unpack(here / IMAGENETTE[at_hand[0]].file, IMAGENETTE[at_hand[0]], root, places[at_hand[0]])
        return places[at_hand[0]]


def _unpack(archive: Path, original: Original, root: Path, place: Path) -> None:
    """Unpacks what was published to `place`, whole or not at all; call it under the lock."""
    if archive.stat().st_size != original.size:
        raise DataDamaged(
            f"{archive} has {archive.stat().st_size:,} bytes instead of {original.size:,}: fetch it again"
        )
    with open(archive, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != original.sha256:
            raise DataDamaged(f"{archive} is not the file that was published (its sha256 differs): fetch it again")
    say(f"unpacking {archive}")
    temporary = Path(tempfile.mkdtemp(prefix=".imagenette-", dir=root / "arrays"))  # removed by the lock if we die
    with tarfile.open(archive) as tar:
        tar.extractall(temporary, filter="data")
    place.parent.mkdir(exist_ok=True)
    (temporary / place.name).rename(place)


def _digits(root: Path) -> Path:
    """The digits as JPEG files, written once."""
    from PIL import Image

    from dlc.data import load as arrays

    place = root / "pictures" / "digits32"
    if place.is_dir():
        return place
    digits = arrays("digits32")
    with cache.lock(root, "digits32"):
        temporary = Path(tempfile.mkdtemp(prefix=".digits32-", dir=root / "arrays"))
        for half, split in (("train", digits.train), ("val", digits.test)):
            for i, (image, label) in enumerate(zip(split["image"], split["label"], strict=True)):
                file = temporary / half / digits.classes[label] / f"{i:04d}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(file, quality=95)
        place.parent.mkdir(exist_ok=True)
        if not place.is_dir():
            temporary.rename(place)
    return place


def _by_hand(root: Path) -> DataUnavailable:
    return DataUnavailable(
        "imagenet2012 is not on this machine, and only people who agree to its terms may download it; `imagenette` is "
        "ten of its classes, for anyone.\nAsk for ILSVRC2012_img_train.tar (148 GB) and ILSVRC2012_img_val.tar "
        "(6.7 GB) at https://image-net.org. Then either unpack them to DIR/train/<class>/ and DIR/val/<class>/ and "
        "give --images DIR, or, with TensorFlow Datasets and TensorFlow installed, put both in a folder ARCHIVES and "
        "run\n"
        f"  tfds build imagenet2012 --file_format=array_record --manual_dir=ARCHIVES --data_dir={root / 'tfds'}",
        "it has to be fetched by hand",
    )
