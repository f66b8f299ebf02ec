"""Recordings that people bring: what sites in a brain, or units of any other system, answered to images.

The answers are an array of images x sites that `numpy.save` has written. The images are the files of a folder, in the
order of their names.
"""

import zipfile
from pathlib import Path
from tokenize import TokenError  # which NumPy lets through for a damaged header
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from dlc.data import images
from dlc.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def sites(path: Path, count: int) -> Float32[np.ndarray, "N S"]:
    """The answers of S sites to N = `count` images. Raises UserError, which says what is wrong with the file."""
    try:
        with path.open("rb") as file:
            mode: Any = "r" if file.read(6) == b"\x93NUMPY" else None
            file.seek(0)  # a map cannot be longer than its file, and takes no memory before that shows
            answers = np.load(path if mode else file, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, OverflowError, SyntaxError, TokenError, zipfile.BadZipFile):
        raise UserError(f"{path} cannot be read: give an array of images x sites that numpy.save has written") from None
    if not isinstance(answers, np.ndarray) or answers.ndim != 2 or not answers.size:
        kind = f"of shape {answers.shape}" if isinstance(answers, np.ndarray) else "several arrays"
        raise UserError(f"{path} must be an array of images x sites, not {kind}")
    if answers.dtype.kind not in "fiu" or not np.isfinite(answers).all():
        raise UserError(f"{path} holds answers that are not finite numbers: leave those images or sites out")
    if len(answers) != count:
        raise UserError(f"{path} has answers to {len(answers)} images, but there are {count} images")
    return answers.astype(np.float32)


def stimuli(folder: Path) -> list[Path]:
    """The files of the images, in the order of their names. Raises UserError if there are none."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not files:
        raise UserError(f"{folder} has no images: give a folder of image files, one for each row of the recordings")
    return files


def squares(files: list[Path], size: int, channels: int) -> UInt8[np.ndarray, "N H W C"]:
    """The squares in the middle of the images, of `size` pixels; of one channel, the mean of red, green and blue."""
    found = np.stack([images.centre(images.decode(path), size, size) for path in files])
    return found if channels == 3 else np.rint(found.mean(-1, keepdims=True)).astype(np.uint8)
