"""What one step of training costs: the classics of ImageNet beside PyTorch, the time to compile apart.

    python -m experiments.bench.train_step                            some classics, under 40 minutes on two CPU cores
    python -m experiments.bench.train_step --models resnet50 --batches 32 --limit 60

A step is forward, backward and SGD with momentum 0.9, of cross-entropy on random images and labels; batch norm and
dropout are those of training. Ours is the step of `dlc.train`, PyTorch's what its examples have. On a GPU bfloat16 is
PyTorch's autocast, and weights are float32 in both.
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

from dlc import bench, costs
from dlc.config import positive
from dlc.errors import UserError
from experiments.bench import by_batch, classics, devices

SOME = ("alexnet_2014", "squeezenet1_1", "googlenet", "resnet18", "resnet50", "densenet121", "vit_s16")


def labels(batch: int) -> np.ndarray:
    return np.random.default_rng(2).integers(1000, size=batch, dtype=np.int32)


def parts(classic: classics.Classic, dtype: str) -> tuple[Any, Any]:
    """Our step, and a function that gives its first state."""
    import optax

    from dlc import losses, train

    model, tx = classic.make(dtype=dtype), optax.sgd(0.01, momentum=0.9)

    def state() -> train.State:
        variables = dict(classics.variables(model, classic.image))
        return train.init(variables.pop("params"), tx, jax.random.key(0), aux=variables or None)

    return train.make_step(losses.classify(model), tx), state


def ours(classic: classics.Classic, dtype: str) -> Callable[..., float]:
    """The step of `dlc.train`, compiled, its state donated."""
    from dlc import train

    step, first = parts(classic, dtype)
    call, state = train.compiled(step), first()

    def prepare(batch: int) -> Callable[[int], None]:
        rows = jax.device_put({"image": classics.images(batch, classic.image), "label": labels(batch)})

        def run(count: int) -> None:
            nonlocal state
            for _ in range(count):
                state, metrics = call(state, rows)
            jax.block_until_ready((state, metrics))

        return run

    return by_batch.server(prepare, by_batch.peak_memory)


def torch_form(
    classic: classics.Classic, dtype: str, channels_last: bool = False, compiled: bool = False
) -> Callable[..., float]:
    """PyTorch as one would write it; with `channels_last` in the layout of ours; or through its compiler."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # on a GPU what JAX does there unless told otherwise
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model: Any = classic.build_peer().train().to(device, memory_format=layout)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def prepare(batch: int) -> Callable[[int], None]:
        images = torch.from_numpy(classics.images(batch, classic.image).transpose(0, 3, 1, 2).copy())
        images, label = images.to(device, memory_format=layout), torch.from_numpy(labels(batch)).long().to(device)

        def run(count: int) -> None:
            for _ in range(count):
                with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                    logits = forward(images)
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(logits.float(), label).backward()
                optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    memory = torch.cuda.max_memory_allocated if device == "cuda" else by_batch.peak_memory
    return by_batch.server(prepare, memory)


FORMS = by_batch.every_form(ours, torch_form)


@dataclass(frozen=True)
class Config:
    models: tuple[str, ...] = SOME  # names of experiments/bench/classics.py
    batches: tuple[int, ...] = ()  # none are 4 and 16 on a CPU, 32 and 128 elsewhere
    dtype: Literal["float32", "bfloat16"] | None = None  # none is float32 on a CPU and bfloat16 elsewhere
    rounds: int = 3  # of chunks
    limit: float = 8.0  # seconds: a batch, but for the first, of which one step would take longer is left out
    minutes: float = 40.0  # no model is begun later
    out: Path = Path("runs")  # folder in which the record gets a folder of its own

    def __post_init__(self) -> None:
        positive(self, "rounds", "limit", "minutes")
        classics.chosen(self.models)
        if any(batch < 1 for batch in self.batches):
            raise UserError("--batches takes sizes of at least 1")


def operations(classic: classics.Classic, batch: int) -> float:
    """XLA's count of one step."""
    step, state = parts(classic, "float32")
    shapes = {"image": ((batch, classic.image, classic.image, 3), "float32"), "label": ((batch,), "int32")}
    rows = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    return costs.flops(step, jax.eval_shape(state), rows)


def record_of(config: Config) -> dict:
    names, dtype = classics.chosen(config.models), classics.compute_dtype(config.dtype)
    on_cpu = jax.default_backend() == "cpu"
    batches = config.batches or ((4, 16) if on_cpu else (32, 128))
    precision: Any = dtype if on_cpu or dtype == "bfloat16" else "tf32"
    rows, every = {}, {}
    words = "experiments.bench.train_step", names, functools.partial(by_batch.forms, FORMS), (dtype,)
    for name, found in by_batch.measured(*words, batches, config.rounds, config.limit, config.minutes):
        every[name] = found
        for batch in found.batches:
            seconds, ratio = float(np.median(found.times["dlc"][batch])), found.ratio(batch)
            flops, theirs = operations(names[name], batch), found.best(batch)
            rows[f"{name}, {batch} images"] = row = {
                "ms per step": bench.three(1e3 * seconds),
                "PyTorch's best": bench.three(1e3 * theirs) if theirs else "",
                "of PyTorch's best": f"{ratio:.2f}" if ratio else "",
                "XLA's Gflop": f"{flops / 1e9:.3g}",
                "of the ceiling": f"{100 * devices.share(flops, seconds, precision):.0f} %",
                "s to compile": f"{found.compile['dlc']:.1f}" if batch == found.batches[0] else "",
                "peak MiB": f"{found.memory['dlc'] / 2**20:.0f}" if batch == found.batches[-1] else "",
            }
            print(f"{name}, {batch} images: {', '.join(f'{k} {v}' for k, v in row.items() if v)}", flush=True)
    if not rows:
        raise UserError("no model could be timed")
    method = (
        f"Training, {dtype}, SGD with momentum; medians of {config.rounds} interleaved chunks. The ceiling is that of "
        "matrix products in experiments/bench/devices.py. Networks are timed without auxiliary heads. "
    )
    return {
        "bench": "train_step",
        "title": "One step of training: classics of ImageNet",
        "method": method + by_batch.median_ratio(every),
        "rows": rows,
        "seconds": {name: found.medians() for name, found in every.items()},  # a step
        "compile": {name: found.compile for name, found in every.items()},  # seconds beyond a step, at the first batch
        "memory": {name: found.memory for name, found in every.items()},  # bytes at the peak
    }


def main(config: Config) -> None:
    by_batch.need_peers()
    bench.save(config.out, record_of(config), bench.flags(config), packages=("torch", "torchvision", "timm"))


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["--worker"]:
            jax.config.update("jax_enable_compilation_cache", False)  # what is timed is compiling, not reading
            form, name, dtype = sys.argv[2:]
            sys.exit(bench.serve(FORMS[form](classics.CLASSICS[name], dtype)))
        main(tyro.cli(Config, prog="python -m experiments.bench.train_step", description=__doc__.splitlines()[0]))
    except (UserError, ModuleNotFoundError) as error:
        sys.exit(
            f"error: {error}" + ("; make .venv/.peers installs it" if isinstance(error, ModuleNotFoundError) else "")
        )
