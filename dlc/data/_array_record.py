"""Pictures that TensorFlow Datasets prepared as array_record, read without TensorFlow and without its package.

A record is a tf.train.Example in Protocol Buffers' encoding, of which this reads the small part that such pictures use.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dlc.data._dataset import DataDamaged


class Content(bytes):
    """The bytes of a file, with words for where they were."""

    where = "this file"


class Records(Sequence[tuple[Path | bytes, int]]):
    """A split in array_record files, as a sequence of (the bytes of a JPEG, its label)."""

    def __init__(self, prepared: Path, name: str, split: str, shards: list[int]):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        paths = [
            str(prepared / f"{name}-{split}.array_record-{i:05d}-of-{len(shards):05d}") for i in range(len(shards))
        ]
        if lost := [path for path in paths if not Path(path).is_file()]:
            raise DataDamaged(f"{lost[0]} is missing: prepare {name} again")
        self.where, self.source = f"{prepared} {split}", ArrayRecordDataSource(paths)
        if len(self.source) != sum(shards):
            raise DataDamaged(
                f"{prepared} holds {len(self.source):,} {split} records instead of {sum(shards):,}: prepare it again"
            )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: Any) -> Any:
        try:
            features = example(self.source[i])
            content = Content(features["image"])
            content.where = f"record {i} of {self.where}"
            return content, features["label"]
        except (KeyError, ValueError, TypeError, IndexError, StopIteration, RuntimeError) as error:
            raise DataDamaged(f"record {i} of {self.where} is damaged ({error!r}): prepare it again") from None


def example(record: bytes) -> dict[str, Any]:
    """The features of a tf.train.Example, those of one value each: bytes or a number.

    In Protocol Buffers' encoding, of which this is the small part that TFDS writes here, an example holds (1) features,
    which hold (1) a pair for each: (1) its name and (2) its value, which holds (1) bytes or (3) int64s, which hold (1).
    """
    features: dict[str, Any] = {}
    for _, pair in _fields(next(value for number, value in _fields(record) if number == 1)):
        name, feature = (value for _, value in sorted(_fields(pair)))
        for kind, values in _fields(feature):
            value = next(value for number, value in _fields(values) if number == 1)
            if kind == 3 and isinstance(value, bytes):  # packed
                value = _varint(value, 0)[0]
            features[name.decode()] = value
    return features


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a message: whole numbers, or what has a length, as bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        length, at = _varint(message, at)
        if tag & 7 == 0:
            yield tag >> 3, length
            continue
        if tag & 7 != 2 or at + length > len(message):
            raise ValueError("not an example")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, seven bits a byte, the lowest first; and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
