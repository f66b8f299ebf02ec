"""What the layers of a network return, by name.

`apply(variables, pixels, **how)` is a Flax model's `apply`, or a function that passes `how` on to one.

Glossary: B batch, H W height and width, C channels.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Num

from dlc.errors import UserError

Apply = Callable[..., Any]
Pixels = Num[Array | np.ndarray, "B H W C"]


def shapes(apply: Apply, variables: Any, pixels: Pixels) -> dict[str, tuple[int, ...]]:
    """The shape of what each layer returns, in the order of the layers, without computing it.

    A layer is a module that returns one array. Its name is its path, such as "conv1" or "stage1_block2/conv1". A layer
    that is called several times has a number after its name from the second call on: "conv1:2".
    """
    names: list[str] = []

    def forward(variables: Any, pixels: Any) -> list[Any]:
        found = _captured(apply, variables, pixels)
        names[:] = found
        return list(found.values())

    outputs = jax.eval_shape(forward, variables, pixels)
    return {name: output.shape for name, output in zip(names, outputs, strict=True)}


def activations(apply: Apply, variables: Any, pixels: Pixels, names: Iterable[str]) -> dict[str, Array]:
    """What the layers `names` return for `pixels`, arrays [B, ...]. Raises UserError if there is no such layer."""
    found = _captured(apply, variables, pixels)
    return {name: found[known(name, found)] for name in names}


def known(name: str, layers: Iterable[str]) -> str:
    """`name` itself. Raises UserError, which lists `layers`, if it is none of them."""
    if name not in layers:
        raise UserError(f"there is no layer {name!r}: choose from {', '.join(layers)}")
    return name


def _captured(apply: Apply, variables: Any, pixels: Any) -> dict[str, Any]:
    _, state = apply(variables, pixels, capture_intermediates=True, mutable=["intermediates"])
    found = {}
    for path, calls in traverse_util.flatten_dict(state["intermediates"]).items():
        for time, output in enumerate(calls, 1):
            name = "/".join(path[:-1])
            if name and isinstance(output, jax.Array):
                found[name if time == 1 else f"{name}:{time}"] = output
    return found
