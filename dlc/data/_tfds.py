"""What TensorFlow Datasets (TFDS) prepared, read without TensorFlow or TFDS; and TFDS asked to prepare a set.

TFDS itself, its threads and what it prints stay in a process of their own, `dlc.data._tfds_child`, which is started
only to prepare a set that was asked for as "tfds:NAME".
"""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlc.data._array_record import FORMATS, Labelled, Records, folder_info, not_prepared
from dlc.data._dataset import Dataset, Split
from dlc.data._directory import say
from dlc.data._errors import DataDamaged
from dlc.data._published import Published, unavailable
from dlc.errors import UserError

CHILD = (sys.executable, "-W", "ignore", "-m", "dlc.data._tfds_child")
PREFIX = "tfds:"
SPEC = re.compile(r"tfds:(?P<name>\w+)(/(?P<config>[^/:]+))?(:(?P<version>\d+\.\d+\.\d+))?")
VERSION = re.compile(r"\d+\.\d+\.\d+")


class Spec(NamedTuple):
    """A set as TFDS names it: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION."""

    name: str
    config: str | None
    version: str | None

    @property
    def words(self) -> str:
        """As TFDS writes it."""
        return self.name + (f"/{self.config}" if self.config else "") + (f":{self.version}" if self.version else "")

    @property
    def key(self) -> str:
        """The name of its arrays in the cache."""
        return "_".join(filter(None, ("tfds", self.name, self.config, self.version)))


class Kind(NamedTuple):
    """What an image classification set holds: features, image shape, the split that tests, and class names."""

    image: str
    label: str
    shape: tuple[int, int, int]
    test: str
    classes: int


# Sets of our own that TFDS prepared --------------------------------------------------------------------------------


