"""Times by batch size, of several models in several forms: ours, PyTorch's, ...

A form of a model is a process. It is asked for one batch size after another, in turn with the other forms, so that a
machine whose speed drifts slows all of them alike.
"""

import contextlib
import functools
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from dlc import bench, record
from dlc.errors import UserError
from experiments.bench.classics import Classic

CHUNK = 0.1  # seconds that a chunk takes at least


@dataclass
class Measured:
    """Of one model: by form, then by batch, seconds a call [rounds]; by form seconds to compile and the peak in bytes.

    `skipped` are the batches of which one call would have taken longer than the limit.
    """

    times: dict[str, dict[int, np.ndarray]]
    compile: dict[str, float]
    memory: dict[str, float]
    skipped: list[int]

    @property
    def batches(self) -> list[int]:
        return list(self.times["dlc"])

    def best(self, batch: int) -> float | None:
        """Seconds a call of the fastest form of PyTorch."""
        return min(
            (float(np.median(times[batch])) for form, times in self.times.items() if form.startswith("PyTorch")),
            default=None,
        )

    def ratio(self, batch: int) -> float | None:
        """Our time, divided by that of PyTorch's fastest form."""
        best = self.best(batch)
        return best and float(np.median(self.times["dlc"][batch])) / best

    def ratios(self) -> list[float]:
        """Those of all batches; none without a peer."""
        return [ratio for batch in self.batches if (ratio := self.ratio(batch))]

    def ratios_shown(self) -> str:
        """Their median, and their range where there are several."""
        ratios = self.ratios()
        if len(ratios) < 2:
            return "".join(f"{ratio:.2f}" for ratio in ratios)
        return f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"

    def medians(self) -> dict[str, dict[str, float]]:
        """Seconds a call by form and batch, as JSON has them."""
        return {form: {str(b): float(np.median(s)) for b, s in times.items()} for form, times in self.times.items()}


def every_form(ours: Callable[..., Any], torch_form: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Ours, and those of PyTorch that `torch_form(..., channels_last=, compiled=)` gives, by their names."""
    return {
        "dlc": ours,
        "PyTorch, channels_last": functools.partial(torch_form, channels_last=True),
        "PyTorch, eager": torch_form,
        "PyTorch, compiled, channels_last": functools.partial(torch_form, channels_last=True, compiled=True),
    }


def forms(every: dict[str, Any], classic: Classic) -> list[str]:
    """Those of `every` that are timed: PyTorch's where there is a peer, its compiler on a GPU alone, where it pays."""
    on_gpu = jax.default_backend() == "gpu"
    return [name for name in every if name == "dlc" or (classic.peer and (on_gpu or "compiled" not in name))]


def server(prepare: Callable[[int], Callable[[int], None]], memory: Callable[[], int | None]) -> Callable[..., float]:
    """What a form serves: "time B", "compile B" and "memory".

    `prepare(B)` gives a function that makes so many calls with batches of B and waits for them.
    """
    runs: dict[int, tuple[Callable[[int], None], int, float]] = {}

    def seconds(run: Callable[[int], None], count: int) -> float:
        began = time.perf_counter()
        run(count)
        return (time.perf_counter() - began) / count

    def answer(what: str, batch: str = "0") -> float:
        if what == "memory":
            return float(memory() or "nan")
        if (size := int(batch)) not in runs:
            run = prepare(size)
            first, one = seconds(run, 1), seconds(run, 1)
            runs[size] = run, max(1, round(CHUNK / one)), first - one
        run, count, compile_seconds = runs[size]
        return compile_seconds if what == "compile" else seconds(run, count)

    return answer


def peak_memory() -> int | None:
    """Bytes: of a GPU's memory where there is one, else of this process."""
    statistics = jax.devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] if statistics else record.peak_memory()


def measured(
    module: str, names: dict[str, Classic], forms: Callable[[Classic], list[str]], words: tuple[str, ...],
    batches: tuple[int, ...], rounds: int, limit: float, minutes: float,
) -> Iterator[tuple[str, Measured]]:  # fmt: skip
    """(name, its times) of one classic after another: `python -m module --worker form name words...` is a form of one.

    A batch of which one call would take longer than `limit` seconds is left out, and so are the models that are not
    begun within so many minutes.
    """
    began = time.monotonic()
    for name, classic in names.items():
        if time.monotonic() - began > 60 * minutes:
            print(f"{name} is left out: {minutes:g} minutes are over", file=sys.stderr)
            continue
        try:
            found = _measured(module, name, forms(classic), words, batches, rounds, limit)
        except UserError as error:  # out of memory, perhaps: the others' times are not lost
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        if found.skipped:
            print(f"{name}: no batches of {', '.join(map(str, found.skipped))}, over {limit:g} s", file=sys.stderr)
        yield name, found


def need_peers() -> None:
    """Raises UserError without PyTorch, torchvision and timm."""
    if missing := [name for name in ("torch", "torchvision", "timm") if importlib.util.find_spec(name) is None]:
        raise UserError(f"{missing[0]} is not installed: make .venv/.peers installs it")


def _measured(
    module: str,
    name: str,
    forms: list[str],
    words: tuple[str, ...],
    batches: tuple[int, ...],
    rounds: int,
    limit: float,
) -> Measured:
    with contextlib.ExitStack() as stack:
        workers = {form: bench.Worker(module, "--worker", form, name, *words) for form in forms}
        for worker in workers.values():
            stack.callback(worker.close)
        found = Measured({form: {} for form in workers}, {}, {}, [])
        slowest = 0.0  # seconds an image
        for batch in batches:
            if slowest * batch > limit:
                found.skipped.append(batch)
                continue
            for form, worker in workers.items():
                found.compile.setdefault(form, worker.measure("compile", batch))
            ask = {form: functools.partial(worker.measure, "time", batch) for form, worker in workers.items()}
            times = bench.interleaved(ask, rounds)
            slowest = max(float(np.median(seconds)) for seconds in times.values()) / batch
            for form, seconds in times.items():
                found.times[form][batch] = seconds
        found.memory = {form: worker.measure("memory") for form, worker in workers.items()}
        return found


def median_ratio(every: dict[str, Measured]) -> str:
    """A sentence: the median over the models of the median over their batches, and the worst."""
    ratios = {name: float(np.median(found.ratios())) for name, found in every.items() if found.ratios()}
    if not ratios:
        return "None of these networks has a peer."
    worst = max(ratios, key=lambda name: ratios[name])
    median = np.median(list(ratios.values()))
    return (
        f"Of PyTorch's best it is {median:.2f}, the median over the models; the worst is {worst}, {ratios[worst]:.2f}."
    )
