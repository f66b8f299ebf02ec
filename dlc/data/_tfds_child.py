"""Runs TensorFlow Datasets as a child of `dlc.data.tfds`: the one file that imports it.

TFDS's own builders need TensorFlow to unpack and to encode. The subclass here downloads and prepares through the same
`download_and_prepare`, but unpacks with the standard library and encodes with Pillow; its records are the same.
"""

import errno
import functools
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import requests
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, track

from dlc.data._dataset import Split
from dlc.data._published import PUBLISHED, Original, Published, missing, read

STALLED = 60.0  # seconds without a byte after which a download is given up
CHUNK = 1000  # records read at once: one by one is three times slower


def prepare(name: str, root: Path, sources: Path, console: Console) -> Path:
    """Downloads and prepares `name` below `root / "tfds"`; returns the prepared folder."""
    published, upstream = PUBLISHED[name], tfds.builder_cls(name)
    downloads = root / "tfds" / "downloads"

    with tfds.core.registered.skip_registration():

        class Builder(upstream):  # type: ignore[misc, valid-type]
            name = upstream.name
            pkg_dir_path = upstream.pkg_dir_path
            url_infos = _url_infos(published.originals)

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                with _download_bar(console, name, missing(name, sources), downloads / name):
                    paths = dl_manager.download([o.url for o in published.originals])
                train, test = read(name, [Path(path) for path in paths])
                self.info.features["label"].names = published.classes
                return {"train": self._examples("train", train), "test": self._examples("test", test)}

            def _examples(self, split: str, arrays: Split) -> Iterator[tuple[int, dict[str, Any]]]:
                features = self.info.features
                for i in _counted(console, f"preparing {name} {split}", range(len(arrays["label"]))):
                    example: dict[str, Any] = {key: arrays[key][i] for key in features if key in arrays}
                    example["image"] = Image.fromarray(arrays["image"][i].squeeze())  # an array would need TensorFlow
                    yield i, example | ({"id": f"{split}_{i:05d}"} if "id" in features else {})

    builder = Builder(data_dir=root / "tfds", file_format="array_record")
    config = tfds.download.DownloadConfig(
        manual_dir=sources,
        extract_dir=downloads / name / "extracted",
        # A folder that is there could not be read, or we would not be here: keep what is downloaded, write it anew.
        download_mode=tfds.download.GenerateMode.REUSE_CACHE_IF_EXISTS,
    )
    builder.download_and_prepare(download_dir=downloads, download_config=config, file_format="array_record")
    return Path(builder.data_path)


def fetch(name: str, root: Path, originals: Sequence[Original], console: Console) -> list[str]:
    """Downloads files as they are, checked by size and sha256; returns the path of each below `root / "tfds"`."""
    downloads = root / "tfds" / "downloads"
    manager = tfds.download.DownloadManager(
        download_dir=downloads,
        extract_dir=downloads / name / "extracted",
        url_infos=_url_infos(originals),
        dataset_name=name,
        force_checksums_validation=True,
    )
    with _download_bar(console, name, originals, downloads / name):
        return [os.fspath(path) for path in manager.download([o.url for o in originals])]


def read_text(folder: Path) -> str:
    """The texts of all splits of a prepared folder, one after another: its original, where it was cut into splits."""
    builder = tfds.builder_from_directory(folder)
    sources = [builder.as_data_source(split) for split in ("train", "validation", "test")]
    return b"".join(source[i]["text"] for source in sources for i in range(len(source))).decode()


def read_folder(folder: Path, name: str, console: Console) -> dict[str, np.ndarray]:
    """The records of a prepared folder in the order of the original files: `{"train_image": ..., ...}`."""
    builder = tfds.builder_from_directory(folder)
    arrays: dict[str, np.ndarray] = {}
    for split, count in zip(("train", "test"), PUBLISHED[name].counts, strict=True):
        source = builder.as_data_source(split)
        if not len(source) == builder.info.splits[split].num_examples == count:
            raise ValueError(f"it holds {len(source):,} {split} records instead of {count:,}")
        image = np.empty((count, *PUBLISHED[name].shape), np.uint8)
        label = np.empty(count, np.int32)
        where = np.arange(count) if builder.info.disable_shuffling else original_order(split, count)
        for start in _counted(console, f"reading {name} {split}", range(0, count, CHUNK)):
            rows = list(range(start, min(start + CHUNK, count)))
            for row, record in zip(rows, source.__getitems__(rows), strict=True):
                image[where[row]], label[where[row]] = record["image"], record["label"]
        arrays |= {f"{split}_image": image, f"{split}_label": label}
    return arrays


