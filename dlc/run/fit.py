"""The training loop that most experiments use."""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

from dlc import sharding, train, weights
from dlc.batches import BatchesOf
from dlc.errors import UserError
from dlc.run import record
from dlc.run.loop import count_operations, params_of, training
from dlc.run.plan import Planned
from dlc.run.run import Run


@dataclass(frozen=True)
class Plan:
    """How long a run trains, and when it reports and evaluates.

    With `seeds` > 1 that many runs are trained at once: every leaf of the state has a leading axis [S], and with
    `batch_axis=0` so has every batch; otherwise all seeds see the same one.
    """

    steps: int
    evaluate_every: int | None = None  # steps; None: after the last one
    report_every: int = 100  # steps, compiled as one program
    seeds: int = 1
    batch_axis: Literal[0] | None = None
    rate: Callable[[Any], Any] | float | None = None  # the learning rate, by step if it changes; only for the log

    def __post_init__(self) -> None:
        least = {"steps": 0, "evaluate_every": 1, "report_every": 1, "seeds": 1}
        for name, value in least.items():
            if (given := getattr(self, name)) is not None and given < value:
                raise UserError(f"{name} of a plan must be at least {value}, not {given}")

    def groups(self) -> Iterator[tuple[int, int]]:
        """(first, count) of each program: `report_every` steps, or those left before an evaluation or the end."""
        at, every = 0, self.evaluate_every or self.steps
        while at < self.steps:
            count = min(self.report_every, every - at % every, self.steps - at)
            yield at, count
            at += count

    def examples(self, batch: Any) -> int:
        """How many examples a group of batches [count, B, ...], or [count, S, B, ...], gives to all seeds."""
        leaves = jax.tree.leaves(batch)
        if not leaves:
            return 0
        count, *shape = leaves[0].shape
        axis = int(self.seeds > 1 and self.batch_axis == 0)
        return count * self.seeds * (shape[axis] if len(shape) > axis else 1)


def start(run: Run, init: Callable[..., train.State], keys: Any, model: Any = None) -> train.State:
    """`init(key)` or, with the weights that `--init-from` names, `init(key, variables)`; stacked for several keys [S].

    They are not read again when the run is resumed from a checkpoint. Files of torchvision or timm can only be read if
    the `model` is given. If they are for another number of classes, the layers that tell the classes apart begin anew.
    If the run has a mesh, each leaf is created where `sharding.layout` puts it.

    Raises UserError if the weights do not fit.
    """
    several = len(keys) > 1
    known: Any = None
    if run.init_from and not (run.resume and run.checkpoints and run.checkpoints.steps()):  # which hold the weights
        begun = weights.begin(train.variables_of(jax.eval_shape(init, keys[0])), run.init_from, model)
        known = jax.tree.map(lambda leaf: None if isinstance(leaf, jax.ShapeDtypeStruct) else leaf, begun)
        if len(jax.tree.leaves(known)) < len(jax.tree.leaves(begun)):
            run.say(f"{run.init_from} is for another number of classes: the last layer begins anew")

    some = keys if several else keys[0]
    wrap = functools.partial(_begin, several, run.mesh, tuple((run.axes or {}).items()))
    state = run.clock.timed("start", run.clock.compiled(init, some, known, wrap=wrap), some, known)
    return sharding.kept(state, run.mesh, run.axes, several) if run.mesh and run.plan else state


