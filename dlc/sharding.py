"""Meshes, and the placement of each leaf of a state on them: training on several devices with an unchanged step.

    devices = mesh("data=2,fsdp=2,model=2")
    init = lambda key: kept(train.init(...), devices, model.axes)        # the state, cut and copied as the mesh says
    step = on_mesh(make_step(loss_fn, tx), devices, model.axes)          # keeps it there
    batch = jax.device_put(batch, split(devices))                        # a quarter of the examples on each device

Nothing else changes. The step defines what is computed, the placement defines where, and XLA inserts the sums between
devices. A mesh always has three axes, most of them of length 1:

    data    devices with the same weights, which share each batch
    fsdp    devices that share each batch, and the weights and the optimizer's state: each layer's weights are gathered
            when they are needed [1]
    model   devices that share each layer: its heads, its hidden units, its vocabulary [2]

Which axes of a weight count heads or hidden units is written beside the model, as its attribute `axes`, from the end of
a weight's name to a logical name for each of its axes: {"up/kernel": ("width", "hidden")}. `RULES` says which of these
the mesh's axis "model" cuts. The moments of an optimizer have the names of the weights, and follow them.

Batch normalisation under `jit` uses the statistics of the whole batch, whatever the number of devices. Programs with
one process for each device (PyTorch's DistributedDataParallel, Goyal et al. 2017) use those of each device's own part.

References:
    [1] Rajbhandari, Rasley, Ruwase, He 2020, "ZeRO: memory optimizations toward training trillion parameter models",
        stage 3.
    [2] Shoeybi et al. 2019, "Megatron-LM: training multi-billion parameter language models using model parallelism",
        section 3.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from dlc.errors import UserError
from dlc.train import Batch, LossFn, Metrics, State, Step

Devices = Mesh | AbstractMesh  # with an abstract one, a step can be lowered for devices that are not there
Axes = Mapping[str, tuple[str | None, ...]]  # the end of a weight's name -> a logical name of each of its axes

NAMES = ("data", "fsdp", "model")
EXAMPLES = ("data", "fsdp")  # among which the examples of a batch are split
RULES = {"heads": "model", "hidden": "model", "rows": "model", "vocab": "model"}


def sizes(text: str) -> dict[str, int]:
    """The lengths of a mesh's axes, for a text such as "data=4" or "data=2,model=4".

    Raises UserError if the text has another form.
    """
    found = re.findall(r"(?:^|,)(data|fsdp|model)=([1-9]\d{0,5})(?=,|$)", text)
    if len(found) != text.count(",") + 1 or len(dict(found)) != len(found):
        raise UserError(
            'a mesh is written as "data=4", for four devices that share each batch, or with fsdp=N for devices that '
            f'share the weights too and model=N for devices that share each layer, not as "{text}"'
        )
    return {name: int(dict(found).get(name, 1)) for name in NAMES}


def mesh(text: str) -> Mesh:
    """The mesh for such a text, of the first devices available.

    Raises UserError if the text has another form or there are too few devices.
    """
    lengths, devices = sizes(text), jax.devices()
    count = math.prod(lengths.values())
    if count > len(devices):
        there = f"is one {devices[0].platform}" if len(devices) == 1 else f"are {len(devices)} of {devices[0].platform}"
        raise UserError(f"a mesh of {count} devices needs more than are available: there {there}; choose a smaller one")
    automatic = (AxisType.Auto,) * len(NAMES)
    return jax.make_mesh(tuple(lengths.values()), NAMES, axis_types=automatic, devices=devices[:count])


def sharers(devices: Devices) -> int:
    """The number of parts into which a batch is split."""
    return math.prod(devices.shape[name] for name in EXAMPLES)


def split(devices: Devices, axis: int = 0) -> NamedSharding:
    """The placement of a batch: its examples, along `axis` of every leaf, in equal parts on the devices."""
    return NamedSharding(devices, PartitionSpec(*(None,) * axis, EXAMPLES))


def layout(state: Any, devices: Devices, axes: Axes | None = None, stacked: bool = False) -> Any:
    """The placement of each leaf of a state, as a tree of shardings.

    A leaf is cut along the axes that `RULES` gives to the mesh's axis "model", and along the longest of its other axes
    among "fsdp". An axis that the number of devices does not divide is not cut, and what is not cut is copied to every
    device. If the states of several seeds are `stacked`, the leading axis of each leaf is that of the seeds.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        shape = np.shape(leaf)[int(stacked) :]
        spec: list[str | None] = [None] * len(shape)
        for at, name in enumerate(_logical(path, len(shape), axes or {})):
            along = RULES.get(name or "")
            if along and shape[at] % devices.shape[along] == 0 and devices.shape[along] > 1 and along not in spec:
                spec[at] = along
        fsdp = devices.shape["fsdp"]
        lengths = [n if along is None and n % fsdp == 0 else 0 for n, along in zip(shape, spec, strict=True)]
        if fsdp > 1 and any(lengths):
            spec[int(np.argmax(lengths))] = "fsdp"
        return NamedSharding(devices, PartitionSpec(*(None,) * int(stacked), *spec))

    return jax.tree_util.tree_map_with_path(place, state)


