"""What training costs: the operations of every experiment that has a record here, beside those of milestone systems.

    python -m experiments.bench.compute                    from the records in results/
    python -m experiments.bench.compute --count            traces the experiments of older records, with their data
    python -m experiments.bench.compute --cpu-watts 15 --price 0.2

A run counts the operations of its training itself (`dlc.costs.flops`): XLA's count of one step, every round of a loop
included, times the steps. It is of the plain program; what a CPU does instead, and evaluation, are not counted. A
petaflop/s-day is 1e15 operations a second for a day, 8.64e19. Energy is the time of training at a power that is
assumed: a flag, and no measurement.

Sources of the milestones. Such figures are estimates, which often differ by a factor of two and for reinforcement
learning by far more: Epoch AI puts AlphaGo Zero at 6.5e20.
    [1] Amodei, Hernandez 2018, "AI and compute", https://openai.com/index/ai-and-compute, appendix: what is counted
        there, not what is estimated from GPU time, where it has both. Of AlphaGo Zero it says 300,000 times AlexNet,
        which is its other estimate of AlexNet, 0.0058 petaflop/s-days or 5e17.
    [2] Epoch AI, "Data on notable AI models", https://epoch.ai/data, as of 2025; begun by Sevilla et al. 2022, "Compute
        trends across three eras of machine learning".
    [3] Vaswani et al. 2017, "Attention is all you need", table 2: the big model.
    [4] Brown et al. 2020, "Language models are few-shot learners", table D.1.
    [5] Computed: 340,908 connections (LeCun et al. 1998, section II-B), two operations each, three times for forward,
        backward and gradient, 60,000 images, 20 passes.
"""

import contextlib
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import tyro

from dlc import bench, plot
from dlc import config as configs
from dlc.config import not_negative
from dlc.errors import UserError
from dlc.run import Run

DAY = 1e15 * 86_400  # a petaflop/s-day
MILESTONES = (  # year, system, operations, source
    (1958, "Perceptron", 6.9e5, 2),
    (1987, "NETtalk", 2.8e10, 2),
    (1992, "TD-Gammon", 2e13, 2),
    (1998, "LeNet-5", 340_908 * 2 * 3 * 60_000 * 20, 5),
    (2000, "Neural language model", 6.3e15, 2),
    (2012, "AlexNet", 4.7e17, 1),
    (2013, "DQN", 2.3e15, 1),
    (2013, "Deconvnet (ZFNet)", 5.3e17, 1),
    (2014, "Align and translate", 0.018 * DAY, 1),
    (2014, "VGG", 8.5e18, 1),
    (2014, "Seq2Seq", 7.3e18, 1),
    (2015, "ResNet-152", 1.04e19, 2),
    (2015, "Deep Speech 2", 2.6e19, 1),
    (2016, "Xception", 4.5e20, 1),
    (2016, "Architecture search", 1.9e21, 1),
    (2016, "GNMT", 6.9e21, 1),
    (2017, "Transformer", 2.3e19, 3),
    (2017, "AlphaGo Zero", 300_000 * 5e17, 1),
    (2018, "BERT-large", 2.85e20, 2),
    (2019, "GPT-2", 1.92e21, 2),
    (2020, "GPT-3", 3.14e23, 4),
    (2022, "PaLM", 2.53e24, 2),
    (2023, "GPT-4", 2.1e25, 2),
)


@dataclass(frozen=True)
class Config:
    results: Path = Path("results")  # folder of records
    count: bool = False  # trace the experiments whose records hold no count, which reads their data
    cpu_watts: float = 50.0  # assumed of a machine that computes on its CPU: a laptop under load
    gpu_watts: float = 1000.0  # and of one with a GPU: 700 W for an H100 or H200, and the rest
    price: float = 0.3  # of a kWh, in the currency of your choice
    out: Path = Path("runs")  # folder in which the record gets a folder of its own

    def __post_init__(self) -> None:
        not_negative(self, "cpu_watts", "gpu_watts", "price")


class Counted(BaseException):
    """Raised instead of the first step of a training."""


