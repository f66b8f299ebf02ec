"""What this machine can do at most: matrix products in each precision, and copying. The ceilings of all other benches.

    python -m experiments.bench.devices                    seconds on a GPU, about a minute on a CPU

`dlc.run.ceilings` says how it is measured.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlc.run.bench import Bench, launch
from dlc.run.ceilings import ceilings
from dlc.run.flags import Positive


@dataclass(frozen=True)
class Config:
    sizes: tuple[Positive[int], ...] = ()  # rows of the matrices; default: 512 to 2048 on a CPU, else 1024 to 16384
    rounds: Positive[int] = 11  # how often each form is timed
    out: Path = Path("runs")  # folder in which the run gets a folder of its own


def row(name: str, size: int, rates: np.ndarray) -> dict[str, str]:
    scale, unit = (1e-9, "GB/s") if name == "copy" else (1e-12, "TFLOP/s")
    low, high = np.percentile(rates, [25, 75])
    return {
        "median": f"{scale * np.median(rates):.3g} {unit}",
        "quartiles": f"{scale * low:.3g} to {scale * high:.3g}",
        "at": f"{size * 4 / 2**20:.0f} MiB" if name == "copy" else f"{size} x {size}",
    }


def measured(config: Config) -> Iterator[Bench]:
    found = ceilings(config.sizes, config.rounds)
    yield Bench(
        "devices",
        "What the machine can do at most",
        f"The best of several sizes, medians of {config.rounds}; a copy reads and writes every number once.",
        {
            name if name == "copy" else f"matrix product, {name}": row(name, size, rates)
            for name, (size, rates) in found.items()
        },
        more={"ceilings": {name: float(np.median(rates)) for name, (_, rates) in found.items()}},
    )


if __name__ == "__main__":
    launch(measured, Config)
