"""What is on a photograph? The five best of 1,000 answers, by a network of the decade with published weights.

Claim: a network that has learnt 1,000 classes from photographs names what is on one that it has not seen.

Source: Russakovsky et al. 2015, "ImageNet large scale visual recognition challenge". For 92.9 % of its validation
images one of ResNet-50's five best answers is right (torchvision, resnet50-0676ba61.pth). Photographs are resized and
cropped as those weights were evaluated; torchvision's newer ones (IMAGENET1K_V2) expect `--resize 232`.

Expect: names and probabilities on the terminal and in answers.txt, and a figure of them, in a few seconds on a CPU.
The smallest weights, 0.7 MB, are in https://github.com/songhan/SqueezeNet-Deep-Compression; others are in
https://pytorch.org/vision/stable/models.html and https://huggingface.co/timm. Only a *.pth needs PyTorch.

    python -m experiments.imagenet.classify --weights compressed_SqueezeNet.net dog.jpg cat.jpg
    python -m experiments.imagenet.classify --model resnet50 --weights resnet50-0676ba61.pth dog.jpg cat.jpg
    python -m experiments.imagenet.classify --weights RUN --classes RUN/classes.txt dog.jpg
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tyro.conf import Positional

from dlc.data import imagenet, images
from dlc.errors import UserError, printable
from dlc.run import plot
from dlc.run.flags import Positive, Shown
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.weights.imagenet import NETWORKS, RULES

DRAWN = 12  # photographs in the figure, at most


@dataclass(frozen=True)
class Config:
    photographs: Shown[Positional[tuple[Path, ...]]] = ()  # photographs
    model: Shown[Literal[*NETWORKS]] = "resnet50"  # the network; of published weights that do not know theirs
    classes: Shown[Path | None] = None  # names of other classes than ImageNet's, one a line
    resize: Shown[Positive[int] | None] = None  # the shorter side before the crop; by default the model's own
    made_up: bool = False  # random weights and, unless photographs are given, a picture of coloured squares


SMOKE = Config(model="squeezenet1_1", made_up=True)


def published(config: Config) -> Any:
    return NETWORKS[config.model]()


def rule_of(config: Config) -> imagenet.Rule:
    rule = RULES.get(config.model, imagenet.Rule())
    if config.resize and config.resize < rule.crop:
        raise UserError(f"--resize {config.resize} is less than {rule.crop}, the side of what {config.model} looks at")
    return rule._replace(resize=config.resize or rule.resize)


def made_up(config: Config, run: Run) -> dict:
    """Without --weights: random ones, if that was asked for."""
    if run.init_from:
        raise UserError("this experiment does not train: give --weights instead of --init-from")
    if not config.made_up:
        where = f"https://{'huggingface.co/timm' if 'v4' in config.model else 'pytorch.org/vision/stable/models.html'}"
        raise UserError(f"{config.model} needs published weights: download some from {where} and give --weights FILE")
    run.facts["claim"] = None  # random weights have not learnt anything
    squares = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    variables = jax.jit(published(config).init)(jax.random.key(0), np.zeros((1, *[rule_of(config).crop] * 2, 3)))
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(squares.repeat(40, 0).repeat(40, 1)).save(picture := Path(folder, "squares.png"))
        return show(replace(config, photographs=config.photographs or (picture,)), run, published(config), variables)


def show(config: Config, run: Run, model: Any, variables: dict) -> dict:
    if not config.photographs:
        raise UserError("there is nothing to look at: name the file of at least one photograph")
    squares = np.stack([imagenet.square(images.decode(path), rule_of(config)) for path in config.photographs])
    prepared = imagenet.standardised(squares, rule_of(config))[:, None]  # batches of one

    def probabilities(variables: Any, image: Any) -> Any:
        return jax.nn.softmax(model.apply(variables, image)[0])

    names = imagenet.names(config.classes) if config.classes else imagenet.classes()
    count = jax.eval_shape(probabilities, variables, prepared[0]).shape[0]
    if count != len(names):
        known = f"{config.classes or 'ImageNet'} has {len(names):,}"
        raise UserError(f"the weights are for {count:,} classes, and {known}: name each in a line of --classes FILE")
    predict = run.clock.compiled(probabilities, variables, prepared[0])
    every = np.stack([run.clock.timed("predict", predict, variables, image) for image in prepared])
    best = np.argsort(-every, axis=-1, kind="stable")[:, :5]
    likely, named = np.take_along_axis(every, best, axis=-1), [[names[k] for k in places] for places in best]
    lines, paths = [], [printable(str(path)) for path in config.photographs]
    for path, answers, shares in zip(paths, named, likely, strict=True):
        lines += [path, *(f"{share:8.1%}  {name}" for name, share in zip(answers, shares, strict=True)), ""]
    print(*map(printable, lines), sep="\n")
    run.text("answers", "\n".join(lines))
    run.figure("answers", beside_answers(squares[:DRAWN], paths[:DRAWN], named[:DRAWN], likely[:DRAWN]))
    return {"images": len(squares), "probability_of_the_first": float(likely[:, 0].mean())}


def beside_answers(squares: np.ndarray, paths: list[str], names: list[list[str]], likely: np.ndarray) -> Figure:
    """Images [N, H, W, 3] (uint8), and beside each a bar for each of its `names`, as long as it is `likely` [N, K]."""
    figure = plot.canvas(6.4, 1.8 * len(squares))
    axes = figure.subplots(len(squares), 2, squeeze=False, width_ratios=(1, 2.4))
    for (left, right), image, path, labels, values in zip(axes, squares, paths, names, likely, strict=True):
        left.imshow(image)
        left.set_axis_off()
        places = np.arange(len(labels))[::-1]
        right.barh(places, values, color=plot.ACCENT, height=0.35)
        for place, label, value in zip(places, labels, values, strict=True):
            text = f"{plot.written(label, 3.2)}  {value:.1%}"
            right.text(0, place + 0.2, text, fontsize=plot.SMALL, color=plot.INK, va="bottom")
        right.set(xlim=(0, 1), ylim=(-0.5, len(labels)), xticks=(), yticks=())
        right.set_title(plot.written(Path(path).name, 3.8), fontsize=plot.SMALL, loc="left", color=plot.INK)
        right.spines[:].set_visible(False)
    return figure


if __name__ == "__main__":
    launch(made_up, Config(), SMOKE, show, published)
