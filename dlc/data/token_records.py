"""Texts as records of tokens on disk, for training on more text than memory holds.

    found = opened(Path("packed"))
    found.train[0]                        # int32 [257], a window

    train-00000.array_record ...          a window a record: `context` + 1 tokens, uint16 or uint32
    validation-00000.array_record         windows of documents that are held out
    tokenizer.json                        the vocabulary
    index.json                            how many windows of how many tokens, and size and CRC-32 of each file

`python -m dlc.data --records FOLDER FILE ...` writes such a folder (`_packing.py`).
"""

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlc import files, tokens
from dlc.data import _array_record
from dlc.data._errors import DataDamaged
from dlc.errors import UserError

INDEX = "index.json"
FORMAT = 1  # raise it when the format changes
CHECKED = 2**30  # bytes up to which the content of all files is checked when a folder is opened


class Packed(NamedTuple):
    """A folder of windows.

    Attributes:
        context: tokens of a window, without the one that it only predicts.
        train, validation: the windows, sequences of int32 [context + 1].
        tokenizer: the vocabulary.
        source: what the windows are, for the record.
    """

    name: str
    context: int
    train: "Windows"
    validation: "Windows"
    tokenizer: tokens.Characters | tokens.BPE
    source: str


class Windows(Sequence[Any]):
    """The windows of one half, read when they are needed. Raises DataDamaged if one cannot be read."""

    def __init__(self, paths: Sequence[Path], length: int, dtype: str, vocab: int):
        self.where, self.length, self.dtype, self.vocab = paths[0].parent, length, np.dtype(dtype), vocab
        self.source = _array_record.array_record(paths)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: Any) -> Any:
        try:
            window = np.frombuffer(self.source[i], self.dtype).astype(np.int32)
        except (ValueError, IndexError, RuntimeError, OSError) as error:
            raise _damaged(self.where, f"window {i}: {str(error).splitlines()[0]}") from None
        if len(window) != self.length or window.min() < 0 or window.max() >= self.vocab:
            raise _damaged(self.where, f"window {i} is another one than was written")
        return window


def opened(folder: str | Path) -> Packed:
    """The windows in a folder that `pack` wrote.

    The sizes of all files are checked, and up to 1 GiB their content, too. array_record compares each record with its
    own checksum when it is read.

    Raises UserError if it is not such a folder, and DataDamaged if a file differs from what was written.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise UserError(
            f"{folder} is not a folder of packed texts: python -m dlc.data --records {folder} FILE makes one"
        )
    try:
        content = (folder / INDEX).read_bytes()
        index = files.unsealed(content)
        if index["format"] != FORMAT:
            raise ValueError(f"its format is {index['format']}, and not {FORMAT}")
        halves = {half: index[half] for half in ("train", "validation")}
        written = [one for half in halves.values() for one in half]
        checked = sum(one["bytes"] for one in written) <= CHECKED
        for one in (*written, index["tokenizer"]):
            found = (folder / one["name"]).stat().st_size
            if found != one["bytes"]:
                raise ValueError(f"{one['name']} has {found:,} bytes instead of {one['bytes']:,}")
            if (checked or one is index["tokenizer"]) and crc32(folder / one["name"]) != one["crc32"]:
                raise ValueError(f"the content of {one['name']} has changed")
        length, dtype = index["context"] + 1, {2: "<u2", 4: "<u4"}[index["bytes_of_token"]]
        tokenizer = tokens.load(folder)
        parts = {}
        for half, of in halves.items():
            parts[half] = Windows([folder / one["name"] for one in of], length, dtype, tokenizer.size)
            if len(parts[half]) != sum(one["windows"] for one in of):
                raise ValueError(f"{half} has {len(parts[half]):,} windows, which are others than were written")
    except FileNotFoundError as error:
        raise _damaged(folder, f"{Path(error.filename).name} is missing") from None
    except DataDamaged:
        raise
    except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
        raise _damaged(folder, str(error)) from None
    source = f"{folder.name}, index sha256 {hashlib.sha256(content).hexdigest()[:12]}"
    return Packed(folder.name, length - 1, parts["train"], parts["validation"], tokenizer, source)


def example(window: np.ndarray, rng: Any = None) -> dict[str, np.ndarray]:
    """A window as `stream.Batches` makes batches of it; nothing in it is random."""
    return {"tokens": window}


def crc32(path: Path) -> int:
    """The CRC-32 of a file."""
    value = 0
    with open(path, "rb") as file:
        while part := file.read(2**22):
            value = zlib.crc32(part, value)
    return value


def _damaged(folder: Path, what: str) -> DataDamaged:
    return DataDamaged(f"{folder} is damaged ({what}): pack the texts again")
