"""Pictures in folders, one for each class."""

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dlc.data import images
from dlc.data._dataset import Pictures
from dlc.data._directory import say
from dlc.errors import UserError, printable

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SYSTEM = {  # names that do not begin with a dot, in lower case
    "__macosx", "__pycache__", "network trash folder", "temporary items",  # macOS, Python
    "$recycle.bin", "recycler", "system volume information", "found.000", "lost+found",  # Windows, Linux
    "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb", "~snapshot",  # servers
}  # fmt: skip
WHOLE = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG\r\n\x1a\n": b"IEND\xaeB`\x82", b"GIF8": b";"}  # first, last bytes
LOOKING = 30.0  # seconds for which files are looked at
MANY = 10_000  # files, of which a line is printed
THREADS = 16  # on a network's disk most of the time is waiting
NAMED = 10  # files in an error
HELD_OUT = 0.1  # the share of each class that is kept for evaluation if the folder itself does not say


def folder(root: str | Path) -> Pictures:
    """The pictures in `root/train/<class>/` and `root/val/<class>/`, or in `root/<class>/`.

    Classes are numbered in the order of their names. Without `train` and `val` a tenth of the pictures is held out, by
    a hash of the names of picture and folder, so that adding a picture changes nothing for the others.

    Folders of a class may hold further folders. Links are followed; hidden files and those of the system are ignored.

    Raises UserError if there is no such folder, fewer than two classes, a class without pictures, a class that is only
    in `val`, too few pictures to hold some out, or if the first and last bytes of one show that it cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give one that has a folder of pictures for each class")
    halves = [half for half in (root / "train", root / "val") if half.is_dir()]
    if len(halves) == 1:
        missing = {"train": "val", "val": "train"}[halves[0].name]
        raise UserError(
            f"{root} has a folder {halves[0].name} but no {missing}: add that, or put the classes in {root}"
        )
    bad: list[str] = []
    files = {half: _by_class(half, bad) for half in halves or [root]}
    every = [file for half in files.values() for found in half.values() for file in found]
    _check(every, bad)
    if bad:
        named = "".join(f"\n  {sentence}" for sentence in (*sorted(bad)[:NAMED], *["..."] * (len(bad) > NAMED)))
        raise UserError(f"{len(bad):,} of the pictures in {root} cannot be read: mend or remove them{named}")
    label = {name: i for i, name in enumerate(files[(halves or [root])[0]])}
    name, classes = printable(os.path.basename(os.path.abspath(root))), tuple(map(printable, label))
    if not halves:
        both = [(file, label[one]) for one, found in files[root].items() for file in found]
        held = [_place(file) < HELD_OUT for file, _ in both]
        train = [one for one, out in zip(both, held, strict=True) if not out]
        validation = [one for one, out in zip(both, held, strict=True) if out]
        if not validation or {i for _, i in train} != set(label.values()):
            raise UserError(f"{root} has too few pictures to hold some out: add more, or make folders train and val")
        return Pictures(name, train, _mixed(validation), classes, "a folder of pictures, a tenth of them held out")
    for other in files[root / "val"]:
        if other not in label:
            raise UserError(
                f"the class {other} is in {root / 'val'} but not in {root / 'train'}: it could not be learned"
            )
    train, validation = ([(file, label[one]) for one in found for file in found[one]] for found in files.values())
    return Pictures(name, train, _mixed(validation), classes, "a folder of pictures")


def _by_class(root: Path, bad: list[str]) -> dict[str, list[Path]]:
    """The pictures of each class below `root`, both in the order of their names. Sentences about others go to `bad`."""
    above = {_identity(place) for place in (root, *root.resolve().parents)}
    folders = [path for path, status in _entries(root, bad) if stat.S_ISDIR(status.st_mode)]
    if len(folders) < 2 and not bad:
        raise UserError(
            f"{root} has {len(folders)} folders of pictures: give each class a folder of its own, two or more"
        )
    found = {}
    for place in folders:
        found[place.name] = list(_pictures(place, set(above), bad))
        if not found[place.name] and not bad:
            raise UserError(f"{place} has no picture ({', '.join(SUFFIXES)}): remove it, or put some there")
    return found


def _pictures(folder: Path, seen: set[tuple[int, int]], bad: list[str]) -> Iterator[Path]:
    """The pictures in a folder and in those below it, in the order of their names.

    Links are followed. A folder in `seen` is not read again, so a link that leads back ends there.
    """
    if (identity := _identity(folder)) in seen:
        return
    seen.add(identity)
    for path, status in _entries(folder, bad):
        if stat.S_ISDIR(status.st_mode):  # whatever its name ends in
            yield from _pictures(path, seen, bad)
        elif path.suffix.lower() in SUFFIXES:
            if not stat.S_ISREG(status.st_mode):
                bad.append(f"{path} is not a file")  # opening a pipe would wait for ever
            else:
                yield path


def _entries(folder: Path, bad: list[str]) -> Iterator[tuple[Path, os.stat_result]]:
    """What is in a folder and not hidden, in the order of the names."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if not _of_a_system(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        bad.append(f"{folder} cannot be listed: {error.strerror}")
        return
    for entry in found:
        path = folder / entry.name
        try:
            status = entry.stat()
        except OSError as error:
            if path.suffix.lower() in ("", *SUFFIXES):  # without a suffix it may have been a folder
                what = f"is a link to {os.readlink(path)}, which" if path.is_symlink() else "is a file that"
                bad.append(f"{path} {what} cannot be read: {error.strerror}")
            continue
        if not _marked_hidden(status):
            yield path, status


def _of_a_system(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def _marked_hidden(status: Any) -> bool:
    """Whether Windows or macOS hides a file, whatever its name."""
    windows, mac = getattr(status, "st_file_attributes", 0), getattr(status, "st_flags", 0)
    return bool(windows & (stat.FILE_ATTRIBUTE_HIDDEN | stat.FILE_ATTRIBUTE_SYSTEM) or mac & stat.UF_HIDDEN)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()  # that of a directory's entry has no number on Windows
    return status.st_dev, status.st_ino


def _check(files: list[Path], bad: list[str]) -> None:
    """Checks the files, and adds a sentence to `bad` for each one that cannot be decoded.

    A file that begins and ends as its kind does passes, others are decoded. After `LOOKING` seconds, which suffice for
    about a million files on a fast disk, no more are looked at, and a line says so.
    """
    if len(files) > MANY:
        say(f"looking at the first and last bytes of {len(files):,} pictures")
    spread = [file for i in range(100) for file in files[i::100]]  # evenly over the set, if time does not suffice
    end, done = time.monotonic() + LOOKING, 0
    with ThreadPoolExecutor(THREADS) as threads:
        while done < len(spread) and (done == 0 or time.monotonic() < end):
            some = spread[done : done + MANY]
            for sentences in threads.map(_faults, (some[i::THREADS] for i in range(THREADS))):
                bad += sentences
            done += len(some)
    if done < len(spread):
        say(f"looked at {done:,} of {len(spread):,} pictures in {LOOKING:g} s; the others are read in their turn")


def _faults(files: list[Path]) -> list[str]:
    return [sentence for file in files if (sentence := _fault(file))]


def _fault(file: Path) -> str:
    """A sentence about a file that cannot be decoded, or ""."""
    try:
        with open(file, "rb", buffering=0) as content:
            first = content.read(12)
            size = content.seek(0, os.SEEK_END)
            content.seek(-min(size, 8), os.SEEK_END)
            last = content.read()
        if any(first.startswith(begin) and last.endswith(end) for begin, end in WHOLE.items()):
            return ""
        if first[:4] == b"RIFF" and first[8:] == b"WEBP" and int.from_bytes(first[4:8], "little") + 8 == size:
            return ""
    except OSError:
        pass  # `decode` says what it is
    try:
        images.decode(file)
    except UserError as error:
        return str(error).splitlines()[0]
    return ""


def _place(file: Path) -> float:
    """A number in [0, 1) that depends only on the names of the picture and its folder, as if drawn uniformly."""
    name = f"{file.parent.name}/{file.name}".encode(errors="surrogatepass")  # names need not be UTF-8
    return int.from_bytes(hashlib.sha256(name).digest()[:4]) / 2**32


def _mixed(examples: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    """The examples in an order that mixes the classes, so that the first ones are of many classes."""
    return sorted(examples, key=lambda example: _place(example[0]))
