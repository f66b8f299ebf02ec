"""Residual networks and AlexNet learn ImageNet, or photographs in a folder for each class.

Claim (imagenet2012): by ten crops, ResNet-50 errs on 22.85 % of ImageNet's validation set, and on 6.71 % with five
answers (table 3); AlexNet, one network, on 40.7 % and 18.2 % (table 2).

Sources: He et al. 2015, https://arxiv.org/abs/1512.03385, section 3.4; Krizhevsky et al. 2012,
https://papers.nips.cc/paper/4824, sections 4 and 5. Both divide the rate by ten when the error stops falling; here the
drops are equally spaced, as in Goyal et al. 2017, https://arxiv.org/abs/1706.02677 (`--crop area --color 0`, and
five epochs of `--warmup 0.056` for large batches). Strides are in the 3x3 convolutions, as in published weights, and
AlexNet's pixels lose the mean of their channel, not that of their place.

Expect: 41.26 % validation error on CIFAR-10 as JPEG files, after `--model resnet8 --epochs 2 --batch 128 --crop fixed
--color 0 --crops 1`, in five minutes on two cores: this says nothing about the claim. ImageNet was not tried.

    python -m experiments.imagenet.train --mesh data=8 --dtype bfloat16 --workers 32
    python -m experiments.imagenet.train --model alexnet --drops 3
    python -m experiments.imagenet.train --dataset imagenette --model resnet18
    python -m experiments.imagenet.train --images FOLDER    FOLDER/<class>/*, or FOLDER/train/... and FOLDER/val/...
    python -m experiments.imagenet.train --weights FILE     evaluates torchvision's weights of --model, or a run's
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dlc import augment, batches, optim, sharding
from dlc.data import imagenet, stream
from dlc.errors import UserError
from dlc.models import alexnet, resnet, resnet_cifar
from dlc.prepare import color_components, standardise
from dlc.run.flags import Free, NotNegative, Positive, Share, Shown
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import images


class Recipe(NamedTuple):  # the settings in which the papers differ
    network: Any
    batch: int = 256
    lr: float = 0.1
    weight_decay: float = 1e-4  # of all weights
    crop: stream.How = "scale"
    size: int = 224
    std: Any = np.array(imagenet.STD)


KRIZHEVSKY = {"batch": 128, "lr": 0.01, "weight_decay": 5e-4, "crop": "fixed"}
RECIPES = {
    "resnet18": Recipe(resnet.resnet18), "resnet34": Recipe(resnet.resnet34), "plain34": Recipe(resnet.plain34),
    "resnet50": Recipe(resnet.resnet50), "resnet101": Recipe(resnet.resnet101), "resnet152": Recipe(resnet.resnet152),
    "alexnet": Recipe(alexnet.alexnet, **KRIZHEVSKY, size=227, std=1 / 255),  # it begins with weights for 0 to 255
    "alexnet_bn": Recipe(alexnet.alexnet_bn, **KRIZHEVSKY),
    "resnet8": Recipe(partial(resnet_cifar.cifar_resnet, 8), size=32),  # for small pictures, in a minute
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    dataset: Shown[Literal["imagenet2012", "imagenette", "digits32"]] = "imagenet2012"  # the data set
    images: Shown[Path | None] = None  # a folder of your own instead
    model: Shown[Literal[*RECIPES]] = "resnet50"  # the network
    epochs: Positive[int] = 90  # passes over the training set
    drops: NotNegative[int] = 2  # how often the rate is divided by ten; three in AlexNet's paper
    warmup: Share = 0.0  # share of the steps before the rate is highest
    batch: Shown[Positive[int] | None] = None  # examples in a batch; this and the next four are the paper's by default
    lr: Positive[float] | None = None  # the highest learning rate
    weight_decay: NotNegative[float] | None = None  # share of each weight lost in a step, divided by lr
    crop: stream.How | None = None  # how the part of a picture that is trained on is chosen
    size: Shown[Positive[int] | None] = None  # of that part, in pixels
    color: NotNegative[float] = 0.1  # strength of the noise added to the colours
    crops: Shown[Literal[1, 10]] = 10  # of an image, in the last evaluation; those before it take the one in the middle
    accumulate: Positive[int] = 1  # parts of a batch, computed one after another; with as much memory as one needs
    remat: Free[bool] = False  # compute activations again in the backward pass instead of keeping them; not of AlexNet
    workers: Shown[Free[NotNegative[int]]] = 0  # processes that decode, and as many to evaluate; 0: threads of this one
    seed: NotNegative[int] = 0  # of all random numbers
    dtype: Shown[Literal["float32", "bfloat16"]] = "float32"  # of the computation; weights and statistics are float32


SMOKE = Config("digits32", model="resnet8", epochs=2, batch=64, crops=1)


def recipe_of(config: Config) -> Recipe:
    """The paper's settings, and the flags that replace them."""
    recipe = RECIPES[config.model]
    return recipe._replace(**{k: v for k, v in vars(config).items() if k in recipe._fields and v is not None})


def problem(config: Config, run: Run, model: Any = None) -> AbstractContextManager[images.Pictures]:
    """The pictures in batches, and the model that learns them or is shown."""
    if config.images and config.dataset != Config.dataset:
        raise UserError("--images and --dataset are two sets: give one of them")
    recipe = recipe_of(config)
    reading = images.Reading(recipe.batch, run.mesh, config.workers, config.seed, config.accumulate)
    found = images.find(run, config.dataset, config.images)
    prepare = standardise(np.array(imagenet.MEAN), recipe.std)
    model = model or recipe.network(num_classes=len(found.classes), dtype=config.dtype)
    if config.remat and not hasattr(model, "remat"):
        raise UserError(f"{config.model} has too few layers to compute them again: leave out --remat")
    model = model.clone(remat=True) if config.remat else model
    return images.opened(found, model, prepare, recipe.crop, recipe.size, reading)


def train(config: Config, run: Run) -> dict:
    recipe = recipe_of(config)
    with problem(config, run) as task:
        colors = color_components(stream.some_pixels(task.found.train)) / recipe.std
        change = partial(augment.color_noise, components=colors, strength=config.color)
        steps = config.epochs * batches.steps_per_epoch(task.learn.examples, recipe.batch)
        rate = optim.drops(recipe.lr, steps, config.drops, round(config.warmup * steps), RECIPES[config.model].lr)
        tx = optim.papers_momentum(rate, 0.9, recipe.weight_decay)
        variables = images.fit_stream(run, task, tx, change, config.epochs, config.seed, rate)
        return images.validate(run, task, variables, config.crops)


def show(config: Config, run: Run, model: Any, variables: dict) -> dict:
    with problem(config, run, model.clone(dtype=config.dtype)) as task:
        return images.validate(run, task, sharding.kept(variables, run.mesh) if run.mesh else variables, config.crops)


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show, lambda c: RECIPES[c.model].network(dtype=c.dtype), parallel=True)
