"""What several devices gain, and what a mesh costs: the steps of three experiments on one device and on several.

    python -m experiments.bench.scaling                       about 15 minutes on two CPU cores
    python -m experiments.bench.scaling --devices 1 2 4 8     on a machine with eight GPUs

Strong scaling is the same batch on more devices, weak scaling a batch for each of them. Each device of a CPU has a core
of its own, in a process that may use no others. The first row of a network has no mesh: the second is the same on a
mesh of one device, and its time may be at most 1.03 of the first.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from dlc import process
from dlc.errors import UserError
from dlc.run import timing
from dlc.run.bench import Bench, launch, three
from dlc.run.flags import Positive, Some

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU

Network = Literal["convnet", "resnet20", "gpt"]
BATCH = {"convnet": 128, "resnet20": 32, "gpt": 16}
CHUNK = {"convnet": 50, "resnet20": 4, "gpt": 20}  # steps that are timed together
EXAMPLES, CONTEXT = 2000, 64


def task(network: Network) -> tuple[Any, Any, Any, Any]:
    """A model, what it takes, and its step on random data that stays on the devices, for the rows of each batch."""
    import optax

    from dlc import losses, optim, train
    from dlc.models.convnet import Convnet
    from dlc.models.gpt import GPT, GPTConfig
    from dlc.models.resnet_cifar import cifar_resnet
    from dlc.prepare import standardise

    draw = np.random.default_rng(0)
    if network == "gpt":
        tokens = draw.integers(65, size=EXAMPLES * CONTEXT, dtype=np.int32)
        model = GPT(GPTConfig(vocab=65, context=CONTEXT, layers=4, heads=4, width=128, use_bias=False))
        adam = optax.adamw(1e-3, b2=0.99, weight_decay=0.1, mask=optim.matrices)
        tx = optax.chain(optax.clip_by_global_norm(1.0), adam)
        step = train.windows(train.make_step(losses.next_token(model), tx), tokens, CONTEXT)
        return model, np.zeros((1, 1), np.int32), tx, step
    model, shape = (Convnet(), (28, 28, 1)) if network == "convnet" else (cifar_resnet(20), (32, 32, 3))
    image = draw.integers(256, size=(EXAMPLES, *shape), dtype=np.uint8)
    data = {"image": image, "label": draw.integers(10, size=EXAMPLES, dtype=np.int32)}
    prepare = standardise(np.full(shape[-1], 127.5), np.full(shape[-1], 64.0))
    tx = optax.sgd(0.01, momentum=0.9)
    step = train.on_device(train.make_step(losses.classify(model, prepare), tx), data)
    return model, np.zeros((1, *shape), np.float32), tx, step


def trained(network: Network, devices: int, batch: int, on_cpu: bool) -> Callable[..., float]:
    """A form: chunks of steps on a mesh of that many devices or, for 0, without a mesh."""
    if on_cpu:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: max(1, devices)])
        process.offer_cpu_devices(max(1, devices))
    from dlc import batches, sharding, train

    model, seen, tx, step = task(network)
    variables = dict(jax.jit(model.init)(jax.random.key(0), seen))
    state = train.init(variables.pop("params"), tx, jax.random.key(0), aux=variables or None)
    rows, place = batches.minibatches(EXAMPLES - CONTEXT, batch, shuffle=True), None
    if devices:
        mesh = sharding.mesh(f"data={devices}")
        state, step, place = sharding.kept(state, mesh), sharding.on_mesh(step, mesh), sharding.split(mesh, axis=1)
    program, chunk = train.compiled(train.scanned(step)), CHUNK[network]

    def run(state: train.State, at: int) -> train.State:
        return jax.block_until_ready(program(state, jax.device_put(rows(at, chunk), place))[0])

    return timing.chunks(run, state, chunk)


@dataclass(frozen=True)
class Config:
    learners: Some[tuple[Network, ...]] = ("convnet", "resnet20", "gpt")  # networks that learn
    devices: Some[tuple[Positive[int], ...]] = (1, 2)  # devices of each mesh
    rounds: Positive[int] = 11  # how often each form is timed
    out: Path = Path("runs")  # folder in which the run gets a folder of its own


def rows_of(network: Network, config: Config, on_cpu: bool) -> dict[str, dict[str, str]]:
    """The rows of the table for one network; what they are compared with is the first mesh."""
    batch, least = BATCH[network], config.devices[0]
    kinds = {f"{network}, no mesh": (0, batch)}
    for devices in config.devices:
        kinds[f"{network}, data={devices}"] = (devices, batch)
        if devices > least:
            kinds[f"{network}, data={devices}, a batch for each"] = (devices, batch * devices)
    with contextlib.ExitStack() as stack:
        measures = {}
        for name, kind in kinds.items():
            form = timing.Worker("experiments.bench.scaling", "trained", network, *kind, on_cpu)
            stack.callback(form.close)
            measures[name] = form.measure
        times = timing.interleaved(measures, config.rounds)
    rate = {name: size / np.median(times[name]) for name, (_, size) in kinds.items()}
    first = f"{network}, data={least}"
    ratio = timing.ratios(times, f"{network}, no mesh")
    return {
        name: {
            "ms per step": three(1e3 * float(np.median(times[name]))),
            "quartiles": " to ".join(three(1e3 * float(t)) for t in np.percentile(times[name], [25, 75])),
            "of no mesh": f"{ratio[name]:.3f}" if devices <= 1 else "",
            "examples/s": three(rate[name]),
            "times the first mesh": f"{rate[name] / rate[first]:.2f}" if devices else "",
        }
        for name, (devices, _) in kinds.items()
    }


def measured(config: Config) -> Iterator[Bench]:
    on_cpu = jax.default_backend() == "cpu"
    there = process.cores() if on_cpu else jax.device_count()
    if max(config.devices) > there:
        raise UserError(f"{max(config.devices)} devices are more than the {there} that there are: give fewer --devices")
    rows: dict[str, dict[str, str]] = {}
    for network in config.learners:
        rows |= rows_of(network, config, on_cpu)
    how = f"Training, float32, data on the devices; medians of {config.rounds} interleaved chunks of steps. "
    how += "Each device is a core." if on_cpu else ""
    yield Bench("scaling", "Steps on several devices", how.strip(), rows)


if __name__ == "__main__":
    launch(measured, Config, {"trained": trained})