def places(root: Path) -> tuple[Path, Path]:
    """Where prepared folders may be: the data directory, and the directory of TFDS itself."""
    return root / "tfds", Path(os.path.expanduser(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")))


def folders(root: Path, published: Published) -> list[Path]:
    """Prepared folders of a set that can be read here."""
    wanted = [place / published.name / version for version in published.tfds for place in places(root)]
    return [folder for folder in wanted if _readable(folder)]


def images(prepared: Path, name: str, split: str, shape: tuple[int, ...], count: int) -> Split:
    """A split of a prepared folder in the order of the original files: `image` uint8 [N, *shape], `label` int32 [N].

    Raises DataDamaged if the folder cannot be read or does not hold `count` records.
    """
    records = Records(prepared, name, split)
    if len(records) != count:
        raise DataDamaged(f"it holds {len(records):,} {split} records instead of {count:,}")
    in_order = folder_info(prepared).get("disableShuffling")
    where = np.arange(count) if in_order else original_order(split, count)
    return decoded(Labelled(records), shape, where, f"{name} {split}")


def decoded(examples: Labelled, shape: tuple[int, ...], where: np.ndarray, name: str) -> Split:
    """All images of one shape as arrays; example i goes to row `where[i]`. Raises DataDamaged."""
    from PIL import Image

    image, label = np.empty((len(examples), *shape), np.uint8), np.empty(len(examples), np.int32)
    for i in _counted(f"reading {name}", range(len(examples))):
        file, label[where[i]] = examples[i]
        try:
            with Image.open(io.BytesIO(file)) as opened:
                image[where[i]] = np.asarray(opened).reshape(shape)
        except Exception as error:  # Pillow reports damaged files in errors of many kinds
            raise examples.records.damaged(i, error) from None
    return {"image": image, "label": label}


def original_order(split: str, count: int) -> np.ndarray:
    """For each record that TFDS wrote, its index in the original files, int64 [count].

    TFDS sorts records by md5(split + key), and the key in each of our data sets is that index.
    """
    hashes = [hashlib.md5(f"{split}{i}".encode(), usedforsecurity=False).digest() for i in range(count)]
    return np.array(sorted(range(count), key=hashes.__getitem__), np.int64)


# Sets asked for by their TFDS name ---------------------------------------------------------------------------------


def parse(name: str) -> Spec:
    """ "tfds:NAME/CONFIG:VERSION" -> its parts. Raises UserError for anything else."""
    if match := SPEC.fullmatch(name):
        return Spec(match["name"], match["config"], match["version"])
    raise UserError(f"{name!r} does not name a set: write tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.0.0")


def dataset(root: Path, spec: Spec) -> Dataset:
    """An image classification set that TFDS has prepared, or prepares now, in the order in which TFDS wrote it.

    Raises:
        DataUnavailable: it is not prepared and cannot be downloaded.
        DataDamaged: the prepared folder cannot be read.
        UserError: TFDS has no such set, cannot prepare it without TensorFlow, or it is not image classification.
    """
    prepared = newest(root, spec) or prepare(root, spec)
    try:
        kind = image_classification(spec, folder_info(prepared), folder_info(prepared, "features.json"))
        names = prepared / f"{kind.label}.labels.txt"
        classes = (
            tuple(names.read_text("utf-8").splitlines()) if names.is_file() else tuple(map(str, range(kind.classes)))
        )
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise not_prepared(prepared, error) from None
    splits = []
    for split in ("train", kind.test):
        examples = Labelled(Records(prepared, spec.name, split), kind.image, kind.label)
        splits.append(decoded(examples, kind.shape, np.arange(len(examples)), f"{spec.words} {split}"))
    if max(split["label"].max(initial=0) for split in splits) >= len(classes):
        raise DataDamaged(f"{prepared} has labels beyond its {len(classes):,} classes: prepare it again")
    config = () if prepared.parent.name == spec.name else (prepared.parent.name,)
    return Dataset(spec.key, splits[0], splits[1], classes, f"tfds {'/'.join((spec.name, *config))} {prepared.name}")


def newest(root: Path, spec: Spec) -> Path | None:
    """The prepared folder of a set: of the version that was asked for, or the newest; of its default configuration.

    Raises UserError if several configurations are prepared and none was named.
    """
    for place in places(root):
        here = place / spec.name
        if spec.config:
            here /= spec.config
        elif here.is_dir() and not _versions(here):
            configs = sorted(path.name for path in here.iterdir() if _versions(path))
            with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                default = json.loads((here / ".config" / "metadata.json").read_text("utf-8"))["defaultConfigName"]
                configs = [default] if default in configs else configs
            if len(configs) > 1:
                raise UserError(
                    f"{here} holds several configurations: name one of tfds:{spec.name}/{', '.join(configs)}"
                )
            here = here / configs[0] if configs else here
        for folder in reversed(_versions(here)):
            if spec.version in (None, folder.name) and _readable(folder):
                return folder
    return None


def prepared(root: Path) -> dict[str, Path]:
    """The folders of all sets that TFDS prepared and that can be read here, by the name that `dlc.data.load` takes."""
    found: dict[str, Path] = {}
    for place in places(root):
        for info in sorted([*place.glob("*/*/dataset_info.json"), *place.glob("*/*/*/dataset_info.json")]):
            *words, version = info.parent.relative_to(place).parts
            name = f"{PREFIX}{'/'.join(words)}:{version}"
            if SPEC.fullmatch(name) and _readable(info.parent):
                found.setdefault(name, info.parent)
    return found


def image_classification(spec: Spec, info: dict[str, Any], features: dict[str, Any]) -> Kind:
    """What a set holds, from its dataset_info.json and features.json. Raises UserError unless it is what fits here."""
    fields = features.get("featuresDict", {}).get("features", {})
    kinds = {name: field.get("pythonClassName", "").rpartition(".")[2] for name, field in fields.items()}
    pair = [item.get("featureKey") for item in info.get("supervisedKeys", {}).get("tuple", {}).get("items", [])]

    def refused(what: str) -> UserError:
        return UserError(f"tfds:{spec.words} {what}: choose an image classification set with images of one size")

    if [kinds.get(name) for name in pair] != ["Image", "ClassLabel"]:
        held = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "no features that are known"
        raise refused(f"is not image classification, it has {held}")
    image = fields[pair[0]].get("image", {})
    shape = tuple(int(n) for n in image.get("shape", {}).get("dimensions", ()))
    if len(shape) != 3 or min(shape) < 1:
        raise refused("has images of several sizes")
    if image.get("dtype", "uint8") != "uint8":
        raise refused(f"has images of {image['dtype']}")
    splits = [split["name"] for split in info.get("splits", [])]
    test = next((name for name in ("test", "validation") if name in splits), "")
    if splits and not ("train" in splits and test):
        raise refused(f"has the splits {', '.join(splits)}, not train and test or validation")
    return Kind(pair[0], pair[1], shape, test, int(fields[pair[1]].get("classLabel", {}).get("numClasses", 0)))


def prepare(root: Path, spec: Spec) -> Path:
    """TFDS downloads and prepares the set in `<root>/tfds`; returns the folder.

    Raises UserError and DataUnavailable as `dataset` does.
    """
    by_hand = (
        "To bring it by hand, run, with TensorFlow installed,\n"
        f"  tfds build {spec.words} --file_format=array_record --data_dir={{tfds}}"
    )
    published = Published(
        f"tfds:{spec.words}", instead="`digits` is a data set of images that needs no download", also=by_hand
    )
    kind, text = _child({"spec": spec.words, "root": str(root)})
    if kind == "prepared":
        return Path(text)
    if kind == "network":
        raise unavailable(root, published, text)
    if kind == "tensorflow":
        raise UserError(
            f"{published.name} cannot be prepared without TensorFlow ({text})\n{by_hand.format(tfds=root / 'tfds')}"
        )
    if kind == "disk":
        raise OSError(*text)
    raise UserError(text if kind == "refused" else f"TensorFlow Datasets failed on {published.name}: {text}")


def _child(job: dict[str, Any]) -> tuple[str, Any]:
    """The child's answer to a job: what happened, and the folder or words. The child ends when we do."""
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # the terminal's Ctrl-C is for us; we then stop the child in order
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    with process:
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()  # and left open: closing it tells the child that its parent has ended
            answer = process.stdout.read()
        except BaseException:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            raise
    try:
        kind, text = json.loads(answer)
        return kind, text
    except ValueError:
        return "other", f"its process ended with status {process.returncode}"


@contextmanager
def tidy(root: Path, spec: Spec) -> Iterator[None]:
    """Removes half-prepared folders of a set, before and after."""

    def clean() -> None:
        for leftover in (root / "tfds" / spec.name).glob("**/incomplete.*"):
            shutil.rmtree(leftover, ignore_errors=True)

    clean()
    try:
        yield
    finally:
        clean()


def _versions(folder: Path) -> list[Path]:
    """The prepared versions in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if VERSION.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: tuple(map(int, path.name.split("."))))


def _readable(folder: Path) -> bool:
    try:
        file_format = json.loads((folder / "dataset_info.json").read_text("utf-8")).get("fileFormat") or "tfrecord"
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    if file_format not in FORMATS:
        say(f"{folder} is ignored: it is written as {file_format}, which cannot be read here")
    return file_format in FORMATS


def _counted(what: str, rows: range) -> Iterable[int]:
    """The rows, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(rows, what, console=console, disable=not console.is_terminal, transient=True)
