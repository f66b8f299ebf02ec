"""The training loop: states of any kind, killed and resumed; divergence; shapes; what the record says of it."""

import contextlib
import functools
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from matplotlib.figure import Figure
from runs import KINDS
from tensorboardX.proto.event_pb2 import Event

from dlc import batches, losses, sharding, train, weights
from dlc.errors import UserError
from dlc.models.densenet import DenseNet
from dlc.models.mlp import MLP
from dlc.run import log, loop, record
from dlc.run.fit import Plan, _watched, fit, start
from dlc.run.launch import _conclude
from dlc.run.loop import Diverged, training
from dlc.run.run import Run
from dlc.run.signals import Interrupted

HERE = Path(__file__).parent


def assert_same(one, other):
    one, other = (jax.tree.map(_plain, tree) for tree in (one, other))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def _plain(leaf):
    key = jax.dtypes.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if key else leaf)


def numbers_of(history):
    """The log without times and speeds."""
    times = ("seconds", "examples_per_second", "steps_per_second")
    return [{name: value for name, value in line.items() if name not in times} for line in history]


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_of_any_kind_is_resumed_to_the_bit(kind, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    words = [sys.executable, str(HERE / "runs.py"), kind, str(tmp_path), "30"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    whole, resumed, said = Run(), Run(tmp_path, resume=True), []
    resumed.say = said.append
    expected = KINDS[kind](whole)
    with contextlib.closing(resumed):
        assert_same(KINDS[kind](resumed), expected)
    after = 30 if kind == "replay" else 20  # `fit` evaluates before it saves, and was killed there
    assert f"resuming after step {after}" in said
    assert numbers_of(resumed.history) == numbers_of(whole.history)
    assert numbers_of(log.read(tmp_path)) == numbers_of(whole.history)


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_stops_a_run_of_any_kind_after_it_was_saved(kind, tmp_path):
    run = Run(tmp_path)
    run.signals.stop = signal.SIGTERM  # it came during the first steps
    with contextlib.closing(run), pytest.raises(Interrupted, match="SIGTERM"):
        KINDS[kind](run)
    (saved,) = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved == {"two_networks": 5, "without_data": 4, "replay": 1}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_any_kind_counts_its_operations(kind):
    run = Run()
    KINDS[kind](run)
    ((count, steps),) = run.work
    assert steps == run.facts["steps"] == {"without_data": 43}.get(kind, 60)
    assert count() > 32


def sgd_state(key):
    return train.init(jnp.float32(1), optax.sgd(0.1), key)


def mean_step():
    return train.make_step(lambda params, aux, batch, key: ((params * batch).mean(), (aux, {})), optax.sgd(0.1))


def test_a_batch_may_be_one_number():
    run = Run()
    state = fit(run, sgd_state(jax.random.key(0)), mean_step(), lambda first, count: np.ones(count, "f4"), Plan(10))
    assert float(state.params) == pytest.approx(0, abs=1e-6)
    assert run.facts["examples_per_step"] == 1


def test_the_state_that_was_given_survives():
    """Also where two of its leaves are one array, which could not be donated."""
    state = sgd_state(jax.random.key(0))
    twice = (state, state)
    step = mean_step()

    def both(states, batch):
        (one, metrics), (other, _) = (step(state, batch) for state in states)
        return (one, other), metrics

    fit(Run(), twice, both, lambda first, count: np.ones((count, 2), "f4"), Plan(3))
    assert float(state.params) == 1


def test_a_loss_that_diverges_late_leaves_the_good_checkpoints(tmp_path):
    """A loss that is infinite from the seventh step on, in a run that is saved every four."""

    def explode(params, aux, batch, key):
        return jnp.where(batch[0] < 7, params**2, jnp.inf), (aux, {})

    run = Run(tmp_path)
    sentence = "the loss became inf at step 7; the checkpoint of step 4 is the last good one"
    with contextlib.closing(run), pytest.raises(Diverged, match=sentence):
        fit(
            run,
            sgd_state(jax.random.key(0)),
            train.make_step(explode, optax.sgd(0.1)),
            lambda first, count: np.arange(first + 1, first + count + 1)[:, None],
            Plan(12, evaluate_every=4),
        )
    assert [int(step.name) for step in (run.folder / "checkpoints").iterdir() if step.is_dir()] == [4]


def test_each_loss_and_every_network_is_watched():
    def step(state, batch):
        return state, {"critic_loss": jnp.where(batch[0] < 3, 1.0, jnp.nan)}

    with pytest.raises(Diverged, match="the critic loss became nan at step 3: try a lower learning rate"):
        fit(Run(), (jnp.zeros(()),), step, lambda first, count: np.arange(1, count + 1.0)[:, None], Plan(5))

    def silently(states, batch):
        one, other = states
        return (one, other._replace(params=other.params / 0)), {}

    states = (sgd_state(jax.random.key(0)), sgd_state(jax.random.key(1)))
    with pytest.raises(Diverged, match="a weight is no longer finite after step 2"):
        fit(Run(), states, silently, None, Plan(2))


def test_the_plan_reports_before_each_evaluation():
    plan = list(Plan(steps=2 * 937 + 5, report_every=100, evaluate_every=937).groups())
    assert [at for at, _ in plan] == list(np.cumsum([0, *(count for _, count in plan)])[:-1])
    assert sum(count for _, count in plan) == 2 * 937 + 5
    assert {count for _, count in plan} == {100, 37, 5}
    assert {937, 2 * 937} <= {at + count for at, count in plan}


def test_batches_that_are_expensive_are_asked_for_their_shapes_only():
    class Batches:
        def __init__(self):
            self.asked = []

        def __call__(self, first, count):
            self.asked.append((first, count))
            return np.ones((count, 4), np.float32)

        def like(self, first, count):
            return jax.ShapeDtypeStruct((count, 4), jnp.float32)

    batches, run = Batches(), Run()
    state = fit(run, sgd_state(jax.random.key(0)), mean_step(), batches, Plan(10, report_every=4))
    assert batches.asked == [(0, 4), (4, 4), (8, 2)]  # each group once
    assert float(state.params) == pytest.approx(0, abs=1e-6)
    assert run.facts["examples_per_step"] == 4


def test_an_evaluation_is_logged_and_its_compiling_is_not_charged_to_it():
    run = Run()
    with training(run, {}, steps=1) as loop:
        program = lambda state: {"error": run.clock.compiled(lambda: jnp.ones(()), donate=False)()}  # noqa: E731
        assert loop.evaluate(1, program, {}) == {"error": 1}
    assert run.history[-1]["error"] == 1
    assert run.clock.seconds["compile"] > 0


def test_seeds_start_together_as_each_would_alone():
    init = lambda key: train.init(jax.random.normal(key), optax.sgd(0.1), key)  # noqa: E731
    three = start(Run(), init, train.seed_keys(5, 3))
    for i in range(3):
        alone = start(Run(), init, train.seed_keys(5 + i))
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], three), alone)


