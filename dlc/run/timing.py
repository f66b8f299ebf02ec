"""Timing side by side: each form in a process of its own that stays alive, a short chunk of each in turn.

A parent starts a `Worker` for each form and asks them round by round, so that a machine whose speed drifts slows all of
them alike; what it reports are medians and their ratios. The form itself is a function that runs one chunk and returns
seconds per step, handed to `serve`.
"""

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dlc.errors import UserError
from dlc.run import launch, pages, record


class Worker:
    """`python -m module words...`, a process that measures one chunk each time it is asked."""

    def __init__(self, module: str, *words: str):
        self._name = " ".join([module, *words])
        command = [sys.executable, "-m", module, *words]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, *words: str | int) -> float:
        """Seconds per step of one chunk, or whatever number the process has for these words.

        Raises UserError if the process ended, whose own message stands above.
        """
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(" ".join(map(str, words)) + "\n")
            self._process.stdin.flush()
            return float(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise UserError(f"{self._name} ended before it had measured anything") from None

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def serve(chunk: Callable[..., float]) -> None:
    """The worker's side: calls `chunk` with the words of every line on standard input and prints what it returns."""
    for line in sys.stdin:
        print(chunk(*line.split()), flush=True)


def chunks(run: Callable[[Any, int], Any], state: Any, chunk: int, warm: int = 3) -> Callable[[], float]:
    """A function that runs the next chunk and returns its seconds per step, after `warm` chunks that are not timed.

    `run(state, at)` takes `chunk` steps from step `at` on and returns the state once they are done.
    """
    at = 0
    for _ in range(warm):
        state, at = run(state, at), at + chunk

    def measure() -> float:
        nonlocal state, at
        began = time.perf_counter()
        state = run(state, at)
        at += chunk
        return (time.perf_counter() - began) / chunk

    return measure


def interleaved(measures: dict[str, Callable[[], float]], rounds: int, warmup: int = 1) -> dict[str, np.ndarray]:
    """Calls every measure once a round, in turn; returns what each gave, [rounds], the first `warmup` left out."""
    gave: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(warmup + rounds):
        for name, measure in measures.items():
            gave[name].append(measure())
    return {name: np.array(values[warmup:]) for name, values in gave.items()}


def command(words: list[str], **options: Any) -> tuple[float, str]:
    """Seconds that a command takes from its start to its end, and what it printed, on both of its outputs.

    Raises UserError if it fails.
    """
    began = time.perf_counter()
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode:
        raise UserError(f"{' '.join(map(str, words))} failed: {(done.stdout.strip() or 'no message').splitlines()[-1]}")
    return time.perf_counter() - began, done.stdout


def step_rows(times: dict[str, np.ndarray], against: str) -> dict[str, dict[str, str]]:
    """The rows of a table of times per step: medians, quartiles, and ratios to the form `against`."""
    ratio = ratios(times, against)
    return {
        name: {
            "ms per step": f"{1e3 * np.median(seconds):.2f}",
            "quartiles": "{:.2f} to {:.2f}".format(*1e3 * np.percentile(seconds, [25, 75])),
            "of PyTorch's best": f"{ratio[name]:.2f}",
        }
        for name, seconds in times.items()
    }


def three(value: float) -> str:
    """A number with three digits, or with more before its point, and no exponent above."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def flags(config: Any) -> list[Any]:
    """The flags in which a configuration differs from its defaults, but for where its record goes."""
    words: list[Any] = []
    for name, value in vars(config).items():
        if name != "out" and value != getattr(type(config)(), name):
            rest = value if isinstance(value, tuple) else [] if value is True else [value]
            words += [f"--{name.replace('_', '-')}", *rest]
    return words


def save(
    out: Path,
    result: dict[str, Any],
    words: list[Any],
    packages: tuple[str, ...] = ("torch",),
    figures: dict[str, Any] | None = None,
) -> None:
    """Writes the record of the benchmark `result["bench"]`, "module" or "module.part", run with the flags `words`.

    Prints it, and saves the matplotlib `figures` beside it. `packages` are those whose versions count, too.
    """
    module = result["bench"].partition(".")[0]
    command = shlex.join(["python", "-m", f"experiments.bench.{module}", *map(str, words)])
    result = {**result, "columns": list(next(iter(result["rows"].values()))), **record.origin(command, *packages)}
    folder = launch.new_folder(out, f"bench.{result['bench']}")
    for name, figure in (figures or {}).items():
        (folder / "figures").mkdir(exist_ok=True)
        figure.savefig(folder / "figures" / f"{name}.png", bbox_inches="tight")
    record.write(folder, result)
    print(f"{pages.bench_table(result)}\n\nrecord {folder}/result.json\n")


def ratios(times: dict[str, np.ndarray], against: str) -> dict[str, float]:
    """The median time of each form divided by that of `against`."""
    return {name: float(np.median(values) / np.median(times[against])) for name, values in times.items()}
