"""Tiny Shakespeare: 1,115,394 characters of his plays, of 65 kinds.

References: Karpathy 2015, "The unreasonable effectiveness of recurrent neural networks".
"""

from collections.abc import Sequence
from pathlib import Path

from dlc.data._array_record import Records
from dlc.data._dataset import Corpus, split_text
from dlc.data._published import File, Published, content

PUBLISHED = Published(
    "tiny_shakespeare",
    (
        File(
            "input.txt", "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            1115394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
    ),
    instead="`python` is a text that needs no download",
    tfds=("1.0.0",),
)  # fmt: skip


def parse(paths: Sequence[Path]) -> Corpus:
    """The text as it was published."""
    return split_text("tiny_shakespeare", content(paths[0]).decode(), "original files in sources/tiny_shakespeare")


def prepared(folder: Path) -> bytes:
    """The text from a folder that TensorFlow Datasets prepared, which holds it in three splits."""
    splits = [Records(folder, "tiny_shakespeare", split) for split in ("train", "validation", "test")]
    return b"".join(records[i].get("text", b"") for records in splits for i in range(len(records)))
