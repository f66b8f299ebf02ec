"""Threshold units compute logic: one unit some functions, two layers all of them. They are built, not trained.

Claim: two layers of threshold units compute every Boolean function; one unit computes 14 of the 16 functions of two
inputs, all but XOR and its negation, and 104 of the 256 of three.

Source: McCulloch, Pitts 1943, "A logical calculus of the ideas immanent in nervous activity". Here a unit fires if
w x + b >= 0, as in lectures; in the paper one active inhibitory input silences a unit.

One unit is searched for on a grid. A function that the grid lacks has no weights at all, if two rows where it is true
have the same sum as two where it is false: for XOR, 01 + 10 = 00 + 11.

Expect: 4, 14, 104 and 1,882 functions of one to four inputs by one unit, and no mistake of two layers, in seconds.

    python -m experiments.history.threshold_logic
    python -m experiments.history.threshold_logic --inputs 12
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from dlc.run import plot
from dlc.run.flags import NotNegative, Positive
from dlc.run.launch import launch
from dlc.run.run import Run

LARGEST = 3  # weight of the grid: enough for four inputs
NAMES = {8: "AND", 14: "OR", 7: "NAND", 1: "NOR", 6: "XOR", 9: "XNOR", 0: "0", 15: "1", 12: "x", 10: "y"}
NAMES |= {3: "not x", 5: "not y", 4: "x, not y", 2: "y, not x", 13: "y implies x", 11: "x implies y"}


@dataclass(frozen=True)
class Config:
    inputs: Literal[*range(2, 13)] = 10  # of the random functions
    functions: Positive[int] = 100  # random functions to build
    seed: NotNegative[int] = 0  # of all random numbers


SMOKE = Config(inputs=6, functions=10)


def rows(inputs: int) -> np.ndarray:
    """All inputs [2 ** inputs, inputs] in the order of a truth table."""
    return np.array(list(itertools.product((0, 1), repeat=inputs)))


def truth_tables(inputs: int) -> np.ndarray:
    """All functions [2 ** 2 ** inputs, 2 ** inputs]; bit i of a function's number is its value in row i."""
    return (np.arange(2**2**inputs)[:, None] >> np.arange(2**inputs) & 1).astype(bool)


def computed(layers: Sequence, x: np.ndarray) -> np.ndarray:
    """What layers of threshold units, each weights [I, O] and biases [O], make of inputs [..., I]: 0 or 1."""
    for weight, bias in layers:
        x = (x @ weight + bias >= 0).astype(int)
    return x


def built(truth: np.ndarray) -> tuple:
    """Two layers that compute a truth table: a hidden unit fires for one row where it is true, the last unit is "or".

    If there are fewer rows where it is false, the hidden units fire for those, and the last unit is "nor".
    """
    sign = 1 if truth.mean() <= 0.5 else -1
    chosen = rows(int(np.log2(len(truth))))[truth == (sign == 1)]
    return (2 * chosen.T - 1, 0.5 - chosen.sum(1)), (np.full(len(chosen), sign), -0.5 * sign)


def by_one_unit(inputs: int) -> dict:
    """The functions that one unit of the grid computes: number -> its smallest weights, and its bias."""
    grid = itertools.product(range(-LARGEST, LARGEST + 1), repeat=inputs)
    weights = np.array(sorted(grid, key=lambda some: sum(map(abs, some))))
    biases = np.arange(-LARGEST * inputs, LARGEST * inputs + 2) - 0.5
    fires = (rows(inputs) @ weights.T)[..., None] + biases >= 0
    first = zip(*np.unique(np.tensordot(1 << np.arange(2**inputs), fires, 1), return_index=True), strict=True)
    return {int(n): (weights[place // len(biases)], biases[place % len(biases)]) for n, place in first}


def impossible(inputs: int) -> np.ndarray:
    """Whether two rows where a function is true sum to two where it is false: for each function, [2 ** 2 ** inputs]."""
    pairs = np.array(list(itertools.combinations_with_replacement(range(2**inputs), 2)))
    sums = rows(inputs)[pairs].sum(1) @ 3 ** np.arange(inputs)
    groups = (sums[:, None] == np.unique(sums)).astype("f4")
    sides = (truth_tables(inputs), ~truth_tables(inputs))
    return np.logical_and(*(side[:, pairs].all(2).astype("f4") @ groups > 0 for side in sides)).any(1)


def train(config: Config, run: Run) -> dict:
    found = {inputs: by_one_unit(inputs) for inputs in (1, 2, 3, 4)}
    if any(len(some) + impossible(inputs).sum() != 2**2**inputs for inputs, some in found.items()):
        run.miss("some function is neither computed by one unit nor proved impossible")
    chosen = np.random.default_rng(config.seed).integers(0, 2, (config.functions, 2**config.inputs))
    tables = [(rows(3), truth) for truth in truth_tables(3)] + [(rows(config.inputs), truth) for truth in chosen]
    if wrong := int(sum((computed(built(truth), x) != truth).sum() for x, truth in tables)):
        run.miss(f"the two-layer nets are wrong in {wrong} rows")
    run.figure("threshold_logic", slide(found))
    return {f"one_unit_of_{n}_inputs": len(some) for n, some in found.items()} | {"two_layers_wrong": wrong}


def slide(found: dict) -> Figure:
    """Every function of two inputs, and how many functions one unit computes."""
    figure, side = plot.canvas(9.4, 5.4), np.linspace(-0.5, 1.5, 200)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.5, 1))[0]
    plane = np.stack(np.meshgrid(side, side), axis=-1)
    for (number, name), axis in zip(NAMES.items(), left.subplots(4, 4).flat, strict=True):
        one, truth = found[2].get(number), truth_tables(2)[number]
        fires, color = computed([one] if one else built(truth), plane), plot.COLORS[4] if one else plot.ACCENT
        axis.contourf(side, side, fires, levels=(0.5, 1), colors=[color], alpha=0.5)
        axis.scatter(*rows(2).T, c=np.where(truth, plot.INK, "white"), edgecolors=plot.INK, s=50, zorder=2)
        axis.set(xlim=(-0.5, 1.5), ylim=(-0.5, 1.5), xticks=(), yticks=(), aspect="equal")
        axis.set_title(name, fontsize=9, color=plot.INK if one else plot.ACCENT)
    left.supxlabel("Functions of x (right) and y (up). Blue: one unit fires. Red: only two layers can.", fontsize=9)
    axis = right.subplots()
    bars = axis.bar(list(found), [100 * len(some) / 2**2**n for n, some in found.items()], color=plot.COLORS[4])
    axis.bar_label(bars, [f"{len(some):,} of\n{2**2**n:,}" for n, some in found.items()], fontsize=9)
    axis.set(xlabel="inputs", ylabel="functions that one unit computes (%)", ylim=(0, 115), xticks=list(found))
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE)
