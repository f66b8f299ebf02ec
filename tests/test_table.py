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
from dlc.models import (
    alexnet,
    densenet,
    enet,
    googlenet,
    inception,
    inception_v4,
    nin,
    prelunet,
    resnet,
    squeezenet,
    vgg,
    vit,
)


class Row(NamedTuple):
    model: Any
    image: int  # height and width
    parameters: int
    macs: int  # of one image, exactly
    published: float | None = None  # billions of multiply-accumulates
    source: str = ""  # of what is published


TORCHVISION = "torchvision 0.28, the weights' `_ops`"
TIMM = "timm 1.0.31, results of model benchmarks"
HE = "He et al. 2015b, table 1"

ROWS = {
    "densenet121": Row(densenet.densenet121(), 224, 7_978_856, 2_834_161_664, 2.834, TORCHVISION),
    "densenet161": Row(densenet.densenet161(), 224, 28_681_000, 7_727_907_072, 7.728, TORCHVISION),
    "densenet169": Row(densenet.densenet169(), 224, 14_149_480, 3_359_843_328, 3.36, TORCHVISION),
    "densenet201": Row(densenet.densenet201(), 224, 20_013_928, 4_291_365_888, 4.291, TORCHVISION),
    "enet": Row(enet.enet(), 512, 363_999, 1_965_228_032),
    "enet_classifier": Row(enet.enet_classifier(), 224, 466_519, 311_206_656),
    "prelunet_a": Row(prelunet.prelunet_a(), 224, 178_032_072, 19_058_106_368),
    "prelunet_b": Row(prelunet.prelunet_b(), 224, 183_343_048, 23_219_904_512),
    "prelunet_c": Row(prelunet.prelunet_c(), 224, 330_623_944, 53_463_130_112),
    "resnet18": Row(resnet.resnet18(), 224, 11_689_512, 1_814_073_344, 1.814, TORCHVISION),
    "resnet34": Row(resnet.resnet34(), 224, 21_797_672, 3_663_761_408, 3.664, TORCHVISION),
    "resnet50": Row(resnet.resnet50(), 224, 25_557_032, 4_089_184_256, 4.089, TORCHVISION),
    "resnet101": Row(resnet.resnet101(), 224, 44_549_160, 7_801_405_440, 7.801, TORCHVISION),
    "resnet152": Row(resnet.resnet152(), 224, 60_192_808, 11_513_626_624, 11.514, TORCHVISION),
    "resnet34, option A": Row(resnet.resnet34(shortcut="A"), 224, 21_623_848, 3_644_493_824),
    "resnet34, option C": Row(resnet.resnet34(shortcut="C"), 224, 22_716_840, 3_830_747_136),
    "plain18": Row(resnet.plain18(), 224, 11_515_688, 1_794_805_760),
    "plain34": Row(resnet.plain34(), 224, 21_623_848, 3_644_493_824),
    # With the paper's strides. Its table has 3.8 for 50 layers, which is 1.5 % less.
    "resnet50, stride at 1x1": Row(resnet.resnet50(stride_at="1x1"), 224, 25_557_032, 3_857_973_248),
    "resnet101, stride at 1x1": Row(resnet.resnet101(stride_at="1x1"), 224, 44_549_160, 7_570_194_432, 7.6, HE),
    "resnet152, stride at 1x1": Row(resnet.resnet152(stride_at="1x1"), 224, 60_192_808, 11_282_415_616, 11.3, HE),
    "alexnet": Row(alexnet.alexnet(), 227, 60_965_224, 724_406_816),
    "alexnet_ungrouped": Row(alexnet.alexnet_ungrouped(), 227, 62_378_344, 1_135_256_096),
    "alexnet_2014": Row(alexnet.alexnet_2014(), 224, 61_100_840, 714_188_480, 0.714, TORCHVISION),
    "alexnet_bn": Row(alexnet.alexnet_bn(), 224, 61_119_528, 714_188_480),
    "googlenet": Row(googlenet.googlenet(), 224, 13_378_280, 1_582_671_872),
    "googlenet without heads": Row(googlenet.googlenet(aux=False), 224, 6_998_552, 1_582_671_872),
    "googlenet_bn": Row(googlenet.googlenet_bn(), 224, 13_004_888, 1_498_376_192, 1.498, TORCHVISION),
    "googlenet_bn without heads": Row(
        googlenet.googlenet_bn(aux=False), 224, 6_624_904, 1_498_376_192, 1.498, TORCHVISION
    ),
    "bn_inception": Row(inception.bn_inception(), 224, 11_188_288, 1_934_857_216),
    "bn_inception, not separable": Row(inception.bn_inception(separable=False), 224, 11_194_984, 2_018_851_840),
    "inception_v3": Row(inception.inception_v3(), 299, 27_161_264, 5_713_216_096, 5.713, TORCHVISION),
    "inception_v3 without head": Row(
        inception.inception_v3(aux=False), 299, 23_834_568, 5_713_216_096, 5.713, TORCHVISION
    ),
    "inception_v4": Row(inception_v4.inception_v4(), 299, 42_679_816, 12_253_974_624, 12.28, TIMM),
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
    "vit_b16": Row(vit.vit_b16(), 224, 86_567_656, 17_563_828_224, 17.564, TORCHVISION),
}

# Modules whose models are no classics of ImageNet; they have tables of their own
OTHERS = {"airbench", "bert", "convnet", "gpt", "lenet", "mlp", "resnet_cifar", "seq2seq", "transformer"}

every = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


@functools.cache
def shapes(model, image):
    """The variables' shapes, and those of one image."""
    one = jax.ShapeDtypeStruct((1, image, image, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), one), one


def logits(row):
    """The shape of what a model returns for one image: of ENet the classes of every pixel."""
    return (1, row.image, row.image, 20) if isinstance(row.model, enet.ENet) else (1, 1000)


@every
def test_parameters(row):
    variables, _ = shapes(row.model, row.image)
    assert costs.parameters(variables["params"]) == row.parameters


@every
def test_operations(row):
    """Exactly those counted once, and within 1 % of those published; and the logits that come of them."""
    apply = jax.jit(row.model.apply)  # which keeps its trace for the second question
    counted = costs.macs(apply, *shapes(row.model, row.image))
    assert counted == row.macs
    if row.published is not None:
        assert math.isclose(counted / 1e9, row.published, rel_tol=0.01), row.source
    assert jax.eval_shape(apply, *shapes(row.model, row.image)).shape == logits(row)


SMALLEST = {type(row.model): name for name, row in sorted(ROWS.items(), key=lambda item: -item[1].parameters)}


@pytest.mark.parametrize("row", [ROWS[name] for name in SMALLEST.values()], ids=SMALLEST.values())
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
    assert {leaf.shape for leaf in jax.tree.leaves(outputs)} == {logits(row)}


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


def test_no_named_size_is_missing_from_the_table():
    """Every public function that makes a model makes one of the rows."""
    rows, missing = [row.model for row in ROWS.values()], []
    for module in pkgutil.iter_modules(models.__path__):
        if module.name in (*OTHERS, "vit"):  # ViT's sizes are counted with the models of attention
            continue
        for name, make in inspect.getmembers(import_module(f"dlc.models.{module.name}"), inspect.isfunction):
            kind = inspect.get_annotations(make, eval_str=True).get("return")
            model = inspect.isclass(kind) and issubclass(kind, nn.Module) and not name.startswith("_")
            if model and list(inspect.signature(make).parameters) == ["changes"] and make() not in rows:
                missing.append(name)
    assert not missing