def test_weights_to_begin_from_lie_where_the_state_lies_and_are_not_read_again(tmp_path):
    """On two devices, where a resumed run would not find its weights only on the first one."""
    model, devices = MLP((), 2), sharding.mesh("data=2")
    tx, some, source = optax.sgd(0.1), jnp.ones((1, 3)), tmp_path / "source.safetensors"
    variables = model.init(jax.random.key(7), some)
    weights.save(source, model, variables)

    def init(key, begun=None):
        return sharding.kept(train.init((begun or model.init(key, some))["params"], tx, key), devices)

    def trained(run):
        state = start(run, init, train.seed_keys(0))
        assert {leaf.sharding for leaf in jax.tree.leaves(state)} == {NamedSharding(devices, PartitionSpec())}
        loss = losses.classify(model)
        step = sharding.on_mesh(train.make_step(loss, tx), devices)
        batch = {"image": np.ones((2, 2, 3), np.float32), "label": np.zeros((2, 2), np.int32)}
        return state, fit(run, state, step, lambda first, count: batch, Plan(4, report_every=2))

    with contextlib.closing(Run(tmp_path, init_from=source)) as run:
        begun, first = trained(run)
    assert_same(begun.params, variables["params"])
    source.unlink()
    with contextlib.closing(Run(tmp_path, resume=True, init_from=source)) as run:
        assert_same(trained(run)[1], first)


