"""The classics of ImageNet: exact parameters and multiply-accumulates, and that none is missing.

Everything here is counted from shapes: no network is run.
"""

import functools
import inspect
import math
import pkgutil
from importlib import import_module
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from dlc import costs, models
from dlc.models import alexnet, nin, squeezenet, vgg


class Row(NamedTuple):
    model: Any
    image: int  # height and width
    parameters: int
    macs: int  # of one image, exactly
    published: float | None = None  # billions of multiply-accumulates
    source: str = ""  # of what is published


TORCHVISION = "torchvision 0.28, the weights' `_ops`"
TIMM = "timm 1.0.31, results of model benchmarks"

ROWS = {
    "alexnet": Row(alexnet.alexnet(), 227, 60_965_224, 724_406_816),
    "alexnet_ungrouped": Row(alexnet.alexnet_ungrouped(), 227, 62_378_344, 1_135_256_096),
    "alexnet_2014": Row(alexnet.alexnet_2014(), 224, 61_100_840, 714_188_480, 0.714, TORCHVISION),
    "alexnet_bn": Row(alexnet.alexnet_bn(), 224, 61_119_528, 714_188_480),
    "nin": Row(nin.nin(), 224, 7_595_176, 1_100_188_800),
    "nin_bn": Row(nin.nin_bn(), 224, 8_655_336, 1_259_939_840),
    "squeezenet1_0": Row(squeezenet.squeezenet1_0(), 224, 1_248_424, 818_924_576, 0.819, TORCHVISION),
    "squeezenet1_1": Row(squeezenet.squeezenet1_1(), 224, 1_235_496, 349_151_936, 0.349, TORCHVISION),
    "vgg11": Row(vgg.vgg11(), 224, 132_863_336, 7_609_090_048, 7.609, TORCHVISION),
    "vgg13": Row(vgg.vgg13(), 224, 133_047_848, 11_308_466_176, 11.308, TORCHVISION),
    "vgg16": Row(vgg.vgg16(), 224, 138_357_544, 15_470_264_320, 15.47, TORCHVISION),
    "vgg19": Row(vgg.vgg19(), 224, 143_667_240, 19_632_062_464, 19.632, TORCHVISION),
    "vgg11_bn": Row(vgg.vgg11(norm=True), 224, 132_868_840, 7_609_090_048, 7.609, TORCHVISION),
    "vgg13_bn": Row(vgg.vgg13(norm=True), 224, 133_053_736, 11_308_466_176, 11.308, TORCHVISION),
    "vgg16_bn": Row(vgg.vgg16(norm=True), 224, 138_365_992, 15_470_264_320, 15.47, TORCHVISION),
    "vgg19_bn": Row(vgg.vgg19(norm=True), 224, 143_678_248, 19_632_062_464, 19.632, TORCHVISION),
}

# Modules whose models are no classics of ImageNet; they have tables of their own
OTHERS = {"airbench", "bert", "convnet", "gpt", "lenet", "mlp", "resnet_cifar", "seq2seq", "transformer"}

every = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


@functools.cache
def shapes(model, image):
    """The variables' shapes, and those of one image."""
    one = jax.ShapeDtypeStruct((1, image, image, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), one), one


@every
def test_parameters(row):
    variables, _ = shapes(row.model, row.image)
    assert costs.parameters(variables["params"]) == row.parameters


@every
def test_operations(row):
    """Exactly those counted once, and within 1 % of those published."""
    counted = costs.macs(row.model.apply, *shapes(row.model, row.image))
    assert counted == row.macs
    if row.published is not None:
        assert math.isclose(counted / 1e9, row.published, rel_tol=0.01), row.source


@every
def test_the_logits_are_one_for_each_class(row):
    variables, image = shapes(row.model, row.image)
    assert jax.eval_shape(row.model.apply, variables, image).shape == (1, 1000)


@every
def test_batch_statistics_move_in_training_and_dropout_draws(row):
    """Everything that training changes besides the weights is in "batch_stats", and it is all of it."""
    variables, image = shapes(row.model, row.image)
    train = functools.partial(row.model.apply, train=True, mutable=["batch_stats"])
    outputs, changed = jax.eval_shape(
        lambda v, x, key: train(v, x, rngs={"dropout": key}), variables, image, jax.random.key(0)
    )
    assert jax.tree.map(lambda a: a.shape, changed.get("batch_stats", {})) == jax.tree.map(
        lambda a: a.shape, variables.get("batch_stats", {})
    )
    assert {leaf.shape for leaf in jax.tree.leaves(outputs)} == {(1, 1000)}


def test_no_model_is_missing_from_the_table():
    found, tested = set(), {type(row.model) for row in ROWS.values()}
    for module in pkgutil.iter_modules(models.__path__):
        if module.name in OTHERS:
            continue
        for _, cls in inspect.getmembers(import_module(f"dlc.models.{module.name}"), inspect.isclass):
            own = cls.__module__ == f"dlc.models.{module.name}" and not cls.__name__.startswith("_")
            if own and issubclass(cls, nn.Module):
                found.add(cls)
    assert found == tested
