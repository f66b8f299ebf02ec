"""Vectors as sums of few atoms, and the angle between subspaces.

Glossary: N vectors, D their size, K atoms, k of them active.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def left_over(atoms: Float[Array, "K D"], x: Float[Array, "N D"], active: int) -> Float[Array, "N k"]:
    """|x - its approximation by 1, 2, ... `active` atoms|², each atom chosen by orthogonal matching pursuit.

    The next atom is the one that correlates most with what is left; then the best sum of all chosen atoms is taken. If
    the atoms are orthonormal, that is the best choice of atoms, too. Atoms have length 1.

    References: Pati, Rezaiifar, Krishnaprasad 1993, "Orthogonal matching pursuit".
    """

    def one(x: Array) -> Array:
        def choose(carried: tuple[Array, Array], place: Array) -> tuple[tuple[Array, Array], Array]:
            left, basis = carried  # an orthonormal basis of the atoms that were chosen, so no system is solved
            atom = atoms[jnp.argmax(jnp.abs(atoms @ left))]
            for _ in range(2):  # once more, against rounding
                atom = atom - basis.T @ (basis @ atom)
            length = jnp.linalg.norm(atom)
            new = jnp.where(length > 1e-4, atom / jnp.maximum(length, 1e-4), 0)  # 0: nothing is left to explain
            left = left - new * (new @ left)
            return (left, basis.at[place].set(new)), left @ left

        start = (x, jnp.zeros((active, x.size), x.dtype))
        return jax.lax.scan(choose, start, jnp.arange(active))[1]

    return jax.vmap(one)(x)


def largest_angle(one: Float[Array, "D k"], other: Float[Array, "D k"]) -> Float[Array, ""]:
    """The largest principal angle in degrees, 0 to 90, between the spaces that the columns of two matrices span."""
    one, other = jnp.linalg.qr(one)[0], jnp.linalg.qr(other)[0]
    # Of the sine, which is precise for small angles, as the cosine is not.
    sine = jnp.linalg.norm(other - one @ (one.T @ other), ord=2)
    return jnp.degrees(jnp.arcsin(jnp.minimum(sine, 1)))
