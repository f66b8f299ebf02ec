"""What this machine can do at most: matrix products in each precision, and copying. The ceilings of all other benches.

    python -m experiments.bench.devices                    seconds on a GPU, about a minute on a CPU

Products are square and follow one another in one program, each reading the last one's result, so that what is timed is
the product and not its start. The ceiling of a precision is the median of the size that does best: measured and not the
data sheet's, because a share of it says what a better program could still gain on this very machine.
"""

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax

from dlc import bench
from dlc.config import positive
from dlc.errors import UserError

Precision = Literal["float32", "tf32", "bfloat16"]

SIZES = {"cpu": (512, 1024, 2048), "other": (1024, 2048, 4096, 8192, 16384)}
CHUNK = 0.05  # seconds that a chunk takes at least, so that the clock and the call do not count
LIMIT = 2.0  # seconds: a size of which one product takes longer is left out


@dataclass(frozen=True)
class Config:
    sizes: tuple[int, ...] = ()  # rows of the matrices; none are 512 to 2048 on a CPU, 1024 to 16384 elsewhere
    rounds: int = 11  # of chunks
    out: Path = Path("runs")  # folder in which the record gets a folder of its own

    def __post_init__(self) -> None:
        positive(self, "rounds")
        if not all(size > 0 for size in self.sizes):
            raise UserError(f"--sizes takes numbers greater than 0, not {' '.join(map(str, self.sizes))}")


def precisions() -> tuple[Precision, ...]:
    """Those that this device has: tf32 is of GPUs, and there JAX's default for float32."""
    return ("float32", "tf32", "bfloat16") if jax.default_backend() == "gpu" else ("float32", "bfloat16")


def product(size: int, precision: Precision) -> Callable[[int], jax.Array]:
    """A function that multiplies `count` times in one program."""
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    first, second = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    second = second * size**-0.5  # keeps the numbers near one, however many products follow
    algorithm = "highest" if precision == "float32" else "default"

    @jax.jit
    def many(first: jax.Array, second: jax.Array, count: int) -> jax.Array:
        return lax.fori_loop(0, count, lambda _, x: jnp.matmul(x, second, precision=algorithm), first)

    return lambda count: many(first, second, count)


def copy(size: int) -> Callable[[int], jax.Array]:
    """A function that reads and writes `size` float32 numbers `count` times."""
    numbers = jnp.ones(size)

    @jax.jit
    def many(numbers: jax.Array, count: int) -> jax.Array:
        return lax.fori_loop(0, count, lambda i, x: x + 1.0, numbers)

    return lambda count: many(numbers, count)


def measure(many: Callable[[int], jax.Array], rounds: int) -> np.ndarray | None:
    """Seconds for one, [rounds]; None where one takes longer than the limit."""

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
    """By precision the size that does best and its FLOP/s, [rounds]; beside them "copy", its numbers and bytes/s."""
    sizes = sizes or SIZES["cpu" if jax.default_backend() == "cpu" else "other"]
    found = {}
    for precision in precisions():
        times = {size: measure(product(size, precision), rounds) for size in sizes}
        rates = {size: 2 * size**3 / one for size, one in times.items() if one is not None}
        if not rates:
            raise UserError(f"one product of {min(sizes)}x{min(sizes)} takes over {LIMIT:g} s: choose smaller --sizes")
        best = max(rates, key=lambda size: float(np.median(rates[size])))
        found[precision] = best, rates[best]
    numbers = 2**26 if jax.default_backend() == "cpu" else 2**29  # far more than a cache holds
    times = measure(copy(numbers), rounds)
    return found if times is None else {**found, "copy": (numbers, 8 * numbers / times)}


@functools.cache
def ceiling(precision: Precision) -> float:
    """FLOP/s of matrix products in this process's device, measured at the first call."""
    return float(np.median(ceilings(rounds=5)[precision][1]))


def share(flops: float, seconds: float, precision: Precision = "float32") -> float:
    """Which part of the machine's ceiling a program reaches that does so many operations in so many seconds."""
    return flops / seconds / ceiling(precision)


def record_of(config: Config) -> dict:
    found = ceilings(config.sizes, config.rounds)
    rows = {}
    for name, (size, rates) in found.items():
        scale, unit = (1e-9, "GB/s") if name == "copy" else (1e-12, "TFLOP/s")
        low, high = np.percentile(rates, [25, 75])
        what = f"{size * 4 / 2**20:.0f} MiB" if name == "copy" else f"{size} x {size}"
        rows[name if name == "copy" else f"matrix product, {name}"] = {
            "median": f"{scale * np.median(rates):.3g} {unit}",
            "quartiles": f"{scale * low:.3g} to {scale * high:.3g}",
            "at": what,
        }
    return {
        "bench": "devices",
        "title": "What the machine can do at most",
        "method": f"The best of several sizes, medians of {config.rounds}; a copy reads and writes every number once.",
        "rows": rows,
        "ceilings": {name: float(np.median(rates)) for name, (_, rates) in found.items()},
    }


def main(config: Config) -> None:
    bench.save(config.out, record_of(config), bench.flags(config), packages=())


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, prog="python -m experiments.bench.devices", description=__doc__.splitlines()[0]))
    except UserError as error:
        sys.exit(f"error: {error}")