def _logical(path: Any, rank: int, axes: Axes) -> tuple[str | None, ...]:
    """The logical names of the axes of the leaf at `path`, if the model has them and the leaf as many axes."""
    name = "/" + jax.tree_util.keystr(path, simple=True, separator="/")
    found = max((end for end in axes if name.endswith(f"/{end}") and len(axes[end]) == rank), key=len, default=None)
    return axes[found] if found else ()


def kept(state: Any, devices: Devices, axes: Axes | None = None, stacked: bool = False) -> Any:
    """The same state in its `layout`: a sharding constraint under `jit`, a copy outside of it."""
    places = layout(state, devices, axes, stacked)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state)):
        return jax.lax.with_sharding_constraint(state, places)
    return jax.tree.map(put, state, places)


def everywhere(tree: Any, devices: Devices) -> Any:
    """The tree with a copy of each array on every device."""
    return jax.tree.map(lambda leaf: put(leaf, NamedSharding(devices, PartitionSpec())), tree)


def to_all(function: Partial, devices: Mesh) -> Partial:
    """`function`, whose results lie on every device, where every process can read them."""
    place = NamedSharding(devices, PartitionSpec())

    def copied(function: Partial, *arguments: Any) -> Any:
        return jax.lax.with_sharding_constraint(function(*arguments), place)

    return Partial(copied, function)


def put(leaf: Any, place: NamedSharding) -> Any:
    """A copy of an array where `place` says; of a shape, the shape of such a copy.

    Of several processes each gives the whole array, and keeps the parts of its own devices.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    if place.is_fully_addressable or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
        return jax.device_put(leaf, place)
    if jax.dtypes.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(jax.random.key_data(leaf), place), impl=jax.random.key_impl(leaf))
    # `device_put` would compare the arrays of all processes, which takes seconds for a data set.
    host = np.asarray(leaf, jnp.result_type(leaf))
    return jax.make_array_from_callback(host.shape, place, lambda at: host[at])


def whole(tree: Any) -> Any:
    """The tree with each array whole on the first device of this process, for what one device does after training."""

    def gather(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return jax.device_put(leaf, jax.local_devices()[0])

    return jax.tree.map(gather, tree)


def shared(function: Callable[[Any, Batch], Any], devices: Devices) -> Any:
    """`function(state, batch)`, in which each device computes with its part of the batch.

    The function is traced with the mesh as JAX's abstract mesh, which layers can ask for. Arrays that it carries, such
    as a data set, are copied to every device.
    """

    def split_up(function: Partial, state: Any, batch: Batch) -> Any:
        batch = _split_inside(batch, devices)
        with jax.sharding.use_abstract_mesh(devices.abstract_mesh):
            return function(state, batch)

    return Partial(split_up, everywhere(function if isinstance(function, Partial) else Partial(function), devices))


def shared_loss(loss_fn: LossFn, devices: Devices) -> LossFn:
    """`loss_fn(params, aux, batch, key)`, in which each device computes with its part of the batch."""

    def split_up(params: Any, aux: Any, batch: Batch, key: Any) -> Any:
        def loss(variables: Any, batch: Batch) -> Any:
            params, aux = variables
            return loss_fn(params, aux, batch, key)

        return shared(loss, devices)((params, aux), batch)

    return split_up


def on_mesh(step: Step, devices: Devices, axes: Axes | None = None) -> Step:
    """A `shared` step that returns its state in the `layout` it came in, so that nothing is moved or compiled again."""

    def placed(step: Step, state: State, batch: Batch) -> tuple[State, Metrics]:
        state, metrics = step(state, batch)
        return kept(state, devices, axes), metrics

    return Partial(placed, shared(step, devices))


def fits(batch: int, devices: Devices) -> None:
    """Raises UserError unless the devices can share a batch equally."""
    among = sharers(devices)
    if batch % among:
        share = math.ceil(batch / among) * among
        raise UserError(f"{among} devices cannot share a batch of {batch} equally: choose {share}, for example")


def _split_inside(batch: Batch, devices: Devices) -> Batch:
    """Inside a program: the batch with its examples split among the devices, unless their number does not divide."""
    among = sharers(devices)

    def place(leaf: Any) -> Any:
        divides = leaf.ndim and leaf.shape[0] % among == 0
        return jax.lax.with_sharding_constraint(leaf, split(devices)) if divides else leaf

    return jax.tree.map(place, batch)
