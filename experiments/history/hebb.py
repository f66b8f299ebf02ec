"""Units that fire together wire together, and then recall what they saw from a part of it.

Claim: a net of n units that learns the correlations of random patterns recalls most of n / (2 ln n) patterns exactly,
which are 5 for 40 units; large nets recall 0.138 n roughly, and lose all of them if they learn more.

Source: Hebb 1949, "The organization of behavior"; Minsky's machine of 1951 had 40 units that learnt in this way. Recall
is that of Hopfield 1982, "Neural networks and physical systems with emergent collective computational abilities". The
limits are those of many units: (1 - 2 r)^2 n / (2 ln n) from cues of which a share r is wrong (McEliece et al. 1987,
"The capacity of the Hopfield associative memory") and 0.138 n (Amit, Gutfreund, Sompolinsky 1985, "Storing infinite
numbers of patterns in a spin-glass model of neural networks").

Expect: 40 units recall 5 patterns in 99 % of sets; overlaps fall below 0.9 at 0.18, 0.15 and 0.14 patterns a unit.

    python -m experiments.history.hebb
    python -m experiments.history.hebb --units 100 --sets 100
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dlc.run import plot
from dlc.run.flags import Bound, NotNegative, Positive, Some
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.train import seed_keys

LETTERS = ("33333JVE", "4EERRVVR", "HRE44ERH")  # rows of five cells, each as a digit of base 32
WRONG, CUE = np.arange(0, 0.5, 0.05), 0.1  # shares of a cue that are wrong; the same for larger nets
Large = Annotated[int, Bound(lambda n: n >= 40, "must be at least 40, not {}")]


@dataclass(frozen=True)
class Config:
    units: Literal[*range(10, 201, 10)] = 40  # in the net that is cued with more and more errors
    nets: Some[tuple[Large, ...]] = (40, 160, 640)  # units of the nets that learn more and more patterns
    sets: Positive[int] = 400  # random sets of patterns
    seed: NotNegative[int] = 0  # of all random numbers


SMOKE = Config(nets=(40, 80), sets=20)


def learnt(patterns):
    """Hebb's rule: the mean product of two units over patterns [P, n] of -1 and 1. No unit connects to itself."""
    return patterns.T @ patterns / patterns.shape[1] * (1 - jnp.eye(patterns.shape[1]))


def recalled(weights, cues, sweeps=20):
    """Cues [K, n] after each unit in turn has taken the sign of its input, all of them `sweeps` times."""

    def turn(count, state):
        unit = count % cues.shape[1]
        drive = state @ weights[unit]
        return state.at[:, unit].set(jnp.where(drive == 0, state[:, unit], jnp.sign(drive)))

    return jax.lax.fori_loop(0, sweeps * cues.shape[1], turn, cues)


def overlaps(units, loads, wrong, keys):
    """The overlap, 1 to -1, of random patterns and what is recalled, for shares `wrong` [K] of cues: [loads, S, K]."""

    def one(load, key):
        of_patterns, of_cues = jax.random.split(key)
        patterns = jax.random.rademacher(of_patterns, (max(loads), units), jnp.float32)
        rank = jax.random.permutation(of_cues, units)
        cues = patterns[:1] * jnp.where(rank[None] < jnp.rint(jnp.array(wrong)[:, None] * units), -1, 1)
        return recalled(learnt(patterns * (jnp.arange(max(loads)) < load)[:, None]), cues) @ patterns[0] / units

    every = jax.jit(lambda loads: jax.lax.map(lambda load: jax.vmap(one, (None, 0))(load, keys), loads))
    return np.asarray(every(jnp.array(loads)))


def train(config: Config, run: Run) -> dict:
    n, limit, keys = config.units, config.units / (2 * math.log(config.units)), seed_keys(config.seed, config.sets)
    exact = (run.clock.timed("recall", overlaps, n, np.arange(1, n // 2 + 1), WRONG, keys) == 1).mean(1)
    found, lost = {}, {}
    for units in config.nets:
        some = np.unique(np.rint(units * np.linspace(0.025, 0.3, 12)).astype(int))
        overlap = run.clock.timed("recall", overlaps, units, some, (CUE,), keys[: max(8, 40 * config.sets // units)])
        found[units] = some / units, overlap[..., 0]
        lost[f"load_of_{units}_units"] = np.interp(-0.9, -found[units][1].mean(1), some / units)
    if exact[int(limit) - 1, 0] < 0.5 or not 0.11 < lost[f"load_of_{max(config.nets)}_units"] < 0.2:
        run.miss("the capacity is not what theory predicts")
    run.figure("hebb", slide(exact, limit, found, letters(config.seed)))
    return {"limit": limit, "recalled_at_limit": exact[int(limit) - 1, 0], **lost}


def letters(seed: int) -> np.ndarray:
    """Letters as they are learnt, cues with a fifth of the units wrong, and what is recalled: [3, 3, 8, 5]."""
    cells = [[int(row, 32) >> bit & 1 for row in letter for bit in (4, 3, 2, 1, 0)] for letter in LETTERS]
    patterns = 2 * np.array(cells, np.float32) - 1
    wrong = np.random.default_rng(seed).permuted(np.tile(np.arange(40) < 8, (3, 1)), axis=1)
    cues = np.where(wrong, -patterns, patterns)
    return np.stack([patterns, cues, recalled(learnt(patterns), cues)], 1).reshape(3, 3, 8, 5)


def slide(exact: np.ndarray, limit: float, found: dict, pictures: np.ndarray) -> Figure:
    figure = plot.canvas(10.2, 3.8)
    left, middle, right = figure.subplots(1, 3, width_ratios=(0.75, 1.15, 1.1))
    tiles = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan).swapaxes(1, 2).reshape(30, 21)
    left.imshow(tiles, cmap="Blues", vmin=-1.3, vmax=1.2)
    left.set(xticks=(3, 10, 17), xticklabels=("learnt", "cue", "recalled"), yticks=())
    loads, wrong = np.arange(1, len(exact) + 1), 100 * WRONG
    image = middle.pcolormesh(loads, wrong, 100 * exact.T, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=middle, label="recalled exactly (%)")
    middle.plot(limit * (1 - wrong / 50) ** 2, wrong, color=plot.ACCENT, label="theory, many units")
    middle.set(xlabel="patterns learnt", ylabel="wrong units of the cue (%)", xlim=(0.5, None))
    for (units, (load, overlap)), color in zip(found.items(), plot.COLORS, strict=False):
        error = 2 * overlap.std(1) / math.sqrt(overlap.shape[1])
        right.errorbar(load, overlap.mean(1), error, color=color, marker="o", markersize=3, label=f"{units} units")
    right.axvline(0.138, color=plot.ACCENT)
    right.axhline(1 - 2 * CUE, color="grey", linestyle=":", label="the cue")
    right.set(xlabel="patterns learnt per unit", ylabel="overlap of recalled and learnt", ylim=(0, 1.05))
    figure.legend(loc="outside upper right", ncols=5, frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE)
