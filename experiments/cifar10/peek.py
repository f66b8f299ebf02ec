"""A first look at CIFAR-10: an image is a tensor of numbers, and what augmentation makes of it.

Claim: an image is a tensor of 3 x 32 x 32 numbers; those of training image 43, a horse, begin with red 99, green 166,
blue 198.

Source: the lecture's introduction of CIFAR-10. The augmentations are those of its papers, see `dlc/augment.py`.

Expect: those numbers, exactly; over the training set means of 0.4914, 0.4822 and 0.4465 and standard deviations of
0.2470, 0.2435 and 0.2616 on the scale 0 to 1. A few seconds.

    python -m experiments.cifar10.peek
    python -m experiments.cifar10.peek --image 7
    python -m experiments.cifar10.peek --dataset cifar100
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dlc import augment, data
from dlc.errors import UserError
from dlc.prepare import channel_mean_and_std
from dlc.run import plot
from dlc.run.flags import NotNegative
from dlc.run.launch import launch
from dlc.run.run import Run


@dataclass(frozen=True)
class Config:
    dataset: Literal["cifar10", "cifar100", "digits32"] = "cifar10"
    image: NotNegative[int] = 43  # the row of the training set to look at
    seed: NotNegative[int] = 0  # of the augmentations


SMOKE = Config(dataset="digits32")

COLORS = ("red", "green", "blue")


def augmentations(classes: int) -> dict:
    """Name -> a function of a key and a batch of uint8 images, which returns the changed images."""

    def of_images(change, *settings):
        return lambda key, batch: change(key, batch["image"], *settings)

    def of_rows(epoch):
        return lambda key, batch: augment.alternating_flip(key, batch["image"], batch["row"], epoch)

    def of_colors(**strength):
        jitter = lambda key, image: augment.color_jitter(key, image.astype("float32"), **strength)  # noqa: E731
        return lambda key, batch: jnp.rint(jitter(key, batch["image"]).clip(0, 255)).astype(jnp.uint8)

    def of_pairs(mix):
        return lambda key, batch: mix(key, batch, 1.0, classes)["image"]

    return {
        "original": lambda key, batch: batch["image"],
        "flip": of_images(augment.flip),
        "alternating flip, even epochs": of_rows(0),
        "alternating flip, odd epochs": of_rows(1),
        "translate by up to 4, mirrored": of_images(augment.translate, 4),
        "translate by up to 4, zeros": of_images(augment.translate, 4, "constant"),
        "crop to 24x24": of_images(augment.crop, (24, 24)),
        "cutout of 16x16": of_images(augment.cutout, 16),
        "brightness 0.5": of_colors(brightness=0.5),
        "contrast 0.8": of_colors(contrast=0.8),
        "saturation 1.0": of_colors(saturation=1.0),
        "mixup": of_pairs(augment.mixup),
        "cutmix": of_pairs(augment.cutmix),
    }


def train(config: Config, run: Run) -> dict:
    dataset = data.load(config.dataset)
    images, label = dataset.train["image"], dataset.train["label"]
    if config.image >= len(images):
        last = len(images) - 1
        raise UserError(f"--image must be 0 to {last}, a row of {config.dataset}'s training set, not {config.image}")
    run.facts |= {"dataset": dataset.name, "source": dataset.source}

    tensor = images[config.image].transpose(2, 0, 1)
    shape = " x ".join(map(str, tensor.shape))
    run.say(f"image {config.image}, {dataset.classes[label[config.image]]}: a tensor of {shape} numbers")
    for name, channel in zip(COLORS, tensor, strict=True):
        run.say(f"{name:6} {' '.join(f'{value:3}' for value in channel[0, :16])} ...")

    mean, std = channel_mean_and_std(images)
    for name, m, s in zip(COLORS, mean, std, strict=True):
        run.say(f"{name:6} mean {m:.4f} deviation {s:.4f}; of 255, {255 * m:.2f} and {255 * s:.2f}")

    classes = len(dataset.classes)
    many = 10 if classes <= 25 else 4
    rows = {name: images[label == k][:many] for k, name in enumerate(dataset.classes)}
    run.figure("classes", plot.sheet(rows, stacks=-(-classes // 25)))
    run.figure("statistics", histogram(images))
    # Three images, four draws of each, each with a row number of its own, so that it tosses its own coin.
    shown = np.repeat((config.image + np.arange(3)) % len(images), 4)
    batch = {"image": images[shown], "label": label[shown], "row": np.arange(len(shown))}
    names, changes = zip(*augmentations(classes).items(), strict=True)
    looks = jax.jit(lambda key, batch: [change(key, batch) for change in changes])(jax.random.key(config.seed), batch)
    run.figure("augmentations", plot.sheet(dict(zip(names, map(np.asarray, looks), strict=True))))

    found = {"first": tensor[:, 0, 0], "mean": mean, "deviation": std}
    return {f"{what}_{name}": float(value[i]) for what, value in found.items() for i, name in enumerate(COLORS)}


def histogram(images: np.ndarray) -> Figure:
    """How often each value, 0 to 255, occurs in each colour of images [N, H, W, 3] (uint8); dashes mark the means.

    The bars of 0 and 255, where cameras clip, may end above the picture.
    """
    figure = Figure(figsize=(7.2, 3.8), dpi=150, layout="constrained")
    axis = figure.subplots()
    values, top = np.arange(256), 0.1
    for name, color, channel in zip(
        COLORS, (plot.ACCENT, "#3f8f5b", "#2f6fb0"), np.moveaxis(images, -1, 0), strict=True
    ):
        # In pieces, because every byte becomes eight.
        count = sum(np.bincount(piece.ravel(), minlength=256) for piece in np.array_split(channel, 16))
        share = count / count.sum()
        mean = share @ values
        std = np.sqrt(share @ (values - mean) ** 2)
        label = f"{name}: mean {mean:.1f}, deviation {std:.1f}"
        axis.stairs(100 * share, np.arange(257) - 0.5, color=color, linewidth=1.2, label=label)
        axis.axvline(mean, color=color, linestyle="--", linewidth=0.9)
        top = max(top, 100 * share[1:-1].max())
    axis.set(xlabel="value of a pixel", ylabel="share of the pixels (%)", xlim=(-2, 257), ylim=(0, 1.1 * top))
    axis.set_xticks(range(0, 256, 51))
    axis.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside upper center", ncols=3, fontsize=8)
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE)
