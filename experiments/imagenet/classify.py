"""What is on a photograph? The five best of 1,000 answers, by a network of the decade with published weights.

Claim: trained on 1.2 million photographs of 1,000 classes, a network names what is on one that it has not seen: of
ResNet-50's five best answers one is right for 92.9 % of ImageNet's validation images.

Source: Russakovsky et al. 2015, "ImageNet large scale visual recognition challenge", for the classes and the rule of
five answers; the figure is torchvision's, for the weights resnet50-0676ba61.pth. Photographs are resized and cropped as
each model's weights were evaluated; torchvision's newer ones (IMAGENET1K_V2) want `--resize 232`.

Expect: names and probabilities on the terminal and in answers.txt, and a picture of them; a few seconds on a CPU.
Weights are not fetched: torchvision's documentation, https://pytorch.org/vision/stable/models.html, and
https://huggingface.co/timm link the files. A *.pth needs PyTorch installed, a *.safetensors does not.

    python -m experiments.imagenet.classify --model resnet50 --weights resnet50-0676ba61.pth dog.jpg cat.jpg
    python -m experiments.imagenet.classify --model vgg16 --weights mine.safetensors --classes names.txt dog.jpg
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from PIL import Image
from tyro.conf import Positional

from dlc import plot, weights
from dlc.config import only, positive
from dlc.data import imagenet, images
from dlc.errors import UserError
from dlc.launch import launch
from dlc.models.alexnet import alexnet_2014
from dlc.models.densenet import densenet121
from dlc.models.googlenet import googlenet_bn
from dlc.models.inception import inception_v3
from dlc.models.inception_v4 import inception_v4
from dlc.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from dlc.models.squeezenet import squeezenet1_0, squeezenet1_1
from dlc.models.vgg import vgg11, vgg13, vgg16, vgg19
from dlc.run import Run

MODELS = {
    "alexnet": alexnet_2014, "squeezenet1_0": squeezenet1_0, "squeezenet1_1": squeezenet1_1,
    "vgg11": vgg11, "vgg13": vgg13, "vgg16": vgg16, "vgg19": vgg19,
    "vgg11_bn": partial(vgg11, norm=True), "vgg13_bn": partial(vgg13, norm=True),
    "vgg16_bn": partial(vgg16, norm=True), "vgg19_bn": partial(vgg19, norm=True),
    "googlenet": partial(googlenet_bn, aux=False), "inception_v3": partial(inception_v3, aux=False),
    "inception_v4": inception_v4, "densenet121": densenet121,
    "resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101, "resnet152": resnet152,
}  # fmt: skip
SHOWN = 12  # so many photographs, at most, in the figure
# Weights that want [-1, 1]; torchvision's GoogLeNet and Inception-v3 begin by changing to it.
CENTRED = imagenet.Rule(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
RULES = {
    "googlenet": CENTRED, "inception_v3": CENTRED._replace(resize=342, crop=299),
    "inception_v4": CENTRED._replace(resize=341, crop=299, smooth="bicubic"),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    images: Positional[tuple[Path, ...]] = ()  # photographs
    model: Literal[*MODELS] = "resnet50"
    weights: Path | None = None  # a file of torchvision's or timm's for this model, *.safetensors or *.pth
    classes: Path | None = None  # names of other classes than ImageNet's, one a line
    resize: int | None = None  # the shorter side, before the crop, if not as the model's first weights want it
    made_up: bool = False  # random weights and a picture of coloured squares: shows the program, not what it can do

    def __post_init__(self) -> None:
        if self.resize is not None:
            positive(self, "resize")
        if self.made_up:
            only(self, "--made-up", "made_up", "model", "resize")


SMOKE = Config(model="squeezenet1_1", made_up=True)


def main(config: Config, run: Run) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        return answer(made_up(config, Path(folder)) if config.made_up else config, run)


def answer(config: Config, run: Run) -> dict:
    if not config.images:
        raise UserError("there is nothing to look at: name the file of at least one photograph")
    if not config.weights:
        raise UserError(
            f"{config.model} needs published weights: fetch those that https://pytorch.org/vision/stable/models.html "
            "(for Inception-v4 https://huggingface.co/timm) links, and name the file with --weights"
        )
    rule = RULES.get(config.model, imagenet.Rule())
    rule = rule._replace(resize=config.resize or rule.resize)
    squares = np.stack([imagenet.square(images.decode(path), rule) for path in config.images])
    names = imagenet.names(config.classes) if config.classes else imagenet.classes()
    if (count := weights.published_classes(config.weights, MODELS[config.model]())) != len(names):
        known = f"{config.classes or 'ImageNet'} has {len(names):,}: name each in a line of a file, --classes FILE"
        raise UserError(f"{config.weights} is for {count:,} classes, and {known}")
    model = MODELS[config.model](num_classes=count)
    variables = run.timed("load", weights.load_state_dict, config.weights, model)

    def probabilities(variables: Any, image: Any) -> Any:
        return jax.nn.softmax(model.apply(variables, image)[0])

    prepared = imagenet.standardised(squares, rule)[:, None]  # batches of one
    predict = run.compiled(probabilities, variables, prepared[0])
    every = np.stack([run.timed("predict", predict, variables, image) for image in prepared])
    best = np.argsort(-every, axis=-1, kind="stable")[:, :5]
    likely, named = np.take_along_axis(every, best, axis=-1), [[names[k] for k in places] for places in best]
    lines, titles = [], [path.name for path in config.images]
    for path, answers, shares in zip(config.images, named, likely, strict=True):
        lines += [str(path), *(f"{share:8.1%}  {name}" for name, share in zip(answers, shares, strict=True)), ""]
    print(*lines, sep="\n")
    run.text("answers", "\n".join(lines))
    run.figure("answers", plot.answers(squares[:SHOWN], titles[:SHOWN], named[:SHOWN], likely[:SHOWN]))
    return {"images": len(squares), "probability_of_the_first": float(likely[:, 0].mean())}


def made_up(config: Config, folder: Path) -> Config:
    """The configuration with a picture and weights that were written to `folder`."""
    squares = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(np.kron(squares, np.ones((40, 40, 1), np.uint8))).save(folder / "squares.png")
    model, side = MODELS[config.model](), RULES.get(config.model, imagenet.Rule()).crop
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, side, side, 3), np.float32))
    weights.save_state_dict(folder / "random.safetensors", model, variables)
    return dataclasses.replace(
        config, images=(folder / "squares.png",), weights=folder / "random.safetensors", made_up=False
    )


if __name__ == "__main__":
    launch(main, Config(), SMOKE)
