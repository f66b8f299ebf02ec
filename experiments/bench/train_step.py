"""What one step of training costs: the classics of ImageNet beside PyTorch; and what compiling it takes.

    python -m experiments.bench.train_step                            some classics, under 40 minutes on two CPU cores
    python -m experiments.bench.train_step --models resnet50 --batches 32 --limit 60

A step is forward, backward and SGD with momentum 0.9, of cross-entropy on random images and labels; batch norm and
dropout are in training mode. Ours is the step of `dlc.train`, PyTorch's that of its examples. On a GPU bfloat16 means
autocast in PyTorch, and weights are float32 in both.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dlc import costs
from dlc.models.table import Row
from dlc.run import by_batch, timing
from dlc.run.bench import Bench, compile_columns, launch, three
from dlc.run.ceilings import default_precision, share
from dlc.run.flags import Positive, Some
from experiments.bench import classics, classics_torch
from experiments.bench.classics import CLASSICS

SOME = ("alexnet_2014", "squeezenet1_1", "googlenet", "resnet18", "resnet50", "densenet121", "vit_s16")


def parts(classic: Row, dtype: str) -> tuple[Any, Any]:
    """Our step, and a function that returns its first state."""
    import optax

    from dlc import losses, train

    model, tx = classic.make(dtype=dtype), optax.sgd(0.01, momentum=0.9)

    def state() -> train.State:
        variables = dict(classics.variables(model, classics.side(classic)))
        return train.init(variables.pop("params"), tx, jax.random.key(0), aux=variables or None)

    return train.make_step(losses.classify(model), tx), state


def ours(name: str, dtype: str) -> Callable[..., float]:
    """The step of `dlc.train`, compiled, with its state donated."""
    from dlc import train

    step, first = parts(CLASSICS[name], dtype)
    call, state = train.compiled(step), first()

    def prepare(batch: int) -> Callable[[int], None]:
        image = classics.images(batch, classics.side(CLASSICS[name]))
        rows = jax.device_put({"image": image, "label": classics.labels(batch)})

        def run(count: int) -> None:
            nonlocal state
            for _ in range(count):
                state, metrics = call(state, rows)
            jax.block_until_ready((state, metrics))

        return run

    return by_batch.server(prepare, by_batch.peak_memory)


FORMS = classics.all_forms(ours, classics_torch.train_step)


@dataclass(frozen=True)
class Config:
    models: Some[tuple[classics.Name, ...]] = SOME  # rows of dlc/models/table.py that have a `bench` name
    batches: Some[tuple[Positive[int], ...]] | None = None  # examples in a batch; 4 and 16 on a CPU, else 32 and 128
    dtype: classics.Dtype | None = None  # of the computation; default: float32 on a CPU and bfloat16 elsewhere
    rounds: Positive[int] = 3  # how often each form is timed
    limit: Positive[float] = 8.0  # seconds that a call may take; larger batches are left out, but not the first
    minutes: Positive[float] = 40.0  # minutes after which no model starts
    out: Path = Path("runs")  # folder in which the run gets a folder of its own


def operations(classic: Row, batch: int) -> float:
    """XLA's count of the operations of one step."""
    step, state = parts(classic, "float32")
    image = jax.ShapeDtypeStruct((batch, *classic.inputs[0]), "float32")
    return costs.flops(step, jax.eval_shape(state), {"image": image, "label": jax.ShapeDtypeStruct((batch,), "int32")})


def row(
    found: by_batch.Measured, batch: int, flops: float, dtype: classics.Dtype, compiling: timing.Compiling
) -> dict[str, str]:
    """The row of the table for one network and batch. What `compiling` took belongs to the first batch."""
    seconds, ratio, theirs = float(np.median(found.times["dlc"][batch])), found.ratio(batch), found.best(batch)
    return {
        "ms per step": three(1e3 * seconds),
        "PyTorch's best": three(1e3 * theirs) if theirs else "",
        "of PyTorch's best": f"{ratio:.2f}" if ratio else "",
        "XLA's Gflop": f"{flops / 1e9:.3g}",
        "of the ceiling": f"{100 * share(flops, seconds, default_precision(dtype)):.0f} %",
        **compile_columns(compiling if batch == found.batches[0] else None),
        "peak MiB": f"{found.memory['dlc'] / 2**20:.0f}" if batch == found.batches[-1] else "",
    }


def measured(config: Config) -> Iterator[Bench]:
    dtype, forms = classics.compute_dtype(config.dtype), classics.forms(FORMS, config.models)
    batches = config.batches or ((4, 16) if jax.default_backend() == "cpu" else (32, 128))
    limits = by_batch.Limits(batches, config.rounds, config.limit, config.minutes)
    module = "experiments.bench.train_step"
    compiled: dict[str, timing.Compiling] = {}

    def rows_of(name: str, found: by_batch.Measured) -> dict[str, dict[str, str]]:
        compiled[name] = timing.compiling(module, ["dlc"], (name, dtype), found.batches[0])["dlc"]
        counts = {batch: operations(CLASSICS[name], batch) for batch in found.batches}
        return {
            f"{name}, {batch} images": row(found, batch, flops, dtype, compiled[name])
            for batch, flops in counts.items()
        }

    rows, every = by_batch.table(module, forms, (dtype,), limits, rows_of)
    yield Bench(
        "train_step",
        "One step of training: classics of ImageNet",
        f"Training, {dtype}, SGD with momentum; medians of {config.rounds} interleaved chunks. The ceiling is that of "
        "matrix products in experiments/bench/devices.py. Networks are timed without auxiliary heads. "
        + by_batch.median_ratio(every),
        rows,
        more={
            "seconds": {name: found.medians() for name, found in every.items()},  # per step
            "compile": {name: each._asdict() for name, each in compiled.items()},  # of the first batch
            "memory": {name: found.memory for name, found in every.items()},  # bytes at the peak
        },
    )


if __name__ == "__main__":
    launch(measured, Config, FORMS, peers=("torch", "torchvision", "timm"))
