"""What a start costs: from the beginning of a process to the first logits of ResNet-50, and importing the models.

    python -m experiments.bench.start                      about two minutes on two CPU cores

Each program is a process of its own, timed whole and in turn with the others. A cold start compiles; a warm one finds
the programs that the one before it left in JAX's compilation cache. PyTorch's is eager: it compiles nothing.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from dlc import bench
from dlc.config import positive
from dlc.errors import UserError

DLC = """
import experiments  # sets malloc and the compilation cache, as every experiment does
import jax, jax.numpy as jnp
from dlc.models.resnet import resnet50
image = jnp.zeros((1, 224, 224, 3))
variables = jax.jit(resnet50().init)(jax.random.key(0), image)
jax.jit(resnet50().apply)(variables, image).block_until_ready()
"""
TORCH = """
import torch
from experiments.bench import vision_torch
model = vision_torch.build("torchvision.resnet50").eval()
with torch.inference_mode():
    model(torch.zeros(1, 3, 224, 224))
"""
MODELS = """
import importlib, pkgutil
import flax.linen
import time
began = time.perf_counter()
import dlc.models
for module in pkgutil.iter_modules(dlc.models.__path__, "dlc.models."):
    importlib.import_module(module.name)
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Config:
    rounds: int = 3
    out: Path = Path("runs")  # folder in which the record gets a folder of its own

    def __post_init__(self) -> None:
        positive(self, "rounds")


def record_of(config: Config) -> dict:
    times: dict[str, list[float]] = {name: [] for name in ("cold", "warm", "torch", "models")}
    for _ in range(config.rounds):
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
            for name, program in (("cold", DLC), ("warm", DLC), ("torch", TORCH), ("models", MODELS)):
                seconds, printed = bench.command([sys.executable, "-W", "ignore", "-c", program], env=environment)
                times[name].append(float(printed.split()[-1]) if name == "models" else seconds)

    def row(name: str) -> dict[str, str]:
        return {"seconds": f"{np.median(times[name]):.2f}", "all": ", ".join(f"{s:.2f}" for s in times[name])}

    return {
        "bench": "start",
        "title": "To the first logits of ResNet-50",
        "method": f"Whole processes, medians of {config.rounds}; the import is what it adds to that of Flax.",
        "rows": {
            "dlc, warm cache": row("warm"),
            "dlc, cold cache": row("cold"),
            "PyTorch and torchvision": row("torch"),
            "importing all of dlc.models": row("models"),
        },
    }


def main(config: Config) -> None:
    bench.save(config.out, record_of(config), bench.flags(config), packages=("torch", "torchvision"))


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, prog="python -m experiments.bench.start", description=__doc__.splitlines()[0]))
    except (UserError, ModuleNotFoundError) as error:
        sys.exit(
            f"error: {error}" + ("; make .venv/.peers installs it" if isinstance(error, ModuleNotFoundError) else "")
        )
