"""Residual networks and AlexNet learn ImageNet, or photographs in a folder for each class.

Claim: by ten crops, ResNet-50 errs on 22.85 % of ImageNet's validation set, and on 6.71 % with five answers (table 3);
AlexNet, one network, on 40.7 % and 18.2 % (table 2).

Sources: He, Zhang, Ren, Sun 2015, https://arxiv.org/abs/1512.03385, section 3.4; Krizhevsky, Sutskever, Hinton 2012,
https://papers.nips.cc/paper/4824, sections 4 and 5. Both divided the rate by ten when the error stopped falling; here
it is at equal distances, for ResNets after each third of 90 epochs: Goyal et al. 2017, https://arxiv.org/abs/1706.02677,
whose are `--crop area --color 0` and, with large batches, `--warmup 5`, too. Blocks have their stride in the 3x3
convolution, as in published weights; from AlexNet's pixels the mean of each channel is taken, not that of each place.

Expect: 17.50 % validation error on scikit-learn's digits, small pictures that say nothing about the claim, with
`--dataset digits32 --model resnet8 --epochs 20 --batch 64`, in a minute on two cores; ImageNet was not tried.

    python -m experiments.imagenet.train --mesh data=8 --dtype bfloat16 --workers 32
    python -m experiments.imagenet.train --model alexnet --drops 3
    python -m experiments.imagenet.train --dataset imagenette --model resnet18
    python -m experiments.imagenet.train --images FOLDER    FOLDER/<class>/*, or FOLDER/train/... and FOLDER/val/...
    python -m experiments.imagenet.train --weights FILE     evaluates torchvision's weights of a ResNet, or a run's
"""

import contextlib
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import optax

from dlc import augment, classify, convert, optim, sharding, train, views
from dlc.config import not_negative, only, positive
from dlc.data import imagenet, pictures, stream
from dlc.errors import UserError
from dlc.launch import launch
from dlc.models import alexnet, resnet, resnet_cifar
from dlc.run import Run


class Recipe(NamedTuple):  # what the papers differ in
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
    dataset: Literal["imagenet2012", "imagenette", "digits32"] = "imagenet2012"
    images: Path | None = None  # a folder of your own instead
    model: Literal[*RECIPES] = "resnet50"
    weights: Path | None = None  # evaluate these instead of training
    epochs: int = 90
    drops: int = 2  # times that the rate is divided by ten; three in AlexNet's paper
    warmup: int = 0  # epochs in which the rate rises
    batch: int | None = None  # this, the next two, the crop and the size are the paper's unless given
    lr: float | None = None
    weight_decay: float | None = None
    crop: stream.How | None = None
    size: int | None = None
    color: float = 0.1  # strength of the noise added to the colours
    crops: Literal[1, 10] = 10  # of an image, in the last evaluation; those before it take the one in the middle
    mesh: str = "data=1"  # devices that share each batch, of which batch norm has the statistics, all of it
    workers: int = 0  # processes that decode, and as many for evaluation; 0: threads of this one
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights and statistics are float32

    def __post_init__(self) -> None:
        given = [name for name in ("batch", "lr", "weight_decay", "size") if getattr(self, name) is not None]
        positive(self, "epochs", *given)
        not_negative(self, "drops", "warmup", "color", "workers", "seed")
        if self.weights:
            only(self, "--weights", *"weights dataset images model batch size crops mesh workers dtype".split())
        if self.images and self.dataset != Config.dataset:
            raise UserError("--images and --dataset are two sets: give one of them")


SMOKE = Config("digits32", model="resnet8", epochs=2, batch=64, crops=1)


def main(config: Config, run: Run) -> dict:
    recipe = RECIPES[config.model]
    recipe = recipe._replace(**{k: v for k, v in vars(config).items() if k in recipe._fields and v is not None})
    found = pictures.folder(config.images) if config.images else pictures.load(config.dataset)
    run.facts |= {"dataset": found.name, "source": found.source}
    run.text("classes", "\n".join(found.classes))
    model, devices = recipe.network(num_classes=len(found.classes), dtype=config.dtype), sharding.mesh(config.mesh)
    sharding.fits(recipe.batch, devices)
    common = {"batch": recipe.batch, "workers": config.workers, "sharding": sharding.split(devices, axis=1)}
    part, side = partial(stream.random_part, how=recipe.crop, size=recipe.size), round(recipe.size * stream.WHOLE)
    learn = stream.Batches(found.train, part, seed=config.seed, **common)
    held = stream.Batches(found.validation, partial(stream.centre, side=side), **common)
    prepare = augment.standardise(np.array(imagenet.MEAN), recipe.std)

    @cache
    def evaluation(crops: Literal[1, 10]) -> Any:
        def forward(variables: Any, images: Any) -> Any:
            return views.over_crops(lambda crop: model.apply(variables, prepare(crop)), images, recipe.size, crops)

        return classify.evaluation(run, forward, held, found.classes)

    with contextlib.closing(learn), contextlib.closing(held):
        if config.weights:
            variables = sharding.kept(convert.load_state_dict(config.weights, model), devices)
        else:
            colors = augment.color_components(stream.some_pixels(found.train)) / recipe.std
            epoch, usual = train.steps_per_epoch(learn.examples, recipe.batch), RECIPES[config.model].lr
            rate = optim.drops(recipe.lr, config.epochs * epoch, config.drops, config.warmup * epoch, usual)
            tx: optax.GradientTransformation = optim.papers_momentum(rate, 0.9, recipe.weight_decay)
            variables = classify.fit_stream(
                run, model, tx, learn, evaluation(1),
                prepare=prepare, augment=partial(augment.color_noise, components=colors, strength=config.color),
                epochs=config.epochs, devices=devices, seed=config.seed,
            )  # fmt: skip
        measured = run.timed("evaluate", evaluation(config.crops), variables)
    if run.folder and not config.weights and config.model not in ("alexnet_bn", "resnet8"):  # a form for --weights
        convert.save_state_dict(run.folder / "weights.safetensors", model, variables)
    return {f"validation_{name}": measured[name] for name in ("error", "top5_error")}


if __name__ == "__main__":
    launch(main, Config(), SMOKE)
