"""Is it a T or a C? Back-propagation finds a detector that tells, whatever the rotation and the place.

Claim: one receptive field of 3 x 3 weights, shared by all places, learns to tell T from C, and most often becomes a
detector of one of three kinds: on-centre/off-surround, bar or compactness.

Source: Rumelhart, Hinton, Williams 1986, "Learning internal representations by error propagation", "The T-C problem".
Both letters have five cells, at the same distances from each other. Here opposite edges of the retina meet: all places
are alike. The cells where a field has its rarer sign say its kind: the centre, a straight line of two or three (bar),
at most one at the edge (compactness). Which is learnt depends on whether units that see nothing may speak.

Expect: 89 % of the nets tell T from C if all units speak, 99 % if only those do that see; half a minute.

    python -m experiments.history.t_c
    python -m experiments.history.t_c --seeds 100
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dlc.run import plot
from dlc.run.flags import NotNegative, Positive
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.train import seed_keys

T, C = np.array([[[1, 1, 1], [0, 1, 0], [0, 1, 0]], [[1, 1, 0], [1, 0, 0], [1, 1, 0]]])
SIDE = 5  # of the retina
BARS = "012 345 678 036 147 258 048 246 01 12 34 45 67 78 03 36 14 47 25 58 04 48 24 46 13 15 37 57".split()  # cells
KINDS = ("on centre", "bar", "compactness", "something else")


@dataclass(frozen=True)
class Config:
    steps: Positive[int] = 4000  # training steps; each sees T and C in four rotations
    lr: Positive[float] = 0.5  # the highest learning rate; of gradient descent with momentum 0.9
    seed: NotNegative[int] = 0  # of all random numbers
    seeds: Positive[int] = 1000  # number of runs, the first with `seed`; trained at once


SMOKE = Config(steps=1000, seeds=20)


def retina(letter, row=1, column=1):
    """The letter in four rotations at a place: [4, SIDE, SIDE]."""
    turned = np.stack([np.rot90(letter, turn) for turn in range(4)]).astype(np.float32)
    return np.roll(np.pad(turned, ((0, 0), (0, SIDE - 3), (0, SIDE - 3))), (row, column), (1, 2))


def windows(images):
    """What the hidden units see of images [N, SIDE, SIDE]: [N, SIDE * SIDE, 9]."""
    around = np.pad(images, ((0, 0), (1, 1), (1, 1)), "wrap")
    return np.lib.stride_tricks.sliding_window_view(around, (3, 3), (1, 2)).reshape(len(images), -1, 9)


def answer(net, seen, silent):
    """How sure a net [12] is of a T given windows [N, units, 9]: [N]; `silent` are units that see nothing."""
    hidden = jax.nn.sigmoid(seen @ net[:9] + net[9]) * jnp.where(silent, seen.max(2), 1)
    return jax.nn.sigmoid(net[10] * hidden.sum(1) / SIDE + net[11])


def learnt(config, key, seen, is_t, silent):
    """The net before and after gradient descent on its squared error."""

    def step(state, _):
        net, speed = state
        slope = jax.grad(lambda net: ((answer(net, seen, silent) - is_t) ** 2).sum() / 2)(net)
        speed = 0.9 * speed - config.lr * slope
        return (net + speed, speed), None

    first = jax.random.uniform(key, (12,), minval=-0.7, maxval=0.7)
    return first, jax.lax.scan(step, (first, jnp.zeros(12)), length=config.steps)[0][0]


def kind(field):
    """The place in KINDS of a receptive field [9], whatever its sign and rotation."""
    rarer = min(("".join(map(str, np.flatnonzero(side))) for side in (field > 0, field <= 0)), key=len)
    return 0 if rarer == "4" else 1 if rarer in BARS else 2 if len(rarer) < 2 else 3


def train(config: Config, run: Run) -> dict:
    images = np.concatenate([retina(letter, *place) for letter in (T, C) for place in np.ndindex(SIDE, SIDE)])
    seen, is_t = jnp.asarray(windows(images)), np.repeat((1, 0), len(images) // 2)
    one = np.r_[0:4, 100:104]  # both letters at one place, which training sees
    learn = jax.jit(jax.vmap(lambda key, silent: learnt(config, key, seen[one], is_t[one], silent), (0, None)))
    tell = jax.jit(jax.vmap(lambda net, silent: ((answer(net, seen, silent) > 0.5) == is_t).all(), (0, None)))
    shares, told, shown, run.facts["seeds"] = {}, {}, [], config.seeds
    for silent, name in enumerate(("all_units", "seeing_units")):
        first, last = run.clock.timed("train", learn, seed_keys(config.seed, config.seeds), silent)
        for when, net in (("drawn", first), (name, last)):
            kinds = np.array([kind(field) for field in np.asarray(net[:, :9])])
            shares[when] = np.bincount(kinds, minlength=4) / config.seeds
            told[when] = float(tell(net, silent).mean())
        shown.append((np.asarray(last[:, :9] * jnp.sign(last[:, 10:11])), kinds))
    if any(told[name] < 0.8 or shares[name][3] > 0.5 for name in tuple(shares)[1:]):
        run.miss("less than 80 % of the nets tell T from C, or less than half have one of the three kinds of fields")
    run.figure("t_c", slide(shown, shares))
    found = {f"{n}_{k}".replace(" ", "_"): x for n, row in shares.items() for k, x in zip(KINDS, row, strict=True)}
    return {f"{name}_told": share for name, share in told.items()} | found


def slide(shown: list, shares: dict) -> Figure:
    tiles = np.full((5, 8, 4, 4), np.nan)
    tiles[0, :, :3, :3] = [np.rot90(letter, turn) for letter in (T, C) for turn in range(4)]
    for place in range(4):
        some = np.concatenate([fields[kinds == place] for fields, kinds in shown])[:8]
        tiles[place + 1, : len(some), :3, :3] = (some / abs(some).max(1, keepdims=True)).reshape(-1, 3, 3)
    figure, rows = plot.canvas(9.6, 4.4), np.arange(5) * 4 + 1
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.6, 1))
    left.imshow(tiles.swapaxes(1, 2).reshape(20, 32), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    left.set(frame_on=False, xticks=(), yticks=rows, yticklabels=("T and C", *KINDS))
    labels = ("before training", "all units speak", "only units that see speak")
    for move, share, label, color in zip((-1, 0, 1), shares.values(), labels, plot.COLORS[6::-3], strict=True):
        bars = right.barh(rows[1:] + move, 100 * share, 0.9, color=color, label=label)
        right.bar_label(bars, fmt="%.0f %%", fontsize=9, padding=2)
    right.set(xlabel="receptive fields (%)", xlim=(0, 115))
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE)
