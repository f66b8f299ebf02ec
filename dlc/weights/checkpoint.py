"""Checkpoints of any state, written in the background by Orbax: complete or not at all, the newest few kept.

A checkpoint holds two flat tables with the same names: the arrays of the state ("params/dense1/kernel", "step"), which
may lie on several devices or processes, and a checksum of each. A part of a state can be read without the rest.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlc import hosts
from dlc.errors import Stopped, UserError


class Unwritten(Stopped):
    """A checkpoint could not be written, most often because the disk is full."""


class Checkpoints:
    """The checkpoints in one folder. Orbax is imported on first use, because the import is slow."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep, self._orbax = folder.absolute(), keep, None

    def open(self) -> Any:
        """Imports Orbax and reads the folder. The other methods call this when they need it."""
        if self.folder.exists() and not self.folder.is_dir():  # Orbax would wait for ever
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.folder))
        if self._orbax is None:
            import orbax.checkpoint as ocp

            # Both log a traceback for failures that are reported here in one sentence.
            for name in ("absl", "asyncio"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            options = ocp.CheckpointManagerOptions(max_to_keep=self.keep)
            handlers = ocp.PyTreeCheckpointHandler()
            hosts.gathered(None)  # Orbax waits for the other processes, but not for long
            self._orbax = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        return self._orbax

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first. Of several processes, process 0 looks."""
        return hosts.told(sorted(self.open().all_steps())) if hosts.told(self.folder.is_dir()) else []

    def save(self, step: int, state: Any) -> None:
        """Copies the state and writes it in the background.

        Raises Unwritten if this save or the previous one fails; UserError if a leaf has 64 bits and JAX only 32;
        FileNotFoundError if the folder has gone.
        """
        import orbax.checkpoint as ocp

        if self._orbax is not None and not self.folder.is_dir():  # Orbax would make it anew, with nothing else in it
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))
        arrays = _arrays(state)
        # Orbax reads the arrays later, and on a CPU in place; by then the next step may have reused their memory.
        content = {"state": jax.tree.map(jnp.copy, arrays), "checksum": _checksums(arrays)}
        try:
            self.open().save(step, args=ocp.args.PyTreeSave(content), force=True)
        except Exception as error:
            raise self._unwritten(error) from error

    def wait(self) -> None:
        """Returns when everything is on the disk, for every process. Raises Unwritten if that failed."""
        try:
            if self._orbax is not None:
                self._orbax.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error
        hosts.gathered(None)

    def close(self) -> None:
        """Ends Orbax's threads, whether or not they managed to write."""
        if self._orbax is not None:
            with contextlib.suppress(Exception):
                self._orbax.close()

    def restore(self, like: Any, warn: Callable[[str], None], part: bool = False) -> tuple[int, Any] | None:
        """(step, state) of the newest intact checkpoint, placed on devices as `like` is, or None if there is none.

        `like` is a state of the same structure or, if it is a `part`, of a part of it. Damaged checkpoints are skipped
        with a sentence to `warn`, and removed. Raises UserError if all are damaged, or if the arrays of one are others:
        those of another model or optimizer.
        """
        wanted = {name: _abstract(leaf) for name, leaf in _arrays(like).items()}

        def checked(step: int) -> dict[str, jax.ShapeDtypeStruct]:
            self._check_same(step, wanted, part)
            return wanted

        found = self._newest(checked, warn)
        return found and (found[0], _filled(like, found[1]))

    def read(self, parts: tuple[str, ...], warn: Callable[[str], None]) -> dict[str, Any] | None:
        """The arrays of the newest intact checkpoint whose names begin with one of `parts`, such as "params/".

        None if there is no checkpoint. Raises UserError if all are damaged.
        """

        def wanted(step: int) -> dict[str, jax.ShapeDtypeStruct]:
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            stored = self.open().item_metadata(step)["state"]
            return {
                name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
                for name, leaf in stored.items()
                if name.startswith(parts)
            }

        found = self._newest(wanted, warn, repair=False)
        return found and found[1]

    def _newest(
        self,
        wanted: Callable[[int], dict[str, jax.ShapeDtypeStruct]],
        warn: Callable[[str], None],
        repair: bool = True,
    ) -> tuple[int, dict[str, Any]] | None:
        steps = self.steps()
        for i, step in enumerate(reversed(steps)):
            try:
                arrays = self._read(step, wanted(step))
            except UserError:
                raise
            except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
                older = f"; going back to that of step {steps[-2 - i]}" if i + 1 < len(steps) else ""
                warn(f"the checkpoint of step {step} is damaged ({_reason(error)}){older}")
                continue
            for damaged in steps[len(steps) - i :] if repair else ():  # these steps are about to be computed again
                self.open().delete(damaged)
            return step, arrays
        if steps:
            raise UserError(f"no checkpoint in {self.folder} can be read; start a new run")
        return None

    def _check_same(self, step: int, wanted: dict[str, jax.ShapeDtypeStruct], part: bool) -> None:
        stored = self.open().item_metadata(step)["state"]
        for name in (*wanted, *(() if part else stored)):
            here, there = (_kind_of(table[name]) if name in table else None for table in (wanted, stored))
            if here != there:
                what = "optimizer" if "opt_state" in name.split("/") else "model"
                found = (
                    f"it has no {name}" if there is None else f"{name} is {there} there and {here or 'missing'} here"
                )
                raise UserError(f"the checkpoint of step {step} in {self.folder} is of another {what}: {found}")

    def _read(self, step: int, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        if not wanted:
            return {}
        like = {"state": wanted, "checksum": {name: np.zeros((), np.uint32) for name in wanted}}
        places = ocp.checkpoint_utils.construct_restore_args(like)
        arguments = ocp.args.PyTreeRestore(like, restore_args=places, partial_restore=True)

        def restored() -> Any:
            read = self._restore(step, arguments)
            for name, array in read["state"].items():
                if isinstance(array, jax.ShapeDtypeStruct):  # what Orbax returns for an array that was not saved
                    raise ValueError(f"it has no {name}")
            return read

        read = _by_all(restored)
        # TensorStore notices a file that was cut short, but not one whose bytes were altered.
        for name, checksum in _checksums(read["state"]).items():
            if int(checksum) != int(read["checksum"][name]):
                raise ValueError(f"{name} has a wrong checksum")
        return read["state"]

    def _restore(self, step: int, arguments: Any) -> Any:
        """What Orbax reads. A process that reads its parts does not wait for the others, which may have failed to."""
        if hosts.count() == 1:
            return self.open().restore(step, args=arguments)
        import orbax.checkpoint as ocp

        own = ocp.options.MultiprocessingOptions(
            primary_host=None, active_processes={hosts.index()}, barrier_sync_key_prefix=str(hosts.index())
        )
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=own)
        with contextlib.closing(ocp.Checkpointer(handler, multiprocessing_options=own)) as reader:
            return reader.restore(self.folder / str(step) / "default", args=arguments)

    def _unwritten(self, error: Exception) -> Unwritten:
        return Unwritten(f"cannot save a checkpoint in {self.folder}: {_reason(error)}")


def _reason(error: Exception) -> str:
    """What the operating system said, if the message contains it; else the first line of the message."""
    text = str(error)
    known = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS))
    return next((words for words in known if words in text), text.strip().split("\n")[0][:120])


