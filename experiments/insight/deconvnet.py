"""What has a unit of a network seen? The patches that excite it most, and what a deconvnet projects back from it.

Claim: without the tenth of its patch that the deconvnet projects most strongly, a unit keeps less of its activation
than without a random tenth.

Source: Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks", section 2.1 and figure 2: the
nine strongest patches of a feature map beside their projections. The check by deletion is not in the paper. What is
deleted becomes grey.

Expect: 0.51 of the activation in conv2 and 0.85 in conv1, beside 0.83 and 0.92 without a random tenth, and 0.95 and
0.97 without the strongest edges, over 144 units each; half a minute on two CPU cores.

    python -m experiments.insight.deconvnet
    python -m experiments.insight.deconvnet --weights compressed_SqueezeNet.net cat.png cup.png --maps fire4 fire8
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from tyro.conf import Positional

from dlc import train as steps
from dlc.analysis import features, saliency
from dlc.run import plot
from dlc.run.flags import NotNegative, Positive, Shown
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import subjects
from dlc.tasks.subjects import Subject


@dataclass(frozen=True)
class Config:
    photographs: Shown[Positional[tuple[Path, ...]]] = ()  # photographs; with --weights, instead of a data set
    dataset: Shown[subjects.Name] = "mnist"  # the data set
    maps: Shown[tuple[str, ...]] = ()  # layers to look into; by default the last two that return maps
    test_images: Shown[Positive[int]] = 2000  # test images that are looked at
    seed: Shown[NotNegative[int]] = 0  # of all random numbers


SMOKE = Config(dataset="digits", test_images=100)
MAPS, PATCHES = 16, 9  # feature maps of a layer, those with the strongest activations, and patches of each
DRAWN = 4  # feature maps of a layer in the figure
SHARE = 0.1  # of a patch that is deleted


def train(config: Config, run: Run) -> dict:
    return look(config, run, subjects.asked(run, config))


def show(config: Config, run: Run, model: Any, variables: dict) -> dict:
    return look(config, run, subjects.asked(run, config, model, variables))


def look(config: Config, run: Run, subject: Subject) -> dict:
    maps = saliency.maps(subject.apply, subject.variables, subject.image[:1])
    drawn, figures = {}, dict[str, Any]()
    for name in [features.known(name, maps) for name in config.maps] or maps[-2:]:
        run.doing(f"looking into {name}")
        forward = saliency.layer(subject.apply, name)
        found = excited(forward, subject.variables, subject.image[: config.test_images])
        look_back = steps.in_batches(partial(projected, forward, jax.random.key(config.seed)), found, 36)
        projection, inside, left = steps.compiled(look_back, donate=False)(subject.variables)
        drawn[name] = [saliency.cut(images, inside) for images in (found["image"], projection)]
        figures |= {f"{name}_left_without_{order}": values.mean() for order, values in left.items()}
        figures[f"{name}_units_left_with_less"] = (left["deconvnet"] < left["random"]).mean()
        if left["deconvnet"].mean() >= left["random"].mean():
            run.miss(f"what the deconvnet projects from {name} counts no more than random pixels")
    run.figure("deconvnet", beside(drawn, min(PATCHES, len(subject.image))))
    return figures


def excited(forward: Any, variables: dict, pixels: np.ndarray) -> dict:
    """The images that excite the strongest maps of a layer most, one map after the other, and the units in question."""
    search = steps.in_batches(lambda variables, pixels: saliency.strongest(forward(variables, pixels)), pixels, 50)
    values, units = map(np.asarray, steps.compiled(search, donate=False)(variables))
    best = np.argsort(-values, axis=0, kind="stable")[:PATCHES]
    channels = np.argsort(-np.take_along_axis(values, best, 0).mean(0), kind="stable")[:MAPS]
    rows = best[:, channels].T.ravel()
    return {"image": pixels[rows], "unit": units[rows, channels.repeat(len(best))]}


def projected(forward: Any, key: Any, variables: dict, batch: dict) -> tuple:
    """The projections of units, their receptive fields, and what is left of them without a share of those pixels."""
    pixels, score = batch["image"], saliency.of_unit(batch["unit"])
    projection = saliency.deconvnet(forward, variables, pixels, score)
    inside = saliency.field(forward, variables, pixels, score)
    orders = {
        "deconvnet": saliency.importance(projection, inside.shape[1:]),
        "edges": saliency.edges(pixels),
        "random": jax.random.uniform(key, inside.shape),
    }
    kept, share = {}, SHARE * inside.mean((1, 2))
    for name, order in orders.items():
        first = jnp.where(inside, order, -1)
        kept[name] = saliency.deletion(forward, variables, pixels, score, first, share[None])[:, 0]
    return projection, inside, kept


def beside(drawn: dict[str, list[np.ndarray]], patches: int) -> Figure:
    """For each layer and some of its maps: the strongest patches, and beside them what they are projected to."""
    figure = plot.canvas(plot.WIDEST, 0.4 + 1.3 * len(drawn))
    rows = figure.subplots(len(drawn), 2 * DRAWN, squeeze=False)
    for axes, (name, (images, projections)) in zip(rows, drawn.items(), strict=True):
        axes[0].set_ylabel(name, fontsize=plot.SMALL)
        light = np.quantile(np.abs(projections), 0.995, axis=(1, 2, 3), keepdims=True)
        shown = images, 127.5 + 127.5 * np.clip(projections / np.maximum(light, 1e-12), -1, 1)
        for i, axis in enumerate(axes):
            some = shown[i % 2][i // 2 * patches :][:patches]
            axis.imshow(plot.mosaic(some, math.ceil(patches**0.5), 255), cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=(), yticks=())
            axis.set_title(("patches", "projected")[i % 2], fontsize=plot.SMALL)
            axis.spines[:].set_visible(False)
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show)
