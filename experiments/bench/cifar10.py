"""The CIFAR-10 experiments beside what a user would pick instead: PyTorch, and Flax as one would first write it.

    python -m experiments.bench.cifar10                    all parts, about half an hour on two CPU cores
    python -m experiments.bench.cifar10 --part resnet      time per training step of ResNet-20, batches of 128
    python -m experiments.bench.cifar10 --part record      time per training step of airbench94, batches of 2,000
    python -m experiments.bench.cifar10 --part epochs      ResNet-20 for a few epochs: the error after each

A step is timed as in experiments.bench.mnist: medians over rounds in which every form, in a process of its own, runs a
chunk of steps in turn. On a GPU all compute in bfloat16 (PyTorch through autocast), on a CPU in float32. The peers are
cifar10_torch.py and cifar10_flax.py.
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
from dlc.prepare import channel_mean_and_std, standardise
from dlc.run import timing
from dlc.run.bench import Bench, Forms, launch, step_rows
from dlc.run.flags import Positive

Part = Literal["resnet", "record"]
BATCH = {"resnet": 128, "record": 2000}
CHUNK = {"resnet": 10, "record": 1}
TITLES = {
    "resnet": "One step of ResNet-20 on CIFAR-10",
    "record": "One step of the record's network on CIFAR-10",
    "epochs": "ResNet-20 for a few epochs",
}


def images(count: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """Standardised images and labels, the same for every form, so that only the step is timed."""
    train = data.load("cifar10").train
    prepare = standardise(*channel_mean_and_std(train["image"]))
    return np.asarray(prepare(train["image"][:count])), train["label"][:count]


def compute_dtype() -> Literal["float32", "bfloat16"]:
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def ours(part: Part, devices: int = 1) -> Callable[[], float]:
    """The experiment's network, loss and optimizer, scanned as `dlc.run.fit` scans them."""
    import optax

    from dlc import losses, process, sharding, train
    from dlc.models.airbench import airbench94, whitening
    from dlc.models.resnet_cifar import cifar_resnet
    from experiments.cifar10 import airbench

    process.offer_cpu_devices(devices)
    image, label = images()
    if part == "resnet":
        model, smoothing = cifar_resnet(20, dtype=compute_dtype()), 0.0
        tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
    else:
        model, smoothing = airbench94(dtype=compute_dtype()), 0.2
        tx = airbench.optimizer(airbench.Config(), epochs=8, steps_per_epoch=25)
    variables = model.init(jax.random.key(0), image[:1])
    if part == "record":
        variables["whitening"]["whitening"]["kernel"] = whitening(image[:5000])
    state = train.init(variables.pop("params"), tx, jax.random.key(0), aux=variables)
    loss_fn = losses.classify(model, criterion=functools.partial(losses.cross_entropy, smoothing=smoothing))
    step = train.on_device(train.make_step(loss_fn, tx), {"image": image, "label": label})
    if devices > 1:
        mesh = sharding.mesh(f"data={devices}")
        step, state = sharding.on_mesh(step, mesh), sharding.kept(state, mesh)
    step, rows, chunk = train.compiled(train.scanned(step)), batches.minibatches(len(label), BATCH[part]), CHUNK[part]
    return timing.chunks(lambda state, at: jax.block_until_ready(step(state, rows(at, chunk))[0]), state, chunk, warm=2)


def flax_form(part: Part) -> Callable[[], float]:
    from experiments.bench import cifar10_flax

    run, state = cifar10_flax.training(*images(), BATCH[part], CHUNK[part], compute_dtype())
    return timing.chunks(run, state, CHUNK[part], warm=2)


def torch_form(part: Part, **how: bool) -> Callable[[], float]:
    from experiments.bench import cifar10_torch

    run = cifar10_torch.training(part, *images(), BATCH[part], CHUNK[part], **how)
    return timing.chunks(run, None, CHUNK[part], warm=2)


FORMS: Forms = {
    "PyTorch, channels_last": functools.partial(torch_form, channels_last=True),
    "PyTorch, eager": torch_form,
    "PyTorch, compiled, channels_last": functools.partial(torch_form, channels_last=True, compiled=True),
    "Flax, as one would first write it": flax_form,
    "dlc": ours,
    "dlc, --mesh data=2": functools.partial(ours, devices=2),  # a CPU's cores
}


@dataclass(frozen=True)
class Config:
    part: Literal["all", "resnet", "record", "epochs"] = "all"  # what is timed
    rounds: Positive[int] = 11  # how often each form is timed; its steps
    epochs: Positive[int] = 5  # passes over the training set
    out: Path = Path("runs")  # folder in which the run gets a folder of its own


def steps(part: Part, config: Config) -> Bench:
    """The time per step of every form, beside PyTorch's best."""
    forms = [name for name in FORMS if part == "resnet" or not name.startswith("Flax")]
    if jax.default_backend() != "cpu":
        forms = [name for name in forms if "mesh" not in name]
    times = timing.side_by_side("experiments.bench.cifar10", forms, (part,), config.rounds)
    compiling = timing.compiling("experiments.bench.cifar10", forms, (part,))
    how = f"medians of {config.rounds} interleaved chunks of {CHUNK[part]}"
    return Bench(
        f"cifar10.{part}",
        TITLES[part],
        f"Training, batches of {BATCH[part]}, {compute_dtype()}; {how}.",
        step_rows(times, "PyTorch, channels_last", compiling),
        ["--part", part, "--rounds", config.rounds],
    )


def epochs(config: Config) -> Bench:
    """The error of ResNet-20 after each of a few epochs, trained by each program on the same schedule."""
    steps = str(config.epochs * (50_000 // BATCH["resnet"]))
    python = [sys.executable, "-m"]
    commands = {
        "PyTorch": [*python, "experiments.bench.cifar10_torch", "--epochs", str(config.epochs)],
        "dlc": [*python, "experiments.cifar10.resnet", "--steps", steps, "--out", str(config.out)],
    }
    rows = {}
    for name, command in commands.items():
        _, printed = timing.command(command)
        errors = re.findall(r"test error +([0-9.]+) %", printed)[: config.epochs]
        rows[name] = {f"error after {i}": f"{error} %" for i, error in enumerate(errors, 1)}
    return Bench(
        "cifar10.epochs",
        TITLES["epochs"],
        f"{config.epochs} epochs, the rate divided by ten after a half and three quarters; one run each, in turn.",
        rows,
        ["--part", "epochs", "--epochs", config.epochs],
    )


def measured(config: Config) -> Iterator[Bench]:
    for part in ("resnet", "record"):
        if config.part in ("all", part):
            yield steps(part, config)
    if config.part in ("all", "epochs"):
        yield epochs(config)


if __name__ == "__main__":
    launch(measured, Config, FORMS, peers=("torch",))
