"""Runs TensorFlow Datasets as a child of `dlc.data._tfds`: the only file that imports it. TensorFlow is not imported.

To prepare most sets TFDS needs TensorFlow for only three things, which have a stand-in here: access to local files,
text from bytes, and arrays encoded as PNG. A set that needs anything else of TensorFlow is refused.
"""

import errno
import functools
import glob
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import Any

NEEDED = "TensorFlow is needed here"  # marks the error of the stand-in


class _StandIn(types.ModuleType):
    """A module with the attributes it was given; its error for any other says which part of TensorFlow is needed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"{NEEDED}: {self.__name__}.{name}")


def _stand_in() -> None:
    """Replaces TensorFlow, as TFDS sees it, by a module that can do little more than open files."""
    from tensorflow_datasets.core.utils import lazy_imports_utils

    gfile = _StandIn("tf.io.gfile")
    gfile.GFile = open  # type: ignore[attr-defined]
    gfile.exists = os.path.exists  # type: ignore[attr-defined]
    gfile.isdir = os.path.isdir  # type: ignore[attr-defined]
    gfile.listdir = os.listdir  # type: ignore[attr-defined]
    gfile.makedirs = functools.partial(os.makedirs, exist_ok=True)  # type: ignore[attr-defined]
    gfile.glob = lambda pattern: sorted(glob.glob(os.fspath(pattern)))  # type: ignore[attr-defined]
    tf = _StandIn("tf")
    tf.io, tf.compat = _StandIn("tf.io"), _StandIn("tf.compat")  # type: ignore[attr-defined]
    tf.io.gfile = gfile
    tf.compat.as_text = lambda text: text.decode() if isinstance(text, bytes) else text
    # TFDS reaches TensorFlow through one lazy module. In `sys.modules` it would be asked about every dtype.
    vars(lazy_imports_utils.tensorflow)["_module"] = tf


def _encode(self: Any, array: Any) -> bytes:
    """An array as PNG, which is lossless. A JPEG would differ from the one that TensorFlow writes."""
    from PIL import Image

    if self.encoding_format != "png":
        raise ImportError(f"{NEEDED}: tf.io.encode_{self.encoding_format}")
    out = io.BytesIO()
    Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(out, "png")
    return out.getvalue()


def prepare(words: str, root: Path) -> tuple[str, Any]:
    """Prepares the set below `root / "tfds"`; returns ("prepared", the folder) or why not."""
    import tensorflow_datasets as tfds

    from dlc.data import _fetch, _tfds
    from dlc.errors import UserError

    if sys.stderr is None or not sys.stderr.isatty():
        tfds.disable_progress_bar()
    # TFDS downloads without a time limit, and would wait for a dead connection forever.
    import requests

    requests.Session.request = functools.partialmethod(requests.Session.request, timeout=_fetch.STALLED)  # type: ignore[assignment,method-assign]
    tfds.core.features.image_feature._ImageEncoder._encode_image = _encode
    spec = _tfds.parse(f"tfds:{words}")
    try:
        builder = tfds.builder(words, data_dir=root / "tfds", file_format="array_record")
    except (tfds.core.registered.DatasetNotFoundError, AssertionError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return "refused", f"TensorFlow Datasets has no set tfds:{words}: {first}"
    with _tfds.tidy(root, spec):
        try:
            if builder.is_prepared():
                return "prepared", os.fspath(builder.data_path)
            with tempfile.TemporaryDirectory() as folder:
                builder.info.features.save_config(folder)
                features = json.loads(Path(folder, "features.json").read_text("utf-8"))
            _tfds.image_classification(spec, json.loads(builder.info.as_json), features)
            if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
                return "network", "its files must be fetched by hand"
            for url in list(builder.url_infos)[:1]:
                if reason := _fetch.unreachable(url):
                    return "network", reason
            downloads = root / "tfds" / "downloads" / spec.key
            builder.download_and_prepare(download_dir=downloads, file_format="array_record")
            shutil.rmtree(downloads, ignore_errors=True)  # the prepared folder holds it all
            return "prepared", os.fspath(builder.data_path)
        except UserError as error:
            return "refused", str(error)


def _explained(error: BaseException) -> tuple[str, Any]:
    """Which kind of failure an error is, from it and its causes."""
    import requests
    import tensorflow_datasets as tfds

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for one in chain:
        text = str(one).strip() or type(one).__name__
        if isinstance(one, ModuleNotFoundError) and one.name == "tensorflow":
            return "tensorflow", "its own code imports it"
        if NEEDED in text:
            return "tensorflow", "it needs " + text.split(f"{NEEDED}: ")[1].splitlines()[0].rstrip(".,:;)'\"")
        if isinstance(one, requests.RequestException | tfds.core.download.util.DownloadError):
            return "network", f"the download broke off ({type(one).__name__})"
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            if os.strerror(number) in text:  # array_record raises a RuntimeError with the system's words
                return "disk", (number, os.strerror(number))
    return "other", f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[-1]}"


def main() -> None:
    """Does the job on stdin, a line of JSON; leaves the answer on stdout, as JSON `[kind, words]`."""
    result = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # TFDS prints
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import absl.logging

    absl.logging.set_verbosity(absl.logging.ERROR)
    _stand_in()
    try:
        answer = prepare(job["spec"], Path(job["root"]))
    except BaseException as error:
        answer = _explained(error)
    result.write(json.dumps(answer).encode())
    result.close()
    os._exit(0)  # an ordinary exit would wait for threads that download


def _end_with_parent() -> None:
    """Ends this process when stdin closes, which means that its parent has ended."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
