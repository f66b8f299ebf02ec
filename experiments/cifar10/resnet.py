"""The residual networks of the paper on CIFAR-10: 20 to 110 layers, with shortcuts and without.

Claim: 8.75, 7.51, 7.17, 6.97 and (the best of five) 6.43 % test error with 20, 32, 44, 56 and 110 layers; without
shortcuts 56 layers are worse than 20, on the training set too.

Source: He, Zhang, Ren, Sun 2015, "Deep residual learning for image recognition", https://arxiv.org/abs/1512.03385,
section 4.2, table 6 and figure 6. The paper chose its settings on 5,000 images held out and trained on the other
45,000; here all 50,000 train. At 110 layers it began with a rate of 0.01 until the training error fell below 80 %, for
about 400 iterations: that is `--warmup 400`. Pre-activation is He et al. 2016, wide networks Zagoruyko and Komodakis
2016, with this paper's settings instead of their own.

Several depths and variants are trained one after another and drawn together.

Expect: 43.63 % after one epoch of 20 layers (`--iterations 390`), in two minutes on two CPU cores; the paper's 64,000
iterations were not run here.

    python -m experiments.cifar10.resnet
    python -m experiments.cifar10.resnet --depth 20 56 --variant plain residual
    python -m experiments.cifar10.resnet --depth 20 32 44 56 110 --seeds 3 --warmup 400
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import optax

from dlc import augment, batches, classify, data, metrics, plot
from dlc.config import not_negative, positive
from dlc.errors import UserError
from dlc.launch import launch
from dlc.models import resnet_cifar
from dlc.prepare import mean_image, standardise
from dlc.run import Run

Variant = Literal["residual", "plain", "preact", "wide", "resnet18"]
Augmentation = Literal["crop", "flip", "cutout", "mixup", "cutmix", "jitter"]

PAPER = {20: 0.0875, 32: 0.0751, 44: 0.0717, 56: 0.0697, 110: 0.0643}  # table 6


@dataclass(frozen=True)
class Config:
    dataset: Literal["cifar10", "cifar100", "digits32"] = "cifar10"
    depth: tuple[int, ...] = (20,)  # 6n + 2; of a wide network 6n + 4; resnet18 has 18
    variant: tuple[Variant, ...] = ("residual",)
    iterations: int = 64_000
    batch: int = 128
    lr: float = 0.1  # divided by ten after a half and three quarters of the iterations
    warmup: int = 0  # iterations with a tenth of it
    weight_decay: float = 1e-4
    augment: tuple[Augmentation, ...] = ("crop", "flip")  # in this order
    pad: int = 4  # pixels of zeros around the image that is cropped
    factor: int = 10  # by which the wide network is wider
    seed: int = 0
    seeds: int = 1  # train this many at once, from `seed` on
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights and statistics are float32

    def __post_init__(self) -> None:
        positive(self, "iterations", "batch", "lr", "factor", "seeds")
        not_negative(self, "warmup", "weight_decay", "pad", "seed")
        if not (self.depth and self.variant):
            raise UserError("--depth and --variant need at least one value each")
        if 2 * self.warmup >= self.iterations:
            raise UserError(f"--warmup {self.warmup} is not less than half of the {self.iterations} iterations")


SMOKE = Config(dataset="digits32", depth=(8,), variant=("plain", "residual"), iterations=100, batch=32)


def network(config: Config, variant: Variant, depth: int, classes: int) -> resnet_cifar.CifarResNet:
    variants = {
        "residual": resnet_cifar.cifar_resnet,
        "plain": resnet_cifar.cifar_plain,
        "preact": resnet_cifar.cifar_preact,
        "wide": partial(resnet_cifar.wide_resnet, factor=config.factor),
        "resnet18": lambda depth, **rest: resnet_cifar.cifar_resnet18(**rest),
    }
    if variant == "resnet18" and depth != 18:
        raise UserError(f"resnet18 has 18 layers, not {depth}: add --depth 18")
    return variants[variant](depth, num_classes=classes, dtype=config.dtype)


def augmentation(config: Config, mean: Any, classes: int) -> Any:
    def jitter(key: Any, images: Any) -> Any:  # on the scale that begins at black
        return augment.color_jitter(key, images + mean[None], 0.2, 0.2, 0.2) - mean[None]

    of_images = augment.of_images
    augmentations = {
        "crop": of_images(partial(augment.translate, pixels=config.pad, mode="constant")),
        "flip": of_images(augment.flip),
        "cutout": of_images(partial(augment.cutout, size=16)),
        "jitter": of_images(jitter),
        "mixup": partial(augment.mixup, alpha=1.0, classes=classes),
        "cutmix": partial(augment.cutmix, alpha=1.0, classes=classes),
    }
    return augment.chained(*(augmentations[name] for name in config.augment))


def main(config: Config, run: Run) -> dict:
    cifar = data.load(config.dataset)
    mean = mean_image(cifar.train["image"])
    prepare = standardise(mean)
    classes, steps_per_epoch = len(cifar.classes), batches.steps_per_epoch(len(cifar.train["label"]), config.batch)
    boundaries = {config.iterations // 2: 0.1, 3 * config.iterations // 4: 0.1}
    if config.warmup:
        boundaries = {config.warmup: 10.0, **boundaries}
    lr = optax.piecewise_constant_schedule(config.lr / 10 if config.warmup else config.lr, boundaries)
    tx = optax.chain(optax.add_decayed_weights(config.weight_decay), optax.sgd(lr, momentum=0.9))

    histories, errors = {}, {variant: {} for variant in config.variant}
    networks = {(v, d): network(config, v, d, classes) for v in config.variant for d in config.depth}
    for (variant, depth), model in networks.items():
        part = run.part(f"{variant}-{depth}") if len(networks) > 1 else run
        _, logits = classify.fit(
            part, cifar, model, tx,
            prepare=prepare, augment=augmentation(config, mean, classes), epochs=config.iterations / steps_per_epoch,
            batch=config.batch, shuffle=True, seed=config.seed, seeds=config.seeds,
        )  # fmt: skip
        histories[f"{variant}, {depth} layers"] = part.history
        errors[variant][depth] = metrics.error(logits, cifar.test["label"])

    run.figure("figure6", plot.training_and_test(histories))
    run.figure("depth", plot.against_depth(errors, PAPER if config.dataset == "cifar10" else {}))
    one = len(networks) == 1
    return {"test_error" if one else f"{v}_{d}_error": error for v in errors for d, error in errors[v].items()}


if __name__ == "__main__":
    launch(main, Config(), SMOKE)
