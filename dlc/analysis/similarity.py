"""How alike two representations of the same images are: dissimilarity matrices, CKA, and variance explained.

A representation is what a layer, or a set of recording sites, answers to N images: an array [N, ...], flattened here.

Glossary: N images, D features of a layer, U units or recording sites.

References:
    [1] Kriegeskorte, Mur, Bandettini 2008, "Representational similarity analysis".
    [2] Kornblith, Norouzi, Lee, Hinton 2019, "Similarity of neural network representations revisited".
    [3] Yamins, DiCarlo 2016, "Using goal-driven deep learning models to understand sensory cortex".
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from dlc.errors import UserError

Either = Array | np.ndarray
STRENGTHS = tuple(10.0**power for power in range(-5, 4))  # of the ridge, as shares of the mean eigenvalue


def rdm(features: Shaped[Either, "N ..."]) -> Float[Array, "N N"]:
    """The representational dissimilarity matrix: 1 - Pearson's correlation of the answers to two images, [1].

    0 on the diagonal; an image whose answers are all equal is at distance 1 from every other one.
    """
    rows = _flat(features)
    rows = rows - rows.mean(1, keepdims=True)
    rows = rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return jnp.where(jnp.eye(len(rows), dtype=bool), 0, 1 - rows @ rows.T)


def rsa(one: Float[Either, "N N"], other: Float[Either, "N N"]) -> Float[Array, ""]:
    """Spearman's correlation of two dissimilarity matrices above their diagonals, [1]."""
    above = np.triu_indices(len(one), 1)
    ranks = jnp.stack([jax.scipy.stats.rankdata(jnp.asarray(matrix)[above]) for matrix in (one, other)])
    return jnp.corrcoef(ranks)[0, 1]


def gram(features: Shaped[Either, "N ..."]) -> Float[Array, "N N"]:
    """Inner products of the answers to every two images, after each feature's mean is subtracted."""
    rows = _flat(features)
    rows = rows - rows.mean(0, keepdims=True)
    return rows @ rows.T


def cka(one: Float[Either, "N N"], other: Float[Either, "N N"]) -> Float[Array, ""]:
    """Linear centred kernel alignment of two `gram` matrices: 0 to 1, section 3 of [2].

    It is 1 if one representation is the other one rotated and scaled, and 0 if one of them is constant.
    """
    one, other = jnp.asarray(one), jnp.asarray(other)
    scale = jnp.linalg.norm(one) * jnp.linalg.norm(other)
    return jnp.where(scale > 0, jnp.vdot(one, other) / jnp.maximum(scale, 1e-30), 0)


def explained(features: Shaped[Either, "N ..."], units: Shaped[Either, "M ..."], folds: int = 5) -> Float[Array, " U"]:
    """The share of each unit's variance that a linear function of the features predicts on images it was not fitted to.

    This is the method of [3] with ridge regression. Every fold is predicted from the others; the strength of the ridge
    is chosen for each unit among `STRENGTHS` by the errors of leaving out one image of the others. 1 is a perfect
    prediction, 0 that of the mean, and below 0 is worse than that; a unit that never changes gives 0.

    Raises UserError if there are fewer images than two for each fold, or if the numbers of images differ.
    """
    x, y = _flat(features), _flat(units)
    if len(x) != len(y):
        raise UserError(f"features of {len(x)} images cannot explain answers to {len(y)}: both need the same images")
    if folds < 2 or len(x) < 2 * folds:
        raise UserError(f"{folds} folds need at least {2 * max(folds, 2)} images and two folds, not {len(x)} images")
    wrong = jnp.zeros(y.shape[1])
    for fold in range(folds):
        held = np.arange(len(x)) % folds == fold
        guess = _ridge(x[~held], y[~held], x[held])
        wrong += jnp.square(y[held] - guess).sum(0)
    spread = jnp.square(y - y.mean(0, keepdims=True)).sum(0)
    return jnp.where(spread > 0, 1 - wrong / jnp.maximum(spread, 1e-30), 0)


def _ridge(x: Any, y: Any, asked: Any) -> Any:
    """The predictions for `asked` [M, D] of ridge regression from x [N, D] to y [N, U], in its dual form."""
    centre, level = x.mean(0, keepdims=True), y.mean(0, keepdims=True)
    x, y, asked = x - centre, y - level, asked - centre
    values, vectors = jnp.linalg.eigh(x @ x.T)
    values = jnp.maximum(values, 0)
    turned = vectors.T @ y

    def left_out(strength: Any) -> Any:
        """The squared errors [U] if every image is left out once: residual / (1 - leverage)."""
        kept = values / (values + strength)
        leverage = jnp.square(vectors) @ kept + 1 / len(x)
        residual = y - vectors @ (kept[:, None] * turned)
        return jnp.square(residual / jnp.maximum(1 - leverage, 1e-6)[:, None]).sum(0)

    strengths = jnp.maximum(values.mean(), 1e-12) * jnp.asarray(STRENGTHS)
    best = strengths[jnp.argmin(jax.lax.map(left_out, strengths), axis=0)]
    weights = vectors @ (turned / (values[:, None] + best[None]))
    return asked @ (x.T @ weights) + level


def _flat(features: Any) -> Any:
    features = jnp.asarray(features, jnp.float32)
    return features.reshape(len(features), -1)
