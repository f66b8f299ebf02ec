"""Rosenblatt's perceptron on digits of 20 x 20 pixels: it learns from its mistakes, and only from them.

Claim: where a plane separates two classes, the perceptron stops after at most (R / margin)^2 mistakes; where one image
has both labels, it never stops.

Source: Rosenblatt 1958, "The perceptron: a probabilistic model for information storage and organization in the brain".
His machine had 20 x 20 cells and 512 association units, wired at random. The bound, with R the longest input, is
Novikoff's of 1962, and the average of the weights that of Freund, Schapire 1999: see `dlc/analysis/perceptron.py`.

Expect: 32 of 45 pairs separated; errors of 7.50 ± 0.04 % from the retina, 4.40 ± 0.21 % from 2,048 association units.

    python -m experiments.history.perceptron
    python -m experiments.history.perceptron --association-units 4096 --epochs 1
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.svm import SVC

from dlc import data
from dlc.analysis.perceptron import association, learn, novikoff
from dlc.run import plot
from dlc.run.flags import NotNegative, Positive, Some
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.train import seed_keys


@dataclass(frozen=True)
class Config:
    dataset: Literal["mnist", "digits"] = "mnist"  # the data set
    epochs: Positive[int] = 2  # passes over the training set
    per_class: Positive[int] = 1000  # images of each of two classes
    passes: Positive[int] = 60  # over the images of two classes, at most
    association_units: Some[tuple[NotNegative[int], ...]] = (0, 128, 512, 2048)  # how many; 0: only the retina
    seed: NotNegative[int] = 0  # of all random numbers
    seeds: Positive[int] = 3  # number of runs, the first with `seed`; trained at once


SMOKE = Config("digits", epochs=2, per_class=100, passes=20, association_units=(0, 256), seeds=2)


def retina(pixels):
    """Images [N, H, W, 1] as 20 x 20 values of 0 to 1 and a 1, whose weight is the threshold: [N, 401]."""
    small = jax.image.resize(jnp.float32(pixels) / 255, (len(pixels), 20, 20, 1), "linear")
    return jnp.pad(small.reshape(-1, 400), ((0, 0), (0, 1)), constant_values=1)


def two_classes(config, x, label):
    """Pairs of digits by name: mistakes of each pass, and Novikoff's bound, 0 where the perceptron does not stop."""
    x, label = jnp.concatenate([x, x[label == 0][:1]]), np.append(label, 1)
    of = [np.flatnonzero(label == digit)[: min(config.per_class, np.bincount(label).min())] for digit in range(10)]
    pairs = {f"{a} and {b}": np.append(of[a], of[b]) for a, b in itertools.combinations(range(10), 2)}
    pairs["contradiction"] = np.append(pairs["0 and 1"][:-1], len(x) - 1)  # has one image with both labels
    rows = np.stack(list(pairs.values()))
    order = np.random.default_rng(config.seed).permuted(np.repeat(rows[:, None], config.passes, 1), axis=2)
    second = (label == label[rows[:, -1:]]).astype(int)
    mistakes = np.asarray(jax.jit(jax.vmap(lambda second, order: learn(x, second, order, 2).mistakes))(second, order))
    bounds = np.zeros(len(pairs))
    for i in np.flatnonzero(mistakes[:, -1] == 0):
        inputs, sign = np.asarray(x[rows[i]]), 2 * second[i, rows[i]] - 1
        widest = SVC(kernel="linear", C=1e4).fit(inputs[:, :-1], sign)
        bounds[i] = novikoff(inputs, sign, np.append(widest.coef_, widest.intercept_))
    return dict(zip(pairs, zip(mistakes, bounds, strict=True), strict=True))


def ten_classes(config, known, unknown, units):
    """The average weights of the first seed, and the test errors of the last and the average weights: [2, S]."""

    def one(key):
        see = association(key, 401, units, connections=30) if units else jnp.asarray
        order = jax.random.permutation(key, jnp.tile(jnp.arange(len(known[1])), (config.epochs, 1)), 1, True)
        found = learn(*known, order, 10, see)
        wrong = [jnp.argmax(see(unknown[0]) @ weights.T, 1) != unknown[1] for weights in (found.weights, found.average)]
        return found.average, jnp.stack(wrong).mean(1)

    average, wrong = jax.jit(jax.vmap(one))(seed_keys(config.seed, config.seeds))
    return average[0], np.asarray(wrong.T)


def train(config: Config, run: Run) -> dict:
    digits = data.load(config.dataset)
    run.facts |= {"dataset": digits.name, "source": digits.source, "seeds": config.seeds}
    known, unknown = ((retina(each["image"]), jnp.asarray(each["label"])) for each in (digits.train, digits.test))
    pairs = run.clock.timed("learn", two_classes, config, known[0], digits.train["label"])
    shares = [wrong.sum() / bound for wrong, bound in pairs.values() if bound]
    if not shares or max(shares) > 1 or not pairs["contradiction"][0].all():
        run.miss("the perceptron makes more mistakes than Novikoff's bound, or stops at a contradiction")
    found = {n: run.clock.timed("learn", ten_classes, config, known, unknown, n) for n in config.association_units}
    if 0 in found:
        run.figure("weights", plot.filters(found[0][0][:, :400].T.reshape(20, 20, 1, 10), columns=5))
    run.figure("perceptron", slide(pairs, {units: wrong for units, (_, wrong) in found.items()}))
    kinds = enumerate(("last", "average"))
    errors = {f"{kind}_{units}_error": wrong[i] for i, kind in kinds for units, (_, wrong) in found.items()}
    return {"separated_pairs": len(shares), "share_of_bound": max(shares, default=0), **errors}


def slide(pairs: dict, wrong: dict) -> Figure:
    passes, bounds, errors = (figure := plot.canvas(10.2, 3.6)).subplots(1, 3)
    hardest = max(pairs, key=lambda name: pairs[name][0].sum())
    for name, color in zip(("0 and 1", hardest, "contradiction"), plot.COLORS, strict=False):
        passes.plot(np.arange(1, len(pairs[name][0]) + 1), pairs[name][0], color=color, label=name)
    passes.set(xscale="log", yscale="symlog", xlabel="pass", ylabel="mistakes", ylim=(0, None))
    made, limit = np.array([(wrong.sum(), bound) for wrong, bound in pairs.values() if bound]).reshape(-1, 2).T
    ends = min(made, default=1), max(limit, default=1)  # no pair may be separated
    bounds.loglog(limit, made, "o", color=plot.COLORS[0], markersize=4)
    bounds.plot(ends, ends, color=plot.ACCENT, label="the bound")
    bounds.set(xlabel="Novikoff's bound, (R / margin)$^2$", ylabel="mistakes until it stops")
    for i, (name, color) in enumerate({"last weights": plot.COLORS[4], "their average": plot.COLORS[0]}.items()):
        some, places = 100 * np.array([each[i] for each in wrong.values()]), np.arange(len(wrong)) + 0.4 * i
        errors.bar(places, some.mean(1), 0.38, yerr=some.std(1), color=color, label=name)
    errors.set(xticks=places - 0.2, xticklabels=[units or "retina" for units in wrong])
    errors.set(xlabel="association units", ylabel="test error (%)")
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE)
