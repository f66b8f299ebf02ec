"""What training costs: the operations of every experiment that has a record here, beside those of milestone systems.

    python -m experiments.bench.compute                    from the records in results/
    python -m experiments.bench.compute --count            traces the experiments of older records, with their data
    python -m experiments.bench.compute --cpu-watts 15 --price 0.2

A run counts the operations of its training (`dlc.costs.flops`): XLA's count of one step, including every round of a
loop, times the number of steps. The plain program is counted; what a CPU computes instead, and evaluation, are not. A
petaflop/s-day is 1e15 operations per second for a day, 8.64e19. Energy is the training time at an assumed power, which
is a flag and not measured. The milestones and their sources are in milestones.py.
"""

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlc.errors import UserError
from dlc.run import flags, plan
from dlc.run.bench import Bench, launch
from dlc.run.flags import NotNegative
from experiments.bench import _charts
from experiments.bench.milestones import DAY, MILESTONES


@dataclass(frozen=True)
class Config:
    results: Path = Path("results")  # folder of records
    count: bool = False  # trace the experiments whose records have no count; this reads their data
    cpu_watts: NotNegative[float] = 50.0  # assumed power of a machine that computes on its CPU: a laptop under load
    gpu_watts: NotNegative[float] = 1000.0  # and of one with a GPU: 700 W for an H100 or H200, plus the rest
    price: NotNegative[float] = 0.3  # of a kWh, in the currency of your choice
    out: Path = Path("runs")  # folder in which the run gets a folder of its own


def traced(record: dict[str, Any]) -> float:
    """The operations of the training that a record describes, found by tracing its experiment."""
    name = f"experiments.{record['experiment']}"
    if importlib.util.find_spec(name) is None:
        raise UserError(f"there is no {name}: it may have another name now")
    experiment = importlib.import_module(name)
    try:
        given = {name: value for name, value in record["config"].items() if value is not None}  # None is a default
        config = flags.from_json(experiment.Config, given)
    except TypeError:
        raise UserError("its configuration is from another version") from None
    return plan.operations(experiment.train, config)


def load(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """(name, record) of every experiment in the folder that trains."""
    records = [(path, json.loads(path.read_text("utf-8"))) for path in sorted(folder.glob("*.json"))]
    found = [(path.stem.rpartition(".")[0], record) for path, record in records if "experiment" in record]
    if not found:
        raise UserError(f"{folder} holds no record of an experiment: run one, then python -m dlc.run.pages RUN")
    return [(name, record) for name, record in found if record["seconds"]["train"]]


def counted(config: Config) -> dict[str, tuple[float, dict[str, Any]]]:
    """The operations and the record of every experiment; those without a count are named on stderr."""
    found, unknown = {}, []
    for name, record in load(config.results):
        flops = record.get("train_flops")
        if flops is None and config.count:
            try:
                flops = traced(record)
            except UserError as error:
                print(f"{name} is not counted: {error}", file=sys.stderr)
        if flops is None:
            unknown.append(name)
        else:
            found[name] = flops, record
    if unknown:
        print(f"no count in the records of {', '.join(unknown)}: add --count to trace them", file=sys.stderr)
    return found


def row(year: int, flops: float, source: str, seconds: float | None = None, energy: float = 0.0, price: float = 0.0):
    """The row of the table; `energy` in kWh. A milestone has no `seconds`."""
    return {
        "year": year,
        "operations": f"{flops:.2g}",
        "petaflop/s-days": f"{flops / DAY:.2g}",
        "operations/s": f"{flops / seconds:.2g}" if seconds else "",
        "kWh": f"{energy:.2g}" if seconds else "",
        "price": f"{price * energy:.2g}" if seconds else "",
        "source": source,
    }


def figures(ours: dict[str, tuple[int, float]]) -> dict[str, Any]:
    """The chart of our runs, name -> (year, petaflop/s-days), and the milestones. bench/redraw.py draws it too."""
    largest = {}  # of each experiment only the largest run: all of them would hide the chart
    for name, point in sorted(ours.items(), key=lambda item: item[1][1]):
        largest[".".join(name.split(".")[:2])] = point
    return {"compute": _charts.compute({name: (year, flops / DAY) for year, name, flops, _ in MILESTONES}, largest)}


def measured(config: Config) -> Iterator[Bench]:
    rows = {f"*{name}*": (flops, row(year, flops, f"[{source}]")) for year, name, flops, source in MILESTONES}
    ours = {}
    for name, (flops, record) in counted(config).items():
        watts = config.cpu_watts if record["device"]["platform"] == "cpu" else config.gpu_watts
        year, seconds = int(record["date"][:4]), record["seconds"]["train"]
        ours[name] = year, flops / DAY
        rows[f"`{name}`"] = flops, row(year, flops, "here", seconds, seconds * watts / 3.6e6, config.price)
    yield Bench(
        "compute",
        "What training took, from the perceptron to here",
        "Operations of training, adds and multiplications apart; of milestones as published, with the number of the "
        f"source in experiments/bench/milestones.py. Energy is assumed: {config.cpu_watts:g} W on a CPU, "
        f"{config.gpu_watts:g} W with a GPU, at {config.price:g} a kWh.",
        {name: columns for name, (_, columns) in sorted(rows.items(), key=lambda item: item[1][0])},
        more={"train_flops": {name: days * DAY for name, (_, days) in ours.items()}},
        figures=figures(ours),
    )


if __name__ == "__main__":
    launch(measured, Config)