def test_weights_for_other_classes_begin_with_a_new_last_layer(tmp_path):
    def made(classes):
        return DenseNet((1,), growth=4, stem=8, num_classes=classes)

    def variables(classes, key):
        return jax.jit(made(classes).init)(key, jnp.ones((1, 32, 32, 3)))

    def init(key, begun=None):
        new = begun or variables(3, key)
        return train.init(new["params"], optax.sgd(0.1), key, {"batch_stats": new["batch_stats"]})

    source = variables(5, jax.random.key(7))
    weights.save_state_dict(tmp_path / "model.safetensors", made(5), source)
    run, said = Run(init_from=tmp_path / "model.safetensors"), []
    run.say = said.append
    state = start(run, init, train.seed_keys(0, 2), made(3))
    head = state.params.pop("dense")
    assert_same(head, jax.vmap(lambda key: init(key).params["dense"])(train.seed_keys(0, 2)))
    source["params"].pop("dense")
    assert_same(jax.tree.map(lambda leaf: leaf[1], state.params), source["params"])
    assert f"{run.init_from} is for another number of classes: the last layer begins anew" in said


@pytest.mark.parametrize("seeds", [1, 2])
def test_an_optimizer_begins_from_the_weights_that_are_given(tmp_path, seeds):
    """One whose state has a copy of them, such as an average of the weights."""
    average = optax.GradientTransformation(lambda params: params, lambda updates, state, params: (updates, state))
    model, some = MLP((), 2), jnp.ones((1, 3))
    given = model.init(jax.random.key(7), some)
    weights.save(tmp_path / "given.safetensors", model, given)

    def init(key, begun=None):
        return train.init((begun or model.init(key, some))["params"], average, key)

    state = start(Run(init_from=tmp_path / "given.safetensors"), init, train.seed_keys(0, seeds))
    expected = given["params"] if seeds == 1 else jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), given["params"])
    assert_same(state.params, expected)
    assert_same(state.opt_state, expected)


def test_a_signal_adds_no_evaluation(tmp_path):
    def trained(run, stop=False):
        def batches(first, count):
            if stop and first == 10:
                run.signals.stop = signal.SIGINT
            return np.zeros((count, 2), np.float32)

        batches.like = lambda first, count: np.zeros((count, 2), np.float32)
        with contextlib.closing(run):
            plan = Plan(20, evaluate_every=10, report_every=5)
            fit(run, sgd_state(jax.random.key(0)), mean_step(), batches, plan, lambda state: {"w": state.params})
        return [line["step"] for line in run.history if "w" in line]

    with pytest.raises(Interrupted):
        trained(Run(tmp_path), stop=True)
    assert trained(Run(tmp_path, resume=True)) == [10, 20]


def test_a_loss_that_is_reported_now_and_then_is_that_of_the_last_step():
    with training(Run(), {}, steps=20) as loop:
        loop.report(10, {"loss": 1.0})
        loop.report(20, {"loss": float("nan")})
        with pytest.raises(Diverged, match="at step 20"):
            loop.save(20, {})


# Plans, metrics, seeds


@pytest.mark.parametrize("fields", [{"steps": -1}, {"evaluate_every": 0}, {"report_every": 0}, {"seeds": 0}])
def test_a_plan_that_makes_no_sense_is_refused(fields):
    with pytest.raises(UserError, match=f"{next(iter(fields))} of a plan must be at least "):
        Plan(**{"steps": 10, **fields})


def test_a_plan_of_no_steps_changes_nothing(tmp_path):
    run = Run(tmp_path)
    state = fit(run, sgd_state(jax.random.key(0)), mean_step(), lambda first, count: np.ones(count, "f4"), Plan(0))
    run.close()
    assert float(state.params) == 1
    assert run.facts["steps"] == run.facts["examples_per_step"] == 0


@pytest.mark.parametrize("name", ["step", "seconds"])
def test_a_metric_that_the_log_would_mistake_is_refused(name):
    with pytest.raises(UserError, match=f"a metric cannot be called {name}"):
        fit(Run(), {"w": jnp.zeros(())}, lambda state, batch: (state, {name: 1.0}), None, Plan(2))
    with pytest.raises(UserError, match=f"a metric cannot be called {name}"), training(Run(), {}, steps=1) as loop:
        loop.evaluate(1, lambda state: {name: 1.0}, {})


