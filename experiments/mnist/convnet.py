"""The lecture's MNIST program: two layers of 5x5 filters, trained by plain gradient descent.

Claim (mnist): about 1 % test error after 10 epochs, in about 8 s on a GTX 1080.

Source: the lecture's MNIST program, shown in full in its third and fifth parts. Its settings are the defaults below.
The images keep the data set's own order, and the initial weights are PyTorch's defaults.

Expect: 1.00 ± 0.07 % over eight seeds; about a minute for each on two CPU cores, in 0.5 GB.

    python -m experiments.mnist.convnet
    python -m experiments.mnist.convnet --seeds 8
    python -m experiments.mnist.convnet --dataset fashion_mnist --shuffle
    python -m experiments.mnist.convnet --weights RUN
"""

from dataclasses import dataclass, replace
from typing import Literal

import optax

from dlc import data
from dlc.models.convnet import Convnet
from dlc.prepare import mean_and_std, standardise
from dlc.run import plot
from dlc.run.flags import Longer, NotNegative, Positive, Shown
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import images


@dataclass(frozen=True)
class Config:
    dataset: Shown[images.dataset("mnist", "fashion_mnist", "digits")] = "mnist"  # the data set
    epochs: Longer[Positive[int]] = 10  # passes over the training set
    batch: Positive[int] = 100  # examples in a batch
    lr: Positive[float] = 0.1  # the highest learning rate; of plain SGD, constant
    shuffle: bool = False  # a new order every epoch; the lecture keeps the data set's own
    seed: NotNegative[int] = 0  # of all random numbers
    seeds: Positive[int] = 1  # number of runs, the first with `seed`; trained at once
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights are float32


SMOKE = Config(dataset="digits", epochs=5)


def problem(config: Config) -> images.Task:
    digits = data.load(config.dataset)
    prepare = standardise(*mean_and_std(digits.train["image"]))
    return images.Task(digits, Convnet(len(digits.classes), dtype=config.dtype), prepare)


def train(config: Config, run: Run) -> dict:
    task = problem(config)
    epochs = images.Epochs(config.epochs, config.batch, config.shuffle, config.seed, config.seeds, config.lr)
    variables, measured = images.fit(run, task, optax.sgd(config.lr), epochs)
    draw(run, variables)
    return {"test_error": measured["test_error"]}


def show(config: Config, run: Run, model: Convnet, variables: dict) -> dict:
    draw(run, variables)
    return images.show(run, replace(problem(config), model=model), variables)


def draw(run: Run, variables: dict) -> None:
    run.figure("filters", plot.filters(variables["params"]["conv1"]["kernel"]))


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show, parallel=True)
