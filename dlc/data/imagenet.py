"""ImageNet: where to get it, its 1,000 classes, and how photographs are prepared for published networks.

The class names are WordNet's, in the order of the outputs of published weights: `imagenet_classes.txt`, one a line.

References: Russakovsky et al. 2015, "ImageNet large scale visual recognition challenge".
"""

import functools
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from dlc.data import images
from dlc.data._published import Published
from dlc.errors import UserError

PUBLISHED = Published(
    "imagenet2012",
    instead="`imagenette` is ten of its classes, for anyone",
    also="Ask for ILSVRC2012_img_train.tar (148 GB) and ILSVRC2012_img_val.tar (6.7 GB) at https://image-net.org. Then "
    "either unpack them to DIR/train/<class>/ and DIR/val/<class>/ and give --images DIR, or, with TensorFlow Datasets "
    "and TensorFlow installed, put both in a folder ARCHIVES and run\n"
    "  tfds build imagenet2012 --file_format=array_record --manual_dir=ARCHIVES --data_dir={tfds}",
    tfds=("5.1.0",),
    closed="only people who agree to its terms may download it",
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green and blue in 0..1 over the training set


class Rule(NamedTuple):
    """How weights are evaluated: resize the shorter side to `resize`, crop the centre, (x / 255 - mean) / std.

    The defaults are those of nearly all of torchvision's weights of 2016 to 2022.
    """

    resize: int = 256
    crop: int = 224
    smooth: images.Smooth = "bilinear"
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD


def words(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the classes instead of WordNet's numbers, which sort in the published order."""
    return classes() if len(names) == len(classes()) else names


@functools.cache
def classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes."""
    return tuple(resources.files("dlc.data").joinpath("imagenet_classes.txt").read_text("utf-8").splitlines())


def names(path: Path) -> tuple[str, ...]:
    """The names of other classes, from a text file with one per line. Raises UserError if it cannot be read."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path} cannot be read: give a text file with one class name per line") from None
    return tuple(line.strip() for line in lines if line.strip())


def square(image: UInt8[np.ndarray, "H W 3"], rule: Rule) -> UInt8[np.ndarray, "S S 3"]:
    """The part of a photograph that the network sees. Raises UserError if the crop is larger than the image."""
    return images.centre(image, rule.resize, rule.crop, rule.smooth)


def standardised(image: UInt8[np.ndarray, "*B H W 3"], rule: Rule) -> Float32[np.ndarray, "*B H W 3"]:
    """Images as the network expects them: (x / 255 - mean) / std, in float32."""
    mean, std = np.asarray(rule.mean, np.float32), np.asarray(rule.std, np.float32)
    return (image.astype(np.float32) / 255 - mean) / std
