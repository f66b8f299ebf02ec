"""What one look at an image costs: time per image against batch size for every classic of ImageNet, beside PyTorch.

    python -m experiments.bench.forward                               every classic, under 40 minutes on two CPU cores
    python -m experiments.bench.forward --models resnet50 --batches 1 8 64
    python -m experiments.bench.forward --dtype float32               on a GPU, where the default is bfloat16

The two charts are those of Canziani, Paszke, Culurciello 2016, "An analysis of deep neural network models for practical
applications", https://arxiv.org/abs/1605.07678: time per image against the batch, and top-1 accuracy against
operations, with a disc as large as the network has weights.

A network sees random images, which lie on the device, with random weights: what it does takes as long with any.
PyTorch's are torchvision's and timm's, in inference mode; a network that neither has is timed alone. Peak memory is
that of the whole process, or on a GPU of its arrays. Top-1 is that of the published weights; ENet, which has none, is
drawn with the 68 % that others have read off the paper's figure 1, and with a head of ours.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from dlc import bench, costs, plot
from dlc.config import positive
from dlc.errors import UserError
from experiments.bench import by_batch, classics, devices


def ours(classic: classics.Classic, dtype: str) -> Callable[..., float]:
    """`model.apply`, jitted, with the variables as arguments."""
    model = classic.make(dtype=dtype)
    variables, call = classics.variables(model, classic.image), jax.jit(model.apply)

    def prepare(batch: int) -> Callable[[int], None]:
        images = jax.device_put(classics.images(batch, classic.image))

        def run(count: int) -> None:
            for _ in range(count):
                logits = call(variables, images)
            logits.block_until_ready()

        return run

    return by_batch.server(prepare, by_batch.peak_memory)


def torch_form(
    classic: classics.Classic, dtype: str, channels_last: bool = False, compiled: bool = False
) -> Callable[..., float]:
    """PyTorch as one would write it; with `channels_last` in the layout of ours; or through its compiler."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # on a GPU what JAX does there unless told otherwise
    kind, layout = getattr(torch, dtype), torch.channels_last if channels_last else torch.contiguous_format
    model: Any = classic.build_peer().eval()
    model = model.to(device, kind, memory_format=layout)
    forward = torch.compile(model, mode="reduce-overhead") if compiled else model

    def prepare(batch: int) -> Callable[[int], None]:
        images = torch.from_numpy(classics.images(batch, classic.image).transpose(0, 3, 1, 2).copy())
        images = images.to(device, kind, memory_format=layout)

        def run(count: int) -> None:
            with torch.inference_mode():
                for _ in range(count):
                    forward(images)
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    memory = torch.cuda.max_memory_allocated if device == "cuda" else by_batch.peak_memory
    return by_batch.server(prepare, memory)


FORMS = by_batch.every_form(ours, torch_form)


@dataclass(frozen=True)
class Config:
    models: tuple[str, ...] = ()  # names of experiments/bench/classics.py; none are all
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    dtype: Literal["float32", "bfloat16"] | None = None  # none is float32 on a CPU and bfloat16 elsewhere
    rounds: int = 3  # of chunks
    limit: float = 2.0  # seconds: a batch of which one call would take longer is left out
    minutes: float = 40.0  # no model is begun later
    out: Path = Path("runs")  # folder in which the record gets a folder of its own

    def __post_init__(self) -> None:
        positive(self, "rounds", "limit", "minutes")
        classics.chosen(self.models)
        if not self.batches or min(self.batches) < 1:
            raise UserError("--batches takes sizes of at least 1")


