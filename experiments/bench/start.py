"""What a start costs: from the beginning of a process to the first logits of ResNet-50, and importing the models.

    python -m experiments.bench.start                      about two minutes on two CPU cores

Each program is a process of its own, timed as a whole and in turn with the others. A cold start compiles; a warm one
finds the programs that the previous one left in JAX's compilation cache. PyTorch runs eagerly and compiles nothing.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlc.run import timing
from dlc.run.bench import Bench, launch
from dlc.run.flags import Positive

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
PROGRAMS = {"cold": DLC, "warm": DLC, "torch": TORCH, "models": MODELS}


@dataclass(frozen=True)
class Config:
    rounds: Positive[int] = 3  # how often each form is timed
    out: Path = Path("runs")  # folder in which the run gets a folder of its own


def measured(config: Config) -> Iterator[Bench]:
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(config.rounds):
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
            for name, program in PROGRAMS.items():
                seconds, printed = timing.command([sys.executable, "-W", "ignore", "-c", program], env=environment)
                times[name].append(float(printed.split()[-1]) if name == "models" else seconds)

    def row(name: str) -> dict[str, str]:
        return {"seconds": f"{np.median(times[name]):.2f}", "all": ", ".join(f"{s:.2f}" for s in times[name])}

    yield Bench(
        "start",
        "To the first logits of ResNet-50",
        f"Whole processes, medians of {config.rounds}; the import is what it adds to that of Flax.",
        {
            "dlc, warm cache": row("warm"),
            "dlc, cold cache": row("cold"),
            "PyTorch and torchvision": row("torch"),
            "importing all of dlc.models": row("models"),
        },
    )


if __name__ == "__main__":
    launch(measured, Config, peers=("torch", "torchvision"))
