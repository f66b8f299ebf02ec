"""Each function from step to step gives what the plain loop gives, to the bit where the arithmetic is the same."""

import functools
import inspect
import re

import chex
import drawn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dlc import batches, losses, train
from dlc.models.mlp import MLP

N, B, K = 40, 8, 5


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {"image": rng.normal(size=(N, 6)).astype(np.float32), "label": rng.integers(0, 3, N).astype(np.int32)}


@pytest.fixture
def index():
    return batches.minibatches(N, B, shuffle=True)(0, K)


MODEL = MLP((7,), num_classes=3)
TX = optax.adam(0.1)


@jax.jit
def init(key):
    """Other weights for each key, from one draw: all draws of the model's own `init` take long to compile."""
    factor = 1 + jax.random.uniform(key)
    params = drawn.variables(MODEL, jnp.zeros((1, 6)))["params"]
    return train.init(jax.tree.map(lambda leaf: factor * leaf, params), TX, key)


inits = jax.jit(jax.vmap(init))


def plain_step():
    return train.make_step(losses.classify(MODEL), TX)


@functools.cache
def jitted_step():
    """Compiled once for all tests."""
    return jax.jit(plain_step())


def plain_loop(arrays, index, state=None):
    """What everything else is compared with: one step after another, each a program of its own."""
    step, state, history = jitted_step(), state or init(jax.random.key(0)), []
    for rows in index:
        state, metrics = step(state, {name: jnp.asarray(array[rows]) for name, array in arrays.items()})
        history.append(metrics)
    return state, jax.tree.map(lambda *leaves: np.stack(leaves), *history)


def raw(tree):
    """Keys as their data, so that trees can be compared."""
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def test_a_step_without_jit_is_the_step_with_it(arrays):
    batch = {name: jnp.asarray(array[:B]) for name, array in arrays.items()}
    step, state = train.make_step(losses.classify(MODEL), optax.sgd(0.1)), init(jax.random.key(0))
    state = state._replace(opt_state=optax.sgd(0.1).init(state.params))
    eager, compiled = step(state, batch), jax.jit(step)(state, batch)
    chex.assert_trees_all_close(raw(eager), raw(compiled), rtol=1e-5, atol=1e-7)


def test_a_step_follows_the_gradient():
    step = train.make_step(lambda params, aux, batch, key: ((params - batch) ** 2, (aux, {})), optax.sgd(0.25))
    state, metrics = step(train.init(jnp.float32(3), optax.sgd(0.25), jax.random.key(0)), jnp.float32(1))
    assert metrics == {"loss": 4}
    assert (state.params, state.step) == (2, 1)  # 3 - 0.25 * 2 * (3 - 1)


def test_aux_is_carried_and_not_learnt():
    def count(params, aux, batch, key):
        return params**2, (aux + 1, {})

    state = train.init(jnp.float32(1), optax.sgd(0.1), jax.random.key(0), aux=jnp.int32(5))
    state, _ = train.fit(train.make_step(count, optax.sgd(0.1)), state, [None] * 3)
    assert state.aux == 8


def test_the_key_differs_from_step_to_step_and_not_from_run_to_run():
    draw = train.make_step(lambda p, aux, batch, key: (p**2, (aux, {"drawn": jax.random.uniform(key)})), optax.sgd(0.1))
    state = train.init(jnp.float32(1), optax.sgd(0.1), jax.random.key(7))
    _, once = train.fit(draw, state, [None] * 3)
    middle, _ = train.fit(draw, state, [None] * 2)
    _, rest = train.fit(draw, middle, [None])
    assert len({float(m["drawn"]) for m in once}) == 3
    assert rest[0]["drawn"] == once[2]["drawn"]


def test_on_device_is_the_plain_loop(arrays, index):
    state, metrics = plain_loop(arrays, index)
    there, history = train.fit(train.on_device(plain_step(), arrays), init(jax.random.key(0)), list(index))
    chex.assert_trees_all_equal(raw(there), raw(state))
    chex.assert_trees_all_equal(jax.tree.map(lambda *m: np.stack(m), *history), metrics)


