"""A transformer that reads an image as a sequence of patches, on CIFAR-10.

Claim: attention over patches, with nearly nothing built in about images, classifies them; without many images to learn
from it stays behind residual networks.

Source: Dosovitskiy et al. 2020, "An image is worth 16x16 words", https://arxiv.org/abs/2010.11929, section 3.1 and
figure 3. The paper trains on 1.3 to 300 million images; this model, with patches of 4x4 and six layers of width 192,
and its training on the 50,000 of CIFAR-10 are ours and untuned. What the class token looks at is drawn by rollout
(Abnar and Zuidema 2020).

Expect: 59.53 % test error after two epochs of larger patches (`--patch 8 --epochs 2`), in seven minutes on two CPU
cores beside other work; the 100 epochs were not run here.

    python -m experiments.attention.vit
    python -m experiments.attention.vit --epochs 2 --patch 8
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import optax

from dlc import augment, batches, classify, data, losses, metrics, optim, plot
from dlc.config import not_negative, positive, share
from dlc.launch import launch
from dlc.models.vit import ViT, attention_rollout, vit_cifar
from dlc.prepare import mean_and_std, standardise
from dlc.run import Run


@dataclass(frozen=True)
class Config:
    dataset: Literal["cifar10", "cifar100", "digits32"] = "cifar10"
    patch: int = 4  # height and width of a patch
    layers: int = 6
    heads: int = 3
    width: int = 192
    dropout: float = 0.0
    epochs: int = 100
    batch: int = 128
    lr: float = 1e-3
    warmup: float = 0.1  # the share of the steps in which the rate rises; then it falls to zero
    weight_decay: float = 0.05  # of all but biases and norms
    smoothing: float = 0.1
    seed: int = 0
    seeds: int = 1  # train this many at once, from `seed` on
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights are float32

    def __post_init__(self) -> None:
        positive(self, "patch", "layers", "heads", "width", "epochs", "batch", "lr", "seeds")
        not_negative(self, "weight_decay", "seed")
        share(self, "dropout", "warmup", "smoothing")


SMOKE = Config("digits32", patch=8, layers=2, heads=2, width=32, epochs=20, batch=100)


def main(config: Config, run: Run) -> dict:
    cifar = data.load(config.dataset)
    prepare = standardise(*mean_and_std(cifar.train["image"]))
    model = vit_cifar(
        classes=len(cifar.classes), patch=config.patch, layers=config.layers, heads=config.heads, width=config.width,
        dropout=config.dropout, dtype=config.dtype,
    )  # fmt: skip
    steps = config.epochs * batches.steps_per_epoch(len(cifar.train["label"]), config.batch)
    rate = optim.triangle(config.lr, steps, config.warmup)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, weight_decay=config.weight_decay, mask=optim.matrices),
    )
    of_images = augment.of_images
    changes = of_images(partial(augment.translate, pixels=4, mode="constant")), of_images(augment.flip)
    state, logits = classify.fit(
        run, cifar, model, tx,
        prepare=prepare, criterion=partial(losses.cross_entropy, smoothing=config.smoothing),
        augment=augment.chained(*changes if config.dataset != "digits32" else changes[:1]),
        epochs=config.epochs, batch=config.batch, shuffle=True, seed=config.seed, seeds=config.seeds,
    )  # fmt: skip
    params, images = classify.first_seed(state.params, config.seeds), cifar.test["image"][:12]
    run.figure("rollout", plot.overlaid(images, looked_at(model, params, prepare(images))))
    return {"test_error": metrics.error(logits, cifar.test["label"])}


def looked_at(model: ViT, params: Any, images: Any) -> np.ndarray:
    """How much each patch of `images` [B, H, W, C] reaches the class token through all layers, [B, h, w]."""
    _, kept = model.apply({"params": params}, images, mutable=["intermediates"])
    blocks = [kept["intermediates"][f"block{i}"]["attention"]["weights"][0] for i in range(model.config.layers)]
    side = images.shape[1] // model.config.patch
    return np.asarray(attention_rollout(blocks))[:, 0, 1:].reshape(-1, side, side)


if __name__ == "__main__":
    launch(main, Config(), SMOKE)