class Counting(Run):
    """A run that traces what it would train, and trains nothing: the programs it compiles give shapes for arrays."""

    def compiled(
        self, function: Callable, *example: Any, made: Callable = lambda function: function, donate: bool = False
    ) -> Callable:
        def abstract(*arguments: Any) -> Any:
            if donate:  # a step
                raise Counted
            return jax.eval_shape(made(function), *arguments)

        return abstract

    def part(self, name: str) -> Run:
        raise UserError("it trains several things one after another, which only the run itself can count")


def traced(record: dict[str, Any]) -> float | None:
    """The operations of the training that a record is of, found by tracing its experiment with its configuration."""
    experiment, run = importlib.import_module(f"experiments.{record['experiment']}"), Counting()
    try:
        given = {name: value for name, value in record["config"].items() if value is not None}  # None is a default
        config = configs.from_json(experiment.Config, given)
    except TypeError:
        raise UserError("its configuration is that of another version") from None
    with contextlib.suppress(Counted):
        experiment.main(config, run)
    return run.flops()


def load(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """(name, record) of every experiment."""
    records = [(path, json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    found = [(path.stem.rpartition(".")[0], record) for path, record in records if "experiment" in record]
    if not found:
        raise UserError(f"{folder} holds no record of an experiment: run one, and add it by python -m dlc.results RUN")
    return found


def row(
    year: int, flops: float, seconds: float | None = None, watts: float = 0.0, price: float = 0.0, source: str = ""
):
    energy = seconds * watts / 3.6e6 if seconds else None
    return {
        "year": year,
        "operations": f"{flops:.2g}",
        "petaflop/s-days": f"{flops / DAY:.2g}",
        "operations/s": f"{flops / seconds:.2g}" if seconds else "",
        "kWh": f"{energy:.2g}" if energy is not None else "",
        "price": f"{price * energy:.2g}" if energy is not None else "",
        "source": source,
    }


def record_of(config: Config) -> tuple[dict, Any]:
    """The record, and its figure."""
    rows = {f"*{name}*": (flops, row(year, flops, source=f"[{source}]")) for year, name, flops, source in MILESTONES}
    ours, unknown = {}, []
    for name, record in load(config.results):
        if not record["seconds"]["train"]:
            continue
        flops = record.get("train_flops")
        if flops is None and config.count:
            try:
                flops = traced(record)
            except UserError as error:
                print(f"{name} is not counted: {error}", file=sys.stderr)
        if flops is None:
            unknown.append(name)
            continue
        watts = config.cpu_watts if record["device"]["platform"] == "cpu" else config.gpu_watts
        year, seconds = int(record["date"][:4]), record["seconds"]["train"]
        ours[name] = year, flops / DAY
        rows[f"`{name}`"] = flops, row(year, flops, seconds, watts, config.price, "here")
    if unknown:
        print(f"no count in the records of {', '.join(unknown)}: add --count to trace them", file=sys.stderr)
    milestones = {name: (year, flops / DAY) for year, name, flops, _ in MILESTONES}
    method = (
        "Operations of training, adds and multiplications apart; of milestones as published, with the number of the "
        f"source in experiments/bench/compute.py. Energy is assumed: {config.cpu_watts:g} W on a CPU, "
        f"{config.gpu_watts:g} W with a GPU, at {config.price:g} a kWh."
    )
    result = {
        "bench": "compute",
        "title": "What training took, from the perceptron to here",
        "method": method,
        "rows": {name: columns for name, (_, columns) in sorted(rows.items(), key=lambda item: item[1][0])},
        "train_flops": {name: days * DAY for name, (_, days) in ours.items()},
    }
    largest: dict[str, tuple[int, float]] = {}  # of each experiment's runs: all of them would hide the chart
    for name, point in sorted(ours.items(), key=lambda item: item[1][1]):
        largest[".".join(name.split(".")[:2])] = point
    return result, plot.compute(milestones, largest)


def main(config: Config) -> None:
    result, figure = record_of(config)
    bench.save(config.out, result, bench.flags(config), packages=(), figures={"compute": figure})


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, prog="python -m experiments.bench.compute", description=__doc__.splitlines()[0]))
    except UserError as error:
        sys.exit(f"error: {error}")
