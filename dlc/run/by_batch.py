"""Times by batch size, of several models in several forms: ours ("dlc"), "PyTorch, eager", ...

Each form of a model is a process. It measures one batch size after another, in turn with the other forms, so that a
machine whose speed drifts slows all of them alike.
"""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from dlc.errors import UserError
from dlc.run import record, timing

CHUNK = 0.1  # seconds: the least that a chunk takes


class Limits(NamedTuple):
    """What is measured.

    A batch is left out if one call would take longer than `limit` seconds, and a model if it would start after
    `minutes`.
    """

    batches: tuple[int, ...]
    rounds: int
    limit: float
    minutes: float


@dataclass
class Measured:
    """The times of one model: seconds per call [rounds] by form and batch; peak bytes by form.

    `skipped` are the batches for which one call would have taken longer than the limit.
    """

    times: dict[str, dict[int, np.ndarray]]
    memory: dict[str, float]
    skipped: list[int]

    @property
    def batches(self) -> list[int]:
        return list(self.times["dlc"])

    def best(self, batch: int) -> float | None:
        """Seconds per call of PyTorch's fastest form; None without a peer."""
        medians = [float(np.median(times[batch])) for form, times in self.times.items() if form.startswith("PyTorch")]
        return min(medians, default=None)

    def ratio(self, batch: int) -> float | None:
        """Our time divided by that of PyTorch's fastest form; None without a peer."""
        best = self.best(batch)
        return best and float(np.median(self.times["dlc"][batch])) / best

    def ratios(self) -> list[float]:
        """The ratios of all batches; empty without a peer."""
        return [ratio for batch in self.batches if (ratio := self.ratio(batch))]

    def ratios_shown(self) -> str:
        """The median of the ratios and, if there are several, their range."""
        ratios = self.ratios()
        if len(ratios) < 2:
            return "".join(f"{ratio:.2f}" for ratio in ratios)
        return f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"

    def medians(self) -> dict[str, dict[str, float]]:
        """Seconds per call by form and batch, as JSON can hold them."""
        return {form: {str(b): float(np.median(s)) for b, s in times.items()} for form, times in self.times.items()}


def server(prepare: Callable[[int], Callable[[int], None]], memory: Callable[[], int | None]) -> Callable[..., float]:
    """A form that answers "time B" (seconds per call), "compile B" (seconds), "programs B" and "memory" (bytes).

    `prepare(B)` returns a function `run(count)` that makes `count` calls with batches of B and waits for them.
    """
    runs: dict[int, tuple[Callable[[int], None], int, dict[str, float]]] = {}

    def seconds(run: Callable[[int], None], count: int) -> float:
        began = time.perf_counter()
        run(count)
        return (time.perf_counter() - began) / count

    def answer(what: str, batch: str = "0") -> float:
        if what == "memory":
            return float(memory() or "nan")
        if (size := int(batch)) not in runs:
            run, programs = prepare(size), timing.count_programs()
            first, one = seconds(run, 1), seconds(run, 1)
            runs[size] = run, max(1, round(CHUNK / one)), {"compile": first - one, "programs": float(programs())}
        run, count, facts = runs[size]
        return facts[what] if what in facts else seconds(run, count)

    return answer


def peak_memory() -> int | None:
    """Peak bytes: of the GPU's memory if there is a GPU, otherwise of this process."""
    statistics = jax.devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] if statistics else record.peak_memory()


def measured(
    module: str, models: dict[str, list[str]], arguments: tuple[Any, ...], limits: Limits
) -> Iterator[tuple[str, Measured]]:
    """(name, times) of one model after another; `models` has the names of each model's forms.

    A form of a model is `module`'s worker with the words form, name and `arguments`. A model that fails is left out.
    """
    began = time.monotonic()
    for name, forms in models.items():
        if time.monotonic() - began > 60 * limits.minutes:
            print(f"{name} is left out: {limits.minutes:g} minutes are over", file=sys.stderr)
            continue
        try:
            found = _measured(module, forms, (name, *arguments), limits)
        except UserError as error:  # perhaps out of memory: the other models' times are kept
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        if found.skipped:
            skipped = ", ".join(map(str, found.skipped))
            print(f"{name}: no batches of {skipped}, over {limits.limit:g} s", file=sys.stderr)
        yield name, found


def table(
    module: str,
    models: dict[str, list[str]],
    arguments: tuple[Any, ...],
    limits: Limits,
    rows_of: Callable[[str, Measured], dict[str, dict[str, str]]],
) -> tuple[dict[str, dict[str, str]], dict[str, Measured]]:
    """The rows of all models, each printed as soon as it is there, and their times; arguments as for `measured`.

    `rows_of(name, times)` returns the rows of one model. Raises UserError if no model could be timed.
    """
    rows: dict[str, dict[str, str]] = {}
    every = {}
    for name, found in measured(module, models, arguments, limits):
        every[name], own = found, rows_of(name, found)
        rows |= own
        for what, columns in own.items():
            print(f"{what}: {', '.join(f'{key} {value}' for key, value in columns.items() if value)}", flush=True)
    if not rows:
        raise UserError("no model could be timed")
    return rows, every


def median_ratio(every: dict[str, Measured]) -> str:
    """A sentence with the median over the models of the median over their batches, and the worst model."""
    ratios = {name: float(np.median(found.ratios())) for name, found in every.items() if found.ratios()}
    if not ratios:
        return "None of these networks has a peer."
    worst = max(ratios, key=lambda name: ratios[name])
    median = np.median(list(ratios.values()))
    return (
        f"Of PyTorch's best it is {median:.2f}, the median over the models; the worst is {worst}, {ratios[worst]:.2f}."
    )


def _measured(module: str, forms: list[str], arguments: tuple[Any, ...], limits: Limits) -> Measured:
    with contextlib.ExitStack() as stack:
        workers = {form: timing.Worker(module, form, *arguments) for form in forms}
        for worker in workers.values():
            stack.callback(worker.close)
        found = Measured({form: {} for form in workers}, {}, [])
        slowest = 0.0  # seconds per image
        for batch in limits.batches:
            if slowest * batch > limits.limit:
                found.skipped.append(batch)
                continue
            ask = {form: functools.partial(worker.measure, "time", batch) for form, worker in workers.items()}
            times = timing.interleaved(ask, limits.rounds)
            slowest = max(float(np.median(seconds)) for seconds in times.values()) / batch
            for form, seconds in times.items():
                found.times[form][batch] = seconds
        found.memory = {form: worker.measure("memory") for form, worker in workers.items()}
        return found
