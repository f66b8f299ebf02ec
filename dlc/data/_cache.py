"""The array cache: `<data dir>/arrays/<name>-1/`, four .npy files and a meta.json, whole or not there at all.

A folder is written under a temporary name, flushed to the disk and renamed, so a process that dies leaves either
nothing or leftovers that the next one removes. Reading maps the files and checks the size and the CRC-32 of every one;
with that, `read` takes 0.02 s for MNIST's 55 MB and 0.05 s for CIFAR-10's 184 MB, so there is no reason to check less.
"""

import fcntl
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dlc.data._dataset import DataDamaged, Dataset, Split, say
from dlc.data._published import PUBLISHED

FORMAT = 1  # to be raised when what is written changes: older folders are then passed over


def folder(root: Path, name: str) -> Path:
    """Where the arrays of `name` lie."""
    return root / "arrays" / f"{name}-{FORMAT}"


def read(root: Path, name: str) -> Dataset | None:
    """The cached data set, or None where there is none.

    The arrays are private maps of the files: writable, and what is written stays in this process.

    Raises:
        DataDamaged: something is there, but not what `write` wrote.
    """
    here = folder(root, name)
    if not here.is_dir():
        return None
    try:
        meta = json.loads((here / "meta.json").read_text())
        arrays = {}
        for file, (size, crc32) in meta["files"].items():
            found = (here / file).stat().st_size
            if found != size:
                raise ValueError(f"{file} has {found:,} bytes instead of {size:,}")
            mapped = np.asarray(np.load(here / file, mmap_mode="c"))
            if zlib.crc32(mapped.data) != crc32:
                raise ValueError(f"the content of {file} has changed")
            arrays[file] = mapped
        train, test = ({key: arrays[f"{split}_{key}.npy"] for key in ("image", "label")} for split in ("train", "test"))
        return Dataset(name, train, test, PUBLISHED[name].classes, meta["source"])
    except FileNotFoundError as error:
        what = f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        what = str(error)
    raise DataDamaged(f"the prepared arrays of {name} in {here} are damaged ({what})")


def write(root: Path, name: str, train: Split, test: Split, source: str) -> None:
    """Puts the arrays in the cache in place of what is there; call it under `lock`.

    Raises:
        DataDamaged: the arrays are not the data set: wrong counts, shapes or labels.
    """
    _check(name, train, test, source)
    target = folder(root, name)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    files = {}
    for file, array in (
        (f"{split}_{key}.npy", np.ascontiguousarray(arrays[key]))
        for split, arrays in (("train", train), ("test", test))
        for key in ("image", "label")
    ):
        with open(temporary / file, "wb") as out:
            np.lib.format.write_array_header_1_0(out, np.lib.format.header_data_from_array_1_0(array))
            out.write(array.data)  # np.save's own writing hides the cause when the disk is full
            out.flush()
            os.fsync(out.fileno())
            files[file] = (out.tell(), zlib.crc32(array.data))
    with open(temporary / "meta.json", "w") as text:
        json.dump({"source": source, "files": files}, text, indent=1)
        text.flush()
        os.fsync(text.fileno())
    temporary.chmod(0o755)  # mkdtemp's 0700 would keep a shared data directory from being shared
    if target.exists():
        target.rename(temporary.with_name(temporary.name + "-old"))
    temporary.rename(target)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def lock(root: Path, name: str) -> Iterator[int]:
    """One process at a time prepares `name`; leftovers of those that died are removed before and after.

    Yields the descriptor that holds the lock: a child that inherits it keeps the lock for as long as it lives.
    """
    arrays = root / "arrays"
    arrays.mkdir(parents=True, exist_ok=True)
    held = os.open(arrays / f".lock-{name}", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that is preparing {name} in {root}")
            fcntl.flock(held, fcntl.LOCK_EX)
        _clean(root, name)
        try:
            yield held
        finally:
            _clean(root, name)
    finally:
        os.close(held)


def _clean(root: Path, name: str) -> None:
    leftovers = [
        *(root / "arrays").glob(f".{name}-*"),
        *(root / "tfds" / name).glob("incomplete.*"),
        *(root / "tfds" / "downloads" / name).glob("**/*.tmp.*"),
    ]
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)


def _check(name: str, train: Split, test: Split, source: str) -> None:
    published = PUBLISHED[name]
    for split, arrays, count in zip(("train", "test"), (train, test), published.counts, strict=True):
        image, label = arrays["image"], arrays["label"]
        if image.shape != (count, *published.shape) or label.shape != (count,):
            raise DataDamaged(f"{source}: {split} holds {image.shape} images and {label.shape} labels, "
                              f"not {count:,} of {published.shape}; fetch the files again")  # fmt: skip
        if (
            image.dtype != np.uint8
            or label.dtype != np.int32
            or not 0 <= label.min() <= label.max() < len(published.classes)
        ):
            raise DataDamaged(f"{source}: the {split} labels are not in 0..{len(published.classes) - 1}")
