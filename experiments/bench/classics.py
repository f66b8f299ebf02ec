"""The classics of ImageNet as benches time them: their names and forms, and random weights, images and labels."""

import functools
import os
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import numpy as np

from dlc.models.table import TABLE, Row
from dlc.run.flags import Bound

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU

CLASSICS = {row.bench: row for row in TABLE if row.bench is not None}
Name = Annotated[str, Bound(CLASSICS.__contains__, f"cannot be {{}}: choose from {' '.join(CLASSICS)}")]
Dtype = Literal["float32", "bfloat16"]


def side(classic: Row) -> int:
    """Height and width of the network's images."""
    return classic.inputs[0][0]


def all_forms(ours: Callable[..., Any], torch_form: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Our form, and by their names those of PyTorch that `torch_form(..., channels_last=, compiled=)` gives."""
    return {
        "dlc": ours,
        "PyTorch, channels_last": functools.partial(torch_form, channels_last=True),
        "PyTorch, eager": torch_form,
        "PyTorch, compiled, channels_last": functools.partial(torch_form, channels_last=True, compiled=True),
    }


def forms(every: dict[str, Any], names: tuple[str, ...]) -> dict[str, list[str]]:
    """The forms of each network that are timed: PyTorch's if it has a peer, and its compiler only on a GPU."""
    on_gpu = jax.default_backend() == "gpu"

    def timed(form: str, classic: Row) -> bool:
        return form == "dlc" or (classic.peer is not None and (on_gpu or "compiled" not in form))

    return {name: [form for form in every if timed(form, CLASSICS[name])] for name in names}


def compute_dtype(asked: Dtype | None) -> Dtype:
    """The dtype that was asked for; by default float32 on a CPU and bfloat16 elsewhere."""
    return asked or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


def variables(model: Any, image: int) -> Any:
    """Random variables, drawn fast: kernels as in He et al. 2015, so that activations keep their size."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, image, image, 3), "float32"))
    drawn = np.random.default_rng(0).standard_normal(2**20, np.float32)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        if len(leaf.shape) > 1:
            return np.resize(drawn, leaf.shape) * np.float32((2 / np.prod(leaf.shape[:-1])) ** 0.5)
        fills = {"scale": 1.0, "var": 1.0, "slope": 0.25}
        return np.full(leaf.shape, fills.get(path[-1].key, 0.0), leaf.dtype)

    return jax.device_put(jax.tree_util.tree_map_with_path(fill, shapes))


def images(batch: int, image: int) -> np.ndarray:
    """Random images [batch, image, image, 3], float32."""
    return np.random.default_rng(1).standard_normal((batch, image, image, 3), np.float32)


def labels(batch: int) -> np.ndarray:
    """Random classes [batch], int32."""
    return np.random.default_rng(2).integers(1000, size=batch, dtype=np.int32)
