"""What a device can do at most: FLOP/s of matrix products in each precision, and bytes/s of a copy.

Products are square and follow one another in one program, each reading the result of the previous one, so that the
product is timed and not its start. The ceiling of a precision is that of the best size. It is measured, not taken from
the data sheet, because a share of it says what a better program could still gain on this machine.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dlc.errors import UserError

Precision = Literal["float32", "tf32", "bfloat16"]

SIZES = {"cpu": (512, 1024, 2048), "other": (1024, 2048, 4096, 8192, 16384)}
NUMBERS = {"cpu": 2**26, "other": 2**29}  # of a copy: far more than a cache holds
CHUNK = 0.05  # seconds: the least that a chunk takes, so that the clock and the call do not count
LIMIT = 2.0  # seconds: a size is left out if one product takes longer


def precisions() -> tuple[Precision, ...]:
    """The precisions of this device. Only GPUs have tf32, where it is JAX's default for float32."""
    return ("float32", "tf32", "bfloat16") if jax.default_backend() == "gpu" else ("float32", "bfloat16")


def default_precision(dtype: Literal["float32", "bfloat16"]) -> Precision:
    """The precision in which JAX multiplies matrices of this dtype unless told otherwise."""
    return "tf32" if dtype == "float32" and jax.default_backend() == "gpu" else dtype


def product(size: int, precision: Precision) -> Callable[[int], jax.Array]:
    """A function that computes `count` products of matrices [size, size] in one program."""
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    first, second = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    second = second * size**-0.5  # keeps the numbers near one after any number of products
    algorithm = "highest" if precision == "float32" else "default"

    @jax.jit
    def many(first: jax.Array, second: jax.Array, count: Any) -> jax.Array:
        return lax.fori_loop(0, count, lambda _, x: jnp.matmul(x, second, precision=algorithm), first)

    return lambda count: many(first, second, count)


def copy(size: int) -> Callable[[int], jax.Array]:
    """A function that reads and writes `size` float32 numbers `count` times."""
    numbers = jnp.ones(size)

    @jax.jit
    def many(numbers: jax.Array, count: Any) -> jax.Array:
        return lax.fori_loop(0, count, lambda i, x: x + 1.0, numbers)

    return lambda count: many(numbers, count)


def measure(many: Callable[[int], jax.Array], rounds: int) -> np.ndarray | None:
    """Seconds for one product or copy, [rounds]; None if one takes longer than `LIMIT`."""

    def seconds(count: int) -> float:
        began = time.perf_counter()
        many(count).block_until_ready()
        return (time.perf_counter() - began) / count

    many(1).block_until_ready()
    if (one := seconds(1)) > LIMIT:
        return None
    count = max(1, round(CHUNK / one))
    while (one := seconds(count)) * count < CHUNK:  # the first was slow to start
        count = round(1.5 * CHUNK / one) + 1
    return np.array([seconds(count) for _ in range(rounds)])


def ceilings(sizes: tuple[int, ...] = (), rounds: int = 5) -> dict[str, tuple[int, np.ndarray]]:
    """For each precision the best size and its FLOP/s [rounds]; for "copy" how many numbers, and bytes/s [rounds].

    Raises UserError if even the smallest product takes longer than `LIMIT`.
    """
    platform = "cpu" if jax.default_backend() == "cpu" else "other"
    sizes = sizes or SIZES[platform]
    found: dict[str, tuple[int, np.ndarray]] = {}
    for precision in precisions():
        times = {size: measure(product(size, precision), rounds) for size in sizes}
        rates = {size: 2 * size**3 / one for size, one in times.items() if one is not None}
        if not rates:
            raise UserError(f"one product of {min(sizes)}x{min(sizes)} takes over {LIMIT:g} s: choose smaller --sizes")
        best = max(rates, key=lambda size: float(np.median(rates[size])))
        found[precision] = best, rates[best]
    numbers = NUMBERS[platform]
    seconds = measure(copy(numbers), rounds)
    return found if seconds is None else {**found, "copy": (numbers, 8 * numbers / seconds)}


@functools.cache
def ceiling(precision: Precision) -> float:
    """FLOP/s of matrix products on this process's device, measured at the first call."""
    return float(np.median(ceilings(rounds=5)[precision][1]))


def share(flops: int | float, seconds: float, precision: Precision = "float32") -> float:
    """The share of the machine's ceiling that a program reaches if it does `flops` operations in `seconds`."""
    return flops / seconds / ceiling(precision)
