"""Batches in parts: the training of a large batch with the memory of a small one."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlc import losses, optim, sharding, train
from dlc.errors import UserError
from dlc.layers import BatchNorm

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(12, 5)), DRAW.normal(size=12)
USED = (np.arange(12) % 5 > 1).astype(float)  # of the examples that count, the parts have unequal numbers


def mean_loss(params, aux, batch, key):
    """The mean over the examples that count, as in a text with padding."""
    error = jnp.tanh(batch["x"] @ params["w"]) - batch["y"] + params["b"]
    weight = jnp.maximum(1, batch["used"].sum())
    mean = (batch["used"] * error**2).sum() / weight
    return mean, (aux, {"size": (batch["used"] * jnp.abs(error)).sum() / weight, "weight": weight})


def begun(parts, loss=mean_loss, tx=None):
    """A program of one step and the state before it."""
    tx = optim.accumulated(tx or optax.sgd(optax.linear_schedule(0.5, 0.1, 3), momentum=0.9), parts)
    state = train.init({"w": jnp.linspace(-1, 1, 5), "b": jnp.zeros(())}, tx, jax.random.key(0))
    step = train.in_parts(train.make_step(loss, tx), parts)
    return train.compiled(step, state, batch(0), donate=False), state


def batch(i):
    return jax.tree.map(lambda leaf: jnp.asarray(np.roll(leaf, i, 0)), {"x": X, "y": Y, "used": USED})


def trained(step, state, first=0, steps=4):
    history = []
    for i in range(first, first + steps):
        state, metrics = step(state, batch(i))
        history.append(metrics)
    return state, jax.tree.map(lambda *leaves: np.stack(leaves), *history)


@pytest.mark.parametrize(("x64", "near"), [(True, 1e-12), (False, 1e-6)])
@pytest.mark.parametrize(
    "tx", [None, optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.1))], ids=["sgd", "adam"]
)
def test_parts_train_as_one_batch_does(x64, near, tx):
    """Weights, schedule, loss and metrics, where the parts differ in how many examples count."""
    with jax.enable_x64(x64):
        (one, metrics), (four, of_parts) = (trained(*begun(parts, tx=tx)) for parts in (1, 4))
        assert one.params["w"].dtype == four.params["w"].dtype == (jnp.float64 if x64 else jnp.float32)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=near, atol=near), one.params, four.params)
        assert set(metrics) == set(of_parts) == {"loss", "size"}
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=near, atol=near), metrics, of_parts)
        assert float(metrics["loss"][-1]) < float(metrics["loss"][0])
        assert one.step == four.step == four.opt_state.sums.gradient_step == 4


def test_a_run_that_was_interrupted_between_batches_goes_on_to_the_bit():
    step, state = begun(3)
    whole, _ = trained(step, state)
    half, _ = trained(step, state, steps=2)
    resumed, _ = trained(step, jax.tree.map(jnp.copy, half), first=2, steps=2)
    jax.tree.map(np.testing.assert_array_equal, whole._replace(key=0), resumed._replace(key=0))


def test_every_part_of_every_batch_draws_anew():
    def loss(params, aux, batch, key):
        return params["b"] ** 2 + batch["x"].sum() * 0, (aux, {"drawn": jax.random.uniform(key)})

    _, metrics = trained(*begun(4, loss), steps=3)
    keys = jax.vmap(lambda step: jax.random.fold_in(jax.random.key(0), step))(jnp.arange(12))
    drawn = jax.vmap(jax.random.uniform)(keys).reshape(3, 4)
    np.testing.assert_allclose(metrics["drawn"], drawn.mean(1), rtol=1e-6)


def test_batch_statistics_are_averaged_part_by_part():
    norm, x = BatchNorm(), jnp.asarray(DRAW.normal(size=(8, 3)), jnp.float32)

    def loss(params, aux, batch, key):
        y, aux = norm.apply({"params": params, **aux}, batch, train=True, mutable=["batch_stats"])
        return (y**2).mean(), (aux, {})

    tx = optim.accumulated(optax.sgd(0.1), 2)
    variables = dict(norm.init(jax.random.key(0), x))
    state = train.init(variables.pop("params"), tx, jax.random.key(0), aux=variables)
    state, _ = train.compiled(train.in_parts(train.make_step(loss, tx), 2))(state, x)
    expected = np.zeros(3)
    for part in (x[0::2], x[1::2]):
        expected = 0.9 * expected + 0.1 * part.mean(0)
    np.testing.assert_allclose(state.aux["batch_stats"]["mean"], expected, rtol=1e-4, atol=1e-6)


def of_text(parts):
    """A step that guesses each token from the one before it, and its first state."""

    def loss(params, aux, batch, key):
        tokens = batch["tokens"]
        logits = jnp.tanh(params["token"][tokens[:, :-1]]) @ params["out"]
        return losses.cross_entropy(logits.reshape(-1, 20), tokens[:, 1:].reshape(-1)).mean(), (aux, {})

    tx = optim.accumulated(optax.sgd(0.1), parts)
    params = {"token": drawn.normal(20, 32), "out": drawn.normal(32, 20) / 6}
    return train.make_step(loss, tx), train.init(params, tx, jax.random.key(0))


def test_the_parts_of_a_batch_may_be_positions_and_seeds():
    text, starts = np.arange(200) % 20, jnp.asarray([3, 50, 7, 100, 20, 9], jnp.int32)
    step, state = of_text(3)
    found = {}
    for name, placed in (
        ("in parts, windows", train.in_parts(train.windows(step, text, 16), 3)),
        ("windows, in parts", train.windows(train.in_parts(step, 3), text, 16)),
    ):
        states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
        found[name] = train.compiled(train.over_seeds(placed))(states, starts)
        assert found[name][1]["loss"].shape == (2,)
    (one, metrics), (other, same) = found.values()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), metrics, same)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one.params, other.params)


def test_a_batch_in_parts_needs_a_fraction_of_the_memory():
    needed = {}
    for parts in (1, 16):
        step, state = of_text(parts)
        batch = {"tokens": jnp.zeros((128, 17), jnp.int32)}
        program = train.compiled(train.in_parts(step, parts), jax.eval_shape(lambda state=state: state), batch)
        needed[parts] = program.func.memory_analysis().temp_size_in_bytes
    assert needed[16] < needed[1] / 4


def test_the_optimizer_computes_its_update_once_a_batch():
    """`optax.MultiSteps` alone computes one for every part, which counts where it is expensive, as Muon's is."""
    calls = []

    def update(updates, state, params=None):
        jax.debug.callback(lambda: calls.append(None))
        return updates, state

    tx = optim.accumulated(optax.GradientTransformation(lambda params: optax.EmptyState(), update), 4)
    state = tx.init({"w": jnp.ones(2)})
    for i in range(8):
        updates, state = jax.jit(tx.update)({"w": jnp.full(2, float(i))}, state)
    jax.effects_barrier()
    assert len(calls) == 2
    np.testing.assert_allclose(updates["w"], 5.5)  # the mean of 4, 5, 6, 7


