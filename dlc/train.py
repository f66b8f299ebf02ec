"""A training step is a value, a pure function `step(state, batch) -> (state, metrics)`, and functions change it.

    step = make_step(loss_fn, tx)            # from a loss and an optimizer
    step = on_device(step, arrays)           # batches become row indices into arrays that stay on the device
    step = windows(step, tokens, length)     # or positions in a long text
    step = in_parts(step, parts)             # the batch in parts, one after another: the memory of one part
    step = over_seeds(step)                  # many seeds at once; state and metrics gain a leading axis
    step = scanned(step)                     # many steps in one compiled program; batch and metrics gain a leading axis
    state, metrics = compiled(step)(state, batch)

These functions take and return steps, so they compose in any order that makes sense. A step is also a pytree
(`jax.tree_util.Partial`) whose leaves are the arrays it was given: `compiled` passes them to XLA as arguments, where a
closure would copy a whole data set into the program as a constant.

Glossary: B batch, N examples, K steps in one program, S seeds.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Int, Integer, Key, PyTree

from dlc import costs, optim
from dlc.errors import UserError

Params = Any  # a tree of arrays
Batch = Any  # a tree of arrays
Metrics = dict[str, Any]


class State(NamedTuple):
    """All that a step reads and writes.

    `step`, an int32 scalar, counts the updates so far. `params` is what is optimised, and `aux` what is carried but not
    learnt (batch statistics, a target network). `key` is a typed PRNG key and never changes: a step draws from
    `fold_in(key, step)`, so a resumed run draws what an uninterrupted one would have drawn.
    """

    step: Any
    params: Params
    opt_state: optax.OptState
    aux: PyTree
    key: Any


LossFn = Callable[[Params, PyTree, Batch, Any], tuple[Any, tuple[PyTree, Metrics]]]
Step = Callable[[State, Batch], tuple[State, Metrics]]


def init(params: Params, tx: optax.GradientTransformation, key: Key[Array, ""], aux: PyTree = None) -> State:
    """The state before the first step. The weights are copied: donating the state never deletes the caller's."""
    params, aux = jax.tree.map(jnp.copy, (params, aux))
    return State(jnp.zeros((), jnp.int32), params, tx.init(params), aux, jnp.copy(key))


def variables_of(state: State) -> dict[str, Any]:
    """What `model.apply` takes: the weights, and the collections that are carried."""
    return {"params": state.params, **(state.aux or {})}


def make_step(loss_fn: LossFn, tx: optax.GradientTransformation) -> Step:
    """The step that follows the gradient of `loss_fn(params, aux, batch, key) -> (loss, (aux, metrics))`.

    The metrics are those of the loss and the scalar `loss` itself, all from before the update. `weight`, which tells
    `evaluation` how much a batch counts, and `optim.accumulated` how much a part of one does, is left out.
    """
    tx = optax.with_extra_args_support(tx)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        (loss, (aux, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, state.aux, batch, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, weight=metrics.get("weight", 1))
        params = optax.apply_updates(state.params, updates)
        metrics = {name: value for name, value in metrics.items() if name != "weight"}
        return State(state.step + 1, params, opt_state, aux, state.key), {"loss": loss, **metrics}

    return Partial(step)


def on_device(step: Step, arrays: PyTree, augment: Callable[[Any, Any], Any] | None = None) -> Step:
    """A step whose batch is an index `[B]` of rows of `arrays`, which are copied to the device once and stay there.

    `augment(key, batch) -> batch` runs inside the step on the selected rows, with a new key for every step.
    """

    def indexed(step: Step, arrays: PyTree, state: State, index: Int[Array, " B"]) -> tuple[State, Metrics]:
        return step(state, jax.tree.map(lambda array: jnp.take(array, index, axis=0, mode="clip"), arrays))

    step = step if augment is None else augmented(step, augment)
    return Partial(indexed, _value(step), jax.device_put(arrays, may_alias=False))


def augmented(step: Step, augment: Callable[[Any, Any], Any]) -> Step:
    """A step that first applies `augment(key, batch)` to its batch, with a new key for every step."""

    def changed(step: Step, state: State, batch: Batch) -> tuple[State, Metrics]:
        # The loss draws from fold_in(key, step); a second fold keeps the augmentation independent of it.
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)
        return step(state, augment(key, batch))

    return Partial(changed, _value(step))


