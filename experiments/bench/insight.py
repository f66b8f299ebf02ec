"""Looking inside beside PyTorch: images attacked, and images dreamt, in a second.

    python -m experiments.bench.insight                  both parts, about 4 minutes
    python -m experiments.bench.insight --part attack    projected gradient descent on the lecture's convnet
    python -m experiments.bench.insight --part dream     gradient ascent on its second layer

A step is one gradient of the loss, or of the mean of a layer's squares, with respect to a batch of real digits, and the
update. Every form, in a process of its own, runs a chunk of 40 steps on a new batch in turn. The peer is
insight_torch.py. Weights are the initial ones, which cost as much as trained ones.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from dlc import data
from dlc.prepare import mean_and_std, standardise
from dlc.run import timing
from dlc.run.bench import Bench, Forms, launch, three
from dlc.run.flags import Positive

BATCH, CHUNK = 100, 40
EPSILON, STEP = 0.3, 0.01
TITLES = {
    "attack": "Projected gradient descent on the lecture's MNIST convnet",
    "dream": "Gradient ascent on a layer of the lecture's MNIST convnet",
}


def ours(part: str) -> Callable[[], float]:
    """`dlc.analysis`, a whole chunk compiled as one program."""
    from dlc.models.convnet import Convnet

    test, model = data.load("mnist").test, Convnet()
    prepare = standardise(*mean_and_std(test["image"]))
    variables = model.init(jax.random.key(0), prepare(test["image"][:1]))
    chunk = jax.jit({"attack": attacked, "dream": dreamt}[part](model, prepare))

    def run(_: Any, at: int) -> None:
        rows = slice(at // CHUNK % 100 * BATCH, (at // CHUNK % 100 + 1) * BATCH)
        jax.block_until_ready(chunk(variables, test["image"][rows].astype(np.float32), test["label"][rows]))

    return timing.chunks(run, None, CHUNK)


def attacked(model: Any, prepare: Any) -> Callable[..., Any]:
    from dlc.analysis import adversarial

    apply = lambda variables, pixels: model.apply(variables, prepare(pixels))  # noqa: E731
    how = adversarial.Descent(CHUNK, STEP)
    return lambda variables, pixels, label: adversarial.pgd(apply, variables, pixels, label, EPSILON, how)


def dreamt(model: Any, prepare: Any) -> Callable[..., Any]:
    from dlc.analysis import dream

    apply = lambda variables, pixels, **how: model.apply(variables, prepare(pixels), **how)  # noqa: E731

    def ascend(variables: Any, pixels: Any, label: Any) -> Any:
        liked = dream.of_layer(apply, variables, "conv2")
        return dream.ascend(liked, pixels, jax.random.key(0), updates=CHUNK)[0]

    return ascend


def torch_form(part: str, **how: bool) -> Callable[[], float]:
    from experiments.bench import insight_torch

    return timing.chunks(getattr(insight_torch, part)(BATCH, CHUNK, **how), None, CHUNK)


FORMS: Forms = {
    "PyTorch, channels_last": functools.partial(torch_form, channels_last=True),
    "PyTorch, as one would first write it": torch_form,
    "PyTorch, compiled": functools.partial(torch_form, compiled=True),
    "dlc": ours,
}


@dataclass(frozen=True)
class Config:
    part: Literal["all", "attack", "dream"] = "all"  # what is timed
    rounds: Positive[int] = 15  # how often each form is timed
    out: Path = Path("runs")  # folder in which the run gets a folder of its own


def beside(config: Config, part: str) -> Bench:
    """Images a second of every form, and its time as a share of that of PyTorch's best."""
    times = timing.side_by_side("experiments.bench.insight", FORMS, (part,), config.rounds)
    best = timing.fastest(times, "PyTorch")
    ratio = timing.ratios(times, best)
    rows = {
        name: {
            f"images/s, {CHUNK} steps each": three(BATCH / CHUNK / float(np.median(seconds))),
            "ms per step": f"{1e3 * np.median(seconds):.2f}",
            "quartiles": "{:.2f} to {:.2f}".format(*1e3 * np.percentile(seconds, [25, 75])),
            "of PyTorch's best": f"{ratio[name]:.2f}",
        }
        for name, seconds in times.items()
    }
    method = f"Batches of {BATCH}, float32; medians of {config.rounds} interleaved chunks of {CHUNK} steps."
    return Bench(f"insight.{part}", TITLES[part], method, rows, ["--part", part, "--rounds", config.rounds])


def measured(config: Config) -> Iterator[Bench]:
    for part in TITLES:
        if config.part in ("all", part):
            yield beside(config, part)


if __name__ == "__main__":
    launch(measured, Config, FORMS, peers=("torch",))
