"""The neocognitron learns digits without a teacher, and knows them again when they are shifted and deformed.

Claim: digits shifted by 4 pixels are recognised at least 0.8 times as often as unshifted ones; a perceptron guesses.

Source: Fukushima 1980, "Neocognitron: a self-organizing neural network model for a mechanism of pattern recognition
unaffected by shift in position". dlc/models/neocognitron.py says what is his and what is simpler. His patterns of
16 x 16 pixels are handwritten digits here, of 14 x 14 pixels in a field of 28 x 28. Labels are used only afterwards, to
name each plane of the last layer after digits that it wins. The perceptron (Rosenblatt 1958) sees the same digits.

Expect: 78.67 ± 4.00 % unshifted and 73.56 ± 2.36 % shifted; the perceptron 90.11 ± 0.51 %, and then below chance.

    python -m experiments.history.neocognitron
    python -m experiments.history.neocognitron --examples 200
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dlc import data
from dlc.models.neocognitron import Stage, cascade, grow
from dlc.run import plot
from dlc.run.flags import NotNegative, Positive
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import fields


@dataclass(frozen=True)
class Config:
    dataset: Literal["mnist", "digits"] = "mnist"  # the data set
    examples: Positive[int] = 2000  # training examples
    tested: Positive[int] = 300  # digits to recognise
    seed: NotNegative[int] = 0  # of all random numbers
    seeds: Positive[int] = 3  # number of runs, the first with `seed`


SMOKE = Config(dataset="digits", examples=100, tested=50, seeds=2)
STAGES = (
    Stage(planes=24, window=3, pool=5, stride=2, selectivity=3.0),
    Stage(planes=60, window=5, pool=7, stride=2, selectivity=1.5),
    Stage(planes=600, window=5, pool=None, stride=1, selectivity=3.0, winners=1),
)
SHIFTS, DEFORMATIONS = tuple(range(9)), (0.0, 0.5, 1.0, 1.5, 2.0)  # pixels of the field
NAMES = ("neocognitron", "perceptron")
FAR = 4  # pixels; the shift of which the claim speaks
last = jax.jit(lambda layers, u: cascade(STAGES, layers, u)[-1])


def answer(layers: list, x: np.ndarray) -> np.ndarray:  # of the last C-layer
    return np.concatenate([np.asarray(last(layers, x[i : i + 100])) for i in range(0, len(x), 100)])


def learn(x: np.ndarray, label: np.ndarray) -> tuple[list, np.ndarray]:
    """The planes of the three S-layers, one after another, and the class [K] after which each last plane is named."""
    layers, u = [], x
    for stage in STAGES:
        layers.append(jax.jit(grow, static_argnums=1)(u, stage))
        u = answer(layers, x)
    votes = np.zeros((u.shape[-1], 10))
    np.add.at(votes, (u[:, 0, 0].argmax(1), label), u.max((1, 2, 3)))
    return layers, votes.argmax(1)


def train(config: Config, run: Run) -> dict:
    digits = data.load(config.dataset)
    run.facts |= {"dataset": digits.name, "source": digits.source, "seeds": config.seeds}
    tests = [(fields.shifted, pixels) for pixels in SHIFTS] + [(fields.deformed, pixels) for pixels in DEFORMATIONS]
    right = np.zeros((2, config.seeds, len(tests)))  # of the neocognitron and the perceptron
    kept: list = []
    for place, seed in enumerate(range(config.seed, config.seed + config.seeds)):
        rng = np.random.default_rng(seed)
        x, label = fields.some(digits.train, config.examples, rng)
        known, wanted = fields.some(digits.test, config.tested, rng)
        layers, names = run.clock.timed("train", learn, x, label)
        w = run.clock.timed("train", jax.jit(fields.perceptron), x.reshape(len(x), -1), label)
        for column, (change, pixels) in enumerate(tests):
            seen = change(known, pixels, rng)
            top = run.clock.timed("evaluate", answer, layers, seen)[:, 0, 0]
            right[0, place, column] = ((names[top.argmax(1)] == wanted) & (top.max(1) > 0)).mean()
            right[1, place, column] = (np.argmax(seen.reshape(len(seen), -1) @ w.T, 1) == wanted).mean()
        kept = kept or [layers, names, known]
    run.figure("neocognitron", draw(kept, right))
    places = {"accuracy": 0, "shifted_accuracy": FAR, "deformed_accuracy": -3}
    found = {
        f"{name}_{what}": each[:, at] for name, each in zip(NAMES, right, strict=True) for what, at in places.items()
    }
    (here, there), (_, guessed) = right.mean(1)[:, [0, FAR]]
    if there < 0.8 * here or guessed > 0.2:
        run.miss(f"shifted by {FAR}, {there:.0%} of the digits are recognised, and {guessed:.0%} by the perceptron")
    return found


def draw(kept: list, right: np.ndarray) -> Figure:
    layers, names, x = kept
    figure = plot.canvas(10.2, 7.0)
    above, below = np.ravel(figure.subfigures(2, 1, height_ratios=(1.5, 1)))
    axes = above.subplots(2, 6, width_ratios=(1, 1.5, 1.5, 1.5, 1.5, 1))
    for row, pixels in zip(axes, (0, FAR), strict=True):
        seen = jnp.roll(x[:1], (pixels, -pixels), (1, 2))
        found = [np.asarray(each[0]) for each in (seen, *cascade(STAGES, layers, seen))]
        for axis, planes, title in zip(row, found, ("input", "S1", "C1", "S2", "C2"), strict=False):
            tiles = plot.mosaic(np.moveaxis(planes[..., :24], -1, 0), 6, fill=np.nan)
            axis.imshow(tiles, cmap="Greys", vmin=0)
            axis.set(title=title, xticks=[], yticks=[], facecolor="lightsteelblue")
        best = [found[6][0, 0][names == k].max(initial=0) for k in range(10)]
        row[5].barh(range(10), best, color=plot.INK)
        row[5].set(yticks=range(10), ylim=(9.6, -0.6), xticks=[], title="C3 by class")
    parts = np.split(100 * right, [len(SHIFTS)], axis=2)
    ends = ((SHIFTS, parts[0], "shift (pixels)"), (DEFORMATIONS, parts[1], "deformation (pixels)"))
    for axis, (pixels, part, label) in zip(below.subplots(1, 2), ends, strict=True):
        for values, name, shade in zip(part, NAMES, plot.COLORS[1::-1], strict=True):
            axis.errorbar(pixels, values.mean(0), values.std(0), color=shade, marker="o", capsize=2, label=name)
        axis.axhline(10, color="grey", linestyle=":", label="guessing")
        axis.set(xlabel=label, ylabel="recognised (%)", ylim=(0, 100))
    below.legend(*below.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE)
