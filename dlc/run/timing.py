"""Timing side by side: each form runs in its own process, which stays alive, and they run short chunks in turn.

The parent starts a `Worker` for each form and asks them round by round, so that a machine whose speed drifts slows all
of them alike. It reports medians and their ratios. A form is a function that runs one chunk and returns the seconds per
step, or answers another question of the parent; the worker hands it to `serve`.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from dlc.errors import UserError


class Compiling(NamedTuple):
    """What a form compiles before its first step.

    Attributes:
        cold, warm: seconds, without a cache and with one that an earlier process has filled.
        programs: how many JAX compiles, or reads from its cache; 0 in PyTorch.
    """

    cold: float
    warm: float
    programs: int


class Worker:
    """The process `python -m module --worker [form, ...]`, which measures one chunk each time it is asked.

    `words` are the name of a form and its arguments, as JSON can hold them; `dlc.run.bench.launch` reads them. `caches`
    is a folder for compiled programs; without it they are kept where JAX and PyTorch usually do.
    """

    def __init__(self, module: str, *words: Any, caches: str | None = None):
        self._name = " ".join(map(str, [module, *words]))
        command = [sys.executable, "-m", module, "--worker", json.dumps(words)]
        environment = {"JAX_COMPILATION_CACHE_DIR": caches, "TORCHINDUCTOR_CACHE_DIR": caches} if caches else {}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )

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


def chunks(run: Callable[[Any, int], Any], state: Any, chunk: int, warm: int = 3) -> Callable[..., float]:
    """A form that runs the next chunk and answers its seconds per step, after `warm` chunks that are not timed.

    `run(state, at)` takes `chunk` steps, the first of which has number `at`, and returns the state once they are done.
    Asked for "compile" or "programs", it answers the seconds that the first chunk took longer than a later one, or how
    many programs these chunks compiled.
    """
    at = 0

    def seconds() -> float:
        nonlocal state, at
        began = time.perf_counter()
        state = run(state, at)
        at += chunk
        return time.perf_counter() - began

    programs = count_programs()
    first, *others = (seconds() for _ in range(warm))
    facts = {"compile": first - min(others), "programs": float(programs())}
    return lambda what="time": facts[what] if what in facts else seconds() / chunk


def count_programs() -> Callable[[], int]:
    """A function that returns how many programs JAX has compiled, or read from its cache, since."""
    events: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, duration_secs, **_: events.append(event))
    return lambda: events.count("/jax/core/compile/backend_compile_duration")


def compiling(module: str, forms: Iterable[str], arguments: Iterable[Any], *of: str | int) -> dict[str, Compiling]:
    """What those `forms` of a bench that compile take to do so, each in two processes, one after the other.

    Both have a cache of their own, which the second one finds filled. PyTorch's eager forms are left out. `of` are
    further words of the questions.
    """
    found = {}
    for form in forms:
        if "PyTorch" in form and "compiled" not in form:
            continue
        answers = []
        with tempfile.TemporaryDirectory() as caches:
            for _ in range(2):
                with contextlib.closing(Worker(module, form, *arguments, caches=caches)) as worker:
                    answers.append([worker.measure(what, *of) for what in ("compile", "programs")])
        (cold, programs), (warm, _) = answers
        found[form] = Compiling(cold, warm, int(programs))
    return found


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
