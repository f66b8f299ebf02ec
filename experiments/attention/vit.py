"""A transformer that reads an image as a sequence of patches, on CIFAR-10.

Claim: attention over patches classifies images with almost no built-in knowledge about them; without many images to
learn from it stays behind residual networks.

Source: Dosovitskiy et al. 2020, "An image is worth 16x16 words", https://arxiv.org/abs/2010.11929, section 3.1 and
figure 3. The paper trains on 1.3 to 300 million images; this model, with patches of 4x4 and six layers of width 192,
and its training on the 50,000 of CIFAR-10 are ours and untuned. What the class token looks at is drawn by rollout
(Abnar and Zuidema 2020).

Expect: 10.56 % on small digits (`--dataset digits32 --patch 8 --epochs 30 --batch 100`), in six minutes on two busy CPU
cores; about what 20 residual layers reach there. The 100 epochs on CIFAR-10 were not run here.

    python -m experiments.attention.vit
    python -m experiments.attention.vit --epochs 2 --patch 8
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

from dlc import augment, batches, data, losses, optim
from dlc.models.vit import ViT, attention_rollout, vit_cifar
from dlc.prepare import mean_and_std, standardise
from dlc.run import plot
from dlc.run.flags import Free, NotNegative, Positive, Share, Shown
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import images, text


@dataclass(frozen=True)
class Config:
    dataset: Shown[images.dataset("cifar10", "cifar100", "digits32")] = "cifar10"  # the data set
    patch: Positive[int] = 4  # height and width of a patch
    layers: Positive[int] = 6  # number of blocks
    heads: Positive[int] = 3  # attention heads in each block
    width: Positive[int] = 192  # size of the vectors between layers
    dropout: Share = 0.0  # share of the activations that are zero in training
    epochs: Positive[int] = 100  # passes over the training set
    batch: Positive[int] = 128  # examples in a batch
    accumulate: Positive[int] = 1  # parts of a batch, computed one after another; with as much memory as one needs
    remat: Free[bool] = False  # compute activations again in the backward pass instead of keeping them
    lr: Positive[float] = 1e-3  # the highest learning rate
    warmup: Share = 0.1  # share of the steps before the rate is highest; then it falls to zero
    weight_decay: NotNegative[float] = 0.05  # share of each weight lost in a step, divided by lr; of matrices only
    smoothing: Share = 0.1  # share of each target that is spread evenly over all classes
    seed: NotNegative[int] = 0  # of all random numbers
    seeds: Positive[int] = 1  # number of runs, the first with `seed`; trained at once
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights are float32


SMOKE = Config("digits32", patch=8, layers=2, heads=2, width=32, epochs=20, batch=100)


def problem(config: Config) -> images.Task:
    cifar = data.load(config.dataset)
    sizes = {"patch": config.patch, "layers": config.layers, "heads": config.heads, "width": config.width}
    model = vit_cifar(
        classes=len(cifar.classes), dropout=config.dropout, dtype=config.dtype, remat=config.remat, **sizes
    )
    criterion = partial(losses.cross_entropy, smoothing=config.smoothing)
    return images.Task(cifar, model, standardise(*mean_and_std(cifar.train["image"])), criterion)


def train(config: Config, run: Run) -> dict:
    task = problem(config)
    steps = config.epochs * batches.steps_per_epoch(len(task.dataset.train["label"]), config.batch)
    rate = optim.triangle(config.lr, steps, config.warmup)
    adam = optax.adamw(rate, weight_decay=config.weight_decay, mask=optim.matrices)
    tx = optax.chain(optax.clip_by_global_norm(1.0), adam)
    translate = augment.of_images(partial(augment.translate, pixels=4, mode="constant"))
    changes = [translate] if config.dataset == "digits32" else [translate, augment.of_images(augment.flip)]
    epochs = images.Epochs(config.epochs, config.batch, True, config.seed, config.seeds, rate, config.accumulate)
    variables, measured = images.fit(run, task, tx, epochs, augment.chained(*changes))
    draw(run, task, variables)
    return {"test_error": measured["test_error"]}


def show(config: Config, run: Run, model: ViT, variables: dict) -> dict:
    task = replace(problem(config), model=model)
    draw(run, task, variables)
    return images.show(run, task, variables)


def draw(run: Run, task: images.Task, variables: dict) -> None:
    some = task.dataset.test["image"][:12]
    run.figure("rollout", overlaid(some, looked_at(task.model, variables, task.prepare(some))))


def looked_at(model: ViT, variables: dict, some: np.ndarray) -> np.ndarray:
    """How much of each patch of images [B, H, W, C] reaches the class token through all layers, [B, h, w]."""
    kept = text.intermediates(model, variables, some)
    blocks = [kept[f"block{i}"]["attention"]["weights"][0] for i in range(model.config.layers)]
    side = some.shape[1] // model.config.patch
    return np.asarray(jax.jit(attention_rollout)(blocks))[:, 0, 1:].reshape(-1, side, side)


def overlaid(some: np.ndarray, weights: np.ndarray) -> Figure:
    """Images [N, H, W, C] (uint8), and below each the same image darkened where its `weights` [N, h, w] are small."""
    H, W = some.shape[1:3]
    dark = []
    for image, weight in zip(some, weights, strict=True):
        scale = (weight - weight.min()) / max(float(np.ptp(weight)), 1e-9)
        light = 0.15 + 0.85 * np.kron(scale, np.ones((H // weight.shape[0], W // weight.shape[1])))
        dark.append((image * light[..., None]).astype(np.uint8))
    return plot.sheet({"images": some, "attention": np.stack(dark)})


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show, parallel=True)
