"""ImageNet's 1,000 classes, and what published networks do to a photograph before they look at it.

The names are WordNet's, in the order of the outputs of published weights: `imagenet_classes.txt`, one a line.

References: Russakovsky et al. 2015, "ImageNet large scale visual recognition challenge".
"""

import functools
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from dlc.data import images
from dlc.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green and blue over the training set, of 1


class Rule(NamedTuple):
    """Shorter side to `resize`, the `crop` in the middle, and (x / 255 - mean) / std: what weights are evaluated with.

    The defaults are those of nearly all of torchvision's weights of 2016 to 2022.
    """

    resize: int = 256
    crop: int = 224
    smooth: images.Smooth = "bilinear"
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD


@functools.cache
def classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes."""
    return tuple(resources.files("dlc.data").joinpath("imagenet_classes.txt").read_text().splitlines())


def names(path: Path) -> tuple[str, ...]:
    """The names of other classes, from a text file with one a line. Raises UserError if that cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path} cannot be read: give a text file with the name of a class in each line") from None
    return tuple(line.strip() for line in lines if line.strip())


def square(image: UInt8[np.ndarray, "H W 3"], rule: Rule) -> UInt8[np.ndarray, "S S 3"]:
    """The part of a photograph that the network will see. Raises UserError if the crop is larger than the image."""
    return images.centre_crop(images.resize_shorter(image, rule.resize, rule.smooth), rule.crop)


def standardised(image: UInt8[np.ndarray, "*B H W 3"], rule: Rule) -> Float32[np.ndarray, "*B H W 3"]:
    """Images as the network reads them."""
    mean, std = np.asarray(rule.mean, np.float32), np.asarray(rule.std, np.float32)
    return (image.astype(np.float32) / 255 - mean) / std
