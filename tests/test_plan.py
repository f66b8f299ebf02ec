"""`--plan`: what would lie where, and how much memory a device would need, without training."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from cli import here, python

from dlc import sharding, train
from dlc.errors import UserError
from dlc.models.mlp import MLP
from dlc.run import plan
from dlc.run.fit import Plan, fit, start
from dlc.run.run import Run

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


def test_each_of_eight_devices_has_its_part():
    found = plan.of(learn, None, Run(plan=True, mesh=sharding.mesh("data=2,fsdp=4")))
    lines = list(plan.lines(found))
    shown = sizes(lines)
    assert "memory of each of 8 devices, 2 along data, 4 along fsdp:" in lines
    assert shown["weights"] == (pytest.approx(WEIGHTS / 4, rel=1e-2), pytest.approx(WEIGHTS, rel=1e-2))
    assert shown["batches"] == (pytest.approx(10 * 2 * 64 * 4, rel=1e-2), pytest.approx(10 * 16 * 64 * 4, rel=1e-2))
    assert any(re.search(r"params/dense1/kernel  64 x 512/fsdp$", line) for line in lines), lines


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


def test_what_does_not_train_by_fit_has_no_plan():
    with pytest.raises(UserError, match="does not say what it computes before its first step"):
        plan.of(lambda config, run: {}, None, Run(plan=True))
