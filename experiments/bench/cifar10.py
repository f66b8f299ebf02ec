"""The CIFAR-10 experiments beside what a user would pick instead: PyTorch, and Flax as one would first write it.

    python -m experiments.bench.cifar10                    all parts, about half an hour on two CPU cores
    python -m experiments.bench.cifar10 --part resnet      time per training step of ResNet-20, batches of 128
    python -m experiments.bench.cifar10 --part record      time per training step of the record, batches of 2,000
    python -m experiments.bench.cifar10 --part epochs      ResNet-20 for a few epochs: the error after each

A step is timed as in experiments.bench.mnist: medians over rounds in which every form, in a process of its own, runs a
chunk of steps in turn. On a GPU all compute in bfloat16 (PyTorch through autocast), on a CPU in float32.
"""

import functools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from dlc import batches, bench, data
from dlc.config import positive
from dlc.errors import UserError
from dlc.prepare import channel_mean_and_std, standardise

BATCH = {"resnet": 128, "record": 2000}
CHUNK = {"resnet": 10, "record": 1}


def images(count: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """Standardised images and labels: every form takes the same, so that what is timed is the step alone."""

    train = data.load("cifar10").train
    prepare = standardise(*channel_mean_and_std(train["image"]))
    return np.asarray(prepare(train["image"][:count])), train["label"][:count]


def compute_dtype() -> Literal["float32", "bfloat16"]:
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def ours(part: str) -> Callable[[], float]:
    """The experiment's network, loss and optimizer, scanned as `Run.fit` scans them."""
    import optax

    from dlc import losses, train
    from dlc.models.airbench import airbench94, whitening
    from dlc.models.resnet_cifar import cifar_resnet
    from experiments.cifar10 import record

    image, label = images()
    if part == "resnet":
        model, smoothing = cifar_resnet(20, dtype=compute_dtype()), 0.0
        tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
    else:
        model, smoothing = airbench94(dtype=compute_dtype()), 0.2
        tx = record.optimizer(record.Config(), epochs=8, steps_per_epoch=25)
    variables = model.init(jax.random.key(0), image[:1])
    if part == "record":
        variables["whitening"]["whitening"]["kernel"] = whitening(image[:5000])
    state = train.init(variables.pop("params"), tx, jax.random.key(0), aux=variables)
    loss_fn = losses.classify(model, criterion=functools.partial(losses.cross_entropy, smoothing=smoothing))
    step = train.compiled(
        train.scanned(train.on_device(train.make_step(loss_fn, tx), {"image": image, "label": label}))
    )
    rows, chunk = batches.minibatches(len(label), BATCH[part]), CHUNK[part]
    return bench.chunks(lambda state, at: jax.block_until_ready(step(state, rows(at, chunk))[0]), state, chunk, warm=2)


def naive(part: str) -> Callable[[], float]:
    """Flax's own layers, one jitted step at a time: how a user would write it."""
    import flax.linen as nn
    import jax.numpy as jnp
    import optax

    class Block(nn.Module):
        width: int
        stride: int

        @nn.compact
        def __call__(self, x):
            dtype = compute_dtype()
            y = nn.Conv(self.width, (3, 3), self.stride, padding=1, use_bias=False, dtype=dtype)(x)
            y = nn.relu(nn.BatchNorm(use_running_average=False, dtype=dtype)(y))
            y = nn.Conv(self.width, (3, 3), padding=1, use_bias=False, dtype=dtype)(y)
            y = nn.BatchNorm(use_running_average=False, dtype=dtype)(y)
            x = x[:, :: self.stride, :: self.stride]
            return nn.relu(y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.width - x.shape[3]))))

    class ResNet20(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(16, (3, 3), padding=1, use_bias=False, dtype=compute_dtype())(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False, dtype=compute_dtype())(x))
            for width, stride in ((16, 1), (32, 2), (64, 2)):
                for i in range(3):
                    x = Block(width, stride if i == 0 else 1)(x)
            return nn.Dense(10)(x.mean((1, 2)))

    image, label = images()
    model = ResNet20()
    tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
    variables = model.init(jax.random.key(0), image[:1])

    @jax.jit
    def step(variables, opt_state, image, label):
        def loss(params):
            logits, aux = model.apply({**variables, "params": params}, image, mutable=["batch_stats"])
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, label).mean(), aux

        grads, aux = jax.grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(grads, opt_state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **aux}, opt_state

    def run(state, at):
        for i in range(at, at + CHUNK[part]):
            rows = slice(i % 78 * 128, (i % 78 + 1) * 128)
            state = step(*state, image[rows], label[rows])
        return jax.block_until_ready(state)

    return bench.chunks(run, (variables, tx.init(variables["params"])), CHUNK[part], warm=2)


