"""How much of an image does each layer still know? The image is found again from nothing but the layer's output.

Claim: the deeper the layer, the further is the image that comes back from the original, though the layer takes one for
the other.

Source: Mahendran and Vedaldi 2015, "Understanding deep image representations by inverting them", equations 1 to 3; here
by L-BFGS from noise, with the total variation as the only prior.

Expect: ...

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
    photographs: Shown[Positional[tuple[Path, ...]]] = ()  # files
    dataset: Shown[subjects.Name] = "mnist"  # the data set
    maps: Shown[tuple[str, ...]] = ()  # layers to look into; by default all that are not part of another
    examples: Shown[Positive[int]] = 16  # images that are looked at
    updates: Shown[Positive[int]] = 100  # steps of the pixels
    smooth: Shown[NotNegative[float]] = 0.1  # weight of the total variation
    seed: NotNegative[int] = 0  # of all random numbers


SMOKE = Config(dataset="digits", examples=2, updates=10)
DRAWN = 8  # images in the figure


def train(config: Config, run: Run) -> dict:
    return look(config, run, subjects.trained(run, config.dataset, config.seed))


def show(config: Config, run: Run, model: Any, variables: dict) -> dict:
    return look(config, run, subjects.given(run, model, variables, config.dataset, config.photographs))


def look(config: Config, run: Run, subject: Subject) -> dict:
    layers = features.shapes(subject.apply, subject.variables, subject.image[:1])
    names = [features.known(name, layers) for name in config.maps] or [name for name in layers if "/" not in name]
    pixels = subject.image[: config.examples].astype(np.float32)
    start = 127.5 + 10 * jax.random.normal(jax.random.key(config.seed), pixels.shape)
    drawn, figures, errors = {"image": pixels}, {"images": len(pixels)}, []
    for name in names:
        forward = saliency.layer(subject.apply, name)
        inverted = jax.jit(partial(invert, forward, config))
        image, missed = run.clock.timed(f"invert {name}", inverted, subject.variables, pixels, start)
        blank = pixels.mean((1, 2, 3), keepdims=True)
        errors.append(np.asarray(jnp.sqrt(style.distance(image - blank, pixels - blank))))
        drawn[f"{name}: {errors[-1].mean():.0%}"] = image
        figures |= {f"{name}_error": errors[-1].mean(), f"{name}_standard_error": errors[-1].std() / len(pixels) ** 0.5}
        figures[f"{name}_code_error"] = np.sqrt(missed).mean()
    run.figure(
        "inversion", plot.sheet({name: plot.smaller(np.asarray(each), 120)[:DRAWN] for name, each in drawn.items()})
    )
    means = [each.mean() for each in errors]
    if means != sorted(means):
        run.miss("the error does not rise from layer to layer")
    return figures


def invert(forward: Any, config: Config, variables: dict, pixels: Any, start: Any) -> tuple[Any, Any]:
    """Images whose features are those of `pixels` [N, H, W, C], one after the other, and how far these still are."""

    def one(pair: Any) -> Any:
        image, noise = (each[None] for each in pair)
        wanted = forward(variables, image)

        def loss(image: Any) -> Any:
            return (style.distance(forward(variables, image), wanted) + config.smooth * style.variation(image))[0]

        found = jnp.clip(style.lbfgs(loss, noise, config.updates).pixels, 0, 255)
        return found[0], style.distance(forward(variables, found), wanted)[0]

    return jax.lax.map(one, (jnp.asarray(pixels), start))


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show)
