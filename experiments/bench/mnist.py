"""The lecture's MNIST program beside what a user would pick instead: PyTorch, and Flax as one would first write it.

    python -m experiments.bench.mnist                 both parts, about 10 minutes
    python -m experiments.bench.mnist --part steps    time per training step, by form
    python -m experiments.bench.mnist --part program  the whole program, from start to printed test error

The images are the real ones, because PyTorch's pooling branches on what it sees. The time of a step is the median over
rounds in which every form, in a process of its own, runs a chunk of 100 steps in turn; each has trained for 300 before.
"""

import functools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

from dlc import batches, bench, data
from dlc.config import positive
from dlc.errors import UserError
from dlc.prepare import mean_and_std, standardise

BATCH, CHUNK = 100, 100


def ours() -> Callable[[], float]:
    """The experiment's own step, scanned as `Run.fit` scans it."""
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
    return bench.chunks(lambda state, at: jax.block_until_ready(step(state, rows(at, CHUNK))[0]), state, CHUNK)


def naive() -> Callable[[], float]:
    """Flax's own layers, one jitted step at a time: how a user would write it."""
    import flax.linen as nn
    import jax.numpy as jnp
    import optax

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.max_pool(nn.Conv(32, (5, 5), padding="VALID")(x), (3, 3), (3, 3)))
            x = nn.relu(nn.max_pool(nn.Conv(64, (5, 5), padding="VALID")(x), (2, 2), (2, 2)))
            return nn.Dense(10)(nn.relu(nn.Dense(200)(x.reshape(len(x), -1))))

    mnist = data.load("mnist")
    images = (mnist.train["image"].astype(np.float32) / 255 - 0.1307) / 0.3081
    model, tx = Net(), optax.sgd(0.1)
    params = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))

    @jax.jit
    def step(params, opt_state, image, label):
        def loss(params):
            return optax.losses.softmax_cross_entropy_with_integer_labels(model.apply(params, image), label).mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    def chunk(state, at):
        for i in range(at, at + CHUNK):
            rows = slice(i % 600 * BATCH, (i % 600 + 1) * BATCH)
            state = step(*state, images[rows], mnist.train["label"][rows])
        return jax.block_until_ready(state)

    return bench.chunks(chunk, (params, tx.init(params)), CHUNK)


def torch_eager(channels_last: bool = False, compiled: bool = False) -> Callable[[], float]:
    """The lecture's program in PyTorch; with `channels_last` in PyTorch's fastest layout; or through its compiler."""
    import torch

    from experiments.bench.mnist_torch import Net, load

    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, _, labels, _ = (tensor.to(device) for tensor in load())
    model = Net().to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def chunk(state, at):
        for i in range(at, at + CHUNK):
            rows = slice(i % 600 * BATCH, (i % 600 + 1) * BATCH)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(forward(images[rows]), labels[rows]).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return bench.chunks(chunk, None, CHUNK)


FORMS: dict[str, Callable[[], Callable[[], float]]] = {
    "PyTorch, channels_last": lambda: torch_eager(channels_last=True),
    "PyTorch, as the lecture writes it": torch_eager,
    "PyTorch, compiled, channels_last": lambda: torch_eager(channels_last=True, compiled=True),
    "Flax, as one would first write it": naive,
    "dlc": ours,
}


@dataclass(frozen=True)
class Config:
    part: Literal["all", "steps", "program"] = "all"
    rounds: int = 15  # of chunks, for the steps
    runs: int = 3  # of each whole program
    out: Path = Path("runs")  # folder in which the record gets a folder of its own

    def __post_init__(self) -> None:
        positive(self, "rounds", "runs")


def steps(config: Config) -> dict:
    """The record of the time per step, every form beside PyTorch's best."""
    workers = {name: bench.Worker("experiments.bench.mnist", "--worker", name) for name in FORMS}
    times = bench.interleaved({name: worker.measure for name, worker in workers.items()}, config.rounds)
    for worker in workers.values():
        worker.close()
    rows = bench.step_rows(times, "PyTorch, channels_last")
    method = f"Training, batches of {BATCH}, float32; medians of {config.rounds} interleaved chunks of {CHUNK} steps."
    return {"bench": "mnist.steps", "title": "One step of the lecture's MNIST convnet", "method": method, "rows": rows}


def program(config: Config) -> dict:
    """The record of the whole program, from its start to its end, ours with a warm compilation cache."""
    ours = [sys.executable, "-m", "experiments.mnist.convnet", "--out", str(config.out)]
    bench.command([*ours, "--epochs", "1"])  # fills the cache: the program does not depend on the number of epochs
    theirs = [sys.executable, "-m", "experiments.bench.mnist_torch"]
    commands = {"PyTorch, as the lecture writes it": theirs, "dlc": ours}
    errors: dict[str, list[float]] = {name: [] for name in commands}

    def measure(name: str) -> float:
        seconds, printed = bench.command(commands[name])
        errors[name].append(float(re.search(r"test error +([0-9.]+) %", printed)[1]))
        return seconds

    times = bench.interleaved({name: functools.partial(measure, name) for name in commands}, config.runs, warmup=0)
    ratio = bench.ratios(times, "PyTorch, as the lecture writes it")
    rows = {
        name: {
            "seconds": f"{np.median(seconds):.1f}",
            "all runs": ", ".join(f"{s:.1f}" for s in seconds),
            "of PyTorch": f"{ratio[name]:.2f}",
            "test error": f"{np.mean(errors[name]):.2f} %",
        }
        for name, seconds in times.items()
    }
    method = "Ten epochs on the real images, from the start of the command to its printed test error, run in turn."
    return {"bench": "mnist.program", "title": "The lecture's MNIST program, whole", "method": method, "rows": rows}


def main(config: Config) -> None:
    for name, part in {"steps": steps, "program": program}.items():
        if config.part in ("all", name):
            words = ["--rounds", config.rounds] if name == "steps" else ["--runs", config.runs]
            bench.save(config.out, part(config), ["--part", name, *words])


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["--worker"]:
            sys.exit(bench.serve(FORMS[sys.argv[2]]()))
        main(tyro.cli(Config, prog="python -m experiments.bench.mnist", description=__doc__.splitlines()[0]))
    except (UserError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}" + ("; pip install -e .[peers]" if isinstance(error, ModuleNotFoundError) else ""))
