"""Softmax regression on MNIST: one dense layer, the baseline of every other network.

Claim: a linear classifier errs on 12.0 % of the test set (1998).

Source: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition", section III-C
(its linear classifier was trained on squared error; softmax regression does better). The settings below are ours, and
untuned.

Expect: 7.64 ± 0.05 % over eight seeds; two seconds for one of them on two CPU cores.

    python -m experiments.mnist.linear
"""

from dataclasses import dataclass
from typing import Literal

import optax

from dlc import classify, data, metrics, plot
from dlc.config import not_negative, positive
from dlc.launch import launch
from dlc.models.mlp import MLP
from dlc.prepare import mean_and_std, standardise
from dlc.run import Run


@dataclass(frozen=True)
class Config:
    dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist"
    epochs: int = 20
    batch: int = 100
    lr: float = 0.02  # plain SGD, constant
    shuffle: bool = True  # a new order every epoch
    seed: int = 0
    seeds: int = 1  # train this many at once, from `seed` on
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights are float32

    def __post_init__(self) -> None:
        positive(self, "epochs", "batch", "lr", "seeds")
        not_negative(self, "seed")


SMOKE = Config(dataset="digits", epochs=2)


def main(config: Config, run: Run) -> dict:
    digits = data.load(config.dataset)
    prepare = standardise(*mean_and_std(digits.train["image"]))
    model = MLP((), len(digits.classes), dtype=config.dtype)
    tx = optax.sgd(config.lr)

    state, logits = classify.fit(
        run, digits, model, tx,
        prepare=prepare, epochs=config.epochs, batch=config.batch, shuffle=config.shuffle,
        seed=config.seed, seeds=config.seeds,
    )  # fmt: skip

    first = classify.first_seed(state.params, config.seeds)
    templates = first["dense1"]["kernel"].reshape(*digits.train["image"].shape[1:], -1)
    run.figure("filters", plot.filters(templates, columns=5))
    return {"test_error": metrics.error(logits, digits.test["label"])}


if __name__ == "__main__":
    launch(main, Config(), SMOKE)
