"""What experiments that compare representations share: the answers of layers, tables of similarity, and pictures.

Glossary: N images, L layers, P pairs of networks.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dlc.analysis import features, similarity
from dlc.run import plot
from dlc.run.run import Run

Layers = dict[str, Any]  # name -> answers [N, ...]


def answers(apply: Callable[..., Any], variables: Any, pixels: Any, names: Sequence[str]) -> Layers:
    """What each of the layers answers to the images, after a ReLU."""

    def relus(variables: Any, pixels: Any) -> Any:
        return jax.tree.map(jax.nn.relu, features.activations(apply, variables, pixels, names))

    return dict(zip(names, map(jax.jit(relus)(variables, pixels).get, names), strict=True))


def alignments(one: Sequence[Layers], other: Sequence[Layers]) -> np.ndarray:
    """CKA of the layers of network i of `one` with those of network j of `other`, for all i != j: [P, L, L]."""

    @jax.jit
    def table(left: Any, right: Any) -> Any:
        return jnp.stack([jnp.stack([similarity.cka(a, b) for b in right]) for a in left])

    grams = [[[similarity.gram(layer) for layer in net.values()] for net in group] for group in (one, other)]
    pairs = itertools.permutations(range(len(one)), 2)
    return np.array([table(grams[0][i], grams[1][j]) for i, j in pairs])


def explained(layers: Layers, units: Any) -> np.ndarray:
    """The share of the variance of the median unit [N, U] that each layer explains, [L]."""
    return np.array([np.median(jax.jit(similarity.explained)(layer, units)) for layer in layers.values()])


def sampled(layer: Any, count: int, seed: int) -> np.ndarray:
    """The answers [N, count] of random units of a layer, of those whose answers differ."""
    units = np.asarray(layer).reshape(len(layer), -1)
    changing = np.flatnonzero(units.std(0) > 0)
    return units[:, np.random.default_rng(seed).permutation(changing)[:count]]


def of_sites(
    run: Run, apply: Callable[..., Any], variables: Any, pixels: np.ndarray, sites: np.ndarray
) -> dict[str, Any]:
    """How much every layer of a network explains of recordings [N, sites] of the same images; figure "similarity"."""
    names = list(features.shapes(apply, variables, pixels[:1]))
    shares = {"layers": explained(answers(apply, variables, pixels, names), sites)}
    shares["pixels"] = explained({"pixels": pixels}, sites)
    figure = plot.canvas(7.2, 4.4)
    curves(figure.subplots(), shares, names)
    figure.legend(loc="outside upper right", frameon=False, ncols=2)
    run.figure("similarity", figure)
    best = int(shares["layers"].argmax())
    run.say(f"{names[best]} explains {shares['layers'][best]:.1%} of the variance of the median site")
    return {"explained": shares["layers"][best], "explained_by_pixels": shares["pixels"][0], "sites": sites.shape[1]}


def overview(
    representations: Layers, tables: dict[str, np.ndarray], shares: dict[str, np.ndarray], names: Sequence[str]
) -> Figure:
    """Above, the dissimilarities of images in some representations [N, ...], and how alike they and the third one are.

    Below, the CKA of every two layers [L, L], rows being those of a trained network, and what each layer explains [L].
    """
    figure = plot.canvas(plot.WIDEST, 7.2)
    above, below = np.asarray(figure.subfigures(2, 1, height_ratios=(1, 1.5)))
    dissimilarities(above, representations, list(representations)[2])
    tables_and_curves(below, tables, shares, names)
    return figure


def tables_and_curves(
    figure: Any, tables: dict[str, np.ndarray], shares: dict[str, np.ndarray], names: Sequence[str]
) -> None:
    """The CKA of every two layers, and what each layer explains."""
    *left, right = figure.subplots(1, len(tables) + 1, width_ratios=(*[1] * len(tables), 1.3))
    for axis, (name, values) in zip(left, tables.items(), strict=True):
        image = axis.imshow(values, vmin=0, vmax=1, cmap="magma", origin="lower")
        axis.set_xticks(range(len(names)), names, fontsize=plot.SMALL)
        axis.set_yticks(range(len(names)), names, fontsize=plot.SMALL)
        axis.set_xlabel(f"layer of {name}")
    left[0].set_ylabel("layer of a trained network")
    figure.colorbar(image, ax=left, label="similarity (CKA)", location="bottom", shrink=0.5, aspect=30)
    curves(right, shares, names)
    figure.legend(loc="outside upper right", frameon=False, ncols=len(shares), fontsize=plot.SMALL)


def curves(axis: Any, shares: dict[str, np.ndarray], names: Sequence[str]) -> None:
    """The share of variance that each layer explains [L]; a single value is a line across."""
    for (name, values), color in zip(shares.items(), plot.COLORS, strict=False):
        if len(values) == 1:
            axis.axhline(100 * values[0], color=color, linestyle=":", label=name)
        else:
            axis.plot(100 * np.asarray(values), color=color, marker="o", markersize=3.5, label=name)
    axis.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 4 else 90, fontsize=plot.SMALL)
    axis.set(xlabel="layer", ylabel="variance of the median unit explained (%)")
    axis.grid(alpha=0.25)


def dissimilarities(figure: Any, representations: Layers, against: str) -> None:
    """A matrix for each: 1 - the correlation of the answers to two images; its rank correlation with one of them."""
    matrices = {name: np.asarray(similarity.rdm(answers)) for name, answers in representations.items()}
    for axis, (name, matrix) in zip(figure.subplots(1, len(matrices)), matrices.items(), strict=True):
        axis.imshow(matrix, cmap="magma", vmin=0, vmax=np.percentile(matrix, 99))
        axis.set(xticks=(), yticks=())
        axis.set_title(name.replace(", ", ",\n"), fontsize=plot.SMALL + 1)
        alike = float(similarity.rsa(matrices[against], matrix))
        axis.set_xlabel(f"like {against}: {alike:.2f}", fontsize=plot.SMALL)