def cost(classic: classics.Classic) -> dict[str, float]:
    """Weights, multiply-accumulates and XLA's operations of one image."""
    model = classic.make()
    image = jax.ShapeDtypeStruct((1, classic.image, classic.image, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return {
        "parameters": costs.parameters(variables["params"]),
        "macs": costs.macs(model.apply, variables, image),
        "flops": costs.flops(model.apply, variables, image),
    }


def row(classic: classics.Classic, cost: dict[str, float], found: by_batch.Measured, dtype: str) -> dict[str, str]:
    """The row of a table: times per image at the smallest and the largest batch, and ratios over all of them."""
    seconds = {batch: float(np.median(times)) / batch for batch, times in found.times["dlc"].items()}
    first, last = min(seconds), max(seconds)
    precision: Any = "tf32" if dtype == "float32" and jax.default_backend() == "gpu" else dtype
    theirs = min((memory for form, memory in found.memory.items() if form != "dlc"), default=None)
    return {
        "weights, M": f"{cost['parameters'] / 1e6:.2f}",
        "GMAC": f"{cost['macs'] / 1e9:.3g}",
        "XLA's Gflop": f"{cost['flops'] / 1e9:.3g}",
        "top-1, %": f"{classic.top1:.1f}" if classic.top1 else "",
        "ms an image": ", ".join(f"{bench.three(1e3 * seconds[batch])} at {batch}" for batch in sorted({first, last})),
        "of the ceiling": f"{100 * devices.share(2 * cost['macs'], seconds[last], precision):.0f} %",
        "of PyTorch's best": found.ratios_shown(),
        "peak MiB": f"{found.memory['dlc'] / 2**20:.0f}",
        "PyTorch's": f"{theirs / 2**20:.0f}" if theirs else "",
    }


def record_of(config: Config) -> tuple[dict, dict[str, Any]]:
    """The record, and its figures."""
    names, dtype = classics.chosen(config.models), classics.compute_dtype(config.dtype)
    rows, every, all_costs = {}, {}, {}
    words = "experiments.bench.forward", names, functools.partial(by_batch.forms, FORMS), (dtype,)
    for name, found in by_batch.measured(*words, config.batches, config.rounds, config.limit, config.minutes):
        all_costs[name], every[name] = cost(names[name]), found
        rows[name] = row(names[name], all_costs[name], found, dtype)
        print(f"{name}: {', '.join(f'{key} {value}' for key, value in rows[name].items() if value)}", flush=True)
    if not rows:
        raise UserError("no model could be timed")
    method = (
        f"Forward, {dtype}, batches of {', '.join(map(str, config.batches))} but those of which a call takes over "
        f"{config.limit:g} s; medians of {config.rounds} interleaved chunks, ratios over the batches. The ceiling is "
        "that of matrix products in experiments/bench/devices.py, at two operations a multiply-accumulate. "
    )
    shown = {name: (2e-9 * all_costs[name]["macs"], names[name].top1, all_costs[name]["parameters"]) for name in every}
    ours = {
        name: {batch: float(np.median(s)) / batch for batch, s in m.times["dlc"].items()} for name, m in every.items()
    }
    result = {
        "bench": "forward",
        "title": "One look at an image: the classics of ImageNet",
        "method": method + by_batch.median_ratio(every),
        "rows": rows,
        "costs": all_costs,
        "seconds": {name: found.medians() for name, found in every.items()},  # a call
    }
    return result, {
        "batches": plot.time_per_image(ours),
        "bubbles": plot.accuracy_against_operations({name: point for name, point in shown.items() if point[1]}),
    }


def main(config: Config) -> None:
    by_batch.need_peers()
    result, figures = record_of(config)
    bench.save(config.out, result, bench.flags(config), packages=("torch", "torchvision", "timm"), figures=figures)


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["--worker"]:
            form, name, dtype = sys.argv[2:]
            sys.exit(bench.serve(FORMS[form](classics.CLASSICS[name], dtype)))
        main(tyro.cli(Config, prog="python -m experiments.bench.forward", description=__doc__.splitlines()[0]))
    except (UserError, ModuleNotFoundError) as error:
        sys.exit(
            f"error: {error}" + ("; make .venv/.peers installs it" if isinstance(error, ModuleNotFoundError) else "")
        )