def evaluation(run: Run, loss_fn: train.LossFn, arrays: Any, state: Any, size: int = 64) -> Callable[[Any], Any]:
    """`train.evaluation` as a program for states like this one, each batch of `size` shared by the devices."""
    if run.mesh:
        among = run.mesh.size // run.mesh.shape["model"]
        loss_fn, size = sharding.shared_loss(loss_fn, run.mesh), -(-size // among) * among
    measure = train.evaluation(loss_fn, arrays, size)
    return run.clock.compiled(sharding.everywhere(measure, run.mesh) if run.mesh else measure, state)


def fit(
    run: Run,
    state: Any,
    step: train.Step,
    batches: BatchesOf | None,
    plan: Plan,
    evaluate: Callable[[Any], dict[str, Any]] | None = None,
) -> Any:
    """Trains as `plan` says and returns the last state.

    Args:
        state: any pytree of arrays. It is copied.
        step: `step(state, batch) -> (state, metrics)`.
        batches: `batches(first, count)` gives that many batches, stacked. Every group of the plan is asked for once
            before the first step, for its shapes. If making batches is expensive, give `batches` a method
            `like(first, count)` that returns a tree of ShapeDtypeStructs instead. None: the step gets None.
        evaluate: `evaluate(state) -> numbers`; called, logged and followed by a checkpoint as the plan says.

    The batches of a group are made while the device works on the group before. How long it waited for them after
    the first, if they have an attribute `workers`, is `run.clock.seconds["input"]`, a part of "train".

    A group of steps is one compiled program; every other shape of batches is another one, and all that will be needed
    are compiled before the first step.

    If the run has a mesh, the state lies as `sharding.layout` says, by the `axes` of the model that the run keeps, and
    the examples of each batch are split. Raises UserError if the devices cannot share a batch equally, or if the mesh
    divides layers and the model does not say how.

    Raises Diverged if a loss or weight is no longer finite, Interrupted once a signal came, and Planned before the
    first step if the run only plans.
    """
    several = plan.seeds > 1
    task = _laid_out(run, step, state, batches, plan)
    if not run.plan:
        run.say(f"training {_described(run, state, plan)}")
        task = task._replace(state=jax.tree.map(jnp.copy, task.state))

    def program(state: Any, batch: Any, count: int) -> Any:
        group = functools.partial(_group, several, plan.batch_axis, count)
        return run.clock.compiled(task.step, state, batch, wrap=group, donate=True)

    saved = run.checkpoints.steps() if run.resume and run.checkpoints else []
    examples = 0
    kinds: dict[Any, tuple[Any, int]] = {}  # shapes of one batch -> the batch, and how many such batches come
    for at, count in plan.groups():
        batch = task.like(at, count)
        examples += plan.examples(batch)
        if not run.plan and (not saved or at + count > saved[-1]):
            program(task.state, batch, count)
        single = _one_of(batch)
        _, before = kinds.get(_shapes(single), (None, 0))
        kinds[_shapes(single)] = single, before + count

    one = train.over_seeds(step, plan.batch_axis) if several else step
    for single, count in kinds.values():
        count_operations(run, one, state, single, count)
    if run.plan:
        at, count = next(plan.groups(), (0, 0))
        group = _group(several, plan.batch_axis, count, task.step)
        raise Planned(run, task.plain, group, task.state, task.like(at, count), _described(run, state, plan))
    steps = max(plan.steps, 1)
    per_step = examples // steps if examples % steps == 0 else examples / steps
    run.facts |= {"seeds": plan.seeds, "examples_per_step": per_step}

    seconds, streamed = run.clock.seconds, hasattr(batches, "workers")
    with training(run, task.state, plan.steps) as loop:
        state = loop.state
        computed: Callable[[], float] | None = None  # when the group before was
        if streamed:
            seconds.setdefault("input", 0.0)
        for at, count in plan.groups():
            if at + count <= loop.done:
                continue
            if at < loop.done:  # a run that was shorter ended within this group
                at, count = loop.done, at + count - loop.done
            began, batch = time.perf_counter(), task.batches(at, count)
            if computed:
                seconds["input"] += max(0.0, time.perf_counter() - max(began, computed()))
            state, metrics = program(state, batch, count)(state, batch)
            computed = _watched(metrics) if streamed else None
            done = at + count
            if plan.rate is not None:
                rate = plan.rate(done - 1) if callable(plan.rate) else plan.rate
                metrics = {**metrics, "learning_rate": rate}
            loop.report(done, metrics, plan.examples(batch))
            every = plan.evaluate_every or plan.steps
            if loop.due(done, every):
                if evaluate and (done % every == 0 or done == plan.steps):  # not when only a signal came
                    loop.evaluate(done, evaluate, state)
                loop.save(done, state)
    return state


class _Task(NamedTuple):
    """What a run trains, where the mesh puts it: step and state, batches and their shapes; `plain` has no mesh."""

    plain: train.Step
    step: train.Step
    state: Any
    batches: BatchesOf
    like: BatchesOf


def _laid_out(run: Run, step: train.Step, state: Any, batches: BatchesOf | None, plan: Plan) -> _Task:
    given = batches or (lambda first, count: None)
    like = getattr(given, "like", given)
    if run.plan and isinstance(step, Partial):
        step = jax.eval_shape(lambda step: step, step)  # the data that it carries are not copied to any device
    if (mesh := run.mesh) is None:
        return _Task(step, step, state, given, like)
    if mesh.shape["model"] > 1 and not run.axes:
        raise UserError(f"no layers of {run.network or 'this model'} can be shared: leave model=N out of --mesh")
    axis = 2 if plan.seeds > 1 and plan.batch_axis == 0 else 1  # of the examples in a group of batches

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        place = NamedSharding(mesh, PartitionSpec())
        if len(leaf.shape) > axis:
            sharding.fits(leaf.shape[axis], mesh)
            place = sharding.split(mesh, axis)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.result_type(leaf), sharding=place)

    return _Task(
        step,
        sharding.on_mesh(step, mesh, run.axes),
        sharding.kept(state, mesh, run.axes, plan.seeds > 1),
        lambda at, count: jax.tree.map(lambda leaf: sharding.put(leaf, shape(leaf).sharding), given(at, count)),
        lambda at, count: jax.tree.map(shape, like(at, count)),
    )


