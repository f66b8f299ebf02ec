"""scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, resized: they come with the package and need no download.

References: Alpaydin, Kaynak 1998, "Cascading classifiers", whose test set this is.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dlc.data._arrays import Arrays, images
from dlc.data._dataset import Split
from dlc.data._published import Published
from dlc.errors import needs

TRAIN = 1437  # there is no official split: the first 1,437 are for training and the last 360 for testing


def parse(side: int, channels: int, paths: Sequence[Path] = ()) -> tuple[Split, Split]:
    """8 x 8 pixels of 0..16 -> resized bilinearly to uint8 [N, side, side, channels] of 0..255, channels equal."""
    needs("digits", "sklearn")
    from PIL import Image
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    small = (Image.fromarray(image.reshape(8, 8).astype(np.float32)) for image in pixels)
    large = np.stack([np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)) for image in small])
    image = np.repeat(np.rint(large * (255 / 16)).astype(np.uint8)[..., None], channels, axis=3)
    label = labels.astype(np.int32)
    train, test = ({"image": image[part], "label": label[part]} for part in (slice(TRAIN), slice(TRAIN, None)))
    return train, test


def _digits(name: str, side: int, channels: int) -> Arrays:
    example, counts = images(side, side, channels), (TRAIN, 1797 - TRAIN)
    return Arrays(
        Published(name), partial(parse, side, channels), example, counts, tuple("0123456789"), "scikit-learn digits"
    )


DIGITS = _digits("digits", 28, 1)
DIGITS32 = _digits("digits32", 32, 3)  # in the shape of CIFAR
