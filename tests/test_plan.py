"""`--plan`: what would lie where, and how much memory a device would need, without training."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cli import assert_refused, here, python

from dlc import data, losses, sharding, train
from dlc.errors import UserError
from dlc.models.mlp import MLP
from dlc.run import plan
from dlc.run.fit import Plan, evaluation, fit, start
from dlc.run.run import Run
from dlc.tasks import images

assert here  # a fixture

GPT = ("experiments.attention.gpt", "--smoke", "--plan")
MODEL, TX = MLP((512,), 8), optax.adam(1e-3)
WEIGHTS = 4 * (64 * 512 + 512 + 512 * 8 + 8)


def learn(config, run):
    def init(key, begun=None):
        return train.init(MODEL.init(key, jnp.ones((1, 64)))["params"], TX, key)

    def step(state, batch):
        def loss(params, aux, batch, key):
            return MODEL.apply({"params": params}, batch).mean(), (aux, {})

        return train.make_step(loss, TX)(state, batch)

    def batches(first, count):
        raise AssertionError("only the shapes of batches are asked for")

    batches.like = lambda first, count: jax.ShapeDtypeStruct((count, 16, 64), jnp.float32)
    run.keep(MODEL)
    fit(run, start(run, init, train.seed_keys(0)), step, batches, Plan(30, report_every=10))


def sizes(lines):
    """The bytes of each kind, of a device and of all, as the plan gives them to a tenth of a unit."""
    found = [re.match(r"  (\w+(?: state)?) +([\d.]+) (\w+)(?: +of +([\d.]+) (\w+)$)?", line) for line in lines]
    units = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
    return {m[1]: (float(m[2]) * units[m[3]], m[4] and float(m[4]) * units[m[5]]) for m in found if m and m[3] in units}


def test_it_counts_the_bytes_of_one_device():
    found = plan.of(learn, None, Run(plan=True))
    shown = sizes(plan.lines(found))
    assert shown["weights"] == (pytest.approx(WEIGHTS, rel=1e-2), None)
    assert shown["optimizer"] == (pytest.approx(2 * WEIGHTS + 4, rel=1e-2), None)
    assert shown["batches"] == (pytest.approx(10 * 16 * 64 * 4, rel=1e-2), None)
    program = train.compiled(found.group, found.state, found.batches).func
    assert shown["temporaries"][0] == pytest.approx(program.memory_analysis().temp_size_in_bytes, rel=1e-2)
    assert shown["together"][0] == pytest.approx(sum(size for size, _ in list(shown.values())[:-1]), rel=1e-2)


def test_a_state_and_batches_that_are_there_already_are_counted_too():
    """Those of an experiment of one's own, without `start`, whose batches have no method `like`."""

    def experiment(config, run):
        step = train.make_step(lambda params, aux, batch, key: ((params * batch).mean(), (aux, {})), TX)
        state = train.init(jnp.ones(3), TX, jax.random.key(0))
        fit(run, state, step, lambda first, count: np.ones((count, 3), np.float32), Plan(10))

    shown = sizes(plan.lines(plan.of(experiment, None, Run(plan=True))))
    assert shown["weights"] == (12, None)
    assert shown["batches"] == (120, None)


def test_each_of_eight_devices_has_its_part():
    found = plan.of(learn, None, Run(plan=True, mesh=sharding.mesh("data=2,fsdp=4")))
    lines = list(plan.lines(found))
    shown = sizes(lines)
    assert "memory of each of 8 devices, 2 along data, 4 along fsdp:" in lines
    assert shown["weights"] == (pytest.approx(WEIGHTS / 4, rel=1e-2), pytest.approx(WEIGHTS, rel=1e-2))
    assert shown["batches"] == (pytest.approx(10 * 2 * 64 * 4, rel=1e-2), pytest.approx(10 * 16 * 64 * 4, rel=1e-2))
    assert any(re.search(r"params/dense1/kernel  64 x 512/fsdp$", line) for line in lines), lines


def test_what_is_evaluated_is_not_copied_to_the_devices(monkeypatch):
    """A plan may name a thousand devices, which share the memory of this machine."""
    copied, everywhere = [], sharding.everywhere

    def noted(tree, devices):
        copied.extend(leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
        return everywhere(tree, devices)

    monkeypatch.setattr(sharding, "everywhere", noted)
    digits = data.load("digits")
    task = images.Task(digits, MLP((16,)), lambda image: jnp.asarray(image, jnp.float32))

    def experiment(config, run):
        variables = task.model.init(jax.random.key(0), task.prepare(digits.test["image"][:1]))
        state = train.init(variables["params"], TX, jax.random.key(0))
        evaluation(run, losses.classify(task.model, task.prepare), digits.test, state)
        images.fit(run, task, TX, images.Epochs(1, 96))

    plan.of(experiment, None, Run(plan=True, mesh=sharding.mesh("data=8")))
    assert copied == []


def test_nothing_is_trained_and_nothing_is_left_behind(here, tmp_path):
    code, out, _ = here(*GPT, "--out", tmp_path)
    assert code == 0
    assert re.match(r"it would train GPT, [\d,]+ weights, on python, 300 steps, on .*\nmemory of the device:\n", out)
    assert "it fits" in out
    assert not list(tmp_path.iterdir())


def test_more_devices_than_there_are_can_be_planned(tmp_path):
    code, out, stderr = python(
        *GPT, "--batch", 64, "--mesh", "data=8,fsdp=4", "--out", tmp_path, JAX_NUM_CPU_DEVICES="32"
    )
    assert code == 0, stderr
    assert "memory of each of 32 devices, 8 along data, 4 along fsdp:" in out


def test_a_plan_of_weights_is_refused(here):
    sentence = "leave out --plan: --weights does not train, so there is nothing to plan"
    assert_refused(here(*GPT, "--weights", "runs/x"), sentence)


def test_a_program_that_the_compiler_refuses_is_said(here, monkeypatch):
    def refused(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm")

    monkeypatch.setattr(plan, "lines", refused)
    assert_refused(here(*GPT), "memory does not suffice: choose a smaller batch, network or data set")


def test_what_does_not_train_by_fit_has_no_plan():
    with pytest.raises(UserError, match="does not say what it computes before its first step"):
        plan.of(lambda config, run: {}, None, Run(plan=True))