def _watched(results: Any) -> Callable[[], float]:
    """A function that returns when these were computed, or the present time if they are not yet."""
    times: list[float] = []

    def watch() -> None:
        with contextlib.suppress(Exception):  # which the loop meets, too
            jax.block_until_ready(results)
            times.append(time.perf_counter())

    threading.Thread(target=watch, daemon=True).start()
    return lambda: times[0] if times else time.perf_counter()


def _described(run: Run, state: Any, plan: Plan) -> str:
    """What is trained, on what, and how long: "Convnet, 1,663,370 weights, on mnist, 600 steps, on 1 x H200"."""
    weights = sum(leaf.size for leaf in jax.tree.leaves(params_of(state))) // plan.seeds
    dataset, seeds = run.facts.get("dataset"), f" of {plan.seeds} seeds" if plan.seeds > 1 else ""
    words = [
        run.network,
        f"{weights:,} weights" if weights else None,
        f"on {dataset}" if dataset else None,
        f"{plan.steps:,} steps{seeds}",
        f"on {record.device_name()}",
    ]
    return ", ".join(filter(None, words))


def _begin(several: bool, mesh: Any, axes: tuple[Any, ...], init: Any) -> Partial:
    """`init` for a key, or several, and those of its variables that are known, the others being None; on the mesh."""

    def begin(init: Any, key: Any, known: Any) -> train.State:
        if known is None:
            return init(key)
        new = train.variables_of(init(key))  # of which only the layers that begin anew are computed
        filled = jax.tree.map(lambda leaf, new: new if leaf is None else leaf, known, new, is_leaf=lambda x: x is None)
        return init(key, filled)

    one = Partial(begin, init if isinstance(init, Partial) else Partial(init))
    every = train.for_each_seed(one, (0, None)) if several else one
    if mesh is None:
        return every
    return Partial(lambda every, *words: sharding.kept(every(*words), mesh, dict(axes), several), every)


def _group(several: bool, batch_axis: Literal[0] | None, count: int, step: train.Step) -> train.Step:
    return train.scanned(train.over_seeds(step, batch_axis) if several else step, count)


def _shapes(batch: Any) -> tuple[Any, ...]:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def _one_of(batches: Any) -> Any:
    """The shapes of one batch of a group."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], jnp.result_type(leaf)), batches)
