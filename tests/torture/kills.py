"""kill -9 at random moments, between the first line of the log and the end; some runs are killed again when resumed.

A run that was killed and resumed has to end with the weights, the log, the figures and the files of one that was not,
and nothing may be left behind: no process, no file for the time being, no shared memory.
"""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.torture._cases import LOST, RUNS, Try, each, let_alone, shares, trained
from tests.torture._programs import Program
from tests.torture._table import How, Row

LARGER = {  # for a tenth of the tries
    "cifar10.resnet": "experiments.cifar10.resnet --smoke --steps 22",
    "imagenet.train": "experiments.imagenet.train --smoke --workers 2",
}
AGAIN = 0.4  # share of the runs that are killed once more after they were resumed


def rows(how: How) -> Iterator[Row]:
    """A row for each kind of run."""
    larger = LARGER if how.times >= 10 else {}
    kinds = [(name, command, how.times // (10 if name in larger else 1)) for name, command in (RUNS | larger).items()]
    for i, ((name, command, times), until) in enumerate(zip(kinds, shares(how.seconds(), len(kinds)), strict=True)):
        case = let_alone(how.folder.parent / "alone" / f"{i}", command)
        before = shared_memory()
        row = each(f"kill -9 of {name}", killed, [case], how.folder / f"{i}", (how.seed, i), (times, until))
        if left := stray(before):
            growing = len(left) > row.tried // 10  # one or two may be those of another program
            word = f"{LOST}: " if growing else ""
            notes = f"{word}{len(left)} pieces of shared memory are left, {left[0]}; {row.notes}"
            row = row._replace(survived=0 if growing else row.survived, notes=notes)
        yield row


def killed(one: Try) -> list[str]:
    """Kills a run once, or twice."""
    notes = kill(one, one.start(), one.moment())
    if notes and one.rng.random() < AGAIN:
        notes += [f"{note} again" for note in kill(one, one.resume(), 2 * one.moment())]
    return notes


def kill(one: Try, program: Program, seconds: float) -> list[str]:
    """Kills the program, after some seconds, and says where that was; nothing if it had ended by itself."""
    program.wait(seconds)
    program.signal(signal.SIGKILL)
    if program.end() != -signal.SIGKILL:
        return []
    return [*orphans(program), "after training" if trained(one.out) else "in training"]


def orphans(program: Program) -> list[str]:
    """A note if processes of a program that has ended are still there some seconds later."""
    end = time.monotonic() + 20
    while program.others() and time.monotonic() < end:  # a worker looks for its parent once a second
        time.sleep(0.05)
    return [f"{LOST}: {len(program.others())} processes are left"] if program.others() else []


def shared_memory() -> set[str]:
    """The names of Python's shared memory in /dev/shm."""
    return {path.name for path in Path("/dev/shm").glob("psm_*")}


def stray(before: set[str]) -> list[str]:
    """Names in /dev/shm that were not there before and that no process uses, some seconds later."""
    if not (new := shared_memory() - before):
        return []
    time.sleep(3)
    used = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            maps = (process / "maps").read_text()
            used |= {name for name in new if name in maps}
            used |= {Path(link.readlink()).name for link in (process / "fd").iterdir()}
        except OSError:
            continue
    return sorted((shared_memory() & new) - used)
