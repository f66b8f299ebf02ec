"""A model with its weights in one file, which runs without this package and without Flax.

    export.save("resnet50.jax", resnet50(), variables, jnp.zeros((1, 224, 224, 3)))

    import jax.export, pathlib               # elsewhere, with only JAX and flatbuffers
    model = jax.export.deserialize(pathlib.Path("resnet50.jax").read_bytes())
    logits = model.call(images)

The file holds a StableHLO program for CPU, CUDA and TPU, with the weights as its constants. `jax.export` serializes it
and guarantees that the file can be read for at least six months.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export

from dlc import files
from dlc.errors import UserError

PLATFORMS = ("cpu", "cuda", "tpu")


def save(path: str | Path, model: Any, variables: Any, *inputs: Any, platforms: Sequence[str] = PLATFORMS) -> None:
    """Writes `model.apply(variables, *inputs)` for inputs of these shapes, batch size included, and dtypes.

    Raises UserError if the folder does not exist, and OSError if the disk is full.
    """

    def forward(*inputs: Any) -> Any:
        # Without the barrier the compiler would transform the kernels itself, element by element, for minutes.
        return model.apply(jax.lax.optimization_barrier(variables), *inputs)

    path = Path(path)
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} does not exist: make it first")
    files.write_whole(path, bytes(jax.export.export(jax.jit(forward), platforms=platforms)(*inputs).serialize()))


def load(path: str | Path) -> Callable[..., Any]:
    """The model in a file, as a function of its inputs. Raises UserError if the file is missing or damaged."""
    path = Path(path)
    try:
        return jax.export.deserialize(bytearray(path.read_bytes())).call
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception:  # flatbuffers has no exception class of its own for a damaged file
        raise UserError(f"{path} is not an exported model or is cut short: export it again") from None
