"""The content of one image in the style of another: pixels are optimised until a network's features say so.

Claim: from noise, at equal numbers of evaluations, L-BFGS leaves less of the loss than Adam and than gradient descent
do at the best of their rates.

Source: Gatys, Ecker, Bethge 2015, "A neural algorithm of artistic style": by L-BFGS; with VGG-19 (--weights
vgg19-dcbb9e9d.pth) from conv1_1 to conv5_1 and conv4_2. Both losses are relative, so that other networks can take its
place; the total variation is a third. Without a painting a made-up one is the style.

Expect: 0.182 of the loss by L-BFGS, 0.184 by Adam and 0.245 by descent, each with 204 evaluations (0.158, 0.167, 0.239
on a photograph); a minute on two CPU cores, and ten for a photograph.

    python -m experiments.insight.style
    python -m experiments.insight.style --weights compressed_SqueezeNet.net cat.png painting.jpg
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from tyro.conf import Positional

from dlc.analysis import features, saliency, style
from dlc.models.vgg import vgg19
from dlc.run import plot
from dlc.run.flags import NotNegative, Positive, Shown
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import subjects
from dlc.tasks.subjects import Subject


@dataclass(frozen=True)
class Config:
    photographs: Shown[Positional[tuple[Path, ...]]] = ()  # photographs; with --weights, instead of a data set
    dataset: Shown[subjects.Name] = "cifar10"  # the data set
    maps: Shown[tuple[str, ...]] = ()  # layers to look into; for the style, and by default the paper's in VGG-19
    content: Shown[str | None] = None  # the layer of the content; by default the paper's, or one in the middle
    weight: Shown[Positive[float]] = 10.0  # of the style's loss, beside that of the content
    smooth: Shown[NotNegative[float]] = 1.0  # weight of the total variation
    updates: Shown[Positive[int]] = 200  # updates of the pixels
    seed: Shown[NotNegative[int]] = 0  # of all random numbers


SMOKE = Config(dataset="digits32", updates=10)
PAPERS = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"), "conv4_2"  # layers of VGG-19
RATES = (0.3, 1.0, 3.0, 10.0, 30.0)  # of Adam and of gradient descent: the change of a pixel in the first update
CONTENTS = 4  # images of a data set that are drawn in the style


def train(config: Config, run: Run) -> dict:
    return look(config, run, subjects.asked(run, config))


def show(config: Config, run: Run, model: Any, variables: dict) -> dict:
    return look(config, run, subjects.asked(run, config, model, variables))


def look(config: Config, run: Run, subject: Subject) -> dict:
    several = len(config.photographs) > 1
    contents = (subject.image[:-1] if several else subject.image[:CONTENTS]).astype(np.float32)
    painted = subject.image[-1:] if several else style.painting(*subject.image.shape[2:])[None]
    chosen = layers(config, subject)
    start = 127.5 + 50 * jax.random.normal(jax.random.key(config.seed), contents.shape)

    def losses(variables, pixels, contents):
        of_content, of_style = style.losses(subject.apply, variables, painted, *chosen)(pixels, contents)
        return of_content, config.weight * of_style

    def by(name, method):
        def one(variables, pair):
            content, noise = (each[None] for each in pair)
            even = lambda pixels: config.smooth * style.variation(pixels)  # noqa: E731
            return method(lambda pixels: (sum(losses(variables, pixels, content)) + even(pixels))[0], noise)

        draw = jax.jit(lambda variables, pairs: jax.lax.map(partial(one, variables), pairs))
        return run.clock.timed("draw", draw, subject.variables, (contents, start))

    found = {"L-BFGS": by("L-BFGS", partial(style.lbfgs, updates=config.updates))}
    count, made = int(found["L-BFGS"].evaluations[:, -1].max()), found["L-BFGS"].pixels[:, 0]
    for name, method in {"Adam": style.adam, "descent": style.descend}.items():
        found[name] = by(name, partial(style.best_rate, method, updates=count, rates=RATES))
    run.figure("style", beside(contents, painted, np.clip(made, 0, 255), found))
    (content, drawn), (content_before, drawn_before) = (losses(subject.variables, x, contents) for x in (made, start))
    figures = {"images": len(contents), "evaluations": count}
    figures |= {"content_left": (content / content_before).mean(), "style_left": (drawn / drawn_before).mean()}
    left = {name: (each.losses[:, -1] / each.losses[:, 0]).mean() for name, each in found.items()}
    if left["L-BFGS"] >= min(left["Adam"], left["descent"]):
        run.miss("L-BFGS leaves no less of the loss than Adam or gradient descent")
    return figures | {f"left_by_{name}": value for name, value in left.items()}


def layers(config: Config, subject: Subject) -> tuple[list[str], str]:
    """The layers of the style, and that of the content."""
    known = saliency.maps(subject.apply, subject.variables, subject.image[:1])
    whole = [name for name in known if "/" not in name]
    maps, content = PAPERS if set(PAPERS[0]) <= set(known) else (whole[:-1], whole[len(whole) // 2])
    return [features.known(name, known) for name in config.maps or maps], features.known(
        config.content or content, known
    )


def beside(contents: Any, painted: Any, made: Any, found: dict) -> Figure:
    """Contents, the style, what is drawn of them, and the losses of three ways to draw it."""
    figure = plot.canvas(plot.WIDEST, 2.9)
    *axes, right = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.3))
    for axis, (name, images) in zip(axes, {"content": contents, "style": painted, "both": made}.items(), strict=True):
        axis.imshow(plot.mosaic(np.asarray(images), math.ceil(len(images) ** 0.5), 255))
        axis.set_title(name, fontsize=plot.SMALL)
        axis.set_axis_off()
    for (name, each), color in zip(found.items(), plot.COLORS, strict=False):
        right.loglog(each.evaluations.mean(0), (each.losses / each.losses[:, :1]).mean(0), color=color, label=name)
    right.set(xlabel="evaluations of the loss", ylabel="loss, of that of noise")
    right.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside upper right", ncols=3, fontsize=plot.SMALL)
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show, lambda config: vgg19())