def windows(step: Step, tokens: Integer[Array | np.ndarray, " N"], length: int) -> Step:
    """A step whose batch is the positions `[B]` in a text where windows begin: it sees {"tokens": [B, length + 1]}.

    The tokens are copied to the device once and stay there.
    """

    def windowed(step: Step, tokens: Array, state: State, starts: Int[Array, " B"]) -> tuple[State, Metrics]:
        places = starts[:, None] + jnp.arange(length + 1)[None]
        return step(state, {"tokens": jnp.take(tokens, places, mode="clip").astype(jnp.int32)})

    return Partial(windowed, _value(step), jax.device_put(tokens, may_alias=False))


def in_parts(step: Step, parts: int) -> Step:
    """A step that cuts its batch [B, ...] into equal parts and takes them one after another: the memory of one part.

    `step` must be made with `optim.accumulated(tx, parts)`: its last part updates the weights, by the gradient of the
    whole batch. The metrics are those of the whole batch, too. What is random differs by part: `step` draws as in
    `parts` steps. Batch norm normalises each part by its own statistics, and averages them part by part.

    Part i has the examples i, i + parts, i + 2 parts, ... A batch that is split among devices stays where it is: each
    device cuts its own examples.

    Raises UserError if the parts would not be equal, or devices could not share one equally.
    """

    def parted(step: Step, state: State, batch: Batch) -> tuple[State, Metrics]:
        if not isinstance(state.opt_state, optim.Accumulated):
            raise UserError(
                "a batch in parts needs the optimizer optim.accumulated(tx, parts): this one updates each time"
            )

        mesh = jax.sharding.get_abstract_mesh().shape
        among = mesh.get("data", 1) * mesh.get("fsdp", 1)

        def cut(leaf: Array) -> Array:
            if leaf.shape[0] % (parts * among):
                equally = f" that {among} devices share equally" if among > 1 else ""
                fits = -(-leaf.shape[0] // (parts * among)) * parts * among
                raise UserError(
                    f"a batch of {leaf.shape[0]} cannot be cut into {parts} equal parts{equally}: "
                    f"choose a batch of {fits}, for example"
                )
            return leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)

        def one(carried: State, numbered: tuple[Any, Batch]) -> tuple[State, Any]:
            number, part = numbered
            carried, metrics = step(carried._replace(step=state.step * parts + number), part)
            weight = carried.opt_state.weight
            return carried, (weight, {name: weight * value for name, value in metrics.items()})

        numbers = jnp.arange(parts, dtype=state.step.dtype)
        new, (weights, sums) = jax.lax.scan(one, state, (numbers, jax.tree.map(cut, batch)))
        return new._replace(step=state.step + 1), {name: value.sum(0) / weights.sum() for name, value in sums.items()}

    return step if parts == 1 else Partial(parted, _value(step))


def scanned(step: Step, steps: int | None = None) -> Step:
    """K steps in one compiled program: every leaf of the batch, and of the metrics, gains a leading axis `[K]`.

    If the batch is None, the number of `steps` must be given.
    """
    return Partial(lambda step, state, batches: jax.lax.scan(step, state, batches, length=steps), _value(step))


def over_seeds(step: Step, batch_axis: Literal[0] | None = None) -> Step:
    """S runs trained at once: every leaf of the state, and of the metrics, gains a leading axis `[S]`.

    All seeds see the same batch; with `batch_axis=0` the batch has a leading axis `[S]`, too. States that differ in a
    hyper-parameter (through `optax.inject_hyperparams`) instead of the key are trained in the same way.
    """
    return Partial(lambda step, state, batch: for_each_seed(step, (0, batch_axis))(state, batch), _value(step))


def for_each_seed(function: Callable[..., Any], in_axes: Sequence[Literal[0] | None] = (0,)) -> Partial:
    """`jax.vmap` over leading axes, 0 or None, of the arguments; on a CPU one seed after another, in one program.

    A single seed keeps a CPU busy, and there vmap costs more in transposes than its larger products save. One after
    another, each seed gives the same bits as in a run of its own.
    """

    def mapped(function: Partial, *arguments: Any) -> Any:
        def in_turn(*arguments: Any) -> Any:
            own = [argument for argument, axis in zip(arguments, in_axes, strict=True) if axis == 0]

            def one(own: Any) -> Any:
                own = iter(own)
                return function(*(a if axis is None else next(own) for a, axis in zip(arguments, in_axes, strict=True)))

            return jax.lax.map(one, own)

        vmapped = jax.vmap(function, tuple(in_axes))
        return jax.lax.platform_dependent(*arguments, cpu=in_turn, default=vmapped)

    return Partial(mapped, _value(function))


