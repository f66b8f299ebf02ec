"""The table of models: exact parameters and multiply-accumulates, and that no model is missing.

Everything here is counted from shapes: no network is run. Each model is traced once for its weights and once for its
operations, as the program for GPU and TPU: tracing the forms for a CPU beside it would take most of the time.
"""

import functools
import inspect
import math
import pkgutil
from importlib import import_module

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from dlc import costs, models
from dlc.layers import cpu
from dlc.models.enet import ENet
from dlc.models.inception import mixed
from dlc.models.lenet import PartialConv, Subsample
from dlc.models.table import TABLE

PARTS = {PartialConv, Subsample, mixed}  # public, but parts of a model


def constructor(row):
    return row.make.func if isinstance(row.make, functools.partial) else row.make


def outputs(row):
    """The shape of what an image model returns for one image: of ENet, the classes of every pixel."""
    side = row.inputs[0][0]
    if isinstance(row.make(), ENet):
        return (1, side, side, 20)
    return (1, 1000 if side >= 224 else 10)


# The smallest model of each class that takes images
SMALLEST = {type(row.make()): row for row in sorted(TABLE, key=lambda row: -row.parameters) if len(row.inputs[0]) == 3}


@pytest.fixture
def _plain(monkeypatch):
    monkeypatch.setattr(cpu, "is_default", lambda: False)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, default, **forms: default(*operands))


@pytest.mark.usefixtures("_plain")
@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_a_row_has_the_costs_of_its_model(row):
    """Exactly the parameters and operations of the table, which are within 1 % of those published by others.

    In the smallest model of a class, training changes all of "batch_stats" and nothing else besides the weights.
    """
    model, inputs = row.make(), jax.eval_shape(row.zeros)
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    assert costs.parameters(variables["params"]) == row.parameters
    if row.macs is None:
        return
    apply = jax.jit(model.apply)  # keeps its trace for the second question
    counted = costs.macs(apply, variables, *inputs)
    assert counted == row.macs
    if row.gmacs is not None:
        assert math.isclose(counted / 1e9, row.gmacs, rel_tol=0.01), row.gmacs_from
    assert jax.eval_shape(apply, variables, *inputs).shape == outputs(row)
    if row in SMALLEST.values():
        returned, changed = jax.eval_shape(
            lambda v, x, key: model.apply(v, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}),
            variables, *inputs, jax.random.key(0),
        )  # fmt: skip
        before = variables.get("batch_stats", {})
        assert jax.tree.map(jnp.shape, changed.get("batch_stats", {})) == jax.tree.map(jnp.shape, before)
        assert {leaf.shape for leaf in jax.tree.leaves(returned)} == {outputs(row)}


def test_no_model_and_no_constructor_is_missing():
    """Every public class of models is in the table, and every public function that returns one."""
    classes, constructors = {type(row.make()) for row in TABLE}, {constructor(row) for row in TABLE}
    for found in pkgutil.iter_modules(models.__path__):
        module = import_module(f"dlc.models.{found.name}")
        for name, thing in inspect.getmembers(module):
            if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__ or thing in PARTS:
                continue
            if inspect.isclass(thing) and issubclass(thing, nn.Module):
                assert thing in classes, name
            elif inspect.isfunction(thing):
                made = inspect.get_annotations(thing, eval_str=True).get("return")
                if inspect.isclass(made) and issubclass(made, nn.Module):
                    assert thing in constructors, name


def test_a_name_is_what_a_caller_writes():
    assert len({row.name for row in TABLE}) == len(TABLE)
    for row in TABLE:
        assert eval(row.name, vars(import_module(row.module))) == row.make()
