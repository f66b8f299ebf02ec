"""Checkpoints of a state through Orbax: written in the background, whole or not at all, the newest few kept."""

import contextlib
import errno
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlc.errors import UserError


class Unwritten(UserError):
    """A checkpoint cannot be written, most often because the disk is full."""


class Checkpoints:
    """The checkpoints in one folder. Imports Orbax at its first use, since that takes longer than many runs' start."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep, self._orbax = folder.absolute(), keep, None

    def open(self) -> Any:
        """Imports Orbax and looks into the folder, which the other methods do by themselves."""
        if self._orbax is None:
            import orbax.checkpoint as ocp

            # Both log a traceback for what is said here in one sentence.
            for name in ("absl", "asyncio"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            options = ocp.CheckpointManagerOptions(max_to_keep=self.keep)
            self._orbax = ocp.CheckpointManager(self.folder, options=options)
        return self._orbax

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, oldest first."""
        return sorted(self.open().all_steps()) if self.folder.is_dir() else []

    def save(self, step: int, state: Any) -> None:
        """Copies the state and writes it in the background. Raises Unwritten if this one, or the last, cannot be."""
        import orbax.checkpoint as ocp

        values = _to_numpy(state)
        try:
            arguments = ocp.args.StandardSave({"state": values, "crc32": _checksum(values)})
            self.open().save(step, args=arguments, force=True)
        except Exception as error:
            raise self._unwritten(error) from error

    def wait(self) -> None:
        """Returns when everything is on the disk. Raises Unwritten if it could not be written."""
        try:
            if self._orbax is not None:
                self._orbax.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error

    def close(self) -> None:
        """Ends Orbax's threads, whatever became of what they were writing."""
        if self._orbax is not None:
            with contextlib.suppress(Exception):
                self._orbax.close()

    def restore(self, like: Any, warn: Callable[[str], None]) -> Any | None:
        """The newest checkpoint that is whole, shaped and placed as `like`, or None where there is none at all.

        Damaged ones are passed over, with a sentence to `warn`. Raises UserError if all are damaged.
        """
        import orbax.checkpoint as ocp

        template, steps = _to_numpy(like), self.steps()
        for i, step in enumerate(reversed(steps)):
            try:
                arguments = ocp.args.StandardRestore({"state": template, "crc32": _checksum(template)})
                read = self.open().restore(step, args=arguments)
                # TensorStore notices a file that was cut off, and not one that was altered.
                if read["crc32"] != _checksum(read["state"]):
                    raise ValueError("its checksum is wrong")
                state = jax.tree.map(_as, like, read["state"])
            except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
                older = f"; going back to that of step {steps[-2 - i]}" if i + 1 < len(steps) else ""
                warn(f"the checkpoint of step {step} is damaged ({_reason(error)}){older}")
                continue
            for damaged in steps[len(steps) - i :]:  # its steps are about to be made again
                self.open().delete(damaged)
            return state
        if steps:
            raise UserError(f"no checkpoint in {self.folder} can be read; start a new run")
        return None

    def _unwritten(self, error: Exception) -> Unwritten:
        return Unwritten(f"cannot save a checkpoint in {self.folder}: {_reason(error)}")


def newest(run: Path, like: Any, warn: Callable[[str], None]) -> Any:
    """The newest whole checkpoint of the run in the folder `run`, shaped as `like`. Raises UserError if it has none."""
    checkpoints = Checkpoints(run / "checkpoints")
    try:
        found = checkpoints.restore(like, warn)
    finally:
        checkpoints.close()
    if found is None:
        raise UserError(f"there is no checkpoint in {run}: give the folder of a run that has trained")
    return found


def _reason(error: Exception) -> str:
    """What the operating system said, where it is somewhere in the message; else the message's first line."""
    text = str(error)
    known = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS))
    return next((words for words in known if words in text), text.strip().split("\n")[0][:120])


def _to_numpy(state: Any) -> Any:
    """Copies on the host, keys as their data: a checkpoint does not depend on the devices that made it."""

    def copy(leaf: Any) -> np.ndarray:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.array(leaf)

    return jax.tree.map(copy, state)


def _checksum(values: Any) -> np.ndarray:
    total = 0
    for leaf in jax.tree.leaves(values):
        total = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), total)
    return np.array(total, np.uint32)


def _as(like: Any, value: np.ndarray) -> Any:
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(like))
        return jax.device_put(key, like.sharding)
    if value.shape != like.shape:
        raise ValueError(f"shape {value.shape} where {like.shape} is expected")
    return jax.device_put(value.astype(like.dtype), like.sharding)
