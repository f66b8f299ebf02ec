"""Meshes, and where each leaf of a state lies on them: training on several devices without another step.

    devices = mesh("data=4")
    init = lambda key: kept(train.init(...), devices)      # the state, the same on every device
    step = on_mesh(make_step(loss_fn, tx), devices)        # keeps it there
    batch = jax.device_put(batch, split(devices))          # a quarter of the examples each

Nothing else changes: the step says what is computed, the placement where, and XLA adds the sums between devices. A
batch norm under `jit` therefore has the statistics of the whole batch, whatever the number of devices, where programs
with a process a device (PyTorch's DistributedDataParallel, Goyal et al. 2017) take those of each device's own share.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from dlc.errors import UserError
from dlc.train import Batch, Metrics, State, Step


def mesh(text: str) -> Mesh:
    """The mesh that a text such as "data=4" names: so many devices, the first there are, along the axis "data".

    Raises UserError for another text, and if there are not so many devices.
    """
    found = re.fullmatch(r"data=([1-9]\d*)", text)
    if not found:
        raise UserError(f'a mesh is written as "data=4", for four devices that share each batch, not as "{text}"')
    count, devices = int(found[1]), jax.devices()
    if count > len(devices):
        there = f"is one {devices[0].platform}" if len(devices) == 1 else f"are {len(devices)} of {devices[0].platform}"
        raise UserError(f"a mesh of {count} devices needs more than there are: here {there}")
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])


def split(devices: Mesh, axis: int = 0) -> NamedSharding:
    """Where a batch lies: its examples, along `axis` of every leaf, in equal parts on the devices."""
    return NamedSharding(devices, PartitionSpec(*(None,) * axis, "data"))


def layout(state: Any, devices: Mesh, fully: bool = False) -> Any:
    """Where each leaf of a state lies, a tree of shardings: whole on every device, or `fully` sharded.

    Fully sharded, each device keeps one part of every leaf, cut along its longest axis that the number of devices
    divides, and XLA gathers a layer's weights when it needs them; a leaf without such an axis stays whole.

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
    """The same state, in its `layout`. Under `jit` a constraint on what XLA may choose; outside of it a copy."""
    places = layout(state, devices, fully)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state)):
        return jax.lax.with_sharding_constraint(state, places)
    return jax.device_put(state, places)


def on_mesh(step: Step, devices: Mesh, fully: bool = False) -> Step:
    """A step whose state leaves as it came in, in its `layout`, so that nothing is moved or compiled a second time."""

    def placed(step: Step, state: State, batch: Batch) -> tuple[State, Metrics]:
        state, metrics = step(state, batch)
        return kept(state, devices, fully), metrics

    return Partial(placed, step if isinstance(step, Partial) else Partial(step))


def fits(batch: int, devices: Mesh) -> None:
    """Raises UserError unless a batch can be cut into equal parts."""
    if batch % devices.size:
        share = math.ceil(batch / devices.size) * devices.size
        raise UserError(f"a batch of {batch} cannot be shared by {devices.size} devices: choose {share}, for example")
