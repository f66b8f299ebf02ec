"""Meshes, and the placement of each leaf of a state on them: training on several devices with an unchanged step.

    devices = mesh("data=4")
    init = lambda key: kept(train.init(...), devices)      # the state, the same on every device
    step = on_mesh(make_step(loss_fn, tx), devices)        # keeps it there
    batch = jax.device_put(batch, split(devices))          # a quarter of the examples on each device

Nothing else changes. The step defines what is computed, the placement defines where, and XLA inserts the sums between
devices. Batch normalisation under `jit` therefore uses the statistics of the whole batch, whatever the number of
devices. Programs with one process for each device (PyTorch's DistributedDataParallel, Goyal et al. 2017) use those of
each device's own part.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from dlc.errors import UserError
from dlc.train import Batch, Metrics, State, Step


def mesh(text: str) -> Mesh:
    """The mesh for a text such as "data=4": that many devices, the first available, along the axis "data".

    Raises UserError if the text has another form or there are too few devices.
    """
    count, devices = size(text), jax.devices()
    if count > len(devices):
        there = f"is one {devices[0].platform}" if len(devices) == 1 else f"are {len(devices)} of {devices[0].platform}"
        raise UserError(f"a mesh of {count} devices needs more than are available: there {there}")
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])


def size(text: str) -> int:
    """How many devices the mesh for this text has. Raises UserError if the text has another form."""
    if not (found := re.fullmatch(r"data=([1-9]\d*)", text)):
        raise UserError(f'a mesh is written as "data=4", for four devices that share each batch, not as "{text}"')
    return int(found[1])


def split(devices: Mesh, axis: int = 0) -> NamedSharding:
    """The placement of a batch: its examples, along `axis` of every leaf, in equal parts on the devices."""
    return NamedSharding(devices, PartitionSpec(*(None,) * axis, "data"))


def layout(state: Any, devices: Mesh, fully: bool = False) -> Any:
    """The placement of each leaf of a state, as a tree of shardings: whole on every device, or `fully` sharded.

    If fully sharded, each leaf is cut along its longest axis that the number of devices divides, each device keeps one
    part, and XLA gathers the weights of a layer when it needs them. A leaf without such an axis stays whole.

    References: Rajbhandari, Rasley, Ruwase, He 2020, "ZeRO: memory optimizations toward training trillion parameter
    models", stage 3.
    """

    def place(leaf: Any) -> NamedSharding:
        lengths = [length if length % devices.size == 0 else 0 for length in leaf.shape] if fully else []
        if not any(lengths):
            return NamedSharding(devices, PartitionSpec())
        return split(devices, int(np.argmax(lengths)))

    return jax.tree.map(place, state)


def kept(state: Any, devices: Mesh, fully: bool = False) -> Any:
    """The same state in its `layout`: a sharding constraint under `jit`, a copy outside of it."""
    places = layout(state, devices, fully)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state)):
        return jax.lax.with_sharding_constraint(state, places)
    return jax.device_put(state, places)


def shared(function: Callable[[Any, Batch], Any], devices: Mesh) -> Partial:
    """`function(state, batch)`, in which each device computes with its part of the batch.

    The function is traced with the mesh as JAX's abstract mesh, which layers can ask for. Arrays that it carries, such
    as a data set, are copied to every device.
    """

    def split_up(function: Partial, state: Any, batch: Batch) -> Any:
        batch = jax.lax.with_sharding_constraint(batch, split(devices))
        with jax.sharding.use_abstract_mesh(devices.abstract_mesh):
            return function(state, batch)

    return Partial(split_up, kept(function if isinstance(function, Partial) else Partial(function), devices))


def on_mesh(step: Step, devices: Mesh, fully: bool = False) -> Step:
    """A `shared` step that returns its state in the `layout` it came in, so that nothing is moved or compiled again."""

    def placed(step: Step, state: State, batch: Batch) -> tuple[State, Metrics]:
        state, metrics = step(state, batch)
        return kept(state, devices, fully), metrics

    return Partial(placed, shared(step, devices))


def fits(batch: int, devices: Mesh) -> None:
    """Raises UserError unless the devices can share a batch equally."""
    if batch % devices.size:
        share = math.ceil(batch / devices.size) * devices.size
        raise UserError(f"{devices.size} devices cannot share a batch of {batch} equally: choose {share}, for example")
