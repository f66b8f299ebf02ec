"""Published files -> checked paths, downloaded by pooch where they are missing."""

import shutil
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dlc.data._directory import data_dir, lock, partial, readable, say, usable
from dlc.data._errors import DataDamaged
from dlc.data._published import File, Published, check, find, missing, unavailable

TIMEOUT = 3.0  # seconds for a server to answer before the download starts
STALLED = 60.0  # seconds without a byte after which a download is given up
CHUNK = 1 << 16  # bytes read at once


def files(published: Published) -> list[Path]:
    """The paths of the published files, in their order, checked; missing ones are downloaded first.

    Raises:
        DataUnavailable: a file is missing and cannot be downloaded.
        DataDamaged: a file differs from the published one.
        UserError: the data directory cannot be used.
    """
    root = data_dir()
    with usable(root):
        wanted = missing(published, root / "sources" / published.name)
        with lock(root, published.name) if wanted else nullcontext():
            return fetched(root, published)


def fetched(root: Path, published: Published) -> list[Path]:
    """As `files`, below `root`; the caller holds the lock if a file is missing."""
    folder = root / "sources" / published.name
    for file, path in find(published, folder):
        if path:
            check(file, path)
    if wanted := missing(published, folder):
        _download(root, published, wanted)
    return [path for _, path in find(published, folder) if path]


def unreachable(url: str) -> str:
    """Why `url` cannot be downloaded, in words, or "" if it can. A request for the headers tells within seconds."""
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


def _download(root: Path, published: Published, wanted: Sequence[File]) -> None:
    if reason := published.closed or unreachable(wanted[0].url):
        raise unavailable(root, published, reason)
    size = sum(file.size for file in wanted)
    say(f"downloading {published.name}: {readable(size)} from {urlsplit(wanted[0].url).hostname}")
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    temporary = partial(root, published.name)
    try:
        with _stopped_by_sigterm(), _Bar(published.name, size) as bar:
            temporary.mkdir(parents=True)
            for file in wanted:
                get = pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK, timeout=STALLED)
                arrived = Path(pooch.retrieve(file.url, f"sha256:{file.sha256}", file.name, temporary, downloader=get))
                arrived.chmod(0o644)  # a temporary file is its owner's only; a data directory may be shared
                arrived.replace(temporary.parent / file.name)
    except requests.RequestException as error:
        raise unavailable(root, published, f"the download broke off ({type(error).__name__})") from error
    except ValueError as error:  # how pooch reports another sha256
        raise DataDamaged(
            f"what was downloaded for {published.name} is not the published file: {file.name} has another size or "
            "sha256; try again, and if it happens again something on the way to the server alters it"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Bar:
    """A progress bar over several files on a terminal, with the methods that pooch calls."""

    def __init__(self, name: str, size: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("downloading {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._bar.add_task(name, total=size)
        self._before = 0  # bytes of the files that are complete
        self.total = 0  # bytes of this file; pooch sets it

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def update(self, size: int) -> None:
        self._bar.advance(self._task, size)

    def reset(self) -> None:
        self._bar.update(self._task, completed=self._before)

    def close(self) -> None:
        self._before += self.total


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the program in order, where nothing else handles it: temporary files go, the cursor comes back."""

    def stop(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
