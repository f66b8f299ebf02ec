"""More examples, bigger networks, longer training: the error falls as a power of each, and no plateau is in sight.

Claim: the loss on what a network has not seen falls as a power of the number of examples, of weights, and of the
operations of training, for images and for text: each exponent is above 0, and the last doubling still helps.

Source: the lecture's "does not plateau when using more data"; Hestness et al. 2017, "Deep learning scaling is
predictable, empirically"; Kaplan et al. 2020, "Scaling laws for neural language models". Laws are fitted without an
irreducible term to means over seeds, and have the interval of 95 % of the bootstrap over seeds. A point is the lowest
loss of a run, as in Hestness et al.; of the operations, that of the best network at each amount. Adam, at one rate.

Expect: powers of 0.50, 0.38, 0.26 on MNIST, 0.24, 0.05, 0.04 on CIFAR-10; on text 240 steps are too few. Four minutes.

    python -m experiments.history.scaling
    python -m experiments.history.scaling --steps 4000 --scales 8 --seeds 8
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import flax.linen as nn
import numpy as np
import optax
from matplotlib.figure import Figure

from dlc import data, layers
from dlc.analysis import power_law
from dlc.data.text import CORPORA
from dlc.prepare import channel_mean_and_std, standardise
from dlc.run import plot
from dlc.run.flags import Bound, NotNegative, Positive, Some
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import sweep

Data = Literal["mnist", "fashion_mnist", "cifar10", "cifar100", "tiny_shakespeare", "digits", "digits32", "python"]


@dataclass(frozen=True)
class Config:
    datasets: Some[tuple[Data, ...]] = ("mnist", "cifar10", "tiny_shakespeare")  # the data sets, of images or text
    steps: Positive[int] = 240  # training steps
    scales: Annotated[int, Bound(lambda n: n > 1, "must be at least 2, not {}")] = 5  # widths and numbers of examples
    seed: NotNegative[int] = 0  # of all random numbers
    seeds: Positive[int] = 3  # number of runs, the first with `seed`; of each point


SMOKE = Config(("digits", "python"), steps=20, scales=2, seeds=2)
TEXT, IMAGES = (8, 2000, 4e-3), (2, 125, 3e-3)  # the smallest width, the fewest examples, and Adam's rate


class Net(nn.Module):
    """Layers of 3x3 filters of stride 2, each twice as wide as the one before, and a linear classifier."""

    width: int
    classes: int

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        for i in range(2 if x.shape[-1] == 1 else 3):
            x = nn.relu(layers.Conv(self.width * 2**i, (3, 3), strides=(2, 2), padding="SAME")(x))
        return layers.Dense(self.classes)(layers.flatten(x))


def problem(run: Run, name: str, width: int) -> sweep.Problem:
    if name in CORPORA:
        return sweep.of_corpus(run, name, {"context": 32, "layers": 2, "heads": 2, "width": width}, batch=16)
    found = data.load(name)
    held = {"validation": {key: value[:1000] for key, value in found.test.items()}}
    prepare = standardise(*channel_mean_and_std(found.train["image"]))
    return sweep.of_images(found.train, held, Net(width, len(found.classes)), prepare, batch=50)


def measure(run: Run, config: Config, name: str) -> dict[str, tuple[np.ndarray, np.ndarray, Any]]:
    """Quantity -> its values [P], the losses [P, S] there, and operations and losses of the networks."""
    width, fewest, rate = TEXT if name in CORPORA else IMAGES
    length = sweep.Length(config.steps, max(1, config.steps // 10))
    seeds = list(sweep.several(config))
    several, widths = ([first * 2**i for i in range(config.scales)] for first in (fewest, width))

    def losses(width: int, examples: list) -> np.ndarray:  # [len(examples), S, E]
        each, many = [n for n in examples for _ in seeds], seeds * len(examples)
        learn = sweep.learner(run, problem(run, name, width), optax.adam, length)
        return learn([rate] * len(each), many, each)["validation_loss"].reshape(len(examples), len(seeds), -1)

    found = {width: losses(width, [*several, None] if width == widths[-2] else [None]) for width in widths}
    by_width = np.stack([found[width][-1] for width in widths])
    weights, operations = np.array([sweep.cost(problem(run, name, width)) for width in widths], float).T
    spent = np.outer(operations, length.places)
    return {
        "characters" if name in CORPORA else "images": (np.array(several), found[widths[-2]][:-1].min(-1), None),
        "weights": (weights, by_width.min(-1), None),
        "operations": (*power_law.frontier(spent, by_width), (spent, by_width.mean(1))),
    }


def train(config: Config, run: Run) -> dict:
    measured = {name: measure(run, config, name) for name in config.datasets}
    run.facts |= {"dataset": ", ".join(measured), "seeds": config.seeds}
    figures: dict[str, float] = {}
    for name, what, (x, losses, _) in ((name, *item) for name, sweeps in measured.items() for item in sweeps.items()):
        law = power_law.fit(x, losses)
        figures[f"{name}_{what}_exponent"] = law.exponent
        run.say(f"{name}, {what}: exponent {law.exponent:.3f} ({law.low:.3f} to {law.high:.3f}), r2 {law.r2:.3f}")
        if law.low <= 0 or losses[-1].mean() >= losses[-2].mean():
            run.miss(f"on {name} the loss does not fall as a power of the {what} up to the last point")
    run.figure("scaling", draw(measured))
    return figures


def draw(measured: dict) -> Figure:
    """A row for each data set: the loss against each of three quantities, a dot for each seed, and the fitted law."""
    figure = plot.canvas(10, 2.3 * len(measured) + 0.6)
    rows = figure.subplots(len(measured), 3, squeeze=False, sharey="row")
    for row, (name, sweeps) in zip(rows, measured.items(), strict=True):
        for axis, color, (what, (x, losses, networks)) in zip(row, plot.COLORS, sweeps.items(), strict=False):
            for spent, curve in zip(*networks, strict=True) if networks else ():
                axis.plot(spent, curve, color="gray", linewidth=0.7)
            sweep.draw_law(axis, x, losses, what, color)
            axis.set_xlabel(f"{what} (gray: each network)" if networks else what)
        row[0].set_ylabel(f"{name}: loss (nats)")
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE)
