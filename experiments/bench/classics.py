"""The classics of ImageNet as benches time them: which they are, their peers, and random weights and images."""

import os
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from dlc.errors import UserError
from dlc.models.table import TABLE
from experiments.bench import vision_torch

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU


class Classic(NamedTuple):
    """A network, its peer for `vision_torch.build`, if there is one, and its published top-1 accuracy (percent)."""

    make: Callable[..., Any]
    peer: str | None = None
    top1: float | None = None
    image: int = 224

    def build_peer(self) -> Any:
        """PyTorch's, without auxiliary heads."""
        heads = self.peer in ("torchvision.googlenet", "torchvision.inception_v3")
        return vision_torch.build(self.peer or "", **({"aux_logits": False, "init_weights": False} if heads else {}))


CLASSICS = {
    row.bench: Classic(row.make, row.peer, row.top1, row.inputs[0][0]) for row in TABLE if row.bench is not None
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
