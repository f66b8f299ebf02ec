"""Network in network: a small dense network at every pixel between convolutions, and no dense layer at the end.

Glossary: B batch, H W height and width, C channels, K classes.

References:
    [1] Lin, Chen, Yan 2013, "Network in network", section 3; its experiments use small images.
    [2] The first author's network for ImageNet, "NIN-Imagenet" in Caffe's model zoo, train_val.prototxt:
        https://gist.github.com/mavenlin/d802a5849de39225bcc6. Not in any paper.
    [3] Its form with batch norm, by S. Zagoruyko: models/ninbn.lua in
        https://github.com/soumith/imagenet-multiGPU.torch, with 62.6 % accuracy on ImageNet's validation set. To our
        knowledge it is the "BN-NIN" of the chart in Canziani, Paszke, Culurciello 2016, "An analysis of deep neural
        network models for practical applications".
"""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from dlc import layers
from dlc.layers.pooling import max_pool

BLOCKS = (96, 11), (256, 5), (384, 3), (1024, 3)  # channels, and the size of the first kernel


class NIN(nn.Module):
    """Four blocks of a convolution and two 1x1 convolutions, overlapping max-pooling between them, average pooling.

    Takes images [B, 224, 224, 3] or of another size, returns logits [B, K]. The last convolution has one map for each
    class, whose mean is the logit; a ReLU keeps logits from being negative. In training, dropout before the last block
    uses the random stream "dropout".

    With `norm`, as in [3], every convolution is normalised (and keeps its bias), the first layer and the pooling are
    padded, there is no dropout, the last block is like the others, and a dense layer reads its means.
    """

    norm: bool = False
    num_classes: int = 1000
    dropout: float = 0.5
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool = False) -> Float[Array, "B K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i, (width, side) in enumerate(BLOCKS, 1):
            if i == 4 and not self.norm:
                x = layers.Dropout(self.dropout)(x, train=train)
            for j in (1, 2, 3):
                last = (i, j) == (4, 3) and not self.norm
                conv = _conv(i, j, self.num_classes if last else width, side if j == 1 else 1, self.norm, kinds)
                x = conv(x)
                if self.norm:
                    x = layers.BatchNorm(epsilon=1e-3, **kinds, name=f"norm{i}_{j}")(x, train=train)
                x = nn.relu(x)
            if i < 4 and self.norm:
                x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
            elif i < 4:
                x = max_pool(x, (3, 3), (2, 2), ceil=True)  # Caffe rounds up
        x = x.mean((1, 2))
        return layers.Dense(self.num_classes, **kinds, name="dense")(x) if self.norm else x


def _conv(block: int, layer: int, width: int, side: int, norm: bool, kinds: dict[str, Any]) -> layers.Conv:
    stride = 4 if (block, layer) == (1, 1) else 1
    pad = 0 if block == 1 and not norm else side // 2
    init: dict[str, Any] = {}  # [3] uses Torch's own, which are the defaults of our layers
    if not norm:
        deviation = 0.01 if (block, layer) in ((1, 1), (3, 1), (4, 3)) else 0.05  # [2]
        init = {"kernel_init": nn.initializers.normal(deviation), "bias_init": nn.initializers.zeros}
    name = f"conv{block}_{layer}"
    return layers.Conv(width, (side, side), (stride, stride), ((pad, pad), (pad, pad)), **init, **kinds, name=name)


def nin(**changes: Any) -> NIN:
    """The network of [2]: 7,595,176 parameters. `changes` are fields of `NIN`."""
    return NIN(**changes)


def nin_bn(**changes: Any) -> NIN:
    """The network of [3]: 8,655,336 parameters."""
    return NIN(**{"norm": True, **changes})
