"""Timing side by side: each form in a process of its own that stays alive, a short chunk of each in turn.

A parent starts a `Worker` for each form and asks them round by round, so that a machine whose speed drifts slows all of
them alike; what it reports are medians and their ratios. The form itself is a function that runs one chunk and returns
seconds per step, handed to `serve`.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dlc.errors import UserError


class Worker:
    """`python -m module words...`, a process that measures one chunk each time it is asked."""

    def __init__(self, module: str, *words: str):
        self._name = " ".join([module, *words])
        command = [sys.executable, "-m", module, *words]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self) -> float:
        """Seconds per step of one chunk. Raises UserError if the process ended, whose own message stands above."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            return float(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise UserError(f"{self._name} ended before it had measured anything") from None

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def serve(chunk: Callable[[], float]) -> None:
    """The worker's side: runs `chunk` for every line on standard input and prints what it returns."""
    for _ in sys.stdin:
        print(chunk(), flush=True)


def interleaved(measures: dict[str, Callable[[], float]], rounds: int, warmup: int = 1) -> dict[str, np.ndarray]:
    """Calls every measure once a round, in turn; returns what each gave, [rounds], the first `warmup` left out."""
    gave: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(warmup + rounds):
        for name, measure in measures.items():
            gave[name].append(measure())
    return {name: np.array(values[warmup:]) for name, values in gave.items()}


def command(words: list[str], **options: Any) -> tuple[float, str]:
    """Seconds that a command takes from its start to its end, and what it printed. Raises UserError if it fails."""
    began = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, **options)
    if done.returncode:
        raise UserError(f"{' '.join(map(str, words))} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return time.perf_counter() - began, done.stdout


def ratios(times: dict[str, np.ndarray], against: str) -> dict[str, float]:
    """The median time of each form divided by that of `against`."""
    return {name: float(np.median(values) / np.median(times[against])) for name, values in times.items()}
