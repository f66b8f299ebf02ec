"""A model with its weights in one file, which runs where neither this package nor Flax is.

    export.save("resnet50.jax", resnet50(), variables, jnp.zeros((1, 224, 224, 3)))

    import jax.export, pathlib               # elsewhere, with JAX and flatbuffers alone
    model = jax.export.deserialize(pathlib.Path("resnet50.jax").read_bytes())
    logits = model.call(images)

The file is a program for CPU, CUDA and TPU at once in StableHLO, with the weights as its constants, serialized by
`jax.export`, which says for how long its files can be read: six months at least.
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
    """Writes `model.apply(variables, *inputs)` for inputs of these shapes and dtypes, the batch among them.

    Raises UserError if there is no such folder, and OSError if it is full.
    """

    def forward(*inputs: Any) -> Any:
        # Behind the barrier: else the compiler would transform kernels itself, one number after another, for minutes.
        return model.apply(jax.lax.optimization_barrier(variables), *inputs)

    path = Path(path)
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}: make it first")
    files.write_whole(path, bytes(jax.export.export(jax.jit(forward), platforms=platforms)(*inputs).serialize()))


def load(path: str | Path) -> Callable[..., Any]:
    """The model that a file holds, a function of its inputs. Raises UserError if there is none, or it is damaged."""
    path = Path(path)
    try:
        return jax.export.deserialize(bytearray(path.read_bytes())).call
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception:  # the reader of flatbuffers has no class of its own for a file that is none
        raise UserError(f"{path} is no exported model, or is cut short: export it again") from None
