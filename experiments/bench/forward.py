"""What one look at an image costs: time per image against batch size for every classic of ImageNet, beside PyTorch.

    python -m experiments.bench.forward                               every classic, under 40 minutes on two CPU cores
    python -m experiments.bench.forward --models resnet50 --batches 1 8 64
    python -m experiments.bench.forward --dtype float32               on a GPU, where the default is bfloat16

The two charts are those of Canziani, Paszke, Culurciello 2016, "An analysis of deep neural network models for practical
applications", https://arxiv.org/abs/1605.07678: time per image against the batch, and top-1 accuracy against
operations, where the area of a disc shows the number of weights.

A network sees random images, which are on the device, with random weights; the time does not depend on their values.
PyTorch's networks are torchvision's and timm's, in inference mode; a network that neither has is timed without a peer.
Peak memory is that of the whole process or, on a GPU, of its arrays. Top-1 is that of the published weights. ENet has
none; it is drawn with the 68 % that others have read off the paper's figure 1, and with our head.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from dlc import costs
from dlc.models.table import Row
from dlc.run import by_batch
from dlc.run.bench import Bench, launch, three
from dlc.run.ceilings import default_precision, share
from dlc.run.flags import Positive, Some
from experiments.bench import _charts, classics, classics_torch
from experiments.bench.classics import CLASSICS


def ours(name: str, dtype: str) -> Callable[..., float]:
    """`model.apply`, jitted, with the variables as arguments."""
    model, side = CLASSICS[name].make(dtype=dtype), classics.side(CLASSICS[name])
    variables, call = classics.variables(model, side), jax.jit(model.apply)

    def prepare(batch: int) -> Callable[[int], None]:
        images = jax.device_put(classics.images(batch, side))

        def run(count: int) -> None:
            for _ in range(count):
                logits = call(variables, images)
            logits.block_until_ready()

        return run

    return by_batch.server(prepare, by_batch.peak_memory)


FORMS = classics.all_forms(ours, classics_torch.forward)


@dataclass(frozen=True)
class Config:
    models: Some[tuple[classics.Name, ...]] = tuple(CLASSICS)  # rows of dlc/models/table.py that have a `bench` name
    batches: Some[tuple[Positive[int], ...]] = (1, 2, 4, 8, 16, 32, 64)  # examples in a batch
    dtype: classics.Dtype | None = None  # of the computation; default: float32 on a CPU and bfloat16 elsewhere
    rounds: Positive[int] = 3  # how often each form is timed
    limit: Positive[float] = 2.0  # seconds that a call may take; larger batches are left out
    minutes: Positive[float] = 40.0  # minutes after which no model starts
    out: Path = Path("runs")  # folder in which the run gets a folder of its own


def cost(classic: Row) -> dict[str, float]:
    """Weights, multiply-accumulates and XLA's operations of one image."""
    model, image = classic.make(), jax.ShapeDtypeStruct((1, *classic.inputs[0]), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return {
        "parameters": costs.parameters(variables["params"]),
        "macs": costs.macs(model.apply, variables, image),
        "flops": costs.flops(model.apply, variables, image),
    }


def per_image(medians: dict[str, dict[Any, float]]) -> dict[int, float]:
    """Our seconds per image, by batch, of the median seconds per call of each form."""
    return {int(batch): seconds / int(batch) for batch, seconds in medians["dlc"].items()}


def figures(all_costs: dict[str, Any], seconds: dict[str, Any]) -> dict[str, Any]:
    """The two charts, of what is in the record under "costs" and "seconds". bench/redraw.py draws them too."""
    points = {
        name: (2e-9 * all_costs[name]["macs"], accuracy, all_costs[name]["parameters"])
        for name in seconds
        if (accuracy := CLASSICS[name].top1)
    }
    charts = {"batches": _charts.time_per_image({name: per_image(medians) for name, medians in seconds.items()})}
    return {**charts, "bubbles": _charts.accuracy_against_operations(points)} if points else charts


def row(classic: Row, cost: dict[str, float], found: by_batch.Measured, dtype: classics.Dtype) -> dict[str, str]:
    """The row of the table: times per image at the smallest and the largest batch, and ratios over all batches."""
    seconds = per_image(found.medians())
    first, last = min(seconds), max(seconds)
    theirs = min((memory for form, memory in found.memory.items() if form != "dlc"), default=None)
    return {
        "weights, M": f"{cost['parameters'] / 1e6:.2f}",
        "GMAC": f"{cost['macs'] / 1e9:.3g}",
        "XLA's Gflop": f"{cost['flops'] / 1e9:.3g}",
        "top-1, %": f"{classic.top1:.1f}" if classic.top1 else "",
        "ms an image": ", ".join(f"{three(1e3 * seconds[batch])} at {batch}" for batch in sorted({first, last})),
        "of the ceiling": f"{100 * share(2 * cost['macs'], seconds[last], default_precision(dtype)):.0f} %",
        "of PyTorch's best": found.ratios_shown(),
        "peak MiB": f"{found.memory['dlc'] / 2**20:.0f}",
        "PyTorch's": f"{theirs / 2**20:.0f}" if theirs else "",
    }


def measured(config: Config) -> Iterator[Bench]:
    dtype, forms = classics.compute_dtype(config.dtype), classics.forms(FORMS, config.models)
    limits = by_batch.Limits(config.batches, config.rounds, config.limit, config.minutes)
    all_costs = {}

    def rows_of(name: str, found: by_batch.Measured) -> dict[str, dict[str, str]]:
        all_costs[name] = cost(CLASSICS[name])
        return {name: row(CLASSICS[name], all_costs[name], found, dtype)}

    rows, every = by_batch.table("experiments.bench.forward", forms, (dtype,), limits, rows_of)
    seconds = {name: found.medians() for name, found in every.items()}  # per call
    yield Bench(
        "forward",
        "One look at an image: the classics of ImageNet",
        f"Forward, {dtype}, batches of {', '.join(map(str, config.batches))} but those of which a call takes over "
        f"{config.limit:g} s; medians of {config.rounds} interleaved chunks, ratios over the batches. The ceiling is "
        "that of matrix products in experiments/bench/devices.py, at two operations a multiply-accumulate. "
        + by_batch.median_ratio(every),
        rows,
        more={"costs": all_costs, "seconds": seconds},
        figures=figures(all_costs, seconds),
    )


if __name__ == "__main__":
    launch(measured, Config, FORMS, peers=("torch", "torchvision", "timm"))
