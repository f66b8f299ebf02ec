"""What was published: names, addresses, sizes and checksums; which of it is here; and the error if it cannot be had."""

import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

from dlc.data._directory import readable
from dlc.data._errors import DataDamaged, DataUnavailable


class File(NamedTuple):
    """One published file. `unpacked` is the sha256 of the content of a .gz file, where it is known."""

    name: str
    url: str
    size: int
    sha256: str
    unpacked: str = ""


class Published(NamedTuple):
    """A data set as it was published.

    Attributes:
        name: the name of the set.
        files: its files, in the order in which the parser expects them. A set without files needs no download.
        instead: what to use offline: "`digits` is a data set of images that needs no download".
        also: another way to bring the set by hand, as the last lines of the error; `{folder}` is where files belong.
        tfds: the versions that may be used as TensorFlow Datasets prepared them, "3.0.1" or "CONFIG/1.0.0".
        closed: why it cannot be downloaded without asking, if so.
    """

    name: str
    files: tuple[File, ...] = ()
    instead: str = ""
    also: str = ""
    tfds: tuple[str, ...] = ()
    closed: str = ""


def find(published: Published, folder: Path) -> list[tuple[File, Path | None]]:
    """Each published file and its path in `folder`, compressed or not, or None."""
    found: list[tuple[File, Path | None]] = []
    for file in published.files:
        names = [file.name]
        if file.name.endswith(".gz") and not file.name.endswith(".tar.gz"):
            names += [file.name[:-3], file.name[:-3].replace("-idx", ".idx")]  # the second is what gunzip -N writes
        found.append((file, next((folder / name for name in names if (folder / name).is_file()), None)))
    return found


def missing(published: Published, folder: Path) -> list[File]:
    """The published files that `folder` does not have."""
    return [file for file, path in find(published, folder) if path is None]


def check(file: File, path: Path) -> None:
    """Raises DataDamaged unless `path` holds the published file, compressed or not."""
    again = f"delete it and fetch it again from {file.url}"
    expected = file.sha256 if path.name == file.name else file.unpacked
    if path.name == file.name and (size := path.stat().st_size) != file.size:
        raise DataDamaged(f"{path} is damaged: it has {size:,} bytes instead of {file.size:,}; {again}")
    if expected:
        with open(path, "rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != expected:
                raise DataDamaged(f"{path} is not the published file: its sha256 differs; {again}")


def content(path: Path) -> bytes:
    """The content of a checked file, decompressed if its name ends in .gz."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def unavailable(root: Path, published: Published, reason: str) -> DataUnavailable:
    """The error for data that cannot be had: what is missing and why, what works offline, and what to put where."""
    folder = root / "sources" / published.name
    lines = [f"{published.name} is not on this machine and cannot be downloaded: {reason}; {published.instead}."]
    if wanted := missing(published, folder):
        lines.append("To bring it by hand, put")
        lines += [f"  {file.url} ({readable(file.size)}) at {folder / file.name}" for file in wanted]
    if published.also:
        lines.append(published.also.format(folder=folder, tfds=root / "tfds"))
    return DataUnavailable("\n".join(lines), reason)