@pytest.mark.parametrize(("seed", "seeds"), [(-1, 1), (2**31 - 1, 1), (2**31 - 3, 4), (2**32 + 5, 1)])
def test_seeds_that_would_share_keys_are_refused(seed, seeds):
    with pytest.raises(UserError, match="a seed must be at least 0 and less than 2147483647, not "):
        train.seed_keys(seed, seeds)
    assert len({int(jax.random.bits(key)) for key in train.seed_keys(2**31 - 3, 2)}) == 2


def test_weights_of_a_state_of_several_networks_are_said_to_be_so(tmp_path):
    run = Run(tmp_path)
    run.keep(MLP((), 2))
    run.signals.stop = signal.SIGINT
    with contextlib.closing(run), pytest.raises(Interrupted):
        KINDS["two_networks"](run)
    with pytest.raises(UserError, match=r"hold more than one network: let the run finish with --resume"):
        weights.load(tmp_path)
    (tmp_path / "new").mkdir()
    Run(tmp_path / "new").keep(MLP((), 2))
    with pytest.raises(UserError, match="has not saved any weights yet: wait for its first checkpoint"):
        weights.load(tmp_path / "new")


# What people see


def events(folder):
    """The last (step, value) that TensorBoard finds for every name."""
    (file,) = folder.glob("events.*")  # in the run's own folder, whose name TensorBoard then shows
    content, at, seen = file.read_bytes(), 0, {}
    while at < len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + size])
        at += 12 + size + 4
        seen |= {value.tag: (event.step, value) for value in event.summary.value}
    return seen


def test_tensorboard_shows_training_beside_test_and_the_figures(tmp_path):
    run = Run(tmp_path)
    with contextlib.closing(run):
        with training(run, {}, steps=2) as loop:
            loop.report(2, {"loss": 1.0, "learning_rate": 0.1}, examples=4)
            loop.evaluate(2, lambda state: {"test_loss": 2.0, "validation_error": 0.5, "contrast": 1.0}, {})
        run.figure("square", Figure(figsize=(1, 1)))
    seen = events(tmp_path)
    assert seen.keys() == {
        "loss/train", "learning_rate", "examples_per_second", "loss/test", "error/validation", "contrast", "square"
    }  # fmt: skip
    assert seen["loss/test"][1].simple_value == 2.0
    step, square = seen["square"]
    assert step == 2
    assert square.image.encoded_image_string == (tmp_path / "figures" / "square.png").read_bytes()
    assert square.image.width > 50


def test_a_resumed_run_shows_tensorboard_what_counts_of_the_earlier_one_even_if_the_clock_is_set_back(
    tmp_path, monkeypatch
):
    for now, resume in ((2e9, False), (1e9, True), (1e9, True)):
        monkeypatch.setattr(log.time, "time", lambda now=now: now)
        run = Run(tmp_path, resume)
        with contextlib.closing(run), training(run, {"n": jnp.int32(0)}, steps=4) as here:
            for done in range(here.done + 1, 5):
                here.report(done, {"loss": float(done)})
                here.save(done, {"n": jnp.int32(done)})
    seen = events(tmp_path)
    assert seen.keys() == {"loss/train", "steps_per_second"}
    assert (seen["loss/train"][0], seen["loss/train"][1].simple_value) == (4, 4.0)


def test_nothing_takes_long_in_silence():
    run, said = Run(), []
    run.say = said.append
    run.keep(MLP((), 2))
    run.facts["dataset"] = "digits"
    ones = lambda first, count: np.ones(count, "f4")  # noqa: E731
    fit(run, sgd_state(jax.random.key(0)), mean_step(), ones, Plan(10), lambda state: {"w": state.params})
    run.clock.timed("translate", lambda: 1)
    run.clock.timed("translate", lambda: 1)
    where = f"on {record.device_name()}"
    assert said[:2] == [f"training MLP, 1 weights, on digits, 10 steps, {where}", "compiling ..."]
    assert said[2] == "evaluating ..."
    assert said[4:] == ["translating ..."]


# Waiting for batches


class Slow:
    """Batches that take longer than the steps."""

    workers = 0

    def like(self, first, count):
        return jax.ShapeDtypeStruct((count, 4), jnp.float32)

    def __call__(self, first, count):
        time.sleep(0.05)
        return np.ones((count, 4), np.float32)


