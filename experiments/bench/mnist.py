"""The lecture's MNIST program beside what a user would pick instead: PyTorch, and Flax as one would first write it.

    python -m experiments.bench.mnist                 both parts, about 10 minutes
    python -m experiments.bench.mnist --part steps    time per training step, by form
    python -m experiments.bench.mnist --part program  the whole program, from start to printed test error

The images are the real ones, because PyTorch's pooling branches on what it sees. The time of a step is the median over
rounds in which every form, in a process of its own, runs a chunk of 100 steps in turn, after 300 steps of training. The
peers are mnist_torch.py and mnist_flax.py.
"""

import functools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from dlc import batches, data
from dlc.prepare import mean_and_std, standardise
from dlc.run import timing
from dlc.run.bench import Bench, Forms, launch, step_rows
from dlc.run.flags import Positive

BATCH, CHUNK = 100, 100


def ours() -> Callable[[], float]:
    """The experiment's own step, scanned as `dlc.run.fit` scans it."""
    import optax

    from dlc import losses, train
    from dlc.models.convnet import Convnet

    mnist = data.load("mnist")
    prepare = standardise(*mean_and_std(mnist.train["image"]))
    model, tx = Convnet(), optax.sgd(0.1)
    params = model.init(jax.random.key(0), prepare(mnist.train["image"][:1]))["params"]
    step = train.on_device(train.make_step(losses.classify(model, prepare), tx), mnist.train)
    step, rows = train.compiled(train.scanned(step)), batches.minibatches(60_000, BATCH)
    state = train.init(params, tx, jax.random.key(0))
    return timing.chunks(lambda state, at: jax.block_until_ready(step(state, rows(at, CHUNK))[0]), state, CHUNK)


def flax_form() -> Callable[[], float]:
    from experiments.bench import mnist_flax

    return timing.chunks(*mnist_flax.training(BATCH, CHUNK), CHUNK)


def torch_form(**how: bool) -> Callable[[], float]:
    from experiments.bench import mnist_torch

    return timing.chunks(mnist_torch.training(BATCH, CHUNK, **how), None, CHUNK)


FORMS: Forms = {
    "PyTorch, channels_last": functools.partial(torch_form, channels_last=True),
    "PyTorch, as the lecture writes it": torch_form,
    "PyTorch, compiled, channels_last": functools.partial(torch_form, channels_last=True, compiled=True),
    "Flax, as one would first write it": flax_form,
    "dlc": ours,
}


@dataclass(frozen=True)
class Config:
    part: Literal["all", "steps", "program"] = "all"  # what is timed
    rounds: Positive[int] = 15  # how often each form is timed; its steps
    runs: Positive[int] = 3  # number of runs of each whole program
    out: Path = Path("runs")  # folder in which the run gets a folder of its own


def steps(config: Config) -> Bench:
    """The time per step of every form, beside PyTorch's best."""
    times = timing.side_by_side("experiments.bench.mnist", FORMS, (), config.rounds)
    compiling = timing.compiling("experiments.bench.mnist", FORMS, ())
    return Bench(
        "mnist.steps",
        "One step of the lecture's MNIST convnet",
        f"Training, batches of {BATCH}, float32; medians of {config.rounds} interleaved chunks of {CHUNK} steps.",
        step_rows(times, "PyTorch, channels_last", compiling),
        ["--part", "steps", "--rounds", config.rounds],
    )


def program(config: Config) -> Bench:
    """The time of the whole program, from its start to its end, ours with a warm compilation cache."""
    ours = [sys.executable, "-m", "experiments.mnist.convnet", "--out", str(config.out)]
    timing.command([*ours, "--epochs", "1"])  # fills the cache: the program does not depend on the number of epochs
    theirs = [sys.executable, "-m", "experiments.bench.mnist_torch"]
    commands = {"PyTorch, as the lecture writes it": theirs, "dlc": ours}
    errors: dict[str, list[float]] = {name: [] for name in commands}

    def measure(name: str) -> float:
        seconds, printed = timing.command(commands[name])
        errors[name].append(float(re.search(r"test error +([0-9.]+) %", printed)[1]))
        return seconds

    times = timing.interleaved({name: functools.partial(measure, name) for name in commands}, config.runs, warmup=0)
    ratio = timing.ratios(times, "PyTorch, as the lecture writes it")
    rows = {
        name: {
            "seconds": f"{np.median(seconds):.1f}",
            "all runs": ", ".join(f"{s:.1f}" for s in seconds),
            "of PyTorch": f"{ratio[name]:.2f}",
            "test error": f"{np.mean(errors[name]):.2f} %",
        }
        for name, seconds in times.items()
    }
    return Bench(
        "mnist.program",
        "The lecture's MNIST program, whole",
        "Ten epochs on the real images, from the start of the command to its printed test error, run in turn.",
        rows,
        ["--part", "program", "--runs", config.runs],
    )


def measured(config: Config) -> Iterator[Bench]:
    if config.part in ("all", "steps"):
        yield steps(config)
    if config.part in ("all", "program"):
        yield program(config)


if __name__ == "__main__":
    launch(measured, Config, FORMS, peers=("torch",))
