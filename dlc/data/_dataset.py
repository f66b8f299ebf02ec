"""What a loaded data set is: arrays, pictures, a text, or sentences beside their translations."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

Split = dict[str, np.ndarray]
Pairs = list[tuple[str, str]]


class Dataset(NamedTuple):
    """A whole data set in memory, in the order of its original files.

    Attributes:
        name: one of `dlc.data.NAMES`, or "tfds:NAME".
        train, test: arrays [N, ...], one row an example; for images `{"image": uint8 [N, H, W, C],
            "label": int32 [N]}` with labels in `[0, len(classes))`.
        classes: the names of the classes, in label order.
        source: where the arrays came from, for the record: "tfds mnist 3.0.1", "original files in sources/mnist", ...
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    source: str


class Pictures(NamedTuple):
    """A set of pictures that stay on disk.

    Attributes:
        name: the name of the data set or of the folder.
        train, validation: sequences of (file, label): a path or the content of a file, and an integer below
            `len(classes)`.
        classes: the names of the classes, in label order.
        source: where the pictures came from, for the record.
    """

    name: str
    train: Sequence[tuple[Path | bytes, int]]
    validation: Sequence[tuple[Path | bytes, int]]
    classes: tuple[str, ...]
    source: str


class Corpus(NamedTuple):
    """A text. Unless it is published in parts, the first 90 % of its characters are for training, as in nanoGPT."""

    name: str
    train: str
    validation: str
    source: str  # where it came from, for the record


class Parallel(NamedTuple):
    """Sentences and their translations, as pairs of (source sentence, target sentence)."""

    name: str
    train: Pairs
    validation: Pairs
    test: Pairs
    source: str  # where they came from, for the record


def split_text(name: str, text: str, source: str) -> Corpus:
    """The text as a `Corpus`."""
    train = len(text) * 9 // 10
    return Corpus(name, text[:train], text[train:], source)
