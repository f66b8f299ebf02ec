"""Whether a device waits for its batches: steps on batches from disk, beside the same steps on batches that stay there.

    python -m experiments.bench.input                                       about 15 minutes on two CPU cores
    python -m experiments.bench.input --images FOLDER --side 224 --learners resnet50 --batch 256 --decoders 0 8 16 32

Random parts of JPEG files are decoded; windows of text are records of tokens. `dlc.run.fit` makes the batches of a
group of steps while the device works on the group before. On a CPU both share the cores: there, steps may take longer
though nothing waits.
"""

import contextlib
import functools
import io
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from rich.console import Console

from dlc import losses, train
from dlc.data import _packing, pictures, stream, token_records
from dlc.models import gpt, resnet, resnet_cifar
from dlc.prepare import standardise
from dlc.run import timing
from dlc.run.bench import Bench, launch, three
from dlc.run.fit import Plan, fit
from dlc.run.flags import NotNegative, Positive, Some
from dlc.run.run import Run

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU
Network = Literal["resnet8", "resnet20", "resnet50", "gpt"]
GROUP, STEPS = 4, 16  # steps of one program, and steps that are timed together
STAYS = -1  # in the place of a number of workers


class Onward:
    """Batches that go on where the last training ended or, if they `stay`, a group of them that lies on the device."""

    def __init__(self, batches: stream.Batches, stay: bool):
        self.like, self.workers, self.batches, self.at = batches.like, batches.workers, batches, 0
        self.there = jax.device_put(batches(0, GROUP)) if stay else None

    def __call__(self, first: int, count: int) -> Any:
        self.at += count
        return self.batches(self.at - count, count) if self.there is None else self.there


def task(network: Network, size: int, source: str) -> tuple[Any, Any, Any, Any, Any]:
    """A model, what it takes, its loss, the examples and their view."""
    if network == "gpt":
        text = token_records.opened(source)
        sizes = {"vocab": text.tokenizer.size, "context": text.context, "layers": 4, "heads": 4, "width": 128}
        model = gpt.GPT(gpt.GPTConfig(**sizes, use_bias=False))
        return model, np.zeros((1, 1), np.int32), losses.next_token(model), text.train, token_records.example
    found = pictures.folder(Path(source)) if source else pictures.load("digits32")
    depth, prepare = int(network.removeprefix("resnet")), standardise(np.full(3, 127.5), np.full(3, 64.0))
    make = resnet.resnet50 if depth == 50 else functools.partial(resnet_cifar.cifar_resnet, depth)
    model, view = make(num_classes=len(found.classes)), functools.partial(stream.random_part, how="area", size=size)
    return model, np.zeros((1, size, size, 3), np.float32), losses.classify(model, prepare), found.train, view


def trained(network: Network, batch: int, size: int, source: str, workers: int) -> Callable[..., float]:
    """A form that answers the seconds of a step, those "waiting" in it, or those of a batch that is made "alone"."""
    model, seen, loss, examples, view = task(network, size, source)
    batches = stream.Batches(examples, view, batch=batch, seed=0, workers=max(0, workers))
    step, variables = train.make_step(loss, optax.sgd(0.01)), dict(jax.jit(model.init)(jax.random.key(0), seen))
    state = train.init(variables.pop("params"), optax.sgd(0.01), jax.random.key(0), aux=variables or None)
    run, onward = Run(console=Console(file=io.StringIO())), Onward(batches, workers == STAYS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # by `timing.Worker`; the workers end, too

    def measure(what: str = "time") -> float:
        if what == "waiting":  # in the last training
            return run.clock.seconds["input"] / STEPS
        if what == "alone":
            onward(0, STEPS)  # takes what was made ahead
            began = time.perf_counter()
            jax.block_until_ready(jax.device_put(onward(0, STEPS)))
            return (time.perf_counter() - began) / STEPS
        run.clock.seconds |= {"train": 0.0, "input": 0.0}
        fit(run, state, step, onward, Plan(STEPS, report_every=GROUP))
        return run.clock.seconds["train"] / STEPS

    measure()
    return measure


@dataclass(frozen=True)
class Config:
    learners: Some[tuple[Network, ...]] = ("resnet8", "resnet20", "gpt")  # networks that learn
    batch: Positive[int] = 64  # examples in a batch
    side: Positive[int] = 32  # of the part of a picture that is taken, in pixels
    images: Path | None = None  # a folder of your own instead; of 1,797 digits of 32 x 32 pixels
    decoders: Some[tuple[NotNegative[int], ...]] = (0, 1, 2)  # processes that make batches; 0: threads
    rounds: Positive[int] = 5  # how often each form is timed
    out: Path = Path("runs")  # folder in which the run gets a folder of its own


def rows_of(network: Network, config: Config, source: str) -> dict[str, dict[str, str]]:
    """The rows of the table for one network: on batches that stay, then with each number of workers."""
    words, names = ("trained", network, config.batch, config.side, source), {STAYS: "batches that stay", 0: "threads"}
    with contextlib.ExitStack() as stack:
        forms = {kind: timing.Worker("experiments.bench.input", *words, kind) for kind in (STAYS, *config.decoders)}
        times: dict[tuple[int, str], Callable[[], float]] = {}
        for kind, form in forms.items():
            stack.callback(form.close)
            times |= {(kind, what): functools.partial(form.measure, what) for what in ("time", "waiting", "alone")}
        found = {key: float(np.median(each)) for key, each in timing.interleaved(times, config.rounds).items()}
    return {
        f"{network}, {names.get(kind, f'--workers {kind}')}": {
            "ms per step": three(1e3 * found[kind, "time"]),
            "of the first": f"{found[kind, 'time'] / found[STAYS, 'time']:.2f}",
            "waiting": f"{100 * found[kind, 'waiting'] / found[kind, 'time']:.1f} %",
            "examples/s": three(config.batch / found[kind, "time"]),
            "made alone": "" if kind == STAYS else three(config.batch / found[kind, "alone"]),
        }
        for kind in forms
    }


def measured(config: Config) -> Iterator[Bench]:
    rows: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        if "gpt" in config.learners:
            _packing.pack(Path(folder, "records"), ["python"], _packing.vocabulary(["python"], None), context=64)
        for network in config.learners:
            rows |= rows_of(network, config, f"{folder}/records" if network == "gpt" else str(config.images or ""))
    how = (
        f"Training, float32, SGD, batches of {config.batch}; medians of {config.rounds} interleaved chunks of {STEPS} "
    )
    how += "steps. Waiting is the share of the time in which the device had nothing to do until a batch came."
    yield Bench("input", "Steps on batches that are read when they are needed", how, rows)


if __name__ == "__main__":
    launch(measured, Config, {"trained": trained})
