"""Logistic regression on polynomials of two coordinates: features that people chose, before they were learnt.

Glossary: N points, P features, of degree d (d + 1)(d + 2) / 2.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def features(x: Float[Array | np.ndarray, "N 2"], degree: int) -> Float[Array, "N P"]:
    """All products of Legendre polynomials of the two coordinates whose degrees add up to at most `degree`.

    They span what the monomials span. For coordinates in [-1, 1] they are at most 1 and nearly uncorrelated, so that
    Newton's method works in float32.
    """
    x = jnp.asarray(x)
    one = [jnp.ones_like(x), x]
    for n in range(1, degree):
        one.append(((2 * n + 1) * x * one[n] - n * one[n - 1]) / (n + 1))
    pairs = itertools.product(range(degree + 1), repeat=2)
    return jnp.stack([one[i][:, 0] * one[j][:, 1] for i, j in pairs if i + j <= degree], axis=1)


def fit(
    phi: Float[Array, "N P"], label: Int[Array | np.ndarray, " N"], ridge: float = 1e-4, steps: int = 30
) -> Float[Array, " P"]:
    """The weights that minimise the mean log loss of labels 0 and 1 plus ridge |w|^2 / 2, by Newton's method."""

    def newton(w: Array, _: None) -> tuple[Array, None]:
        p = jax.nn.sigmoid(phi @ w)
        gradient = phi.T @ (p - label) / len(phi) + ridge * w
        hessian = (phi.T * (p * (1 - p))[None]) @ phi / len(phi) + ridge * jnp.eye(phi.shape[1])
        return w - jnp.linalg.solve(hessian, gradient), None

    return jax.lax.scan(newton, jnp.zeros(phi.shape[1]), length=steps)[0]
