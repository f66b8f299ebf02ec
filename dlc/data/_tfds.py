"""TensorFlow Datasets, without TensorFlow and in a process of its own.

Its import, its threads and what it prints stay out of the program that asked for data: `dlc.data._tfds_child` runs as a
child, shows its progress on stderr and answers on its stdout, with the arrays or with why not.
"""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from dlc.data._dataset import DataDamaged, DataUnavailable, Split, readable, say
from dlc.data._published import PUBLISHED, Original, check, find, missing
from dlc.errors import UserError

Away = Callable[[str], DataUnavailable]  # from the reason to the error that says what to put where
TIMEOUT = 3.0  # seconds that a server has to answer before a download is begun


def folders(root: Path, name: str, version: str = "") -> list[Path]:
    """Prepared folders of `name` that can be read without TensorFlow: in the data directory, then in TFDS's own."""
    version = version or PUBLISHED[name].version
    own = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    found = []
    for place in (root / "tfds", own):
        folder = place / name / version
        try:
            file_format = json.loads((folder / "dataset_info.json").read_text()).get("fileFormat")
        except (OSError, ValueError):
            continue
        if file_format == "array_record":
            found.append(folder)
        else:
            say(f"{folder} is written as {file_format or 'tfrecord'}, which only TensorFlow can read: passed over")
    return found


def read_folder(root: Path, name: str, folder: Path, held: int) -> tuple[Split, Split]:
    """Reads a prepared folder, in the order of the original files; 5 to 10 s. `held` is the lock's descriptor.

    Raises:
        UserError: the folder cannot be read, or does not hold the records that it says.
    """
    return _arrays(root, name, held, folder=str(folder))


def read_text(root: Path, name: str, folder: Path, held: int) -> str:
    """All that a prepared folder of texts holds, its splits one after another; 3 s.

    Raises:
        UserError: the folder cannot be read.
    """
    away = lambda reason: DataUnavailable(reason, reason)  # noqa: E731, never asked: nothing is downloaded
    return _child(root, name, held, away, "text", originals=(), folder=str(folder)).decode()


def download(root: Path, name: str, held: int) -> tuple[Split, Split]:
    """Downloads and prepares `name` in `<root>/tfds`, then reads it; originals in `<root>/sources` are used.

    Raises:
        DataUnavailable: the servers cannot be reached.
        DataDamaged: what arrived is not what was published.
    """
    sources = root / "sources" / name
    for original, path in find(name, sources):
        if path:
            check(original, path)  # TFDS would take it for a download and name the wrong file
    _begin(name, missing(name, sources), lambda reason: unavailable(root, name, reason))
    arrays = _arrays(root, name, held, sources=str(sources))
    shutil.rmtree(root / "tfds" / "downloads" / name, ignore_errors=True)  # the prepared folder holds it all
    return arrays


def fetch(root: Path, name: str, wanted: Sequence[Original], held: int, away: Away) -> None:
    """Downloads the published files `wanted` as they are into `<root>/sources/<name>`.

    Raises:
        DataUnavailable: the servers cannot be reached: what `away` makes of the reason.
        DataDamaged: what arrived is not what was published.
    """
    _begin(name, wanted, away)
    paths = json.loads(_child(root, name, held, away, "files", originals=wanted))
    folder = root / "sources" / name
    folder.mkdir(parents=True, exist_ok=True)
    for original, path in zip(wanted, paths, strict=True):
        Path(path).replace(folder / original.file)
    shutil.rmtree(root / "tfds" / "downloads" / name, ignore_errors=True)


def unavailable(root: Path, name: str, reason: str) -> DataUnavailable:
    """The error that says in one sentence why, and then what to put where."""
    where = root / "sources" / name
    instead = "digits32" if name.startswith("cifar") else "digits"
    lines = [f"{name} is not on this machine and cannot be downloaded: {reason}; `{instead}` is a data set of images "
             "that needs no download.", "To bring it by hand, put"]  # fmt: skip
    lines += [f"  {o.url} ({readable(o.size)}) at {where / o.file}" for o in missing(name, where)]
    if name == "cifar10":
        lines.append(f"or torchvision's folder at {where / 'cifar-10-batches-py'}")
    return DataUnavailable("\n".join(lines), reason)


def _begin(name: str, wanted: Sequence[Original], away: Away) -> None:
    if reason := _unreachable(wanted[0].url):
        raise away(reason)
    say(f"downloading {name}: {readable(sum(o.size for o in wanted))} from {urlsplit(wanted[0].url).hostname}")


def _unreachable(url: str) -> str:
    """Why `url` cannot be had, in words, or "" where it can: TFDS itself would try for minutes."""
    host = urlsplit(url).hostname
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT):
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return f"{host} answered {error.code} {error.reason}"
    except OSError as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, socket.gaierror):
            return f"no network ({host} was not found)"
        if isinstance(cause, TimeoutError):
            return f"no network ({host} did not answer within {TIMEOUT:g} s)"
        return f"no network ({host}: {getattr(cause, 'strerror', None) or cause})"


def _arrays(root: Path, name: str, held: int, **job: str) -> tuple[Split, Split]:
    published = PUBLISHED[name]
    answer = _child(
        root, name, held, lambda reason: unavailable(root, name, reason), "arrays",
        originals=published.originals, published=published, **job,
    )  # fmt: skip
    with np.load(io.BytesIO(answer)) as arrays:
        train, test = ({k: arrays[f"{split}_{k}"] for k in ("image", "label")} for split in ("train", "test"))
    return train, test


def _child(root: Path, name: str, held: int, away: Away, want: str, **job: Any) -> bytes:
    """The child's answer to a job; `away` makes the error for a download that broke off."""
    order = {"name": name, "root": str(root), "want": want, "parent": os.getpid(), **job}
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "dlc.data._tfds_child"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(held,), env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # the terminal's Ctrl-C is for us; we then stop it in order
    )  # fmt: skip
    with process:
        try:
            answer, _ = process.communicate(json.dumps(order).encode())
        except BaseException:
            process.terminate()  # and not at once kill: its bar has hidden the cursor
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            raise
    if process.returncode == 0:
        return answer
    try:
        kind, text = json.loads(answer)
    except ValueError:
        kind, text = "other", f"its process ended with status {process.returncode}"
    if kind == "network":
        raise away(f"the download broke off ({text})")
    if kind == "checksum":
        raise DataDamaged(f"what was downloaded for {name} is not the published file: {text}; try again, and if it "
                          "happens again something on the way to the server alters it")  # fmt: skip
    if kind == "disk":
        raise OSError(*text)
    raise UserError(f"TensorFlow Datasets failed on {name}: {text}")
