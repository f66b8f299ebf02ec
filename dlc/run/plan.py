"""What a training would put where, and how many bytes a device would need: "will it fit", answered without training.

    python -m experiments.attention.gpt --mesh data=2,fsdp=4 --plan

Sizes of weights, optimizer, data and batches are exact. What a program needs besides is XLA's own count for the program
that it compiled, so it is that of the platform on which it is asked.
"""

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax

from dlc import train
from dlc.errors import UserError
from dlc.run.run import Run

LARGEST = 8  # weights whose places are listed
KINDS = {"opt_state": "optimizer", "params": "weights"}  # of the leaves of a state, by a part of their names


class Planned(BaseException):
    """Raised by `fit` instead of the first step of a run that only plans. Like KeyboardInterrupt, not an Exception.

    Attributes:
        run: the run.
        step: `step(state, batch) -> (state, metrics)` of one seed, without a mesh.
        group: the first group of steps, on the mesh if there is one.
        state, batches: the shapes and places of what the group takes.
        what: what would be trained, in words.
    """

    def __init__(self, run: Run, step: train.Step, group: Any, state: Any, batches: Any, what: str):
        super().__init__(what)
        self.run, self.step, self.group, self.state, self.batches, self.what = run, step, group, state, batches, what


def of(train: Callable[[Any, Run], Any], config: Any, run: Run) -> Planned:
    """What `train(config, run)` would do first, for a run that only plans. It reads its data.

    Raises UserError if it does not train with `dlc.run.fit`.
    """
    try:
        train(config, run)
    except Planned as found:
        return found
    raise UserError("it does not say what it computes before its first step: only the run itself can count")


def operations(train: Callable[[Any, Run], Any], config: Any) -> float:
    """The operations that `train(config, run)` would take, by XLA's count (`dlc.costs.flops`). It reads its data.

    Raises UserError if it trains several parts in turn, because one part may decide the size of the next, or if it
    does not train with `dlc.run.fit`.
    """
    run = Run(plan=True)
    found = of(train, config, run)
    if found.run is not run:
        raise UserError("it trains several parts in turn, which only the run itself can count")
    return sum((count() * steps for count, steps in run.work), 0.0)


def lines(planned: Planned) -> Iterator[str]:
    """The plan for people to read. Compiles the program."""
    leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(planned.state)}
    kinds: dict[str, list[Any]] = {"weights": [], "optimizer": [], "other state": []}
    for name, leaf in leaves.items():
        kinds[_kind(name)].append(leaf)
    kinds |= {"data": jax.tree.leaves(planned.group), "batches": jax.tree.leaves(planned.batches)}

    mesh = planned.run.mesh
    axes = ", ".join(f"{n} along {name}" for name, n in mesh.shape.items() if n > 1) if mesh else ""
    yield f"it would train {planned.what}"
    count = mesh.size if mesh else 1
    yield f"memory of each of {count} devices, {axes}:" if axes else "memory of the device:"
    for kind, own in kinds.items():
        here, whole = sum(map(_here, own)), sum(map(_whole, own))
        if whole:
            yield f"  {kind:13}{_size(here)}" + (f"  of {_size(whole)}" if here < whole else "")
    program: Any = train.compiled(planned.group, planned.state, planned.batches)
    found = program.func.memory_analysis()
    yield f"  {'temporaries':13}{_size(found.temp_size_in_bytes)}  activations, gradients: XLA's count on this platform"
    needed = sum(map(_here, jax.tree.leaves(list(kinds.values())))) + found.temp_size_in_bytes
    yield f"  {'together':13}{_size(needed)}  {_verdict(needed, count)}"
    if axes:
        yield "the largest weights:"
        weights = [(name, leaf) for name, leaf in leaves.items() if _kind(name) == "weights"]
        for name, leaf in sorted(weights, key=lambda one: -_whole(one[1]))[:LARGEST]:
            cuts = " x ".join(f"{n}/{along}" if along else f"{n}" for n, along in _cuts(leaf))
            yield f"  {_size(_here(leaf))}  {name}  {cuts}"


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _kind(name: str) -> str:
    return next((kind for part, kind in KINDS.items() if part in name.split("/")), "other state")


def _whole(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _here(leaf: Any) -> int:
    """The bytes that one device has of a leaf."""
    place = getattr(leaf, "sharding", None)  # NumPy's arrays have none
    shape = place.shard_shape(leaf.shape) if place else leaf.shape
    return math.prod(shape) * leaf.dtype.itemsize


def _cuts(leaf: Any) -> list[tuple[int, str | None]]:
    """The lengths of a leaf's axes, and the axis of the mesh that cuts each."""
    spec = leaf.sharding.spec
    return [(n, spec[i] if i < len(spec) else None) for i, n in enumerate(leaf.shape)]


def _verdict(needed: int, devices: int) -> str:
    """Whether it fits, if the system says how much memory there is."""
    there = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    if there is None and hasattr(os, "sysconf"):  # a CPU, whose devices share their memory
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // devices
    if there is None:
        return ""
    return f"of {_size(there).strip()} that each has: {'it fits' if needed <= there else 'it does not fit'}"


def _size(count: int) -> str:
    """Bytes, for people."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:7.1f} {unit}"
    return f"{count:7d} B "
