"""Layers that several models share. Their parameters and results do not depend on the device.

    basic.py      dense layers, convolution, dropout, PReLU
    norms.py      batch normalisation, local response normalisation
    pooling.py    maxima and means over windows of an image
    attention.py  attention over query, key and value, its cache, and positions
    cpu.py        the forms of all of these that are fast on a CPU; the other files choose them

The names of `basic.py` and batch normalisation can be imported from here, too: `from dlc.layers import Conv`.
"""

from dlc.layers.basic import (
    Conv,
    ConvMaxPool,
    Dense,
    Dropout,
    PReLU,
    conv,
    conv_max_pool,
    dense,
    fan_in_uniform,
    flatten,
    plain_conv,
    remat,
)
from dlc.layers.norms import BatchNorm, batch_norm, plain_batch_norm

__all__ = [
    "BatchNorm",
    "Conv",
    "ConvMaxPool",
    "Dense",
    "Dropout",
    "PReLU",
    "batch_norm",
    "conv",
    "conv_max_pool",
    "dense",
    "fan_in_uniform",
    "flatten",
    "plain_batch_norm",
    "plain_conv",
    "remat",
]