def original_order(split: str, count: int) -> np.ndarray:
    """For each record that TFDS wrote, its index in the original files, int64 [count].

    TFDS sorts records by md5(split + key), and the key of each of our data sets is that index.
    """
    hashes = [hashlib.md5(f"{split}{i}".encode(), usedforsecurity=False).digest() for i in range(count)]
    return np.array(sorted(range(count), key=hashes.__getitem__), np.int64)


def main() -> None:
    """Does the job on stdin; leaves on stdout what it wants, or (status 1) why not as JSON `[kind, text]`.

    It wants "arrays", as .npz; a "text", as UTF-8; or "files", whose paths are left as a JSON list.
    """
    result = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # TFDS prints
    absl.logging.set_verbosity(absl.logging.ERROR)
    tfds.disable_progress_bar()
    # TFDS downloads without a time limit, and a connection that went dead would be waited for for ever.
    requests.Session.request = functools.partialmethod(requests.Session.request, timeout=STALLED)  # type: ignore[assignment,method-assign]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped, it puts the cursor back
    job = json.load(sys.stdin)
    name, root = job["name"], Path(job["root"])
    originals = tuple(Original(*o) for o in job["originals"])
    if "published" in job:
        version, _, *rest = job["published"]
        PUBLISHED[name] = Published(version, originals, *map(tuple, rest))
    threading.Thread(target=_die_with_parent, args=(job["parent"],), daemon=True).start()
    console = Console(stderr=True)
    try:
        if job["want"] == "files":
            result.write(json.dumps(fetch(name, root, originals, console)).encode())
        elif job["want"] == "text":
            result.write(read_text(Path(job["folder"])).encode())
        else:
            folder = Path(job["folder"]) if "folder" in job else prepare(name, root, Path(job["sources"]), console)
            np.savez(result, **read_folder(folder, name, console))  # type: ignore[arg-type]
        result.close()
    except BaseException as error:
        if console.is_terminal:
            console.show_cursor()  # the error's frames keep our bar's generator open, and the cursor hidden
            console.print()
        result.write(json.dumps(_explained(error, originals)).encode())
        result.close()
        os._exit(1)  # an ordinary exit would wait for the downloading threads


def _url_infos(originals: Sequence[Original]) -> dict[str, Any]:
    info, size = tfds.core.download.checksums.UrlInfo, tfds.core.utils.Size
    return {o.url: info(size(o.size), o.sha256, o.file) for o in originals}


def _explained(error: BaseException, originals: Sequence[Original]) -> tuple[str, Any]:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, tfds.core.download.download_manager.NonMatchingChecksumError):
        file = next((o.file for o in originals if o.url in text), "a file")
        return "checksum", f"{file} has another size or sha256"
    if isinstance(error, requests.RequestException | tfds.core.download.util.DownloadError):
        return "network", type(error).__name__ if isinstance(error, requests.RequestException) else text
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        if os.strerror(number) in text:  # array_record raises a RuntimeError with the system's words
            return "disk", (number, os.strerror(number))
    return "other", f"{type(error).__name__}: {text.splitlines()[-1]}"


@contextmanager
def _download_bar(console: Console, name: str, wanted: Sequence[Original], downloads: Path) -> Iterator[None]:
    """Shows the bytes that lie in `downloads`: TFDS reports progress only to its own bar, in whole megabytes."""
    total = sum(o.size for o in wanted)
    columns = (TextColumn("downloading {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    done = threading.Event()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(name, total=total)

        def watch() -> None:
            while not done.wait(0.2):
                with suppress(OSError):  # a file may be renamed while we look
                    files = [p for p in downloads.rglob("*") if p.is_file() and p.suffix != ".INFO"]
                    bar.update(task, completed=sum(p.stat().st_size for p in files))

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            done.set()


def _counted(console: Console, what: str, rows: range) -> Iterable[int]:
    return track(rows, what, console=console, disable=not console.is_terminal, transient=True)


def _die_with_parent(parent: int) -> None:
    """Nobody waits for the result of an orphan, and it holds the lock."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