def weighed(state, batch):
    return state + batch.mean(dtype=state.dtype), {"loss": state}


def test_waiting_for_batches_is_timed_and_goes_on_when_resumed(tmp_path, monkeypatch):
    def at_once(results):
        jax.block_until_ready(results)
        return functools.partial(float, time.perf_counter())

    # Not a thread, which a loaded machine may begin only after the next batch was made.
    monkeypatch.setattr(sys.modules[fit.__module__], "_watched", at_once)
    for steps, waits in ((3, 2), (6, 4)):  # each process does not count the first
        with contextlib.closing(Run(tmp_path, resume=steps == 6)) as run:
            fit(run, jnp.zeros(()), weighed, Slow(), Plan(steps, report_every=1))
        seconds = run.clock.seconds
        waited = [line["seconds"]["input"] for line in run.history if "loss" in line]
        assert sorted(waited) == waited
        assert 0.049 * waits <= waited[-1] <= seconds["input"] < seconds["train"] - 0.05
    assert len(waited) == 6
    assert waited[2] < waited[5]


def test_batches_that_are_only_numbers_are_not_timed():
    run, rows = Run(), batches.minibatches(8, 4)
    assert hasattr(rows, "like")
    fit(run, jnp.zeros(()), weighed, rows, Plan(3))
    assert "input" not in run.clock.seconds


def test_a_device_that_still_computes_does_not_wait():
    class Result:
        ready = threading.Event()

        def block_until_ready(self):
            assert self.ready.wait(60)

    finished = _watched([Result()])
    before = time.perf_counter()
    assert finished() >= before
    Result.ready.set()
    while finished() != finished():  # the present time, until the watcher has noticed
        assert time.perf_counter() < before + 60
    assert before < finished() <= time.perf_counter()


@pytest.mark.parametrize(("waited", "said"), [(0.4, False), (1.2, True)])
def test_much_waiting_for_batches_is_said(waited, said, capsys):
    seconds = {"compile": 0.0, "train": 10.0, "input": waited}
    _conclude(Run(), {"figures": {}, "claim": None, "seconds": seconds, "examples_per_second": None})
    printed = capsys.readouterr().out
    sentence = "12 % of the time of training was spent waiting for batches: more --workers make them faster"
    assert (sentence in printed) == said
    assert "10.0 s training\n" in printed


def counted(folder, steps, resume=False, until=None):
    """A loop that reports and evaluates at every step; a signal comes at step `until`."""
    run, said = Run(folder, resume), []
    run.say = said.append
    with contextlib.closing(run), contextlib.suppress(Interrupted), training(run, {"n": jnp.int32(0)}, steps) as loop:
        for done in range(loop.done + 1, steps + 1):
            if done == until:
                run.signals.stop = signal.SIGTERM
            loop.report(done, {"loss": float(done)})
            loop.evaluate(done, lambda state: {"test_loss": float(done)}, {})  # noqa: B023, called at once
            loop.evaluate(done, lambda state: {"rate": float(done)}, {})  # noqa: B023
            if done % 5 == 0 or done == until:
                loop.save(done, {"n": jnp.int32(done)})
    return run, said


def test_a_log_stays_short_however_long_the_run_is(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LINES", 8)
    monkeypatch.setattr(loop.Run, "doing", lambda self, what: None)
    whole, said = counted(None, 40)
    assert {line["step"] for line in whole.history} == {1, *range(5, 45, 5)}
    assert len(whole.history) == 3 * 9  # one report and both evaluations
    assert len([line for line in said if line.startswith("step ")]) == 2 * 9
    counted(tmp_path, 40, until=18)
    _, said = counted(tmp_path, 40, resume=True)
    assert "resuming after step 18" in said
    assert not [line for line in said if "damaged" in line]
    assert numbers_of(log.read(tmp_path)) == numbers_of(whole.history)
    assert len(counted(None, 8)[0].history) == 3 * 8


def test_a_run_that_was_longer_than_its_log_becomes_longer_still(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LINES", 8)
    counted(tmp_path, 20, until=17)
    resumed, said = counted(tmp_path, 30, resume=True)
    assert not [line for line in said if "damaged" in line]
    assert [line["step"] for line in resumed.history if "loss" in line] == [1, 3, 6, 9, 12, 15, 18, 20, 24, 28, 30]
