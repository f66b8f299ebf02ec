"""Imagenette: ten classes of ImageNet that are easy to tell apart, 9,469 + 3,925 photographs, in three sizes.

References: Howard 2019, github.com/fastai/imagenette.
"""

from pathlib import Path

from dlc.data import _archive, _fetch, _folder
from dlc.data._dataset import Pictures
from dlc.data._directory import data_dir, lock, readable
from dlc.data._published import File, Published, check, missing

WORDS = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
    "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
    "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip


def _file(kind: str, size: int, sha256: str) -> File:
    name = f"imagenette2{kind}.tgz"
    return File(name, f"https://s3.amazonaws.com/fast-ai-imageclas/{name}", size, sha256)


FULL = _file("", 1557161267, "6cbfac238434d89fe99e651496f0812ebc7a10fa62bd42d6874042bf01de4efd")
SHORTER_320 = _file("-320", 341663724, "569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c")
SHORTER_160 = _file("-160", 99003388, "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5")
SIZES = (FULL, SHORTER_320, SHORTER_160)  # any of them will do; the first one found is used

PUBLISHED = Published(
    "imagenette",
    (SHORTER_320,),  # the one that is downloaded: enough for crops of 224 pixels
    instead="`digits32` is a set that needs no download, and --images takes a folder of your own",
    also="\n".join(
        ["or, in the same folder, another size"]
        + [f"  {file.url} ({readable(file.size)})" for file in (FULL, SHORTER_160)]
    ),
    tfds=("full-size-v2/1.0.0", "320px-v2/1.0.0", "160px-v2/1.0.0"),
)


def load(root: Path) -> Pictures:
    """The photographs, from the unpacked archive; it is downloaded and unpacked first if necessary."""
    place = next((place for place in map(_place, SIZES) if place.is_dir()), None) or _unpack(root)
    found = _folder.folder(place)
    return found._replace(name="imagenette", classes=words(found.classes), source=f"archive {place.name}")


def words(classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes in words instead of WordNet's numbers."""
    return tuple(WORDS.get(name, name) for name in classes)


def state() -> tuple[str, str]:
    """For a listing, as `dlc.data.pictures.state`, without what TensorFlow Datasets prepared."""
    for place in map(_place, SIZES):
        if place.is_dir():
            return "ready", f"archive {place.name}"
    here = data_dir() / "sources" / "imagenette"
    if any((here / file.name).is_file() for file in SIZES):
        return "found", f"to be unpacked from {here}"
    return "not here", f"{readable(sum(file.size for file in missing(PUBLISHED, here)))} to download"


def _place(file: File) -> Path:
    return data_dir() / "pictures" / file.name.removesuffix(".tgz")


def _unpack(root: Path) -> Path:
    with lock(root, "imagenette"):
        here = root / "sources" / "imagenette"
        file = next((file for file in SIZES if (here / file.name).is_file()), None)
        if file:
            check(file, here / file.name)
        else:
            (file,) = PUBLISHED.files
            _fetch.fetched(root, PUBLISHED)
        place = _place(file)
        return place if place.is_dir() else _archive.unpacked(root, "imagenette", here / file.name, place)