def test_devices_cut_their_own_examples():
    """No example moves: what they exchange are sums, and the parts are those of one device."""
    step, state = of_text(2)
    step, mesh = train.in_parts(step, 2), sharding.mesh("data=4")
    batch = {"tokens": jnp.asarray(DRAW.integers(20, size=(16, 17)), jnp.int32)}
    one, metrics = train.compiled(step, state, batch, donate=False)(state, batch)
    placed = sharding.kept(state, mesh), jax.device_put(batch, sharding.split(mesh))
    program = train.compiled(sharding.on_mesh(step, mesh), *placed, donate=False)
    four, same = program(*placed)
    np.testing.assert_allclose(same["loss"], metrics["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one.params, four.params)
    text = program.func.as_text()
    assert "all-reduce" in text
    assert not any(kind in text for kind in ("all-gather", "all-to-all", "collective-permute"))
    few, equally = (
        {"tokens": batch["tokens"][:12]},
        "^a batch of 12 cannot be cut into 2 equal parts that 4 devices share",
    )
    with pytest.raises(UserError, match=equally):
        jax.eval_shape(sharding.on_mesh(step, mesh), state, few)


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(
        UserError, match=r"^a batch of 12 cannot be cut into 5 equal parts: choose a batch of 15, for example"
    ):
        begun(5)
    step = train.in_parts(train.make_step(mean_loss, optax.sgd(0.1)), 3)
    state = train.init({"w": jnp.ones(5), "b": jnp.zeros(())}, optax.sgd(0.1), jax.random.key(0))
    with pytest.raises(UserError, match=r"^a batch in parts needs the optimizer optim.accumulated"):
        step(state, batch(0))
