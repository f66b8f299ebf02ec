"""The array cache: `<data dir>/arrays/<name>-1/`, an .npy file for each array and a meta.json, complete or absent.

A folder is written under a temporary name, flushed to disk and renamed, so a process that dies leaves either nothing
or leftovers that the next one removes. Reading maps the files into memory and checks the size and the CRC-32 of each,
which takes 0.02 s for the 55 MB of MNIST and 0.05 s for the 184 MB of CIFAR-10.
"""

import contextlib
import os
import tempfile
import zlib
from pathlib import Path
from tokenize import TokenError  # which NumPy lets through for a damaged header

import numpy as np

from dlc.data._dataset import Dataset, Split
from dlc.data._errors import DataDamaged
from dlc.files import sealed, unsealed

FORMAT = 1  # raise it when the format changes: older folders are then ignored


def folder(root: Path, name: str) -> Path:
    """Where the arrays of `name` are."""
    return root / "arrays" / f"{name}-{FORMAT}"


def read(root: Path, name: str) -> Dataset | None:
    """The cached data set, or None if there is none; `classes` is empty in folders of earlier versions.

    The arrays are private maps of the files: they can be written to, and what is written stays in this process.

    Raises:
        DataDamaged: the folder differs from what `write` wrote.
    """
    here = folder(root, name)
    if not here.is_dir():
        return None
    try:
        meta = unsealed((here / "meta.json").read_bytes())
        splits: dict[str, Split] = {"train": {}, "test": {}}
        for file, (size, crc32) in meta["files"].items():
            found = (here / file).stat().st_size
            if found != size:
                raise ValueError(f"{file} has {found:,} bytes instead of {size:,}")
            mapped = np.asarray(np.load(here / file, mmap_mode="c"))
            if zlib.crc32(mapped.data) != crc32:
                raise ValueError(f"the content of {file} has changed")
            split, key = file.removesuffix(".npy").split("_", 1)
            splits[split][key] = mapped
        return Dataset(name, splits["train"], splits["test"], tuple(meta.get("classes", ())), meta["source"])
    except FileNotFoundError as error:
        what = f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, SyntaxError, TokenError) as error:
        what = str(error)
    raise DataDamaged(f"the prepared arrays of {name} in {here} are damaged ({what})")


def sources(root: Path, prefix: str) -> dict[Path, str]:
    """The folders of the cached sets whose names begin with `prefix`, and where each came from."""
    found = {}
    for here in sorted((root / "arrays").glob(f"{prefix}*-{FORMAT}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a damaged one
            found[here] = str(unsealed((here / "meta.json").read_bytes())["source"])
    return found


def write(root: Path, dataset: Dataset) -> None:
    """Replaces the cached arrays of the data set; call it under the lock."""
    target = folder(root, dataset.name)
    temporary = Path(tempfile.mkdtemp(prefix=f".{dataset.name}-", dir=target.parent))
    files = {}
    for split, arrays in (("train", dataset.train), ("test", dataset.test)):
        for key, values in arrays.items():
            array = np.ascontiguousarray(values)
            with open(temporary / f"{split}_{key}.npy", "wb") as out:
                np.lib.format.write_array_header_1_0(out, np.lib.format.header_data_from_array_1_0(array))
                out.write(array.data)  # np.save hides the cause when the disk is full
                out.flush()
                os.fsync(out.fileno())
                files[f"{split}_{key}.npy"] = (out.tell(), zlib.crc32(array.data))
    with open(temporary / "meta.json", "w", encoding="utf-8") as text:
        text.write(sealed({"source": dataset.source, "classes": dataset.classes, "files": files}, indent=1))
        text.flush()
        os.fsync(text.fileno())
    temporary.chmod(0o755)  # mkdtemp's 0700 would make a shared data directory unreadable to others
    if target.exists():
        target.rename(temporary.with_name(temporary.name + "-old"))
    temporary.rename(target)
    if os.name == "nt":
        return  # a directory cannot be flushed there
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
