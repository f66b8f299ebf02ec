"""What would a network like to see? Images that it makes of noise for a class, and photographs that it dreams on.

Claim (mnist): gradient ascent makes images of every class that the network knows with 99 % probability, and another
network, of another seed, names the same class for most of them; for noise of equal energy it does so by chance.

Source: Erhan, Bengio, Courville, Vincent 2009, "Visualizing higher-layer features of a deep network"; Simonyan,
Vedaldi, Zisserman 2014, "Deep inside convolutional networks", section 2; for photographs Mordvintsev, Olah, Tyka 2015,
"Inceptionism: going deeper into neural networks" (DeepDream), with its octaves and its jitter.

Expect: the other network names the class of 99.38 % of the plain and 100.00 % of the smooth images, and of 9.38 % of
the noise, over 160 images each; half a minute on two CPU cores.

    python -m experiments.insight.dream
    python -m experiments.insight.dream --dataset cifar10
    python -m experiments.insight.dream --weights compressed_SqueezeNet.net cat.png cup.png --maps fire4 fire8
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import Positional

from dlc.analysis import dream, features, saliency
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
    updates: Shown[Positive[int]] = 100  # updates of the pixels; on photographs a quarter of them at each size
    octaves: Shown[Positive[int]] = 4  # sizes at which photographs are dreamt on
    jitter: Shown[NotNegative[int]] = 2  # pixels by which an image is shifted, at most; eight times that on photographs
    blur: Shown[NotNegative[float]] = 1.0  # deviation of the Gaussian that blurs the gradient, in pixels; for classes
    seed: Shown[NotNegative[int]] = 0  # of all random numbers


SMOKE = Config(dataset="digits", updates=30)
STARTS = 16  # images of noise for each class
RATE = 4.0  # mean change of a pixel in the first update, half as much on photographs; it falls to zero


def train(config: Config, run: Run) -> dict:
    return of_classes(config, run, subjects.asked(run, config))


def show(config: Config, run: Run, model: Any, variables: dict) -> dict:
    subject = subjects.asked(run, config, model, variables)
    return (on_photographs if config.photographs else of_classes)(config, run, subject)


def of_classes(config: Config, run: Run, subject: Subject) -> dict:
    """Images made for each class, plainly and smoothly, and how often the network and another one name the class."""
    other = subjects.trained(run, config.dataset, config.seed + 1)
    label = jnp.tile(jnp.arange(len(subject.classes)), STARTS)
    keys = jax.random.split(jax.random.key(config.seed), 3)
    start = 127.5 + 10 * jax.random.normal(keys[0], (len(label), *subject.image.shape[1:]))
    ways = {"plain": {}, "smooth": {"jitter": config.jitter, "blur": config.blur}}
    made = {}
    for name, how in ways.items():

        def ascend(variables, pixels, key, how=how):
            liked = lambda pixels: saliency.of_class(label)(subject.apply(variables, pixels))  # noqa: E731
            return dream.ascend(liked, pixels, key, config.updates, RATE, **how)[0]

        made[name] = run.clock.timed("dream", jax.jit(ascend), subject.variables, start, keys[1])
    energy = jnp.sqrt(jnp.square(made["smooth"] - start).mean((1, 2, 3), keepdims=True))
    made["noise"] = jnp.clip(start + energy * jax.random.normal(keys[2], start.shape), 0, 255)

    figures, agree = {"images": len(label)}, {}
    for name, pixels in made.items():
        own, others = (jax.nn.softmax(net.apply(net.variables, pixels)) for net in (subject, other))
        figures[f"{name}_probability"] = jnp.median(saliency.of_class(label)(own))
        figures[f"{name}_accuracy"] = (own.argmax(-1) == label).mean()
        figures[f"{name}_transfer_accuracy"] = agree[name] = (others.argmax(-1) == label).mean()
    if min(figures["plain_probability"], figures["smooth_probability"]) < 0.99:
        run.miss("half of the images have less than 99 % of the probability of their class")
    if min(agree["plain"], agree["smooth"]) <= 0.5 or agree["noise"] > 0.25:
        run.miss("another network names the class of half of the images at most, or that of noise")
    rows = {f"{name}, {agree[name]:.0%} agreed": images[: len(subject.classes)] for name, images in made.items()}
    run.figure("dream", plot.sheet({name: np.asarray(images, np.uint8) for name, images in rows.items()}))
    return figures


def on_photographs(config: Config, run: Run, subject: Subject) -> dict:
    """Photographs changed so that a layer responds more strongly, and by how much it does."""
    maps = saliency.maps(subject.apply, subject.variables, subject.image[:1])
    keys, pixels = jax.random.split(jax.random.key(config.seed)), subject.image.astype(np.float32)
    how = {"count": config.octaves, "updates": -(-config.updates // 4), "rate": RATE / 2, "jitter": 8 * config.jitter}
    figures, drawn = {"images": len(pixels)}, {"photograph": pixels}
    for name in [features.known(name, maps) for name in config.maps] or maps[-2:]:

        def octaves(variables, pixels, key, name=name):
            return dream.octaves(dream.of_layer(subject.apply, variables, name), pixels, key, **how)

        drawn[name] = made = run.clock.timed("dream", jax.jit(octaves), subject.variables, pixels, keys[0])
        energy = jnp.sqrt(jnp.square(made - pixels).mean((1, 2, 3), keepdims=True))
        noisy = jnp.clip(pixels + energy * jax.random.normal(keys[1], pixels.shape), 0, 255)
        liked = dream.of_layer(subject.apply, subject.variables, name)
        before, after, noise = map(liked, (pixels, made, noisy))
        figures |= {f"rise_of_{name}": (after / before).mean(), f"rise_by_noise_of_{name}": (noise / before).mean()}
        if (after <= noise).any():
            run.miss(f"{name} responds no more strongly to a dream than to noise of equal energy")
    run.figure("dream", plot.sheet({name: plot.smaller(np.asarray(images), 224) for name, images in drawn.items()}))
    return figures


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show)
