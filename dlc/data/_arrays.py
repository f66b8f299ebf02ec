"""Data sets that fit in memory: published files -> checked -> parsed -> arrays -> cache."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlc.data import _cache, _fetch, _tfds
from dlc.data._dataset import Dataset, Split
from dlc.data._directory import data_dir, lock, readable, say, usable
from dlc.data._errors import DataDamaged, DataUnavailable
from dlc.data._published import Published, missing
from dlc.errors import UserError

Parse = Callable[[Sequence[Path]], tuple[Split, Split]]
IMAGE_AND_LABEL = ("image", "label")


class Leaf(NamedTuple):
    """The shape and dtype of one array of one example."""

    shape: tuple[int, ...]
    dtype: Any


class Folder(NamedTuple):
    """Another form in which people have the set: a folder in `sources/<name>/`, which `parse` checks and reads."""

    name: str
    parse: Callable[[Path], tuple[Split, Split]]


class Arrays(NamedTuple):
    """A data set in memory.

    Attributes:
        published: its files.
        parse: checked paths, in the order of `published.files` -> train, test.
        example: the arrays of one example. Those named "label" are in `[0, len(classes))`.
        counts: the numbers of training and test examples.
        classes: the names of the classes.
        source: where the arrays of a set without files come from.
        folder: another form of the same set.
    """

    published: Published
    parse: Parse
    example: Mapping[str, Leaf]
    counts: tuple[int, int]
    classes: tuple[str, ...]
    source: str = ""
    folder: Folder | None = None


def images(height: int, width: int, channels: int) -> dict[str, Leaf]:
    """One example of image classification."""
    return {"image": Leaf((height, width, channels), np.uint8), "label": Leaf((), np.int32)}


def load(data: Arrays) -> Dataset:
    """The arrays, from the cache or prepared first. Raises as `dlc.data.load` does."""
    name = data.published.name
    if not data.published.files:
        return Dataset(name, *data.parse(()), data.classes, data.source)
    return cached(name, lambda root: _prepare(root, data))._replace(classes=data.classes)


def cached(name: str, prepare: Callable[[Path], Dataset]) -> Dataset:
    """The set from the cache; `prepare(data directory)` makes it if it is not there or damaged."""
    root = data_dir()
    with usable(root):
        try:
            if kept := _cache.read(root, name):
                return kept
        except DataDamaged:
            pass  # read again, and reported, under the lock: another process may be about to repair it
        with lock(root, name):
            damage = None
            try:
                if kept := _cache.read(root, name):
                    return kept
            except DataDamaged as error:
                damage = error
                say(f"{error}; preparing them again")
            try:
                dataset = prepare(root)
            except DataUnavailable as error:
                if damage:
                    raise DataDamaged(f"{damage} and cannot be prepared again: {error}") from error
                raise
            _cache.write(root, dataset._replace(name=name))
        prepared = _cache.read(root, name)
        assert prepared
        return prepared


def is_ready(data: Arrays) -> bool:
    """Whether `load` finds the set prepared. The files themselves are not read."""
    return not data.published.files or _cache.folder(data_dir(), data.published.name).is_dir()


def state(data: Arrays) -> tuple[str, str]:
    """For a listing: "ready", "damaged", "found" or "not here"; and from where, or what is to be downloaded."""
    published, root = data.published, data_dir()
    if not published.files:
        return "ready", f"{data.source}, needs no download"
    try:
        if kept := _cache.read(root, published.name):
            return "ready", kept.source
    except UserError as error:
        return "damaged", str(error)
    if prepared := _tfds.folders(root, published):
        return "found", f"to be read from {prepared[0]}"
    here = root / "sources" / published.name
    wanted = missing(published, here)
    if not wanted or (data.folder and (here / data.folder.name).is_dir()):
        return "found", f"to be read from {here}"
    return "not here", f"{readable(sum(file.size for file in wanted))} to download"


def _prepare(root: Path, data: Arrays) -> Dataset:
    train, test, source = _find(root, data)
    _check(data, train, test, source)
    return Dataset(data.published.name, train, test, data.classes, source)


def _find(root: Path, data: Arrays) -> tuple[Split, Split, str]:
    published, name = data.published, data.published.name
    if tuple(data.example) == IMAGE_AND_LABEL:
        shape = data.example["image"].shape
        for prepared in _tfds.folders(root, published):
            try:
                splits = [
                    _tfds.images(prepared, name, split, shape, count)
                    for split, count in zip(("train", "test"), data.counts, strict=True)
                ]
                return splits[0], splits[1], f"tfds {name} {prepared.name}"
            except DataDamaged as error:
                say(f"{prepared} is ignored: {error}")
    here = root / "sources" / name
    if data.folder and missing(published, here) and (here / data.folder.name).is_dir():
        return *data.folder.parse(here / data.folder.name), f"{data.folder.name} in sources/{name}"
    return *data.parse(_fetch.fetched(root, published)), f"original files in sources/{name}"


def _check(data: Arrays, train: Split, test: Split, source: str) -> None:
    for split, arrays, count in zip(("train", "test"), (train, test), data.counts, strict=True):
        for key, (shape, dtype) in data.example.items():
            found = arrays[key]
            if found.shape != (count, *shape) or found.dtype != dtype:
                raise DataDamaged(
                    f"{source}: {split} holds {key}s of shape {found.shape} and type {found.dtype} instead of "
                    f"{(count, *shape)} and {np.dtype(dtype)}; fetch the files again"
                )
        label = arrays.get("label", np.zeros(1))
        if data.classes and not 0 <= label.min() <= label.max() < len(data.classes):
            raise DataDamaged(f"{source}: the {split} labels are not in 0..{len(data.classes) - 1}")
