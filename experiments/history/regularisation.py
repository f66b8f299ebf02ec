"""What keeps a network from learning its training set by heart, and what batch norm does for a deep sigmoid network.

Claim (mnist): the test error falls from a plain network to one with dropout, and again with max-norm; three layers of
100 sigmoid units that begin with small weights come to 97 % in at most half the steps with batch norm.

Source: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting", table 2, where
larger networks see all of MNIST: 1.60 % plain, 1.25 % with dropout, 1.06 % with max-norm; Ioffe, Szegedy 2015, "Batch
normalization", section 4.1. Here each network learns from few examples, for equally many epochs, at its best rate on
others. Differences are those of runs with the same examples, and have Student's interval of 95 %. The sigmoid networks
learn from all of MNIST; "scaled weights" begin with a variance of 1/fan-in, as the paper's do not.

Expect: TODO

    python -m experiments.history.regularisation
    python -m experiments.history.regularisation --examples 5000 --epochs 60
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

from dlc import augment, data, optim
from dlc.analysis import trials
from dlc.models.mlp import MLP
from dlc.prepare import mean_and_std, standardise
from dlc.run import plot
from dlc.run.flags import NotNegative, Positive
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import sweep


@dataclass(frozen=True)
class Config:
    dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist"  # the data set
    examples: Positive[int] = 1000  # training examples of each run
    epochs: Positive[int] = 40  # passes over the training set; over these examples
    steps: Positive[int] = 4000  # training steps; of the sigmoid networks
    rates: Positive[int] = 5  # learning rates of each sweep; of the sigmoid networks, the others have three
    seed: NotNegative[int] = 0  # of all random numbers
    seeds: Positive[int] = 8  # number of runs, the first with `seed`


SMOKE = Config(dataset="digits", examples=200, epochs=4, steps=40, rates=2, seeds=2)
momentum = partial(optax.sgd, momentum=0.9)
# Name -> parts of the network, the optimizer, the rate in the middle of its sweep, and what changes the images
METHODS: dict[str, tuple[dict[str, bool], Any, float, Any]] = {
    "plain": ({}, momentum, 0.1, None),
    "weight decay": ({}, lambda rate: optim.papers_momentum(rate, 0.9, 1e-3), 0.1, None),
    "batch norm": ({"norm": True}, momentum, 0.1, None),
    "dropout": ({"dropout": True}, momentum, 0.1, None),
    "dropout, max-norm": ({"dropout": True}, lambda rate: optax.chain(momentum(rate), optim.within(2.0)), 0.3, None),
    "shifted images": ({}, momentum, 0.1, augment.of_images(partial(augment.translate, pixels=2, mode="constant"))),
}
# Name -> the deviation of the first weights for a fan-in, and whether there is batch norm
SIGMOID = {
    "sigmoid": (lambda fan_in: 0.01, False),
    "batch norm": (lambda fan_in: 0.01, True),
    "scaled weights": (lambda fan_in: fan_in**-0.5, False),
}


def train(config: Config, run: Run) -> dict:
    run.facts |= {"dataset": config.dataset, "seeds": config.seeds}
    found, seeds = data.load(config.dataset), range(config.seed, config.seed + config.seeds)
    learn, validation = sweep.held_out(found.train, 1000)
    held = {"validation": validation, "test": {key: value[:4000] for key, value in found.test.items()}}

    entries: dict[str, tuple] = {}
    for name, (parts, optimiser, rate, change) in METHODS.items():
        problem = sweep.of_images(learn, held, MLP((256, 256), **parts), standardise(0.0), 50, change)
        entries[name] = replace(problem, examples=config.examples), optimiser, rate * 3.0 ** np.arange(-1, 2)
    epoch = config.examples // 50
    length = sweep.Length(config.epochs * epoch, epoch * max(1, config.epochs // 5))
    bests = sweep.compared(run, entries, seeds, length, sweep.Target("validation_error", 0.0))
    tests = {name: best.evaluations["test_error"] for name, best in bests.items()}
    errors = {name: test[:, -1] for name, test in tests.items()}
    errors["early stopping"] = tests["plain"][range(config.seeds), bests["plain"].curves.argmin(1)]

    entries = {}
    for name, (deviation, norm) in SIGMOID.items():
        prepare, model = standardise(*mean_and_std(learn["image"])), MLP((100,) * 3, activation="sigmoid", norm=norm)
        problem = sweep.of_images(learn, {"validation": validation}, model, prepare, 60)
        problem = replace(problem, init=begun(problem.init, deviation))
        entries[name] = problem, optax.sgd, 2.0 ** (np.arange(config.rates) - 1)
    length, target = sweep.Length(config.steps, max(1, config.steps // 40)), sweep.Target("validation_error", 0.03)
    deep = sweep.compared(run, entries, seeds, length, target)
    run.figure("regularisation", draw(errors, deep, config))

    for better, worse in (("dropout", "plain"), ("dropout, max-norm", "dropout")):
        mean, low, high = (100 * value for value in trials.mean_interval(errors[worse] - errors[better]))
        run.say(f"{better}: {mean:.2f} % ({low:.2f} to {high:.2f}) of the test set fewer mistakes than {worse}")
        if low <= 0:
            run.miss(f"{better} is not better than {worse}: the interval of the difference contains 0")
    slow, fast = (np.minimum(deep[name].steps, config.steps).mean() for name in ("sigmoid", "batch norm"))  # at least
    if fast > 0.5 * slow:
        run.miss(f"with batch norm it takes {fast:.0f} steps to 97 %, more than half of the {slow:.0f} without")
    names = {name: name.translate(str.maketrans(" -", "__", ",")) for name in errors}
    return {f"{names[name]}_error": error for name, error in errors.items()} | {"batch_norm_over_sigmoid": fast / slow}


def begun(init: Any, deviation: Any) -> Any:
    """`init`, whose weights have a deviation of 1 / sqrt(3 fan-in), with another `deviation(fan_in)`."""
    factor = lambda fan_in: deviation(fan_in) * (3 * fan_in) ** 0.5  # noqa: E731
    return lambda key: jax.tree.map(lambda leaf: factor(len(leaf)) * leaf if leaf.ndim > 1 else leaf, init(key))


def draw(errors: dict[str, np.ndarray], deep: dict[str, sweep.Best], config: Config) -> Figure:
    figure = plot.canvas(10, 5.4)
    axes = figure.subplot_mosaic("ab;ac", width_ratios=(1.1, 1))
    sweep.draw_values(axes["a"], {name: 100 * values for name, values in errors.items()})
    axes["a"].set_xlabel(f"test error (%) after {config.epochs} epochs of {config.examples:,} examples")
    sweep.draw((axes["b"], axes["c"]), deep, 0.03, "validation error", "sigmoid")
    axes["b"].set(yscale="log", yticks=(0.03, 0.1, 0.3, 0.9), yticklabels=("3 %", "10 %", "30 %", "90 %"))
    axes["b"].minorticks_off()
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE)
