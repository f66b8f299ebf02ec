"""Layers that several models share. Their parameters and results do not depend on the device.

    basic.py      dense layers, convolution, dropout
    norms.py      batch normalisation, local response normalisation
    pooling.py    maxima and means over windows of an image
    attention.py  attention over query, key and value, its cache, and positions
    cpu.py        the forms of all of these that are fast on a CPU; the other files choose them

The layers and functions of `basic.py` and `norms.py` are imported from here: `from dlc.layers import Conv`.
"""

from dlc.layers.basic import (
    BatchNorm,
    Conv,
    ConvMaxPool,
    Dense,
    Dropout,
    batch_norm,
    conv,
    conv_max_pool,
    dense,
    fan_in_uniform,
    plain_batch_norm,
    plain_conv,
)

__all__ = [
    "BatchNorm",
    "Conv",
    "ConvMaxPool",
    "Dense",
    "Dropout",
    "batch_norm",
    "conv",
    "conv_max_pool",
    "dense",
    "fan_in_uniform",
    "plain_batch_norm",
    "plain_conv",
]