def compiled(function: Callable[..., Any], *example: Any, donate: bool = True) -> Callable[..., Any]:
    """A step, or any function of a state, as one XLA program.

    With `donate=True` the state passed in is deleted: use the returned one. Given an example of the arguments, the
    function is compiled now and only for their shapes, otherwise at the first call.
    """
    call: Any = jax.jit(lambda function, *arguments: function(*arguments), donate_argnums=1 if donate else ())
    function = _value(function)
    if not example:
        return functools.partial(call, function)
    traced = call.trace(function, *example)
    # XLA's compiler for CPUs drops the barriers behind which a backward pass computes activations again, then computes
    # them as early as it can, and keeps them. Without this pass it leaves the barriers where they are.
    again = jax.default_backend() == "cpu" and "remat2" in costs.operations(traced.jaxpr.jaxpr)
    options = {"xla_disable_hlo_passes": "cse_barrier_expander"} if again else None
    return functools.partial(traced.lower().compile(compiler_options=options), function)


def fit(step: Step, state: State, batches: Sequence[Batch]) -> tuple[State, list[Metrics]]:
    """The plain loop: one compiled step per batch. Returns the last state and the metrics of every step.

    The caller's state is not deleted. Experiments use `dlc.run.fit`, which also reports, evaluates and saves.
    """
    step, history = compiled(step), []
    state = jax.tree.map(jnp.copy, state)
    for batch in batches:
        state, metrics = step(state, batch)
        history.append(metrics)
    return state, history


def seed_keys(seed: int, seeds: int = 1) -> Key[Array, " S"]:
    """The keys of `seeds` runs, `[S]`. Run i has the same key as a single run with `seed + i`.

    Raises UserError if a seed is negative, or has more than 31 bits: JAX would give it the key of another one.
    """
    last = seed + seeds - 1
    if seed < 0 or last >= 2**31 - 1:
        raise UserError(f"a seed must be at least 0 and less than {2**31 - 1}, not {seed if seed < 0 else last}")
    return jax.vmap(jax.random.key)(jnp.arange(seed, seed + seeds))


def evaluation(loss_fn: LossFn, arrays: PyTree, size: int) -> Callable[[State], Metrics]:
    """The means of a loss and its metrics over all N rows of `arrays`: `state -> {"loss": ..., ...}`.

    The loss is called with `key=None` on `size` rows at a time, and once more on the rest. A batch counts as much as
    the loss's metric `weight` says, such as its number of tokens, or as its number of rows.
    """
    examples = len(jax.tree.leaves(arrays)[0])
    whole = examples // size * size

    def totals(state: State, batch: Batch) -> tuple[Metrics, Any]:
        loss, (_, metrics) = loss_fn(state.params, state.aux, batch, None)
        values = {"loss": loss, **metrics}
        weight = jnp.asarray(values.pop("weight", len(jax.tree.leaves(batch)[0])), jnp.float32)
        return {name: weight * value for name, value in values.items()}, weight

    def evaluate(arrays: PyTree, state: State) -> Metrics:
        parts = []
        if whole:
            head = jax.tree.map(lambda array: array[:whole].reshape(-1, size, *array.shape[1:]), arrays)
            sums = jax.lax.map(lambda batch: totals(state, batch), head)
            parts.append(jax.tree.map(lambda leaf: leaf.sum(0), sums))
        if whole < examples:
            parts.append(totals(state, jax.tree.map(lambda array: array[whole:], arrays)))
        sums, weight = jax.tree.map(lambda *leaves: sum(leaves), *parts)
        return {name: value / weight for name, value in sums.items()}

    return Partial(evaluate, jax.device_put(arrays, may_alias=False))


def in_batches(forward: Callable[[Any, Any], Any], arrays: PyTree, size: int) -> Callable[[Any], Any]:
    """`forward(state, batch)` over all N rows of `arrays`, `size` at a time: `state -> outputs [N, ...]`, any state.

    The last batch is padded with copies of the last row, whose outputs are dropped.
    """
    examples = len(jax.tree.leaves(arrays)[0])
    size = min(size, examples)
    index = np.minimum(np.arange(-(-examples // size) * size), examples - 1).reshape(-1, size)

    def outputs(arrays: PyTree, index: Int[Array, "batches size"], state: Any) -> Any:
        batches = jax.lax.map(lambda rows: forward(state, jax.tree.map(lambda array: array[rows], arrays)), index)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:examples], batches)

    return Partial(outputs, jax.device_put(arrays, may_alias=False), jax.device_put(index))


def _value(step: Step) -> Partial:
    """An ordinary function as a pytree without leaves, which jit takes as an argument."""
    return step if isinstance(step, Partial) else Partial(step)
