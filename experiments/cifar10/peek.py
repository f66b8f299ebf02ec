"""A first look at CIFAR-10: an image is a tensor of numbers, and augmentation changes it.

Claim (cifar10, 43): an image is a tensor of 3 x 32 x 32 numbers; those of training image 43, a horse, begin with red
99, green 166, blue 198.

Source: the lecture's introduction of CIFAR-10; for the augmentations see `dlc/augment.py`.

Expect: exactly those; means of 0.4914, 0.4822, 0.4465 and deviations of 0.2470, 0.2435, 0.2616 over the training set.

    python -m experiments.cifar10.peek
    python -m experiments.cifar10.peek --dataset cifar100 --image 7
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dlc import augment, data
from dlc.augment import of_images
from dlc.errors import UserError
from dlc.prepare import channel_mean_and_std
from dlc.run import plot
from dlc.run.flags import NotNegative
from dlc.run.launch import launch
from dlc.run.run import Run


@dataclass(frozen=True)
class Config:
    dataset: Literal["cifar10", "cifar100", "digits32"] = "cifar10"  # the data set
    image: NotNegative[int] = 43  # the row of the training set to look at
    seed: NotNegative[int] = 0  # of all random numbers; those of the augmentations


SMOKE = Config(dataset="digits32")
COLORS = {"red": plot.COLORS[1], "green": plot.COLORS[2], "blue": plot.COLORS[0]}  # in the histogram


def augmentations(classes: int) -> dict:
    """Name -> a function of a key and a batch with images, labels and rows, which returns the changed batch."""

    def alternating(epoch):
        return lambda key, batch: {"image": augment.alternating_flip(key, batch["image"], batch["row"], epoch)}

    def jitter(**strength):
        change = lambda key, image: augment.color_jitter(key, image.astype("float32"), **strength)  # noqa: E731
        return of_images(lambda key, image: jnp.rint(change(key, image).clip(0, 255)).astype(jnp.uint8))

    return {
        "original": lambda key, batch: batch,
        "flip": of_images(augment.flip),
        "alternating flip, even epochs": alternating(0),
        "alternating flip, odd epochs": alternating(1),
        "translate by up to 4, mirrored": of_images(partial(augment.translate, pixels=4)),
        "translate by up to 4, zeros": of_images(partial(augment.translate, pixels=4, mode="constant")),
        "crop to 24x24": of_images(partial(augment.crop, size=(24, 24))),
        "cutout of 16x16": of_images(partial(augment.cutout, size=16)),
        "brightness 0.5": jitter(brightness=0.5),
        "contrast 0.8": jitter(contrast=0.8),
        "saturation 1.0": jitter(saturation=1.0),
        "mixup": partial(augment.mixup, alpha=1.0, classes=classes),
        "cutmix": partial(augment.cutmix, alpha=1.0, classes=classes),
    }


def train(config: Config, run: Run) -> dict:
    dataset = data.load(config.dataset)
    images, label = dataset.train["image"], dataset.train["label"]
    if config.image >= len(images):
        last = len(images) - 1
        raise UserError(f"--image must be 0 to {last}, a row of {config.dataset}'s training set, not {config.image}")
    run.facts |= {"dataset": dataset.name, "source": dataset.source}

    tensor = images[config.image].transpose(2, 0, 1)
    height, width = tensor.shape[1:]
    run.say(f"image {config.image}, {dataset.classes[label[config.image]]}: a tensor of 3 x {height} x {width} numbers")
    for name, channel in zip(COLORS, tensor, strict=True):
        run.say(f"{name:6} {' '.join(f'{value:3}' for value in channel[0, :16])} ...")

    mean, std = channel_mean_and_std(images)
    for name, m, s in zip(COLORS, mean, std, strict=True):
        run.say(f"{name:6} mean {m:.4f} deviation {s:.4f}; of 255, {255 * m:.2f} and {255 * s:.2f}")

    classes = len(dataset.classes)
    rows = {name: images[label == k][: 10 if classes <= 25 else 4] for k, name in enumerate(dataset.classes)}
    run.figure("classes", plot.sheet(rows, stacks=-(-classes // 25)))
    run.figure("statistics", histogram(images))

    # Three images, and four draws of each, with rows of their own, so that each draw tosses its own coin.
    shown = np.repeat((config.image + np.arange(3)) % len(images), 4)
    batch = {"image": images[shown], "label": label[shown], "row": np.arange(len(shown))}
    look = lambda change: np.asarray(jax.jit(change)(jax.random.key(config.seed), batch)["image"])  # noqa: E731
    run.figure("augmentations", plot.sheet({name: look(change) for name, change in augmentations(classes).items()}))

    found = {"first": tensor[:, 0, 0], "mean": mean, "deviation": std}
    return {f"{what}_{name}": float(value[i]) for what, value in found.items() for i, name in enumerate(COLORS)}


def histogram(images: np.ndarray) -> Figure:
    """How often each value, 0 to 255, occurs in each colour of images [N, H, W, 3] (uint8); dashes mark the means."""
    figure = plot.canvas(7.2, 3.8)
    axis = figure.subplots()
    mean, std = (255 * np.asarray(value) for value in channel_mean_and_std(images))
    top = 0.1
    for i, (name, shade) in enumerate(COLORS.items()):
        count, edges = np.histogram(images[..., i], bins=256, range=(-0.5, 255.5))
        share = 100 * count / count.sum()
        label = f"{name}: mean {mean[i]:.1f}, deviation {std[i]:.1f}"
        axis.stairs(share, edges, color=shade, linewidth=1.2, label=label)
        axis.axvline(mean[i], color=shade, linestyle="--", linewidth=0.9)
        top = max(top, share[1:-1].max())  # cameras clip to 0 and 255, whose bars may end above the picture
    axis.set(xlabel="value of a pixel", xlim=(-2, 257), xticks=range(0, 256, 51))
    axis.set(ylabel="share of the pixels (%)", ylim=(0, 1.1 * top))
    axis.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside upper center", ncols=3, fontsize=8)
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE)
