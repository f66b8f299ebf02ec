"""Records that TensorFlow Datasets wrote, as array_record or TFRecord files, read without TensorFlow or its package.

A record is a tf.train.Example in the encoding of Protocol Buffers, of which this reads the part that images, labels and
texts use.
"""

import functools
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlc.data._errors import DataDamaged

FORMATS = ("array_record", "tfrecord")  # that can be read here


class Content(bytes):
    """The bytes of a file, with words for where they were."""

    where = "this file"


class Records(Sequence[Any]):
    """The examples of a split of a prepared folder: {feature: bytes or a number}.

    Raises DataDamaged if the folder or a record differs from what TensorFlow Datasets writes.
    """

    # Not Sequence[dict]: the tests' type checker would read an item, and report damage as an error of types.

    def __init__(self, prepared: Path, name: str, split: str):
        self.where = f"{prepared} {split}"
        info = folder_info(prepared)
        kind = info.get("fileFormat") or "tfrecord"
        try:
            shards = {one["name"]: [int(n) for n in one["shardLengths"]] for one in info["splits"]}[split]
        except (ValueError, KeyError, TypeError) as error:
            raise not_prepared(prepared, error) from None
        count = len(shards)
        paths = [prepared / f"{name}-{split}.{kind}-{i:05d}-of-{count:05d}" for i in range(count)]
        if lost := [path for path in paths if not path.is_file()]:
            raise DataDamaged(f"{lost[0]} is missing: prepare {name} again")
        self.source = array_record(paths) if kind == "array_record" else TFRecords(paths)
        if len(self.source) != sum(shards):
            raise DataDamaged(
                f"{prepared} holds {len(self.source):,} {split} records instead of {sum(shards):,}: prepare it again"
            )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: Any) -> Any:
        try:
            return example(self.source[i])
        except (ValueError, TypeError, IndexError, RuntimeError, OSError, struct.error) as error:
            raise self.damaged(i, error) from None

    def damaged(self, i: int, error: Exception) -> DataDamaged:
        """The error for record `i`."""
        return DataDamaged(f"record {i} of {self.where} is damaged ({error!r}): prepare it again")


class Labelled(Sequence[Any]):
    """A split as a sequence of (the bytes of an image file, its label)."""

    def __init__(self, records: Records, image: str = "image", label: str = "label"):
        self.records, self.image, self.label = records, image, label

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: Any) -> Any:
        features = self.records[i]
        try:
            content = Content(features[self.image])
            content.where = f"record {i} of {self.records.where}"
            return content, int(features[self.label])
        except (KeyError, TypeError, ValueError) as error:
            raise self.records.damaged(i, error) from None


class TFRecords:
    """TFRecord files as a sequence of records: for each its length, a checksum, the record and a checksum."""

    def __init__(self, paths: Sequence[Path]):
        self.places: list[tuple[Path, int, int]] = []
        for path in paths:
            at, end = 0, path.stat().st_size
            with open(path, "rb") as file:
                while at < end:
                    file.seek(at)
                    head, checksum = file.read(8), file.read(4)
                    length = int.from_bytes(head, "little")
                    if len(checksum) < 4 or at + 16 + length > end:
                        raise DataDamaged(f"{path} is cut short: prepare the set again")
                    if int.from_bytes(checksum, "little") != masked(crc32c(head)):
                        raise DataDamaged(f"{path} is damaged at byte {at:,}: prepare the set again")
                    self.places.append((path, at + 12, length))
                    at += 16 + length

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> bytes:
        path, at, length = self.places[i]
        with open(path, "rb") as file:
            file.seek(at)
            record, checksum = file.read(length), file.read(4)
        if int.from_bytes(checksum, "little") != masked(crc32c(record)):
            raise ValueError("its checksum differs")
        return record


def crc32c(content: bytes) -> int:
    """The CRC-32C of some bytes, with the polynomial of Castagnoli.

    Checksums are linear, so those of neighbours are joined in pairs, all at once: the left one is carried over as many
    bytes that are zero as the right one has.
    """
    sums: Any = _carry_table(0)[0][np.frombuffer(content, np.uint8)]
    level = 0
    while len(sums) > 1:
        sums = np.concatenate([np.zeros(len(sums) % 2, np.uint32), sums])
        sums = _carried(sums[::2], level) ^ sums[1::2]
        level += 1
    start = np.array([0xFFFFFFFF], np.uint32)
    for level in range(len(content).bit_length()):
        if len(content) >> level & 1:
            start = _carried(start, level)
    return int(sums.sum() ^ start[0]) ^ 0xFFFFFFFF


def _carried(sums: np.ndarray, level: int) -> np.ndarray:
    """Checksums after 2**level more bytes that are zero."""
    table = _carry_table(level)
    return table[0][sums & 255] ^ table[1][sums >> 8 & 255] ^ table[2][sums >> 16 & 255] ^ table[3][sums >> 24]


@functools.cache
def _carry_table(level: int) -> np.ndarray:
    """What `_carried` makes of each byte of a checksum, uint32 [4, 256]."""
    byte: Any = np.arange(256, dtype=np.uint32)
    if level:
        return np.stack([_carried(_carried(byte << 8 * place, level - 1), level - 1) for place in range(4)])
    lowest = byte
    for _ in range(8):
        lowest = lowest >> 1 ^ np.uint32(0x82F63B78) * (lowest & 1)
    return np.stack([lowest, *(byte << 8 * place for place in range(3))])


def masked(crc: int) -> int:
    """A checksum as TFRecord files have it: turned by 15 bits, and a constant added."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def folder_info(prepared: Path, file: str = "dataset_info.json") -> dict[str, Any]:
    """What TensorFlow Datasets wrote about a prepared folder. Raises DataDamaged if it is not such a folder."""
    try:
        return dict(json.loads((prepared / file).read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise not_prepared(prepared, error) from None


def not_prepared(prepared: Path, error: Exception) -> DataDamaged:
    """The error for a folder that cannot be read."""
    return DataDamaged(f"{prepared} is not a folder that TensorFlow Datasets prepared ({error!r}): prepare it again")


def example(record: bytes) -> dict[str, Any]:
    """The features of a tf.train.Example, the first value of each: bytes or an integer. Other kinds are left out.

    In the encoding of Protocol Buffers an example holds (1) features, which hold (1) a pair for each: (1) its name and
    (2) its value, which holds (1) bytes or (3) int64s, each of which holds (1) its values.
    """
    features: dict[str, Any] = {}
    for _, pair in _fields(next((value for number, value in _fields(record) if number == 1), b"")):
        name, feature = (value for _, value in sorted(_fields(pair)))
        for kind, values in _fields(feature):
            value = next((value for number, value in _fields(values) if number == 1), None)
            if kind == 2 or value is None:
                continue
            if kind == 3 and isinstance(value, bytes):  # packed
                value = _varint(value, 0)[0]
            features[name.decode()] = value
    return features


def array_record(paths: Sequence[Path]) -> Any:
    """The records of these files, one after the other, as bytes."""
    try:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return ArrayRecordDataSource([str(path) for path in paths])
    except ImportError:  # there is none for Windows
        raise DataDamaged(f"{paths[0]} cannot be read: the package array_record is not installed") from None
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataDamaged(f"{paths[0].parent} is damaged ({reason}): prepare it again") from None


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a message: an integer, or bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _varint(message, at)
        else:
            length = {1: 8, 5: 4}.get(kind, len(message))
        if at + length > len(message):
            raise ValueError("not an example")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, seven bits a byte, lowest first, and the position after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
