"""Is it a T or a C? Back-propagation finds a detector that tells, whatever the rotation and the place.

Claim: one receptive field of 3 x 3 weights, shared by all places, learns to tell T from C, and most often becomes a
detector of one of three kinds: on-centre/off-surround, bar, or compactness.

Source: Rumelhart, Hinton, Williams 1986, "Learning internal representations by error propagation", "The T-C problem".
Both letters have five cells and the same distances between two of them, so that no pair of cells tells them apart. Here
opposite edges of the retina meet: all places are alike. The signs of the nine weights say which kind a field is. The
cells of the rarer sign are none (compactness), the centre, a straight line of two or three (bar), or something else.

Expect: TODO

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

T = np.array([[1, 1, 1], [0, 1, 0], [0, 1, 0]])
C = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0]])
SIDE = 5  # of the retina
BARS = "012 345 678 036 147 258 048 246 01 12 34 45 67 78 03 36 14 47 25 58 04 48 24 46 13 15 37 57".split()  # cells
KINDS = ("on-centre/off-surround", "bar", "compactness", "something else")


@dataclass(frozen=True)
class Config:
    steps: Positive[int] = 4000  # training steps; each sees T and C in four rotations
    lr: Positive[float] = 0.3  # the highest learning rate; of gradient descent with momentum 0.9
    seed: NotNegative[int] = 0  # of all random numbers
    seeds: Positive[int] = 1000  # number of runs, the first with `seed`; trained at once


SMOKE = Config(steps=1000, seeds=20)


def retina(letter, row=1, column=1):
    """The letter in four rotations at a place: [4, SIDE, SIDE]."""
    images = np.zeros((4, SIDE, SIDE), np.float32)
    images[:, :3, :3] = [np.rot90(letter, turn) for turn in range(4)]
    return np.roll(images, (row, column), (1, 2))


def windows(images):
    """What the hidden units see of images [N, SIDE, SIDE]: [N, SIDE * SIDE, 9]."""
    around = np.pad(images, ((0, 0), (1, 1), (1, 1)), "wrap")
    return np.lib.stride_tricks.sliding_window_view(around, (3, 3), (1, 2)).reshape(len(images), -1, 9)


def answer(net, seen):
    """How sure a net [12] is of a T, 0 to 1, given windows [N, units, 9]: [N]. Hidden units share their weights."""
    hidden = jax.nn.sigmoid(seen @ net[:9] + net[9])
    return jax.nn.sigmoid(net[10] * hidden.sum(1) / SIDE + net[11])


def learnt(config, key, seen, is_t):
    """The net before and after gradient descent on its squared error."""

    def step(state, _):
        net, speed = state
        slope = jax.grad(lambda net: ((answer(net, seen) - is_t) ** 2).sum() / 2)(net)
        speed = 0.9 * speed - config.lr * slope
        return (net + speed, speed), None

    first = jax.random.uniform(key, (12,), minval=-2, maxval=2)
    return first, jax.lax.scan(step, (first, jnp.zeros(12)), length=config.steps)[0][0]


def kind(field):
    """The place in KINDS of a receptive field [9], whatever its sign and rotation."""
    signs = ["".join(map(str, np.flatnonzero(side))) for side in (field > 0, field <= 0)]
    rarer = min(signs, key=len)
    return 2 if not rarer else 0 if rarer == "4" else 1 if rarer in BARS else 3


def train(config: Config, run: Run) -> dict:
    images = np.concatenate([retina(letter, *place) for letter in (T, C) for place in np.ndindex(SIDE, SIDE)])
    seen, is_t = jnp.asarray(windows(images)), np.repeat((1, 0), len(images) // 2)
    one = np.r_[0:4, 100:104]  # both letters at one place, which training sees
    learn = jax.jit(jax.vmap(lambda key: learnt(config, key, seen[one], is_t[one])))
    first, last = run.clock.timed("train", learn, seed_keys(config.seed, config.seeds))
    run.facts["seeds"] = config.seeds
    told = [((jax.vmap(answer, (0, None))(net, seen) > 0.5) == is_t).all(1).mean() for net in (first, last)]
    drawn, became = (np.array([kind(field) for field in np.asarray(net)[:, :9]]) for net in (first, last))
    shares = [np.bincount(kinds, minlength=4) / config.seeds for kinds in (drawn, became)]
    if told[1] < 0.9 or shares[1][3] > 0.5:
        run.miss(f"{told[1]:.0%} of the nets tell T from C, and {1 - shares[1][3]:.0%} have a field of the three kinds")
    run.figure("t_c", slide(np.asarray(last[:, :9] * jnp.sign(last[:, 10:11])), became, shares))
    named = {name.replace(" ", "_").replace("/", "_"): share for name, share in zip(KINDS, shares[1], strict=True)}
    return {"told_before": told[0], "told": told[1], **named}


def slide(fields: np.ndarray, kinds: np.ndarray, shares: list) -> Figure:
    """Receptive fields [S, 9] of each kind, and how common the kinds are before and after training."""
    tiles = np.full((5, 8, 4, 4), np.nan)
    tiles[0, :, :3, :3] = [np.rot90(letter, turn) for letter in (T, C) for turn in range(4)]
    for place in range(4):
        some = fields[kinds == place][:8]
        tiles[place + 1, : len(some), :3, :3] = (some / abs(some).max(1, keepdims=True)).reshape(-1, 3, 3)
    figure, rows = plot.canvas(9.6, 4.2), np.arange(5) * 4 + 1
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.6, 1))
    left.imshow(tiles.swapaxes(1, 2).reshape(20, 32), cmap="RdBu_r", vmin=-1, vmax=1)
    left.set(xticks=(), yticks=rows, yticklabels=("T and C", *KINDS))
    left.spines[:].set_visible(False)
    for move, share, label, color in zip((-0.6, 0.6), shares, ("drawn", "learnt"), plot.COLORS[4::-3], strict=False):
        bars = right.barh(rows[1:] + move, 100 * share, 1.1, color=color, label=label)
        right.bar_label(bars, fmt="%.0f %%", fontsize=9, padding=2)
    right.set(xlabel="receptive fields (%)", xlim=(0, 110))
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE)