def test_scanned_is_the_plain_loop(arrays, index):
    state, metrics = plain_loop(arrays, index)
    step = train.compiled(train.scanned(plain_step()))
    there, history = step(init(jax.random.key(0)), {name: array[index] for name, array in arrays.items()})
    chex.assert_trees_all_equal(raw(there), raw(state))
    chex.assert_trees_all_equal(history, metrics)


def test_over_seeds_is_many_plain_loops(arrays, index):
    keys = train.seed_keys(3, 4)
    together = inits(keys)
    step = train.compiled(train.over_seeds(train.on_device(plain_step(), arrays)))
    for rows in index:
        together, _ = step(together, rows)
    for i, key in enumerate(keys):
        alone, _ = plain_loop(arrays, index, init(key))
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], raw(together)), raw(alone))


def test_over_seeds_is_a_vmap_where_there_is_no_cpu(arrays, index):
    """Lowered for a GPU the seeds share one batched product; on this CPU that form gives the same weights."""
    state, step = inits(train.seed_keys(0, 4)), train.on_device(plain_step(), arrays)
    call = train.compiled(train.over_seeds(step))
    traced = call.func.trace(*call.args, state, index[0])
    assert "batching_dims = [0] x [0]" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.while" in traced.lower(lowering_platforms=("cpu",)).as_text()
    in_turn, _ = call(jax.tree.map(jnp.copy, state), index[0])
    together, _ = jax.jit(jax.vmap(step, (0, None)))(state, index[0])
    chex.assert_trees_all_close(raw(in_turn), raw(together), rtol=2e-4, atol=1e-5)


def test_over_seeds_with_batches_of_their_own(arrays):
    rows = batches.minibatches(N, B, shuffle=True, seeds=(0, 1))(0, 1)[0]
    assert rows.shape == (2, B)
    step = train.on_device(plain_step(), arrays)
    state = inits(train.seed_keys(0, 2))
    _, together = train.compiled(train.over_seeds(step, batch_axis=0))(state, rows)
    for i, key in enumerate(train.seed_keys(0, 2)):
        _, alone = train.compiled(step)(init(key), rows[i])
        np.testing.assert_allclose(together["loss"][i], alone["loss"], rtol=1e-5)


