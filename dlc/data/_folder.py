"""Pictures in folders, one for each class."""

import hashlib
from pathlib import Path

from dlc.data._dataset import Pictures
from dlc.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
HELD_OUT = 0.1  # the share of each class that is kept for evaluation if the folder itself does not say


def folder(root: Path) -> Pictures:
    """The pictures in `root/train/<class>/` and `root/val/<class>/`, or in `root/<class>/`.

    Classes are numbered in the order of their names. Without `train` and `val` a tenth of the pictures is held out, by
    a hash of class and name, so that adding a picture changes nothing for the others.

    Raises UserError if there is no such folder, fewer than two classes, a class without pictures, a class that is only
    in `val`, or too few pictures to hold some out.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give one that has a folder of pictures for each class")
    halves = [half for half in (root / "train", root / "val") if half.is_dir()]
    if len(halves) == 1:
        missing = {"train": "val", "val": "train"}[halves[0].name]
        raise UserError(
            f"{root} has a folder {halves[0].name} but no {missing}: add that, or put the classes in {root}"
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
                f"the class {name} is in {root / 'val'} but not in {root / 'train'}: it could not be learned"
            )
    train, validation = ([(file, label[name]) for name in found for file in found[name]] for found in files.values())
    return Pictures(root.name, train, _mixed(validation), classes, "a folder of pictures")


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
    """A number in [0, 1) that depends only on the names of the class and the picture, as if drawn uniformly."""
    name = f"{file.parent.name}/{file.name}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:4]) / 2**32


def _mixed(examples: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    """The examples in an order that mixes the classes, so that the first ones are of many classes."""
    return sorted(examples, key=lambda example: _place(example[0]))
