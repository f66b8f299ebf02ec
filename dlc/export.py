"""A model with its weights in one file, which runs without this package and without Flax.

    export.save("resnet50.jax", resnet50(), variables, jnp.zeros((1, 224, 224, 3)))

    import jax.export, pathlib               # elsewhere, with only JAX and flatbuffers
    model = jax.export.deserialize(pathlib.Path("resnet50.jax").read_bytes())
    logits = model.call(images)

The file ends with a checksum, which `load` compares. It holds a StableHLO program for CPU, CUDA and TPU, with the
weights as its constants. `jax.export` serializes it and guarantees that the file can be read for at least six months.
"""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export

from dlc import files
from dlc.errors import UserError

MARK = b"crc32"  # what comes before the checksum; whoever reads the file without this package ignores both
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
    content = bytes(jax.export.export(jax.jit(forward), platforms=platforms)(*inputs).serialize())
    files.write_whole(path, content + _seal(content))


def load(path: str | Path) -> Callable[..., Any]:
    """The model in a file, as a function of its inputs. Raises UserError if the file is missing or damaged."""
    path = Path(path)
    try:
        content = path.read_bytes()
        content, seal = content[: -len(MARK) - 4], content[-len(MARK) - 4 :]
        if seal != _seal(content):
            raise ValueError
        return jax.export.deserialize(bytearray(content)).call
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception:  # flatbuffers has no exception class of its own for a damaged file
        raise UserError(f"{path} is not a model that export.save wrote, or is damaged: export it again") from None


def _seal(content: bytes) -> bytes:
    return MARK + zlib.crc32(content).to_bytes(4, "little")
