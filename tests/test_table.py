"""The table of models: exact parameters and multiply-accumulates, and that no model is missing.

Everything here is counted from shapes: no network is run. Each model is traced once, as the program for GPU and TPU:
tracing the forms for a CPU beside it would take most of the time.
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

from dlc import costs, layers, models
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


@pytest.mark.usefixtures("_plain")
@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_a_row_has_the_costs_of_its_model(row):
    """Exactly the parameters and operations of the table, which are within 1 % of those published by others.

    In the smallest model of a class, training changes all of "batch_stats" and nothing else besides the weights.
    """
    model, inputs = row.make(), jax.eval_shape(row.zeros)
    begin = jax.jit(model.init_with_output)  # keeps its trace for the second question
    output, variables = jax.eval_shape(begin, jax.random.key(0), *inputs)
    assert costs.parameters(variables["params"]) == row.parameters
    if row.macs is None:
        return
    if getattr(model, "aux", False):  # initialisation runs the auxiliary heads, too
        apply = jax.jit(model.apply)
        counted = costs.macs(apply, variables, *inputs)
        output = jax.eval_shape(apply, variables, *inputs)
    else:
        counted = costs.macs(begin, jax.random.key(0), *inputs)
    assert counted == row.macs
    if row.gmacs is not None:
        assert math.isclose(counted / 1e9, row.gmacs, rel_tol=0.01), row.gmacs_from
    assert output.shape == outputs(row)
    if row in SMALLEST.values():
        returned, changed = jax.eval_shape(
            lambda v, x, key: model.apply(v, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}),
            variables, *inputs, jax.random.key(0),
        )  # fmt: skip
        before = variables.get("batch_stats", {})
        assert jax.tree.map(jnp.shape, changed.get("batch_stats", {})) == jax.tree.map(jnp.shape, before)
        assert {leaf.shape for leaf in jax.tree.leaves(returned)} == {outputs(row)}


@pytest.mark.parametrize("row", {type(row.make()): row for row in TABLE[::-1]}.values(), ids=lambda row: row.name)
def test_a_batch_may_have_any_size_none_or_one_that_is_not_known_yet(row):
    model, one = row.make(), jax.eval_shape(row.zeros)
    variables = jax.eval_shape(model.init, jax.random.key(0), *one)
    for size in (0, *jax.export.symbolic_shape("b")):
        batch = [jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype) for a in one]
        assert {leaf.shape[0] for leaf in jax.tree.leaves(jax.eval_shape(model.apply, variables, *batch))} == {size}


def test_only_the_program_for_gpu_and_tpu_is_counted():
    """Of the branches of `lax.platform_dependent`, only the default; the CPU's form of this layer multiplies more."""

    def chosen(x):
        return jax.lax.platform_dependent(x, cpu=lambda x: x @ x @ x, default=lambda x: x @ x)

    square = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    assert costs.macs(chosen, square) == costs.macs(jax.jit(chosen), square) == 4**3
    operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 12, 12, 3), (5, 5, 3, 7), (7,))]
    assert cpu.can_gather_pooled((12, 12), (5, 5, 3, 7), (2, 2))
    assert costs.macs(functools.partial(layers.conv_max_pool, window=(2, 2)), *operands) == 2 * 8 * 8 * 7 * 5 * 5 * 3


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