def test_learning_rates_are_trained_at_once_as_seeds_are(arrays, index):
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    step = train.on_device(train.make_step(losses.classify(MODEL), tx), arrays)
    params = drawn.variables(MODEL, jnp.zeros((1, 6)))["params"]

    def with_rate(rate):
        state = train.init(params, tx, jax.random.key(0))
        return state._replace(opt_state=state.opt_state._replace(hyperparams={"learning_rate": rate}))

    together, _ = train.compiled(train.over_seeds(step))(jax.vmap(with_rate)(jnp.array([0.0, 0.5])), index[0])
    still, moved = (jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], together.params) for i in range(2))
    chex.assert_trees_all_equal(still, params)
    alone, _ = train.compiled(step)(with_rate(jnp.float32(0.5)), index[0])
    chex.assert_trees_all_close(moved, alone.params, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("order", ["scan of device", "device inside scan of seeds", "seeds of scan"])
def test_the_functions_compose_in_any_order(arrays, index, order):
    step, keys = train.on_device(plain_step(), arrays), train.seed_keys(0, 2)
    state, expected = plain_loop(arrays, index)
    if order == "scan of device":
        there, metrics = train.compiled(train.scanned(step))(init(keys[0]), index)
        chex.assert_trees_all_equal(raw(there), raw(state))
    else:
        inner, outer = (train.over_seeds, train.scanned) if "inside" in order else (train.scanned, train.over_seeds)
        there, metrics = train.compiled(outer(inner(step)))(inits(keys), index)
        axis = 1 if "inside" in order else 0
        metrics = jax.tree.map(lambda leaf: np.take(np.asarray(leaf), 0, axis=axis), metrics)
        first = jax.tree.map(lambda leaf: np.asarray(leaf)[0], raw(there))
        chex.assert_trees_all_close(first, raw(state), rtol=2e-4, atol=1e-5)
    chex.assert_trees_all_close(metrics, expected, rtol=1e-4, atol=1e-6)


def test_an_ordinary_function_is_a_step_too():
    def count(state, batch):
        return state + batch, {"sum": state}

    state, metrics = train.compiled(train.scanned(count))(jnp.int32(0), jnp.arange(4))
    assert state == 6
    np.testing.assert_array_equal(metrics["sum"], [0, 0, 1, 3])


def test_augmentation_draws_anew_for_every_step_and_leaves_the_loss_its_own_key(arrays):
    drawn = train.make_step(
        lambda p, aux, batch, key: (p**2, (aux, {"a": batch, "l": jax.random.bits(key)})), optax.sgd(0.1)
    )
    step = train.on_device(drawn, arrays["label"], augment=lambda key, batch: jax.random.bits(key))
    state = train.init(jnp.float32(1), optax.sgd(0.1), jax.random.key(0))
    _, history = train.fit(step, state, [np.arange(B)] * 2)
    assert len({int(m[name]) for m in history for name in "al"}) == 4


def test_the_data_set_is_an_argument_of_the_program_and_not_a_constant_in_it(arrays):
    large = {"image": np.zeros((20_000, 6), np.float32), "label": np.zeros(20_000, np.int32)}
    step = train.scanned(train.on_device(plain_step(), large))
    call = train.compiled(step)
    text = call.func.lower(*call.args, init(jax.random.key(0)), np.zeros((K, B), np.int32)).as_text()
    (signature,) = (line for line in text.splitlines() if "@main" in line)
    assert "tensor<20000x6xf32>" in signature
    assert not [line for line in text.splitlines() if "constant" in line and "20000x6" in line]


def test_a_step_is_traced_once(arrays, index):
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(losses.classify(MODEL), n=1)
    train.fit(train.on_device(train.make_step(traced, TX), arrays), init(jax.random.key(0)), list(index))


def test_donation_spares_the_weights_that_a_state_was_made_from(arrays):
    params = drawn.variables(MODEL, jnp.zeros((1, 6)))["params"]
    state = train.init(params, TX, jax.random.key(0))
    train.compiled(plain_step())(state, {name: jnp.asarray(array[:B]) for name, array in arrays.items()})
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_fit_spares_its_callers_state(arrays, index):
    state = init(jax.random.key(0))
    train.fit(train.on_device(plain_step(), arrays), state, list(index))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_a_batch_can_be_overfitted(arrays):
    _, history = train.fit(train.on_device(plain_step(), arrays), init(jax.random.key(0)), [np.arange(B)] * 100)
    assert history[0]["loss"] > 0.5
    assert history[-1]["loss"] < 0.01


def test_data_parallel_training_changes_the_placement_and_not_the_step(arrays):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    batch = {name: jnp.asarray(array[:B]) for name, array in arrays.items()}
    alone, _ = train.compiled(plain_step())(init(jax.random.key(0)), batch)
    state = jax.device_put(init(jax.random.key(0)), NamedSharding(mesh, PartitionSpec()))
    batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    together, _ = train.compiled(plain_step())(state, batch)
    assert jax.device_count() == 8
    chex.assert_trees_all_close(raw(jax.device_get(together.params)), raw(alone.params), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 7, N, 1000])
def test_in_batches_is_the_whole_at_once(arrays, size):
    state = init(jax.random.key(0))

    def forward(state, batch):
        return MODEL.apply({"params": state.params}, batch["image"])

    outputs = jax.jit(train.in_batches(forward, arrays, size))(state)
    np.testing.assert_allclose(outputs, forward(state, jax.tree.map(jnp.asarray, arrays)), rtol=1e-5, atol=1e-6)


def test_run_i_of_many_seeds_has_the_key_of_seed_i_alone():
    np.testing.assert_array_equal(jax.random.key_data(train.seed_keys(3, 4)[2]), jax.random.key_data(jax.random.key(5)))


def test_train_needs_jax_and_optax_alone():
    imported = {
        line.split()[1].split(".")[0]
        for line in inspect.getsource(train).splitlines()
        if re.match("(import|from) ", line)
    }
    assert imported <= {"functools", "collections", "typing", "jax", "numpy", "optax", "jaxtyping", "dlc"}