def torch_step(part: str, channels_last: bool = False, compiled: bool = False) -> Callable[[], float]:
    """PyTorch as one would write it; with `channels_last` in its fastest layout; or through its compiler."""
    import torch

    from experiments.bench.cifar10_torch import Airbench, ResNet, airbench_optimizers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    image, label = images()
    image = torch.from_numpy(image.transpose(0, 3, 1, 2).copy()).to(device)
    label = torch.tensor(label).long().to(device)
    size, smoothing = BATCH[part], 0.2 * (part == "record")
    model: Any = (ResNet(20) if part == "resnet" else Airbench()).to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)
    if part == "resnet":
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)]
    else:
        optimizers = airbench_optimizers(model, size)
    forward = torch.compile(model) if compiled else model

    def run(state, at):
        for i in range(at, at + CHUNK[part]):
            first = i % (len(image) // size) * size
            rows = slice(first, first + size)
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                logits = forward(image[rows])
            loss = torch.nn.functional.cross_entropy(logits.float(), label[rows], label_smoothing=smoothing)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return bench.chunks(run, None, CHUNK[part], warm=2)


FORMS: dict[str, Callable[[str], Callable[[], float]]] = {
    "PyTorch, channels_last": functools.partial(torch_step, channels_last=True),
    "PyTorch, eager": torch_step,
    "PyTorch, compiled, channels_last": functools.partial(torch_step, channels_last=True, compiled=True),
    "Flax, as one would first write it": naive,
    "dlc": ours,
}
TITLES = {
    "resnet": "One step of ResNet-20 on CIFAR-10",
    "record": "One step of the record's network on CIFAR-10",
    "epochs": "ResNet-20 for a few epochs",
}


@dataclass(frozen=True)
class Config:
    part: Literal["all", "resnet", "record", "epochs"] = "all"
    rounds: int = 11  # of chunks, for the steps
    epochs: int = 5
    out: Path = Path("runs")  # folder in which the record gets a folder of its own

    def __post_init__(self) -> None:
        positive(self, "rounds", "epochs")


def steps(part: str, config: Config) -> dict:
    """The record of the time per step, every form beside PyTorch's best."""
    left_out = ("Flax",) if part == "record" else ()
    forms = [name for name in FORMS if not name.startswith(left_out)]
    workers = {name: bench.Worker("experiments.bench.cifar10", "--worker", part, name) for name in forms}
    times = bench.interleaved({name: worker.measure for name, worker in workers.items()}, config.rounds)
    for worker in workers.values():
        worker.close()
    how = f"medians of {config.rounds} interleaved chunks of {CHUNK[part]}"
    method = f"Training, batches of {BATCH[part]}, {compute_dtype()}; {how}."
    rows = bench.step_rows(times, "PyTorch, channels_last")
    return {"bench": f"cifar10.{part}", "title": TITLES[part], "method": method, "rows": rows}


def epochs(part: str, config: Config) -> dict:
    """The record of ResNet-20 trained for a few epochs by each, on the same schedule: the error after every one."""
    steps_per_epoch = 50_000 // BATCH["resnet"]
    flags = ["--iterations", str(config.epochs * steps_per_epoch), "--out", str(config.out)]
    commands = {
        "PyTorch": [sys.executable, "-m", "experiments.bench.cifar10_torch", "--epochs", str(config.epochs)],
        "dlc": [sys.executable, "-m", "experiments.cifar10.resnet", *flags],
    }
    rows = {}
    for name, command in commands.items():
        _, printed = bench.command(command)
        errors = re.findall(r"test error +([0-9.]+) %", printed)[: config.epochs]
        after = {f"error after {i}": f"{error} %" for i, error in enumerate(errors, 1)}
        rows[name] = after
    method = f"{config.epochs} epochs, the rate divided by ten after a half and three quarters; one run each, in turn."
    return {"bench": "cifar10.epochs", "title": TITLES[part], "method": method, "rows": rows}


def main(config: Config) -> None:
    for part in TITLES:
        if config.part in ("all", part):
            result = epochs(part, config) if part == "epochs" else steps(part, config)
            words = ["--epochs", config.epochs] if part == "epochs" else ["--rounds", config.rounds]
            bench.save(config.out, result, ["--part", part, *words])


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["--worker"]:
            sys.exit(bench.serve(FORMS[sys.argv[3]](sys.argv[2])))
        main(tyro.cli(Config, prog="python -m experiments.bench.cifar10", description=__doc__.splitlines()[0]))
    except (UserError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}" + ("; pip install -e .[peers]" if isinstance(error, ModuleNotFoundError) else ""))
