"""What keeps a network from learning its training set by heart, and what batch norm does for a deep sigmoid network.

Claim (mnist): dropout makes fewer mistakes on the test set than a plain network, with max-norm and without; 100-100-100
sigmoid units that begin with small weights come to 97 % in at most half the steps with batch norm.

Source: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting", table 2, where
larger networks see all of MNIST: 1.60 % plain, 1.25 % with dropout, 1.06 % with max-norm; Ioffe, Szegedy 2015, "Batch
normalization", section 4.1. Here each network learns from few examples, for equally many epochs, at its best rate on
others; "scaled weights" begin with a variance of 1/fan-in. Intervals are Student's, of differences between runs with
the same examples.

Expect: 11.89 ± 0.47 % plain, 10.20 ± 0.45 % with dropout, no gain by max-norm; three minutes on two CPU cores.

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
    examples: Positive[int] = 1000  # training examples; at least 50, a batch
    epochs: Positive[int] = 40  # passes over the training set; over these examples
    steps: Positive[int] = 4000  # training steps; of the sigmoid networks
    rates: Positive[int] = 5  # learning rates of each sweep; of the sigmoid networks, the others have four
    seed: NotNegative[int] = 0  # of all random numbers
    seeds: Positive[int] = 8  # number of runs, the first with `seed`


SMOKE = Config(dataset="digits", examples=200, epochs=4, steps=40, rates=4)
# Name -> parts of the network, weight decay, the limit of max-norm, and what changes the images
METHODS: dict[str, tuple[dict[str, bool], float, float, Any]] = {
    "plain": ({}, 0.0, np.inf, None),
    "weight decay": ({}, 1e-3, np.inf, None),
    "batch norm": ({"norm": True}, 0.0, np.inf, None),
    "dropout": ({"dropout": True}, 0.0, np.inf, None),
    "dropout and max-norm": ({"dropout": True}, 0.0, 2.0, None),
    "shifted images": ({}, 0.0, np.inf, augment.of_images(partial(augment.translate, pixels=2, mode="constant"))),
}
# Name -> the deviation of the first weights for a fan-in, and whether there is batch norm
SIGMOID = {
    "sigmoid": (lambda fan_in: 0.01, False),
    "batch norm": (lambda fan_in: 0.01, True),
    "scaled weights": (lambda fan_in: fan_in**-0.5, False),
}


def train(config: Config, run: Run) -> dict:
    run.facts |= {"dataset": config.dataset, "seeds": config.seeds}
    found, seeds = data.load(config.dataset), sweep.several(config)
    learn, validation = sweep.held_out(found.train, 1000)
    held = {"validation": validation, "test": {key: value[:4000] for key, value in found.test.items()}}
    length = sweep.Length(config.epochs * (config.examples // 50), config.examples // 50 * max(1, config.epochs // 5))
    entries: dict[str, tuple] = {}
    for name, (parts, decay, limit, change) in METHODS.items():
        problem = sweep.of_images(learn, held, MLP((256, 256), **parts), standardise(0.0), 50, change)
        problem = replace(problem, examples=config.examples)
        entries[name] = problem, partial(falling, length.steps, decay, limit), 0.1 * 2.0 ** np.arange(-2, 2)
    bests = sweep.compared(run, entries, seeds, length, sweep.Target("validation_error", 0.0))
    errors = {name: best.evaluations["test_error"][:, -1] for name, best in bests.items()}
    stopped = bests["plain"].curves.argmin(1)  # at the lowest validation error
    errors["early stopping"] = bests["plain"].evaluations["test_error"][range(config.seeds), stopped]
    length, target = sweep.Length(config.steps, max(1, config.steps // 40)), sweep.Target("validation_error", 0.03)
    entries, rates = {}, 2.0 ** (np.arange(config.rates) - 1)
    for name, (deviation, norm) in SIGMOID.items():
        prepare, model = standardise(*mean_and_std(learn["image"])), MLP((100,) * 3, activation="sigmoid", norm=norm)
        problem = sweep.of_images(learn, {"validation": validation}, model, prepare, 60)
        entries[name] = replace(problem, init=begun(problem.init, deviation)), optax.sgd, rates
    deep = sweep.compared(run, entries, seeds, length, target)
    run.figure("regularisation", draw(errors, deep, config))
    for better, worse in (("dropout", "plain"), ("dropout and max-norm", "plain"), ("dropout and max-norm", "dropout")):
        mean, low, high = (100 * value for value in trials.mean_interval(errors[worse] - errors[better]))
        run.say(f"{better}: fewer mistakes than {worse} by {mean:.2f} % ({low:.2f} to {high:.2f}) of the test images")
        if low <= 0 and worse == "plain":
            run.miss(f"{better} is not better than {worse}: the interval of the difference contains 0")
    slow, fast = (np.minimum(deep[name].steps, config.steps).mean() for name in ("sigmoid", "batch norm"))  # at least
    if fast > 0.5 * slow:
        run.miss(f"with batch norm it takes {fast:.0f} steps to 97 %, more than half of the {slow:.0f} without")
    ratio = {"batch_norm_over_sigmoid": fast / slow}
    return ratio | {f"{name.replace(' ', '_')}_error": error for name, error in errors.items()}


def falling(steps: int, decay: float, limit: float, rate: Any) -> optax.GradientTransformation:
    """Momentum of 0.9 with a rate that falls linearly to 0, and max-norm."""
    fall = optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, steps))
    return optax.chain(optim.papers_momentum(rate, 0.9, decay), fall, optim.within(limit))


def begun(init: Any, deviation: Any) -> Any:
    """`init`, whose weights have a deviation of 1 / sqrt(3 fan-in), with another `deviation(fan_in)`."""
    scaled = lambda leaf: deviation(len(leaf)) * (3 * len(leaf)) ** 0.5 * leaf if leaf.ndim > 1 else leaf  # noqa: E731
    return lambda key: jax.tree.map(scaled, init(key))


def draw(errors: dict[str, np.ndarray], deep: dict[str, sweep.Best], config: Config) -> Figure:
    axes = (figure := plot.canvas(10, 5.4)).subplot_mosaic("ab;ac", width_ratios=(1.1, 1))
    sweep.draw_values(axes["a"], {name: 100 * values for name, values in errors.items()})
    axes["a"].set_xlabel(f"test error (%) after {config.epochs} epochs of {config.examples:,} examples")
    sweep.draw((axes["b"], axes["c"]), deep, 0.03, "validation error", "sigmoid")
    axes["b"].set(yscale="log", yticks=(0.03, 0.1, 0.3, 0.9), yticklabels=("3 %", "10 %", "30 %", "90 %"))
    axes["b"].minorticks_off()
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE)
