"""Timing side by side: each form runs in its own process, which stays alive, and they run short chunks in turn.

The parent starts a `Worker` for each form and asks them round by round, so that a machine whose speed drifts slows all
of them alike. It reports medians and their ratios. A form is a function that runs one chunk and returns the seconds per
step; the worker hands it to `serve`.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from dlc.errors import UserError


class Worker:
    """The process `python -m module --worker [form, ...]`, which measures one chunk each time it is asked.

    `words` are the name of a form and its arguments, as JSON can hold them; `dlc.run.bench.launch` reads them.
    """

    def __init__(self, module: str, *words: Any):
        self._name = " ".join(map(str, [module, *words]))
        command = [sys.executable, "-m", module, "--worker", json.dumps(words)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, *words: str | int) -> float:
        """Seconds per step of one chunk, or whatever number the process returns for these words.

        Raises UserError if the process ended. Its own message was printed before.
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
        """Ends the process. It has nothing to keep."""
        self._process.terminate()
        self._process.communicate()


def serve(chunk: Callable[..., float]) -> None:
    """The worker's side: calls `chunk` with the words of each line of standard input and prints what it returns."""
    for line in sys.stdin:
        print(chunk(*line.split()), flush=True)


def chunks(run: Callable[[Any, int], Any], state: Any, chunk: int, warm: int = 3) -> Callable[[], float]:
    """A function that runs the next chunk and returns its seconds per step, after `warm` chunks that are not timed.

    `run(state, at)` takes `chunk` steps, the first of which has number `at`, and returns the state once they are done.
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


def interleaved(measures: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 1) -> dict[str, np.ndarray]:
    """Calls every measure once a round, in turn. Returns their values [rounds], without those of `warmup` rounds."""
    values: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(warmup + rounds):
        for name, measure in measures.items():
            values[name].append(measure())
    return {name: np.array(each[warmup:]) for name, each in values.items()}


def side_by_side(module: str, forms: Iterable[str], arguments: Iterable[Any], rounds: int) -> dict[str, np.ndarray]:
    """Seconds per step of each of the `forms` of a bench, [rounds], each called with `arguments` in its own process."""
    with contextlib.ExitStack() as stack:
        workers = {form: Worker(module, form, *arguments) for form in forms}
        for worker in workers.values():
            stack.callback(worker.close)
        return interleaved({form: worker.measure for form, worker in workers.items()}, rounds)


def command(words: list[str], **options: Any) -> tuple[float, str]:
    """The seconds that a command takes from start to end, and what it printed to either output.

    Raises UserError if it fails.
    """
    began = time.perf_counter()
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode:
        raise UserError(f"{' '.join(map(str, words))} failed: {(done.stdout.strip() or 'no message').splitlines()[-1]}")
    return time.perf_counter() - began, done.stdout


def ratios(times: dict[str, np.ndarray], against: str) -> dict[str, float]:
    """The median time of each form divided by that of `against`."""
    return {name: float(np.median(values) / np.median(times[against])) for name, values in times.items()}


def fastest(times: dict[str, np.ndarray], prefix: str) -> str:
    """The form with the smallest median time among those whose names start with `prefix`."""
    return min((name for name in times if name.startswith(prefix)), key=lambda name: np.median(times[name]))
