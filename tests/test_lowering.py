"""Every experiment's training step lowers for GPU and TPU, for one device, for 8 and for 256, with none of them here.

`plan` stops each experiment before its first step, and hands over that step and the shapes of what it takes.
"""

from functools import partial
from importlib import import_module

import jax
import jax.export
import pytest
from cli import trains_by_fit
from jax.sharding import AbstractMesh, AxisType
from test_experiments import MODULES

from dlc import sharding, train
from dlc.run import clock, plan
from dlc.run.run import Run

PLATFORMS = ("cuda", "tpu")
EVERY = {name.removeprefix("experiments."): import_module(name) for name in MODULES}
BY_FIT = {name: module for name, module in EVERY.items() if trains_by_fit(module)}
# These learn by rules of their own, or by hand, and have no step: they call `jax.jit` where they need it.
RULES = {
    *("cifar10.peek", "history.backprop", "history.dictionary", "history.hebb", "history.neocognitron"),
    *("history.perceptron", "history.playground", "history.t_c", "history.threshold_logic"),
}
# These train all runs in one program.
SWEEPS = {"history.initialisation", "history.optimisers", "history.regularisation", "history.scaling"}
ELSEWHERE = {name: each for name, each in EVERY.items() if hasattr(each, "train") and name not in {*BY_FIT, *RULES}}


class Reached(BaseException):
    """The first program that trains, and its arguments."""


def exported(function, *arguments):
    return jax.export.export(jax.jit(lambda function, *rest: function(*rest)), platforms=PLATFORMS)(
        function, *arguments
    )


def planned(module):
    return plan.of(module.train, module.SMOKE, Run(plan=True))


@pytest.mark.parametrize("name", BY_FIT)
def test_a_step_lowers_for_gpu_and_tpu(name):
    found = planned(BY_FIT[name])
    assert exported(found.group, found.state, found.batches).platforms == PLATFORMS


@pytest.mark.parametrize("name", BY_FIT)
@pytest.mark.parametrize("count", [8, 256])
def test_a_step_lowers_for_many_devices(name, count):
    found = planned(BY_FIT[name])
    axes = found.run.axes
    shape = (count // 4, 2, 2) if axes else (count // 2, 2, 1)
    devices = AbstractMesh(shape, sharding.NAMES, axis_types=(AxisType.Auto,) * 3)
    places = sharding.layout(found.state, devices, axes)

    def examples(leaf):
        """The shape of a batch of as many examples as there are devices, of a group of batches."""
        return jax.ShapeDtypeStruct((count, *leaf.shape[2:]), leaf.dtype, sharding=sharding.split(devices))

    def placed(leaf, place):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    state, batch = jax.tree.map(placed, found.state, places), jax.tree.map(examples, found.batches)
    program = exported(sharding.on_mesh(found.step, devices, axes), state, batch)
    assert (program.nr_devices, program.platforms) == (count, PLATFORMS)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_trains_otherwise_lowers_too(name, monkeypatch):
    def reached(function, *arguments):
        raise Reached(function, arguments)

    def compiled(self, function, *example, wrap=None, donate=False):
        return partial(reached, wrap(function) if wrap else function)

    if name in SWEEPS:
        monkeypatch.setattr(clock.Tracing, "compiled", compiled)
    monkeypatch.setattr(train, "compiled", lambda function, *example, donate=True: partial(reached, function))
    try:
        found = planned(ELSEWHERE[name])  # of the network that it looks into
        program = found.group, found.state, found.batches
    except Reached as stopped:
        function, arguments = stopped.args
        program = function, *jax.eval_shape(lambda *rest: rest, *arguments)
    assert exported(*program).platforms == PLATFORMS
