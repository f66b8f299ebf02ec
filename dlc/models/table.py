"""Every model of this folder in every published size: how to make it, what it takes, and what it costs.

    for row in TABLE:
        model = row.make()
        variables = model.init(jax.random.key(0), *row.zeros())

Tests count each model's parameters and operations and compare them with its row, benches time the rows that have a
`bench` name, and the README shows the table. A new model needs its file and its rows here. Models are imported from
their own files; this table is for iteration, not for lookup.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from dlc.models import (
    airbench,
    alexnet,
    bert,
    convnet,
    densenet,
    enet,
    googlenet,
    gpt,
    inception,
    inception_v4,
    lenet,
    mlp,
    nin,
    prelunet,
    resnet,
    resnet_cifar,
    seq2seq,
    squeezenet,
    transformer,
    vgg,
    vit,
)


class Row(NamedTuple):
    """A model in one size.

    `name` is the constructor as a caller writes it, and `make(**changes)` calls it. `inputs` are the shapes of one
    example: [H, W, C] is an image, float32, and [T] a text of token ids, int32. `parameters` is the number of weights
    that are learnt, and `macs` the number of multiply-accumulates for one image (for texts, which have no fixed length,
    it is not given). `source` is the paper or program that defines the model.

    What others publish for their version: `gmacs`, billions of multiply-accumulates, from the source `gmacs_from`;
    `top1`, the accuracy on ImageNet in percent; `peer`, its name in torchvision or timm. `bench` is the name under
    which `experiments/bench` times the model.
    """

    name: str
    make: Callable[..., Any]
    inputs: tuple[tuple[int, ...], ...]
    parameters: int
    macs: int | None
    source: str
    gmacs: float | None = None
    gmacs_from: str = ""
    top1: float | None = None
    peer: str | None = None
    bench: str | None = None

    @property
    def module(self) -> str:
        """The module that defines the model, such as "dlc.models.resnet"."""
        return (self.make.func if isinstance(self.make, partial) else self.make).__module__

    def zeros(self, batch: int = 1) -> tuple[Array, ...]:
        """Inputs of the right shapes and dtypes: images [B, H, W, C], float32, or tokens [B, T], int32."""
        return tuple(jnp.zeros((batch, *shape), "float32" if len(shape) == 3 else "int32") for shape in self.inputs)


_MNIST, _PADDED, _CIFAR = ((28, 28, 1),), ((32, 32, 1),), ((32, 32, 3),)
_224, _227, _299, _512 = (((side, side, 3),) for side in (224, 227, 299, 512))
_TEXT, _PAIR = ((12,),), ((12,), (12,))
_TORCHVISION = "torchvision 0.28, the weights' `_ops`"
_TIMM = "timm 1.0.31, results of model benchmarks"
_HE = "He et al. 2015b, table 1"

# Top-1: torchvision 0.28, metadata of the weights IMAGENET1K_V1, also in its documentation; timm 1.0.31,
# results-imagenet.csv, for inception_v4 (tf_in1k) and vit_s16 (augreg_in1k); for nin_bn its authors' program (nin.py);
# for enet the value that others read off figure 1 of Canziani et al. 2016, whose classifier is not known.
# fmt: off
TABLE = (
    Row("MLP()", mlp.MLP, _MNIST, 7_850, 7_840, "softmax regression"),
    Row("MLP((300,))", partial(mlp.MLP, (300,)), _MNIST, 238_510, 238_200, "LeCun et al. 1998"),
    Row("MLP((300, 100))", partial(mlp.MLP, (300, 100)), _MNIST, 266_610, 266_200, "LeCun et al. 1998"),
    Row("Convnet()", convnet.Convnet, _MNIST, 832 + 51_264 + 51_400 + 2_010, 1_333_200, "the lecture"),
    Row("LeNet5()", lenet.LeNet5, _PADDED, 60_000, 415_680, "LeCun et al. 1998"),
    Row("LeNet5Dense()", lenet.LeNet5Dense, _PADDED, 61_706, 416_520, "what the name means today"),
    Row("cifar_resnet(20)", partial(resnet_cifar.cifar_resnet, 20), _CIFAR, 269_722, 40_551_040, "He et al. 2015b"),
    Row("cifar_resnet(32)", partial(resnet_cifar.cifar_resnet, 32), _CIFAR, 464_154, 68_862_592, "He et al. 2015b"),
    Row("cifar_resnet(44)", partial(resnet_cifar.cifar_resnet, 44), _CIFAR, 658_586, 97_174_144, "He et al. 2015b"),
    Row("cifar_resnet(56)", partial(resnet_cifar.cifar_resnet, 56), _CIFAR, 853_018, 125_485_696, "He et al. 2015b"),
    Row(
        "cifar_resnet(110)", partial(resnet_cifar.cifar_resnet, 110), _CIFAR, 1_727_962, 252_887_680, "He et al. 2015b",
    ),
    Row(
        'cifar_resnet(20, "B")', partial(resnet_cifar.cifar_resnet, 20, "B"), _CIFAR,
        269_722 + (16 * 32 + 32 * 64) + 2 * (32 + 64), 40_813_184, "He et al. 2015b",
    ),
    Row("cifar_plain(56)", partial(resnet_cifar.cifar_plain, 56), _CIFAR, 853_018, 125_485_696, "He et al. 2015b"),
    Row("cifar_preact(110)", partial(resnet_cifar.cifar_preact, 110), _CIFAR, 1_727_962, 252_887_680, "He et al. 2016"),
    Row(
        "wide_resnet(28, 10)", partial(resnet_cifar.wide_resnet, 28, 10), _CIFAR, 36_479_194, 5_243_328_768,
        "Zagoruyko, Komodakis 2016",
    ),
    Row(
        "cifar_resnet18()", resnet_cifar.cifar_resnet18, _CIFAR, 11_173_962, 555_422_720,
        "the usual baseline on CIFAR-10",
    ),
    # Without the 288 numbers of the whitening kernel, which are frozen
    Row("airbench94()", airbench.airbench94, _CIFAR, 1_971_640 - 288, 118_147_360, "Jordan 2024"),
    Row("airbench95()", airbench.airbench95, _CIFAR, 4_604_728 - 288, 301_560_864, "Jordan 2024"),
    Row("airbench96()", airbench.airbench96, _CIFAR, 9_915_704 - 288, 451_967_264, "Jordan 2024"),
    Row("alexnet()", alexnet.alexnet, _227, 60_965_224, 724_406_816, "Krizhevsky et al. 2012", bench="alexnet"),
    Row("alexnet_ungrouped()", alexnet.alexnet_ungrouped, _227, 62_378_344, 1_135_256_096, "Krizhevsky et al. 2012"),
    Row(
        "alexnet_2014()", alexnet.alexnet_2014, _224, 61_100_840, 714_188_480, "Krizhevsky 2014", 0.714, _TORCHVISION,
        top1=56.522, peer="torchvision.alexnet", bench="alexnet_2014",
    ),
    Row(
        "alexnet_bn()", alexnet.alexnet_bn, _224, 61_119_528, 714_188_480, "soumith/imagenet-multiGPU.torch",
        bench="alexnet_bn",
    ),
    Row("nin()", nin.nin, _224, 7_595_176, 1_100_188_800, "Lin et al. 2013", bench="nin"),
    Row(
        "nin_bn()", nin.nin_bn, _224, 8_655_336, 1_259_939_840, "soumith/imagenet-multiGPU.torch", top1=62.6,
        bench="nin_bn",
    ),
    Row("vgg11()", vgg.vgg11, _224, 132_863_336, 7_609_090_048, "Simonyan, Zisserman 2014", 7.609, _TORCHVISION),
    Row("vgg13()", vgg.vgg13, _224, 133_047_848, 11_308_466_176, "Simonyan, Zisserman 2014", 11.308, _TORCHVISION),
    Row(
        "vgg16()", vgg.vgg16, _224, 138_357_544, 15_470_264_320, "Simonyan, Zisserman 2014", 15.47, _TORCHVISION,
        top1=71.592, peer="torchvision.vgg16", bench="vgg16",
    ),
    Row(
        "vgg19()", vgg.vgg19, _224, 143_667_240, 19_632_062_464, "Simonyan, Zisserman 2014", 19.632, _TORCHVISION,
        top1=72.376, peer="torchvision.vgg19", bench="vgg19",
    ),
    Row(
        "vgg11(norm=True)", partial(vgg.vgg11, norm=True), _224, 132_868_840, 7_609_090_048,
        "Simonyan, Zisserman 2014", 7.609, _TORCHVISION,
    ),
    Row(
        "vgg13(norm=True)", partial(vgg.vgg13, norm=True), _224, 133_053_736, 11_308_466_176,
        "Simonyan, Zisserman 2014", 11.308, _TORCHVISION,
    ),
    Row(
        "vgg16(norm=True)", partial(vgg.vgg16, norm=True), _224, 138_365_992, 15_470_264_320,
        "Simonyan, Zisserman 2014", 15.47, _TORCHVISION,
    ),
    Row(
        "vgg19(norm=True)", partial(vgg.vgg19, norm=True), _224, 143_678_248, 19_632_062_464,
        "Simonyan, Zisserman 2014", 19.632, _TORCHVISION,
    ),
    Row("googlenet()", googlenet.googlenet, _224, 13_378_280, 1_582_671_872, "Szegedy et al. 2014"),
    Row(
        "googlenet(aux=False)", partial(googlenet.googlenet, aux=False), _224, 6_998_552, 1_582_671_872,
        "Szegedy et al. 2014",
    ),
    Row("googlenet_bn()", googlenet.googlenet_bn, _224, 13_004_888, 1_498_376_192, "torchvision", 1.498, _TORCHVISION),
    Row(
        "googlenet_bn(aux=False)", partial(googlenet.googlenet_bn, aux=False), _224, 6_624_904, 1_498_376_192,
        "torchvision", 1.498, _TORCHVISION, top1=69.778, peer="torchvision.googlenet", bench="googlenet",
    ),
    Row(
        "bn_inception()", inception.bn_inception, _224, 11_188_288, 1_934_857_216, "Ioffe, Szegedy 2015",
        bench="bn_inception",
    ),
    Row(
        "bn_inception(separable=False)", partial(inception.bn_inception, separable=False), _224, 11_194_984,
        2_018_851_840, "Ioffe, Szegedy 2015",
    ),
    Row(
        "inception_v3()", inception.inception_v3, _299, 27_161_264, 5_713_216_096, "Szegedy et al. 2015", 5.713,
        _TORCHVISION,
    ),
    Row(
        "inception_v3(aux=False)", partial(inception.inception_v3, aux=False), _299, 23_834_568, 5_713_216_096,
        "Szegedy et al. 2015", 5.713, _TORCHVISION, top1=77.294, peer="torchvision.inception_v3", bench="inception_v3",
    ),
    Row(
        "inception_v4()", inception_v4.inception_v4, _299, 42_679_816, 12_253_974_624, "Szegedy et al. 2016", 12.28,
        _TIMM, top1=80.144, peer="timm.inception_v4", bench="inception_v4",
    ),
    Row("prelunet_a()", prelunet.prelunet_a, _224, 178_032_072, 19_058_106_368, "He et al. 2015a", bench="prelunet_a"),
    Row("prelunet_b()", prelunet.prelunet_b, _224, 183_343_048, 23_219_904_512, "He et al. 2015a"),
    Row("prelunet_c()", prelunet.prelunet_c, _224, 330_623_944, 53_463_130_112, "He et al. 2015a"),
    Row(
        "resnet18()", resnet.resnet18, _224, 11_689_512, 1_814_073_344, "He et al. 2015b", 1.814, _TORCHVISION,
        top1=69.758, peer="torchvision.resnet18", bench="resnet18",
    ),
    Row(
        "resnet34()", resnet.resnet34, _224, 21_797_672, 3_663_761_408, "He et al. 2015b", 3.664, _TORCHVISION,
        top1=73.314, peer="torchvision.resnet34", bench="resnet34",
    ),
    Row(
        "resnet50()", resnet.resnet50, _224, 25_557_032, 4_089_184_256, "He et al. 2015b", 4.089, _TORCHVISION,
        top1=76.13, peer="torchvision.resnet50", bench="resnet50",
    ),
    Row(
        "resnet101()", resnet.resnet101, _224, 44_549_160, 7_801_405_440, "He et al. 2015b", 7.801, _TORCHVISION,
        top1=77.374, peer="torchvision.resnet101", bench="resnet101",
    ),
    Row(
        "resnet152()", resnet.resnet152, _224, 60_192_808, 11_513_626_624, "He et al. 2015b", 11.514, _TORCHVISION,
        top1=78.312, peer="torchvision.resnet152", bench="resnet152",
    ),
    Row(
        'resnet34(shortcut="A")', partial(resnet.resnet34, shortcut="A"), _224, 21_623_848, 3_644_493_824,
        "He et al. 2015b",
    ),
    Row(
        'resnet34(shortcut="C")', partial(resnet.resnet34, shortcut="C"), _224, 22_716_840, 3_830_747_136,
        "He et al. 2015b",
    ),
    Row("plain18()", resnet.plain18, _224, 11_515_688, 1_794_805_760, "He et al. 2015b"),
    # With the strides of the paper, whose table has 3.8 for 50 layers: 1.5 % less
    Row("plain34()", resnet.plain34, _224, 21_623_848, 3_644_493_824, "He et al. 2015b"),
    Row(
        'resnet50(stride_at="1x1")', partial(resnet.resnet50, stride_at="1x1"), _224, 25_557_032, 3_857_973_248,
        "He et al. 2015b",
    ),
    Row(
        'resnet101(stride_at="1x1")', partial(resnet.resnet101, stride_at="1x1"), _224, 44_549_160, 7_570_194_432,
        "He et al. 2015b", 7.6, _HE,
    ),
    Row(
        'resnet152(stride_at="1x1")', partial(resnet.resnet152, stride_at="1x1"), _224, 60_192_808, 11_282_415_616,
        "He et al. 2015b", 11.3, _HE,
    ),
    Row(
        "densenet121()", densenet.densenet121, _224, 7_978_856, 2_834_161_664, "Huang et al. 2016", 2.834,
        _TORCHVISION, top1=74.434, peer="torchvision.densenet121", bench="densenet121",
    ),
    Row(
        "densenet161()", densenet.densenet161, _224, 28_681_000, 7_727_907_072, "Huang et al. 2016", 7.728,
        _TORCHVISION,
    ),
    Row(
        "densenet169()", densenet.densenet169, _224, 14_149_480, 3_359_843_328, "Huang et al. 2016", 3.36, _TORCHVISION,
    ),
    Row(
        "densenet201()", densenet.densenet201, _224, 20_013_928, 4_291_365_888, "Huang et al. 2016", 4.291,
        _TORCHVISION,
    ),
    Row(
        "squeezenet1_0()", squeezenet.squeezenet1_0, _224, 1_248_424, 818_924_576, "Iandola et al. 2016", 0.819,
        _TORCHVISION, top1=58.092, peer="torchvision.squeezenet1_0", bench="squeezenet1_0",
    ),
    Row(
        "squeezenet1_1()", squeezenet.squeezenet1_1, _224, 1_235_496, 349_151_936, "Iandola et al. 2016", 0.349,
        _TORCHVISION, top1=58.178, peer="torchvision.squeezenet1_1", bench="squeezenet1_1",
    ),
    Row("enet()", enet.enet, _512, 363_999, 1_965_228_032, "Paszke et al. 2016"),
    Row(
        "enet_classifier()", enet.enet_classifier, _224, 466_519, 311_206_656, "the encoder of ENet; the head is ours",
        top1=68.0, bench="enet",
    ),
    Row("vit_ti16()", vit.vit_ti16, _224, 5_717_416, 1_253_683_200, "Touvron et al. 2020"),
    Row(
        "vit_s16()", vit.vit_s16, _224, 22_050_664, 4_598_882_304, "Touvron et al. 2020", top1=78.842,
        peer="timm.vit_small_patch16_224", bench="vit_s16",
    ),
    Row(
        "vit_b16()", vit.vit_b16, _224, 86_567_656, 17_563_828_224, "Dosovitskiy et al. 2020", 17.564, _TORCHVISION,
        top1=81.072, peer="torchvision.vit_b_16", bench="vit_b16",
    ),
    Row("vit_l16()", vit.vit_l16, _224, 304_326_632, 61_554_712_576, "Dosovitskiy et al. 2020"),
    Row("vit_cifar()", vit.vit_cifar, _CIFAR, 2_693_578, 182_849_664, "the size is ours"),
    Row("Seq2Seq()", seq2seq.Seq2Seq, _PAIR, 80_443_000, None, "Bahdanau et al. 2014"),
    Row("transformer_base()", transformer.transformer_base, _PAIR, 63_082_496, None, "Vaswani et al. 2017"),
    Row("transformer_big()", transformer.transformer_big, _PAIR, 214_245_376, None, "Vaswani et al. 2017"),
    Row("bert_base()", bert.bert_base, _TEXT, 109_482_240, None, "Devlin et al. 2018"),
    Row("bert_large()", bert.bert_large, _TEXT, 335_141_888, None, "Devlin et al. 2018"),
    Row(
        "BertMaskedLM(bert_large().config)", partial(bert.BertMaskedLM, bert.bert_large().config), _TEXT, 335_174_458,
        None, "Devlin et al. 2018",
    ),
    Row("BertMaskedLM()", bert.BertMaskedLM, _TEXT, 109_514_298, None, "Devlin et al. 2018"),
    Row("gpt2()", gpt.gpt2, _TEXT, 124_439_808, None, "Radford et al. 2019"),
    Row("gpt2_medium()", gpt.gpt2_medium, _TEXT, 354_823_168, None, "Radford et al. 2019"),
    Row("gpt2_large()", gpt.gpt2_large, _TEXT, 774_030_080, None, "Radford et al. 2019"),
    Row("gpt2_xl()", gpt.gpt2_xl, _TEXT, 1_557_611_200, None, "Radford et al. 2019"),
    Row(
        "modern()", gpt.modern, _TEXT, 50_257 * 768 + 12 * (768 * (20 * 64 + 768 + 3 * 2048 + 2) + 2 * 64) + 768, None,
        "GPT-2 with the parts of today",
    ),
)
# fmt: on


def markdown() -> str:
    """The table for the README: for each file, its first row, what its docstring says, and its other constructors."""
    lines = ["| model | parameters | million MACs | | also |", "|---|---|---|---|---|"]
    for module in dict.fromkeys(row.module for row in TABLE):
        first, *rest = [row for row in TABLE if row.module == module]
        about = (sys.modules[module].__doc__ or "").splitlines()[0]
        constructors = dict.fromkeys(row.name.partition("(")[0] for row in rest)
        also = ", ".join(f"`{name}`" for name in constructors if name != first.name.partition("(")[0])
        macs = "" if first.macs is None else f"{first.macs / 1e6:,.{0 if first.macs > 1e8 else 2}f}"
        lines.append(f"| `{module}.{first.name}` | {first.parameters:,} | {macs} | {about} | {also} |")
    return "\n".join(lines) + "\n"
