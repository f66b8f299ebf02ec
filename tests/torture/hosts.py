"""One of several processes of a run is killed, or told to stop: the others have to stop, too, and the run goes on.

It goes on in as many processes, in one with as many devices, or in one with eight: the log has to be that of a run that
was let alone, to rounding. It has to be the same to the last bit if the processes are as many, or two become one with
two devices: of more than two numbers, processes and devices do not form the sum in the same order.
"""

import json
import math
import os
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.torture import _programs
from tests.torture._cases import logged, unlike
from tests.torture._programs import Program, Stuck
from tests.torture._table import How, Row

MODULE = "experiments.mnist.mlp"
FLAGS = "--hidden 16 --dataset digits --batch 96 --lr 0.02 --epochs 20 --save-every 0".split()
LIMIT = 60.0  # seconds within which the others have to stop
ROUNDING = 1e-4  # relative, in numbers of the log after 280 steps in float32 whose sums are in another order
KINDS = (  # how many processes, and which signal one of them gets
    (2, signal.SIGKILL),
    (4, signal.SIGKILL),
    (2, signal.SIGTERM),
    (4, signal.SIGTERM),
)


def rows(how: How) -> Iterator[Row]:
    """A row for each kind of harm, and one for how well the numbers of processes agree with each other."""
    began, whole = time.monotonic(), {}
    for processes, devices in ((1, 8), (1, 2), (2, 2), (1, 4), (4, 4)):
        whole[processes, devices] = let_alone(how.folder / f"whole-{processes}-{devices}", processes, devices)
    worst = max(apart(whole[1, 2][0], other[0]) for other in whole.values())
    different = unlike(whole[1, 2][1], whole[2, 2][1])
    survived = (not different) + (worst < ROUNDING)
    notes = f"relative differences up to {worst:.1e}; of two to the last bit: {different or 'none'}"
    yield Row("1, 2 and 4 processes, 2, 4 and 8 devices", 2, survived, time.monotonic() - began, notes)
    for i, (processes, signum) in enumerate(KINDS):
        began = time.monotonic()
        until = began + how.seconds() / (len(KINDS) - i)
        found, seconds = [], []
        for number in range(how.times):
            if number and time.monotonic() > until:
                break
            rng = np.random.default_rng((how.seed, i, number))
            folder = how.folder / f"{signum.name}-{processes}-{number}"
            found.append(tried(whole, folder, processes, signum, rng, seconds))
        survived = sum(not any(note.startswith("LOST") for note in notes) for notes in found)
        notes = "; ".join(f"{count} {note}" for note, count in Counter(note for one in found for note in one).items())
        slowest = f"stopped within {max(seconds, default=math.nan):.0f} s; "
        yield Row(
            f"{signum.name} to one of {processes}", len(found), survived, time.monotonic() - began, slowest + notes
        )


def let_alone(folder: Path, processes: int, devices: int) -> tuple[list[Any], dict[str, Any]]:
    """The log of a run of so many processes and devices, and all that it leaves."""
    for program in started(folder, processes, devices, [*FLAGS, "--out", folder / "runs"]):
        if code := program.end():
            raise Stuck(f"a run of {processes} processes ended with {code}:\n{program.said()}")
    run = _programs.run_in(folder / "runs")
    assert run
    return logged_by(run), _programs.results(run)


def started(folder: Path, processes: int, devices: int, words: list[Any]) -> list[Program]:
    """A run in so many processes, with so many devices together."""
    words = [*words, "--mesh", f"data={devices}"]
    environment = partial(os.environ.update, XLA_FLAGS=own_devices(devices // processes))
    if processes == 1:
        return [Program(folder / "0.txt", MODULE, *words, before=environment)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        Program(folder / f"{i}.txt", MODULE, *words, "--cluster", f"{i}/{processes}@{address}", before=environment)
        for i in range(processes)
    ]


def own_devices(count: int) -> str:
    """XLA's flags for a process whose CPU is so many devices."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"


def logged_by(run: Path) -> list[Any]:
    """The lines of the log, without times."""
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in _programs.TIMES} for line in lines]


def apart(one: list[Any], other: list[Any]) -> float:
    """The largest relative difference between two logs; infinite if they have other lines."""
    if [line.keys() | {line["step"]} for line in one] != [line.keys() | {line["step"]} for line in other]:
        return math.inf
    pairs = [(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a]
    return max(abs(a - b) / max(abs(a), 1e-3) for a, b in pairs)


def tried(
    whole: dict[Any, Any], folder: Path, processes: int, signum: int, rng: Any, seconds: list[float]
) -> list[str]:
    """Harms one of several processes at a random moment, and resumes the run: what was lost, and how it went on."""
    notes, out = [], folder / "runs"
    programs = started(folder, processes, processes, [*FLAGS, "--out", out])
    victim = int(rng.integers(processes))
    try:
        programs[0].until(partial(logged, out))
        programs[victim].wait(rng.uniform(0, 4))
        programs[victim].signal(signum)
        began = time.monotonic()
        codes = [program.end(2 * LIMIT) for program in programs]
        seconds.append(time.monotonic() - began)
        if not any(codes):
            return ["had ended before"]
        others = [program for i, program in enumerate(programs) if i != victim or signum == signal.SIGTERM]
        expected = 6 if signum == signal.SIGKILL else 143
        if any(codes[programs.index(program)] != expected for program in others):
            notes.append(f"LOST: exit codes {codes}")
        if seconds[-1] > LIMIT:
            notes.append(f"LOST: the others stopped after {seconds[-1]:.0f} s")
        for program in others:
            if "continue with: python -m experiments.mnist.mlp" not in program.said():
                notes.append("LOST: it is not said how to go on")
            if "Traceback (most recent" in program.said():
                notes.append("LOST: a traceback")
        run = _programs.run_in(out)
        again, devices = [(processes, processes), (1, processes), (1, 8)][int(rng.integers(3))]
        for program in started(folder / "resumed", again, devices, ["--resume", run, "--save-every", 0]):
            if code := program.end():
                notes.append(f"LOST: resuming ended with {code}")
        difference = apart(whole[processes, processes][0], logged_by(run))
        if difference > (0 if devices == processes and again in (processes, processes // 2) else ROUNDING):
            notes.append(f"LOST: the log differs by {difference:.1e}")
        notes.append(f"went on in {again} of {devices} devices")
    except Stuck as stuck:
        notes.append(f"LOST: a program {stuck}")
        for program in programs:
            program.signal(signal.SIGKILL)
    if any(note.startswith("LOST") for note in notes):
        return [f"{note}, see {folder}" if note.startswith("LOST") else note for note in notes]
    shutil.rmtree(folder)
    return notes
