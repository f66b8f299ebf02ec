"""What images are made of, before deep learning and after: 128 atoms of patches of 8 x 8 pixels, learnt in five ways.

Claim: a sum of 5 atoms of a sparse dictionary explains more of an image patch than the best 8 principal components; a
linear auto-encoder finds the subspace of the principal components, to less than a degree.

Source: Olshausen, Field 1996, "Emergence of simple-cell receptive field properties by learning a sparse code for
natural images"; Aharon, Elad, Bruckstein 2006, "K-SVD"; Coates, Ng, Lee 2011, "An analysis of single-layer networks in
unsupervised feature learning", for k-means and the preparation of patches: mean 0, contrast 1, whitening. K-means, PCA
and the dictionary (Mairal, Bach, Ponce, Sapiro 2009) are scikit-learn's. All atoms are judged in the same way: how much
of held-out patches is left over by the best few of them, which orthogonal matching pursuit chooses.

Expect: 5 atoms of the sparse dictionary explain as much as 10 principal components; an angle of 0.001 degrees. About a
minute and a half on two CPU cores.

    python -m experiments.history.dictionary
    python -m experiments.history.dictionary --atoms 64
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dlc import data
from dlc.analysis import atoms
from dlc.errors import UserError
from dlc.run import plot
from dlc.run.flags import NotNegative, Positive
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import patches


@dataclass(frozen=True)
class Config:
    dataset: Literal["cifar10", "digits32"] = "cifar10"  # the data set
    patches: Positive[int] = 20_000  # to learn from, at random places of training images
    atoms: Positive[int] = 128  # of each dictionary; PCA has 63
    active: Positive[int] = 16  # atoms that are added up, at most
    seed: NotNegative[int] = 0  # of all random numbers
    seeds: Positive[int] = 3  # number of runs, the first with `seed`


SMOKE = Config(dataset="digits32", patches=2000, atoms=32, active=4, seeds=1)
SUBSPACE = 16  # dimensions that the linear auto-encoder keeps
LEARNT = ("PCA", "k-means", "sparse dictionary", "auto-encoder", "network")


def train(config: Config, run: Run) -> dict:
    if config.patches < config.atoms:
        raise UserError(f"--patches must be at least --atoms, but {config.patches} is less than {config.atoms}")
    if config.patches < patches.SIDE**2:
        raise UserError(f"--patches must be at least {patches.SIDE**2}, as many as their pixels, not {config.patches}")
    dataset = data.load(config.dataset)
    run.facts |= {"dataset": dataset.name, "source": dataset.source, "seeds": config.seeds}
    left: dict = {}
    shown: dict = {}
    angles = []
    for seed in range(config.seed, config.seed + config.seeds):
        raw, x, held, (grid, label) = patches.prepared(dataset.train, dataset.test, config.patches, seed)
        key = jax.random.key(seed)
        found = run.clock.timed("train", patches.classical, x, config.atoms, seed)
        learn = jax.jit(patches.auto_encoder, static_argnums=2)
        found["auto-encoder"] = run.clock.timed("train", learn, x, key, config.atoms)
        learn = jax.jit(patches.first_layer, static_argnums=3)
        found["network"] = run.clock.timed("train", learn, grid, label, key, config.atoms)
        noise = np.random.default_rng(seed).normal(size=(config.atoms, x.shape[1]))
        for name, own in {**found, "random patches": x[: config.atoms], "noise": noise}.items():
            rest = jax.jit(atoms.left_over, static_argnums=2)(patches.unit(jnp.float32(own)), held, config.active)
            left.setdefault(name, []).append(np.asarray(rest).mean(0) / np.square(held).sum(1).mean())

        covariance = np.cov(raw.T, bias=True)
        principal = np.linalg.eigh(covariance)[1][:, : -SUBSPACE - 1 : -1].T
        fit = jax.jit(patches.linear_auto_encoder, static_argnums=2)
        linear = run.clock.timed("train", fit, jnp.float32(covariance), key, SUBSPACE)
        angles.append(atoms.largest_angle(jnp.float32(principal).T, linear.T))
        shown = shown or {**found, "principal": principal, "linear": linear}
    left = {name: np.stack(values) for name, values in left.items()}  # [S, active]
    run.figure("dictionary", draw(config, shown, left, np.mean(angles)))

    few = min(5, config.active) - 1
    own = left["sparse dictionary"][:, few]
    needed = (left["PCA"] > own[:, None]).sum(1) + 1
    if needed.min() <= min(8, config.active) or max(angles) >= 1:  # more than `active` are not counted
        run.miss(f"5 atoms explain as much as {needed.min()} components, or a subspace is {max(angles):.1f}° off")
    names = {name: name.replace(" ", "_").replace("-", "_").lower() for name in left}
    return {"pca_needs": needed, "angle": angles, **{f"left_{names[name]}": left[name][:, few] for name in left}}


def draw(config: Config, shown: dict, left: dict, angle: float) -> Figure:
    figure = plot.canvas(10.2, 6.2)
    above, below = np.ravel(figure.subfigures(2, 1, height_ratios=(1, 1.35)))
    for axis, name in zip(above.subplots(1, len(LEARNT)), LEARNT, strict=True):
        draw_atoms(axis, shown[name][:64], 8)
        axis.set_title(name, fontsize=10)
    curves, *bases = below.subplots(1, 3, width_ratios=(2.2, 1, 1))
    for name, shade in zip(left, plot.COLORS, strict=True):
        values = 100 * left[name]
        curves.plot(range(1, config.active + 1), values.mean(0), color=shade, label=name, marker="o", markersize=3)
    curves.set(xlabel="active atoms", ylabel="variance left over (%)", ylim=(0, 100))
    curves.grid(alpha=0.25)
    below.legend(loc="outside left upper", frameon=False)
    for axis, name in zip(bases, ("principal", "linear"), strict=True):
        draw_atoms(axis, shown[name], 4)
    bases[0].set_title(f"{SUBSPACE} principal components", fontsize=10)
    bases[1].set_title(f"linear auto-encoder:\nthe same space, {angle:.1f}° off", fontsize=10)
    return figure


def draw_atoms(axis: Any, rows: Any, columns: int) -> None:
    """Atoms [n, 64] as pictures, in which grey is 0."""
    rows = np.asarray(rows) / np.abs(rows).max(1, keepdims=True)
    axis.imshow(plot.mosaic(rows.reshape(-1, 8, 8), columns, fill=np.nan), cmap="gray", vmin=-1, vmax=1)
    axis.set_axis_off()


if __name__ == "__main__":
    launch(train, Config(), SMOKE)