def _by_all(act: Callable[[], Any]) -> Any:
    """What `act` returns. If it fails for one of several processes, all raise ValueError."""
    value = failure = None
    try:
        value = act()
    except Exception as error:
        failure = error
    found = [why for why in hosts.gathered(failure and _reason(failure)) if why]
    if failure:
        raise failure
    if found:
        raise ValueError(found[0])
    return value


def _kind_of(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _arrays(state: Any) -> dict[str, Any]:
    """The leaves of a state by name. Keys are stored as their data; Orbax cannot store arrays without elements."""
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = _name(path)
        if name in leaves:
            raise UserError(f"two arrays of the state are called {name}: a checkpoint needs two names for them")
        leaves[name] = leaf
    return {name: _plain(name, leaf) for name, leaf in leaves.items() if np.size(leaf)}


def _plain(name: str, leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    dtype = np.asarray(leaf).dtype if not hasattr(leaf, "dtype") else leaf.dtype
    if jax.dtypes.canonicalize_dtype(dtype) != dtype and not isinstance(leaf, int):
        raise UserError(f"{name} is {dtype}, which a checkpoint would round: use 32 bits, or set JAX_ENABLE_X64=1")
    return jnp.asarray(leaf)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _filled(like: Any, arrays: dict[str, Any]) -> Any:
    """The tree `like` with `arrays` as its leaves."""

    def leaf(path: Any, old: Any) -> Any:
        new = arrays.get(_name(path), old)
        return jax.random.wrap_key_data(new, impl=jax.random.key_impl(old)) if _is_key(old) else new

    return jax.tree_util.tree_map_with_path(leaf, like)


def _checksums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A checksum, uint32, of each array: the sum over its words, each times an odd number that depends on its place.

    A change of one word always changes it. Integer sums do not depend on their order, so neither does the checksum on
    how the arrays are split among devices. Arrays on the same devices are summed by one program.
    """
    groups: dict[Any, dict[str, jax.Array]] = {}
    for name, array in arrays.items():
        groups.setdefault(frozenset(array.devices()), {})[name] = array
    return {name: checksum for group in groups.values() for name, checksum in _sums(group).items()}


@jax.jit
def _sums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _checksum(array) for name, array in arrays.items()}


def _checksum(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    weight = (place * jnp.uint32(2654435761)) << 1 | jnp.uint32(1)
    return jnp.sum(words * weight, dtype=jnp.uint32)
