"""The networks whose weights for ImageNet torchvision and timm publish, and how photographs are prepared for them."""

from functools import partial

from dlc.data.imagenet import Rule
from dlc.models.alexnet import alexnet_2014
from dlc.models.densenet import densenet121
from dlc.models.googlenet import googlenet_bn
from dlc.models.inception import inception_v3
from dlc.models.inception_v4 import inception_v4
from dlc.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from dlc.models.squeezenet import squeezenet1_0, squeezenet1_1
from dlc.models.vgg import vgg11, vgg13, vgg16, vgg19

NETWORKS = {
    "alexnet": alexnet_2014, "squeezenet1_0": squeezenet1_0, "squeezenet1_1": squeezenet1_1,
    "vgg11": vgg11, "vgg13": vgg13, "vgg16": vgg16, "vgg19": vgg19,
    "vgg11_bn": partial(vgg11, norm=True), "vgg13_bn": partial(vgg13, norm=True),
    "vgg16_bn": partial(vgg16, norm=True), "vgg19_bn": partial(vgg19, norm=True),
    "googlenet": partial(googlenet_bn, aux=False), "inception_v3": partial(inception_v3, aux=False),
    "inception_v4": inception_v4, "densenet121": densenet121,
    "resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101, "resnet152": resnet152,
}  # fmt: skip

# Some weights expect [-1, 1]; torchvision's GoogLeNet and Inception-v3 convert to it first.
CENTRED = Rule(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
RULES = {
    "googlenet": CENTRED, "inception_v3": CENTRED._replace(resize=342, crop=299),
    "inception_v4": CENTRED._replace(resize=341, crop=299, smooth="bicubic"),
}  # fmt: skip
