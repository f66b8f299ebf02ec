"""The data directory: where it is, one process at a time in it, and lines for the user.

<data dir>/sources/<set>/    the published files, as downloaded or put there by hand
<data dir>/arrays/<set>-1/   parsed arrays (`_cache.py`)
<data dir>/pictures/<set>/   unpacked archives
<data dir>/tfds/             what TensorFlow Datasets prepared
"""

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dlc import files, process
from dlc.errors import UserError, printable


def data_dir() -> Path:
    """`$DLC_DATA`, else `dlc/data` in the user's cache directory (`$XDG_CACHE_HOME` or `~/.cache` on Linux).

    The directory need not exist yet. Raises UserError if the user has no home and DLC_DATA names no other folder.
    """
    if moved := os.environ.get("DLC_DATA"):
        try:
            return Path(moved).expanduser().absolute()
        except RuntimeError:
            raise UserError(
                f"DLC_DATA is {moved}, but that home folder does not exist: set it to the path of a folder"
            ) from None
    if cache := process.cache_dir():
        return cache / "data"
    raise UserError("this user has no home folder to keep data in: set DLC_DATA to the path of a folder")


@contextmanager
def usable(root: Path) -> Iterator[None]:
    """Turns every OSError inside into one sentence: the data directory `root` cannot be used."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        action = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "correct that"
        raise UserError(
            f"the data directory {root} cannot be used: {error.strerror or error}{where}; "
            f"{action}, or set DLC_DATA to another directory"
        ) from error


@contextmanager
def lock(root: Path, name: str) -> Iterator[None]:
    """Lets one process at a time prepare `name`, and removes what processes that died have left of it.

    The operating system releases the lock when its process ends, however it ends. Do not nest locks of one name.
    """
    arrays = root / "arrays"
    arrays.mkdir(parents=True, exist_ok=True)
    waiting = f"waiting for another process that is preparing {name} in {root}"
    with files.lock(arrays / f".lock-{name}", say, waiting):
        try:
            _clean(root, name)
            yield
        finally:
            _clean(root, name)


def partial(root: Path, name: str) -> Path:
    """The folder of files that are being downloaded; beside their destination, so that renaming is atomic."""
    return root / "sources" / name / ".partial"


def _clean(root: Path, name: str) -> None:
    leftovers = [
        *(root / "arrays").glob(f".{name}-*"),
        partial(root, name),
    ]
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)


def say(line: str) -> None:
    """Prints one line for the user on stderr; stdout belongs to the program that asked for the data."""
    print(printable(line), file=sys.stderr, flush=True)


def readable(size: int) -> str:
    """A size in bytes as people write it: 4542 -> "4.5 kB"."""
    for unit in ("B", "kB", "MB"):
        if size < 1000 or unit == "MB":
            break
        size /= 1000  # type: ignore[assignment]
    return f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"
