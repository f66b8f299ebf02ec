"""Photographs as arrays: from a file to uint8 [H, W, 3], and the resizing and cropping that come before a network.

Shapes: H W height and width of an image, S the side of a square. Resizing is Pillow's, bilinear or bicubic with
antialiasing, and rounds to uint8: published weights were evaluated with it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from dlc.errors import UserError

Pixels = UInt8[np.ndarray, "H W 3"]
Box = tuple[float, float, float, float]  # left, top, right, bottom, in possibly fractional pixels
Smooth = Literal["bilinear", "bicubic"]
LONGEST = 16  # times the shorter side: of an image that is longer, only the middle is resized


class _Refused(Exception):
    """What is wrong with an image, in words that follow its name."""


def decode(file: Path | bytes) -> Pixels:
    """The image in a file, given by its path or its content, as red, green and blue.

    Greyscale becomes three equal channels, transparent images are put on white, 16 bits become 8, and CMYK and palettes
    are converted. The image is rotated as its camera's orientation tag says; of an animation the first frame is read.

    Raises UserError if the file does not exist, is not an image, or is truncated.
    """
    with reading(file) as image:
        return np.array(_rgb(ImageOps.exif_transpose(image)))


def decode_part(file: Path | bytes, choose: Callable[[int, int], Box], size: int) -> UInt8[np.ndarray, "S S 3"]:
    """The part of an image that `choose(height, width)` selects, resized to a square of side `size`.

    The part is chosen before the image is decoded. A JPEG that is at least twice as large as needed is decoded at a
    half, a quarter or an eighth of its size: several times faster for a photograph of 12 million pixels, with small
    differences.

    Raises UserError as `decode` does.
    """
    with reading(file) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1)
        width, height = image.size[::-1] if turned >= 5 else image.size
        box = choose(height, width)
        needed = size / min(box[2] - box[0], box[3] - box[1])
        image.draft(None, (math.ceil(image.width * needed), math.ceil(image.height * needed)))
        image = _rgb(image if turned == 1 else ImageOps.exif_transpose(image))
        box = (
            box[0] * image.width / width, box[1] * image.height / height,
            box[2] * image.width / width, box[3] * image.height / height,
        )  # fmt: skip
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))


@contextmanager
def reading(file: Path | bytes) -> Iterator[Any]:
    """Opens an image with Pillow; errors inside the block become UserErrors that name the file."""
    name = getattr(file, "where", "this file") if isinstance(file, bytes) else file
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as image:
            yield image
    except UserError:
        raise
    except _Refused as error:
        raise UserError(f"{name} {error}") from None
    except FileNotFoundError:
        raise UserError(f"there is no {name}: give the path of an image") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a folder: give the path of an image in it") from None
    except PermissionError:
        raise UserError(f"{name} cannot be read: change its permissions") from None
    except UnidentifiedImageError:
        raise UserError(f"{name} is not an image that can be read: give a JPEG or PNG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
        raise UserError(f"{name} has too many pixels to be decoded: make it smaller") from None
    except Exception as error:  # Pillow's readers report damaged files in errors of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name} is damaged or cut short: fetch it again\n{reason}") from None


def centre(image: Pixels, side: int, crop: int, smooth: Smooth = "bilinear") -> UInt8[np.ndarray, "S S 3"]:
    """The square of side `crop` in the centre of the image after its shorter side was resized to `side`.

    The ends of a very long image, which would become millions of pixels, are cut off first: by a multiple of the
    shorter side, so that the pixels that are left stay where they would have been.
    """
    shorter = min(image.shape[:2])
    top, left = (2 * shorter * max(0, (length - LONGEST * shorter) // (4 * shorter)) for length in image.shape[:2])
    middle = image[top : image.shape[0] - top, left : image.shape[1] - left]
    return centre_crop(resize_shorter(middle, side, smooth), crop)


def resize_shorter(image: Pixels, size: int, smooth: Smooth = "bilinear") -> UInt8[np.ndarray, "h w 3"]:
    """The image resized so that its shorter side is `size`; the longer side is in proportion, rounded down."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    return resize(image, (size * height // shorter, size * width // shorter), smooth)


def resize(image: Pixels, size: tuple[int, int], smooth: Smooth = "bilinear") -> UInt8[np.ndarray, "h w 3"]:
    """The image resized to `size`, (height, width)."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling[smooth.upper()]))


def centre_crop(image: Pixels, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """The square of side `size` in the centre; an offset of half a pixel is rounded to the even number.

    Raises UserError if the image is smaller.
    """
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise UserError(f"a crop of {size}x{size} is larger than its image of {height}x{width}: resize that first")
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image[top : top + size, left : left + size]


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip 16 bits at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise _Refused("has 32 bits per pixel and no known range: save it with 8 or 16 bits")
    if image.mode in ("LAB", "HSV"):
        raise _Refused(f"has the colours {image.mode}: save it as red, green and blue")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
