"""The residual networks of the paper on CIFAR-10: 20 to 110 layers, with shortcuts and without.

Claim (cifar10): 8.75, 7.51, 7.17, 6.97 and (the best of five) 6.43 % test error with 20, 32, 44, 56 and 110 layers;
without shortcuts 56 layers are worse than 20, on the training set too.

Source: He et al. 2015, https://arxiv.org/abs/1512.03385, section 4.2, table 6 and figure 6. The paper holds out 5,000
images; here all 50,000 train. With 110 layers its rate is 0.01 for the first 400 steps: `--warmup 0.00625`.
Pre-activation (He et al. 2016) and wide networks (Zagoruyko and Komodakis 2016) train with this paper's settings.

Expect: with `--dataset digits32 --depths 20 56 --variants plain residual --steps 600 --batch 32` 10.00 % with 20 plain
layers but 71.11 % with 56, and 15.00 % with shortcuts, in 20 minutes. The paper's 64,000 steps were not run here.

    python -m experiments.cifar10.resnet --depths 20 56 --variants plain residual
    python -m experiments.cifar10.resnet --depths 20 32 44 56 110 --seeds 3 --warmup 0.00625
    python -m experiments.cifar10.resnet --weights RUN                      or RUN/residual-20, if it trained several
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import optax

from dlc import augment, batches, data
from dlc.errors import UserError
from dlc.models import resnet_cifar
from dlc.prepare import mean_image, standardise
from dlc.run.flags import Free, NotNegative, Positive, Share, Shown, Some
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import compare, images

Variant = Literal["residual", "plain", "preact", "wide", "resnet18"]
Augmentation = Literal["crop", "flip", "cutout", "mixup", "cutmix", "jitter"]

PAPER = {20: 0.0875, 32: 0.0751, 44: 0.0717, 56: 0.0697, 110: 0.0643}  # table 6


@dataclass(frozen=True)
class Config:
    dataset: Shown[images.dataset("cifar10", "cifar100", "digits32")] = "cifar10"  # the data set
    depths: Some[tuple[int, ...]] = (20,)  # layers: 6n + 2; of a wide network 6n + 4; resnet18 has 18
    variants: Some[tuple[Variant, ...]] = ("residual",)  # forms of the model
    steps: Positive[int] = 64_000  # training steps
    batch: Positive[int] = 128  # examples in a batch
    accumulate: Positive[int] = 1  # parts of a batch, computed one after another; with as much memory as one needs
    remat: Free[bool] = False  # compute activations again in the backward pass instead of keeping them
    lr: Positive[float] = 0.1  # the highest learning rate; divided by ten after a half and three quarters of the steps
    warmup: Share = 0.0  # share of the steps before the rate is highest; until then it is a tenth
    weight_decay: NotNegative[float] = 1e-4  # share of each weight lost in a step, divided by lr
    augment: tuple[Augmentation, ...] = ("crop", "flip")  # in this order
    pad: NotNegative[int] = 4  # pixels of zeros around the image that is cropped
    factor: Positive[int] = 10  # by which the wide network is wider
    seed: NotNegative[int] = 0  # of all random numbers
    seeds: Positive[int] = 1  # number of runs, the first with `seed`; trained at once
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights and statistics are float32


SMOKE = Config(dataset="digits32", depths=(8,), variants=("plain", "residual"), steps=88, batch=32)


def network(config: Config, variant: Variant, depth: int, classes: int) -> resnet_cifar.CifarResNet:
    variants = {
        "residual": resnet_cifar.cifar_resnet,
        "plain": resnet_cifar.cifar_plain,
        "preact": resnet_cifar.cifar_preact,
        "wide": partial(resnet_cifar.wide_resnet, factor=config.factor),
        "resnet18": lambda depth, **rest: resnet_cifar.cifar_resnet18(**rest),
    }
    if variant == "resnet18" and depth != 18:
        raise UserError(f"resnet18 has 18 layers, not {depth}: add --depths 18")
    return variants[variant](depth, num_classes=classes, dtype=config.dtype).clone(remat=config.remat)


def augmentation(config: Config, mean: Any, classes: int) -> Any:
    def jitter(key: Any, image: Any) -> Any:  # on the scale that begins at black
        return augment.color_jitter(key, image + mean[None], 0.2, 0.2, 0.2) - mean[None]

    augmentations = {
        "crop": augment.of_images(partial(augment.translate, pixels=config.pad, mode="constant")),
        "flip": augment.of_images(augment.flip),
        "cutout": augment.of_images(partial(augment.cutout, size=16)),
        "jitter": augment.of_images(jitter),
        "mixup": partial(augment.mixup, alpha=1.0, classes=classes),
        "cutmix": partial(augment.cutmix, alpha=1.0, classes=classes),
    }
    return augment.chained(*(augmentations[name] for name in config.augment))


def schedule(config: Config) -> optax.Schedule:
    rise = round(config.warmup * config.steps)
    if 2 * rise >= config.steps:
        raise UserError(f"--warmup must be less than 0.5, where the rate falls, not {config.warmup}")
    boundaries = {rise: 10.0} if rise else {}
    boundaries |= {config.steps // 2: 0.1, 3 * config.steps // 4: 0.1}
    return optax.piecewise_constant_schedule(config.lr / 10 if rise else config.lr, boundaries)


def train(config: Config, run: Run) -> dict:
    rate, cifar = schedule(config), data.load(config.dataset)
    tx = optax.chain(optax.add_decayed_weights(config.weight_decay), optax.sgd(rate, momentum=0.9))
    mean, classes = mean_image(cifar.train["image"]), len(cifar.classes)
    passes = config.steps / batches.steps_per_epoch(len(cifar.train["label"]), config.batch)
    epochs = images.Epochs(passes, config.batch, True, config.seed, config.seeds, rate, config.accumulate)

    networks = {(v, d): network(config, v, d, classes) for v in config.variants for d in config.depths}
    histories, errors = {}, {}
    for (variant, depth), model in networks.items():
        part = run.part(f"{variant}-{depth}") if len(networks) > 1 else run
        task = images.Task(cifar, model, standardise(mean))
        _, measured = images.fit(part, task, tx, epochs, augmentation(config, mean, classes))
        histories[f"{variant}, {depth} layers"] = part.history
        errors[variant, depth] = measured["test_error"]

    compare.draw(run, histories, errors, PAPER if config.dataset == "cifar10" else {})
    return {"test_error" if len(errors) == 1 else f"{v}_{d}_error": error for (v, d), error in errors.items()}


def show(config: Config, run: Run, model: resnet_cifar.CifarResNet, variables: dict) -> dict:
    cifar = data.load(config.dataset)
    return images.show(run, images.Task(cifar, model, standardise(mean_image(cifar.train["image"]))), variables)


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show, parallel=True)
