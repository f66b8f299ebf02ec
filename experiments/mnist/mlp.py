"""Softmax regression and multi-layer perceptrons on MNIST: what hidden layers add to a linear classifier.

Claim (mnist): 12.0 % test error for a linear classifier, 4.7 % with 300 hidden units, 3.05 % with 300 and 100 (1998).

Source: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition", section III-C
(scaled tanh, squared error; ReLU and cross-entropy do better). Only the sizes are the paper's. The other settings below
are ours, and untuned.

Expect: 7.64 ± 0.05 % without hidden units, 1.75 ± 0.05 % with 300 and 1.73 ± 0.05 % with 300 and 100, over eight seeds;
two seconds for each of the first and a quarter of a minute for each of the others on two CPU cores.

    python -m experiments.mnist.mlp
    python -m experiments.mnist.mlp --hidden 300 100
    python -m experiments.mnist.mlp --hidden --lr 0.02        softmax regression
    python -m experiments.mnist.mlp --weights RUN
"""

from dataclasses import dataclass, replace
from typing import Literal

import optax

from dlc import data
from dlc.models.mlp import MLP
from dlc.prepare import mean_and_std, standardise
from dlc.run import plot
from dlc.run.flags import Longer, NotNegative, Positive, Shown
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import images


@dataclass(frozen=True)
class Config:
    dataset: Shown[images.dataset("mnist", "fashion_mnist", "digits")] = "mnist"  # the data set
    hidden: tuple[Positive[int], ...] = (300,)  # units of each hidden layer
    epochs: Longer[Positive[int]] = 20  # passes over the training set
    batch: Positive[int] = 100  # examples in a batch
    lr: Positive[float] = 0.1  # the highest learning rate; of plain SGD, constant
    shuffle: bool = True  # a new order every epoch
    seed: NotNegative[int] = 0  # of all random numbers
    seeds: Positive[int] = 1  # number of runs, the first with `seed`; trained at once
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights are float32


SMOKE = Config(dataset="digits", epochs=2)


def problem(config: Config) -> images.Task:
    digits = data.load(config.dataset)
    prepare = standardise(*mean_and_std(digits.train["image"]))
    return images.Task(digits, MLP(config.hidden, len(digits.classes), dtype=config.dtype), prepare)


def train(config: Config, run: Run) -> dict:
    task = problem(config)
    epochs = images.Epochs(config.epochs, config.batch, config.shuffle, config.seed, config.seeds, config.lr)
    variables, measured = images.fit(run, task, optax.sgd(config.lr), epochs)
    draw(run, task, variables)
    return {"test_error": measured["test_error"]}


def show(config: Config, run: Run, model: MLP, variables: dict) -> dict:
    task = replace(problem(config), model=model)
    draw(run, task, variables)
    return images.show(run, task, variables)


def draw(run: Run, task: images.Task, variables: dict) -> None:
    templates = variables["params"]["dense1"]["kernel"][:, :64]
    templates = templates.reshape(*task.dataset.train["image"].shape[1:], -1)
    run.figure("filters", plot.filters(templates, columns=8 if task.model.hidden else 5))


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show, parallel=True)
