"""Signals at random moments of real runs: preemption, with and without workers, and Ctrl-C by an impatient person.

The run has to end with 130 or 143, and say how it goes on; resumed, it has to be the run that nobody disturbed.
"""

import signal
import time
from collections.abc import Iterator
from functools import partial

from tests.torture._cases import LOST, Try, cases, each, shares, trained
from tests.torture._programs import Program
from tests.torture._table import How, Row
from tests.torture.kills import orphans

TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL


def rows(how: How) -> Iterator[Row]:
    """A row for each way in which a run is stopped; each is tried on runs of all kinds."""
    ways = {
        "SIGTERM": partial(stopped, signals=((TERM, False),)),
        "SIGTERM to the workers too": partial(stopped, signals=((TERM, True),)),
        "SIGTERM, and kill -9 soon after": partial(stopped, signals=((TERM, False), (KILL, False)), apart=1.0),
        "Ctrl-C": partial(stopped, signals=((INT, True),)),
        "Ctrl-C twice": partial(stopped, signals=((INT, True), (INT, True)), apart=1.5),
    }
    for i, ((what, way), until) in enumerate(zip(ways.items(), shares(how.seconds(), len(ways)), strict=True)):
        yield each(what, way, cases(how), how.folder / f"{i}", (how.seed, i), (how.times, until))


def stopped(one: Try, signals: tuple[tuple[signal.Signals, bool], ...], apart: float = 0.0) -> list[str]:
    """Sends signals to a run, to it only or to its workers too, up to `apart` seconds one after another."""
    program = one.start()
    program.wait(one.moment())
    was = "after training" if trained(one.out) else "in training"
    for signum, to_all in signals:
        program.signal(signum, to_all)
        program.wait(one.rng.uniform(0.3, 1) * apart)
    began = time.monotonic()
    code = program.end()
    took = time.monotonic() - began
    if code == 0:
        return []
    return [was, *orphans(program), *answer(program, code, {s for s, _ in signals}), *(["slowly"] if took > 20 else [])]


def answer(program: Program, code: int, signals: set[signal.Signals]) -> list[str]:
    """Notes of what is wrong with how a program ended and what it said of it."""
    if code == -KILL and KILL in signals:
        return []
    if code not in {128 + signum for signum in signals}:
        return [f"{LOST}: ended with {code}, see {program.told}"]
    if "continue with: python -m" not in program.said():
        return [f"{LOST}: it did not say how to go on, see {program.told}"]
    return []
