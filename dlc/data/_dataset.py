"""What a data set is, where it is kept, and the two ways in which it cannot be had."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dlc.errors import UserError

Split = dict[str, np.ndarray]


class Dataset(NamedTuple):
    """A whole data set in memory, in the order of its original files.

    Attributes:
        name: one of `dlc.data.NAMES`.
        train, test: `{"image": uint8 [N, H, W, C], "label": int32 [N]}`, labels in `[0, len(classes))`.
        classes: the names of the classes, in label order.
        source: where the arrays came from, for the record: "tfds mnist 3.0.1", "original files in sources/mnist", ...
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    source: str


class DataUnavailable(UserError):
    """The data set is nowhere on this machine and cannot be downloaded; lists what to put where."""

    exit_code = 3

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason  # the cause alone, without the set's name: for callers that go on with another set


class DataDamaged(UserError):
    """A file is not the one that was published or written; names it and says what is wrong and what to do."""


def data_dir() -> Path:
    """`$DLC_DATA`, else `$XDG_CACHE_HOME/dlc/data`, else `~/.cache/dlc/data`; need not exist yet."""
    if moved := os.environ.get("DLC_DATA"):
        return Path(moved).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "dlc" / "data"


@contextmanager
def usable(root: Path) -> Iterator[None]:
    """Says in one sentence that the data directory `root` cannot be used, where the system says so inside."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        mend = "free some space or" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that, or"
        raise UserError(
            f"the data directory {root} cannot be used: {error.strerror or error}{where}; "
            f"{mend} set DLC_DATA to another directory"
        ) from error


def say(line: str) -> None:
    """One line for the user, on stderr: stdout belongs to the program that asked for the data."""
    print(line, file=sys.stderr, flush=True)


def readable(size: int) -> str:
    """A size in bytes as people write it: 4542 -> "4.5 kB"."""
    for unit in ("B", "kB", "MB"):
        if size < 1000 or unit == "MB":
            break
        size /= 1000  # type: ignore[assignment]
    return f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"
