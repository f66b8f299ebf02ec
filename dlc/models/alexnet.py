"""AlexNet: five convolutions and three dense layers, in the four versions that are called AlexNet.

    alexnet()             the network of 2012, whose second, fourth and fifth convolutions see half of the channels [1]
    alexnet_ungrouped()   the same, but every convolution sees all channels
    alexnet_2014()        one narrower tower without normalisation [2], whose weights torchvision publishes
    alexnet_bn()          the tower with batch normalisation, from a program [3]

Glossary: B batch, H W height and width, C channels, K classes.

References:
    [1] Krizhevsky, Sutskever, Hinton 2012, "ImageNet classification with deep convolutional neural networks",
        section 3 and figure 2; initial weights are in section 5.
    [2] Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", footnote 1.
    [3] https://github.com/soumith/imagenet-multiGPU.torch, models/alexnetowtbn_cudnn.lua; not in any paper. To our
        knowledge it is the "BN-AlexNet" of the chart in Canziani, Paszke, Culurciello 2016, "An analysis of deep neural
        network models for practical applications".
"""

from typing import Any, Literal

import flax.linen as nn
from jaxtyping import Array, Float

from dlc import layers
from dlc.layers.norms import local_response_norm
from dlc.layers.pooling import max_pool

# For each convolution: kernel, stride, padding (for the first, the model's field is used), initial bias. Section 5
# sets some biases to one so that their ReLUs are active from the first step on.
_CONVOLUTIONS = [(11, 4, 0, 0.0), (5, 1, 2, 1.0), (3, 1, 1, 0.0), (3, 1, 1, 1.0), (3, 1, 1, 1.0)]


class AlexNet(nn.Module):
    """Convolutions of 11x11, 5x5 and three of 3x3, overlapping max-pooling after the first, second and fifth; dense.

    Takes images [B, 227, 227, 3], returns logits [B, K]. (The paper says 224, but the 55 x 55 outputs of its first
    layer need 227. The versions with one tower pad by two and take 224.) In training, dropout uses the random stream
    "dropout"; batch statistics, if any, are in the collection "batch_stats".

    `norm` is "response" for normalisation over neighbouring channels after the first two layers (section 3.3; here over
    all channels, because it is not known whether each of the paper's two GPUs used only its own), "batch" for batch
    normalisation of every hidden layer before its ReLU, or "none".
    """

    num_classes: int = 1000
    widths: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    groups: tuple[int, int, int, int, int] = (1, 2, 1, 2, 2)
    padding: int = 0  # of the first layer
    norm: Literal["response", "batch", "none"] = "response"
    hidden: int = 4096
    dropout: tuple[float, float, float] = (0.0, 0.5, 0.5)  # before each dense layer
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool = False) -> Float[Array, "B K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def init(bias: float) -> dict[str, Any]:
            if self.norm == "batch":  # Torch's own, which are the defaults of our layers
                return {}
            return {"kernel_init": nn.initializers.normal(0.01), "bias_init": nn.initializers.constant(bias)}

        def activate(x: Array, norm: str) -> Array:
            if self.norm == "batch":
                x = layers.BatchNorm(epsilon=1e-3, **kinds, name=norm)(x, train=train)
            return nn.relu(x)

        settings = zip(self.widths, self.groups, _CONVOLUTIONS, strict=True)
        for i, (width, groups, (size, stride, pad, bias)) in enumerate(settings, 1):
            pad = self.padding if i == 1 else pad
            conv = layers.Conv(
                width, (size, size), (stride, stride), ((pad, pad), (pad, pad)), groups=groups,
                **init(bias), **kinds, name=f"conv{i}",
            )  # fmt: skip
            x = activate(conv(x), f"conv_norm{i}")
            if self.norm == "response" and i in (1, 2):
                x = local_response_norm(x, 5, 1e-4, 0.75, 2.0)
            if i in (1, 2, 5):
                x = max_pool(x, (3, 3), (2, 2))
        x = layers.flatten(x.transpose(0, 3, 1, 2))  # channels first, the order of published weights
        for i in (1, 2):
            x = layers.Dropout(self.dropout[i - 1])(x, train=train)
            x = activate(layers.Dense(self.hidden, **init(1.0), **kinds, name=f"dense{i}")(x), f"dense_norm{i}")
        x = layers.Dropout(self.dropout[2])(x, train=train)
        return layers.Dense(self.num_classes, **init(0.0), **kinds, name="dense3")(x)


def alexnet(**changes: Any) -> AlexNet:
    """The network of [1], for images of 227x227: 60,965,224 parameters. `changes` are fields of `AlexNet`."""
    return AlexNet(**changes)


def alexnet_ungrouped(**changes: Any) -> AlexNet:
    """The network of [1] with every convolution over all channels, as on one GPU: 62,378,344 parameters."""
    return AlexNet(**{"groups": (1, 1, 1, 1, 1), **changes})


def alexnet_2014(**changes: Any) -> AlexNet:
    """The single tower of [2], for images of 224x224: 61,100,840 parameters.

    Dropout comes before the first two dense layers, as in the version that torchvision publishes. [2] does not specify
    this, nor the initial weights, which are those of [1] here.
    """
    return AlexNet(**{**_TOWER, "norm": "none", **changes})


def alexnet_bn(**changes: Any) -> AlexNet:
    """`alexnet_2014` with batch normalisation before each hidden ReLU [3]: 61,119,528 parameters.

    As in the program, layers keep their biases before the norms, and weights begin as Torch's defaults.
    """
    return AlexNet(**{**_TOWER, "norm": "batch", **changes})


_TOWER = {"widths": (64, 192, 384, 256, 256), "groups": (1, 1, 1, 1, 1), "padding": 2, "dropout": (0.5, 0.5, 0.0)}
