"""How much of an image does each layer still know? The image is found again from nothing but the layer's output.

Claim: the deeper the layer, the further is the image that comes back from the original, though the network gives most
of them the same answer.

Source: Mahendran and Vedaldi 2015, "Understanding deep image representations by inverting them", equations 1 to 3; here
by L-BFGS from noise, with the total variation as the prior. What is optimised becomes pixels through the logistic
function, which keeps them between black and white. An error of 100 % is that of an even grey image.

Expect: errors of 17.99, 81.57, 150.80 and 169.26 % from conv1, conv2, dense1 and dense2 (± 5 to 10 % over 16 images),
all with the same answer; about a minute on two CPU cores.

    python -m experiments.insight.inversion
    python -m experiments.insight.inversion --dataset cifar10
    python -m experiments.insight.inversion --weights compressed_SqueezeNet.net cat.png cup.png --maps fire2 fire5 fire9
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import Positional

from dlc.analysis import features, saliency, style
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
    maps: Shown[tuple[str, ...]] = ()  # layers to look into; by default all that are not part of another
    test_images: Shown[Positive[int]] = 16  # test images that are looked at
    updates: Shown[Positive[int]] = 100  # updates of the pixels
    smooth: Shown[NotNegative[float]] = 0.1  # weight of the total variation
    seed: Shown[NotNegative[int]] = 0  # of all random numbers


SMOKE = Config(dataset="digits", test_images=2, updates=10)
DRAWN = 8  # images in the figure


def train(config: Config, run: Run) -> dict:
    return look(config, run, subjects.asked(run, config))


def show(config: Config, run: Run, model: Any, variables: dict) -> dict:
    return look(config, run, subjects.asked(run, config, model, variables))


def look(config: Config, run: Run, subject: Subject) -> dict:
    layers = features.shapes(subject.apply, subject.variables, subject.image[:1])
    chosen = [features.known(name, layers) for name in config.maps] or [name for name in layers if "/" not in name]
    names = [name for name in layers if name in chosen]  # from the first layer to the last
    pixels = subject.image[: config.test_images].astype(np.float32)
    start = 0.1 * jax.random.normal(jax.random.key(config.seed), pixels.shape)
    drawn, figures, errors = {"image": pixels}, {"images": len(pixels)}, []
    answer = jax.jit(lambda variables, pixels: subject.apply(variables, pixels).argmax(-1))
    for name in names:
        inverted = jax.jit(partial(invert, saliency.layer(subject.apply, name), config))
        image, missed = run.clock.timed("invert", inverted, subject.variables, pixels, start)
        same = answer(subject.variables, image) == answer(subject.variables, pixels)
        grey = pixels.mean((1, 2, 3), keepdims=True)
        error = np.sqrt(style.distance(image - grey, pixels - grey))
        errors.append(error.mean())
        drawn[f"{name}: {error.mean():.0%}"] = image
        figures |= {f"{name}_error": error.mean(), f"{name}_standard_error": error.std() / len(pixels) ** 0.5}
        figures |= {f"{name}_code_error": np.sqrt(missed).mean(), f"{name}_same_accuracy": same.mean()}
        if same.mean() <= 0.5:
            run.miss(f"the network gives half of the images that come back from {name} another answer")
    run.figure(
        "inversion", plot.sheet({name: plot.smaller(np.asarray(each), 120)[:DRAWN] for name, each in drawn.items()})
    )
    if errors != sorted(errors):
        run.miss("the error does not rise from layer to layer")
    return figures


def invert(forward: Any, config: Config, variables: dict, pixels: Any, start: Any) -> tuple[Any, Any]:
    """Images whose features are those of `pixels` [N, H, W, C], one after the other, and how far these still are."""

    def one(pair: Any) -> Any:
        image, noise = (each[None] for each in pair)
        wanted = forward(variables, image)

        def losses(logit: Any) -> Any:
            found = 255 * jax.nn.sigmoid(logit)
            return style.distance(forward(variables, found), wanted)[0], style.variation(found)[0]

        def loss(logit: Any) -> Any:
            apart, variation = losses(logit)
            return apart + config.smooth * variation

        logit = style.lbfgs(loss, noise, config.updates, 0.5).pixels
        return 255 * jax.nn.sigmoid(logit)[0], losses(logit)[0]

    return jax.lax.map(one, (jnp.asarray(pixels), start))


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show)
