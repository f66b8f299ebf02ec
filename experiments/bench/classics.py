"""The classics of ImageNet as benches time them: which they are, their peers, and random weights and images."""

import functools
import os
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from dlc.errors import UserError
from dlc.models import (
    alexnet,
    densenet,
    enet,
    googlenet,
    inception,
    inception_v4,
    nin,
    prelunet,
    resnet,
    squeezenet,
    vgg,
    vit,
)
from experiments.bench import vision_torch

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU


class Classic(NamedTuple):
    """A network, the peer of `vision_torch.build`, if there is one, and its published top-1 accuracy (percent)."""

    make: Callable[..., Any]
    peer: str | None = None
    top1: float | None = None
    image: int = 224

    def build_peer(self) -> Any:
        """PyTorch's, without auxiliary heads."""
        heads = self.peer in ("torchvision.googlenet", "torchvision.inception_v3")
        return vision_torch.build(self.peer or "", **({"aux_logits": False, "init_weights": False} if heads else {}))


# Top-1: torchvision 0.28, meta data of the weights IMAGENET1K_V1, which its documentation shows, too; timm 1.0.31,
# results-imagenet.csv, for inception_v4 (tf_in1k) and vit_s16 (augreg_in1k); for nin_bn its authors' program (nin.py);
# for enet what others have read off figure 1 of Canziani et al. 2016, where its head is not known.
CLASSICS = {
    "alexnet": Classic(alexnet.alexnet, image=227),
    "alexnet_bn": Classic(alexnet.alexnet_bn),
    "alexnet_2014": Classic(alexnet.alexnet_2014, "torchvision.alexnet", 56.522),
    "nin": Classic(nin.nin),
    "nin_bn": Classic(nin.nin_bn, top1=62.6),
    "vgg16": Classic(vgg.vgg16, "torchvision.vgg16", 71.592),
    "vgg19": Classic(vgg.vgg19, "torchvision.vgg19", 72.376),
    "googlenet": Classic(functools.partial(googlenet.googlenet_bn, aux=False), "torchvision.googlenet", 69.778),
    "bn_inception": Classic(inception.bn_inception),
    "inception_v3": Classic(
        functools.partial(inception.inception_v3, aux=False), "torchvision.inception_v3", 77.294, 299
    ),
    "inception_v4": Classic(inception_v4.inception_v4, "timm.inception_v4", 80.144, 299),
    "prelunet_a": Classic(prelunet.prelunet_a),
    "resnet18": Classic(resnet.resnet18, "torchvision.resnet18", 69.758),
    "resnet34": Classic(resnet.resnet34, "torchvision.resnet34", 73.314),
    "resnet50": Classic(resnet.resnet50, "torchvision.resnet50", 76.13),
    "resnet101": Classic(resnet.resnet101, "torchvision.resnet101", 77.374),
    "resnet152": Classic(resnet.resnet152, "torchvision.resnet152", 78.312),
    "densenet121": Classic(densenet.densenet121, "torchvision.densenet121", 74.434),
    "squeezenet1_0": Classic(squeezenet.squeezenet1_0, "torchvision.squeezenet1_0", 58.092),
    "squeezenet1_1": Classic(squeezenet.squeezenet1_1, "torchvision.squeezenet1_1", 58.178),
    "enet": Classic(enet.enet_classifier, top1=68.0),
    "vit_s16": Classic(vit.vit_s16, "timm.vit_small_patch16_224", 78.842),
    "vit_b16": Classic(vit.vit_b16, "torchvision.vit_b_16", 81.072),
}


def compute_dtype(asked: str | None) -> Literal["float32", "bfloat16"]:
    """What was asked for, or else float32 on a CPU and bfloat16 elsewhere."""
    if asked is None:
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return "bfloat16" if asked == "bfloat16" else "float32"


def chosen(names: tuple[str, ...]) -> dict[str, Classic]:
    """The classics of these names, or all. Raises UserError if there is none of a name."""
    if unknown := [name for name in names if name not in CLASSICS]:
        raise UserError(f"no classic is called {unknown[0]}: --models takes {' '.join(CLASSICS)}")
    return {name: CLASSICS[name] for name in names or CLASSICS}


def variables(model: Any, image: int) -> Any:
    """Random variables, drawn fast: kernels as He et al. 2015 have them, so that activations keep their size."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, image, image, 3), "float32"))
    drawn = np.random.default_rng(0).standard_normal(2**20, np.float32)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        if len(leaf.shape) > 1:
            return np.resize(drawn, leaf.shape) * np.float32((2 / np.prod(leaf.shape[:-1])) ** 0.5)
        fills = {"scale": 1.0, "var": 1.0, "slope": 0.25}
        return np.full(leaf.shape, fills.get(path[-1].key, 0.0), leaf.dtype)

    return jax.device_put(jax.tree_util.tree_map_with_path(fill, shapes))


def images(batch: int, image: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, image, image, 3), np.float32)
