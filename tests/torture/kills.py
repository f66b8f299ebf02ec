"""kill -9 at random moments, between the first line of the log and the end; some runs are killed again when resumed.

A run that was killed and resumed has to end with the weights, the log, the figures and the files of one that was not,
and nothing may be left behind: no process, no file for the time being, no shared memory.
"""

import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.torture import _programs
from tests.torture._programs import FORK, Program, Stuck
from tests.torture._table import How, Row

KINDS = {  # how many of a hundred tries, and the program
    "kill -9 of a plain run": (100, "experiments.mnist.mlp --hidden --dataset digits --lr 0.02 --epochs 40"),
    "kill -9 of a run of parts": (100, "tests.torture._runs --kind parts"),
    "kill -9 of a streamed run": (100, "tests.torture._runs --kind stream"),
    "kill -9 of two players": (100, "tests.torture._runs --kind players"),
    "kill -9 of cifar10.resnet": (20, "experiments.cifar10.resnet --smoke --steps 22"),
    "kill -9 of imagenet.train": (20, "experiments.imagenet.train --smoke --workers 2"),
}
AGAIN = 0.4  # share of the runs that are killed once more after they were resumed


class Case(NamedTuple):
    """A program, what it leaves behind if it is let alone, and how long it runs after its first line in the log."""

    words: list[str]
    whole: dict[str, Any]
    seconds: float


def rows(how: How) -> Iterator[Row]:
    """A row for each kind of run."""
    for i, (what, (percent, words)) in enumerate(KINDS.items()):
        began = time.monotonic()
        until = began + how.seconds() / (len(KINDS) - i)
        case = let_alone(how.folder / str(i), words.split())
        tries = range(max(1, how.times * percent // 100))
        before = shared_memory()
        with ProcessPoolExecutor(2, mp_context=FORK) as lanes:  # two at once
            one = partial(tried, case, how.folder / str(i), (how.seed, i), until)
            found = [notes for notes in lanes.map(one, tries) if notes]
        lost = Counter(note for notes in found for note in notes if note.startswith("LOST"))
        said = Counter(note for notes in found for note in notes if not note.startswith("LOST"))
        survived = sum(not any(note.startswith("LOST") for note in notes) for notes in found)
        if left := stray(before):
            lost[f"LOST {len(left)} pieces of shared memory: {left[0]}"] += 1
            survived = min(survived, len(found) - 1)
        notes = "; ".join(f"{count} {note}" for note, count in (*sorted(lost.items()), *sorted(said.items())))
        yield Row(what, len(found), survived, time.monotonic() - began, notes)


def let_alone(folder: Path, words: list[str]) -> Case:
    """The program runs twice: the first time it compiles, and the second is the measure. Both have to be equal."""
    cases = []
    for name in ("first", "second"):
        program = Program(folder / f"{name}.txt", *words, "--save-every", 0, "--out", folder / name)
        program.until(partial(logged, folder / name))
        began = time.monotonic()
        if code := program.end():
            raise Stuck(f"{' '.join(words)} ended with {code}:\n{program.said()}")
        run = _programs.run_in(folder / name)
        assert run
        cases.append(Case(words, _programs.results(run), time.monotonic() - began))
    if different := unlike(cases[0].whole, cases[1].whole):
        raise Stuck(f"{' '.join(words)} is another run the second time: {different}")
    return cases[1]


def logged(out: Path) -> bool:
    """Whether a run below `out` has begun to log."""
    return any(path.stat().st_size for path in out.glob("*/*/**/log.jsonl"))


def tried(case: Case, folder: Path, seed: tuple[int, int], until: float, number: int) -> list[str]:
    """Kills one run, once or twice, and resumes it until it ends: what was lost, and when it was killed.

    Empty if there is no time left.
    """
    if time.monotonic() > until:
        return []
    rng = np.random.default_rng((*seed, number))
    out, told, notes = folder / f"{number}", folder / f"{number}.txt", []
    try:
        program = Program(told, *case.words, "--save-every", 0, "--out", out)
        program.until(partial(logged, out))
        notes += killed(program, rng.uniform(0, case.seconds), out)
        if rng.random() < AGAIN and notes:
            program = Program(told, case.words[0], "--resume", _programs.run_in(out), "--save-every", 0)
            notes += [f"{note} again" for note in killed(program, rng.uniform(0, 2 * case.seconds), out)]
        run = _programs.run_in(out)
        program = Program(told, case.words[0], "--resume", run, "--save-every", 0)
        if code := program.end():
            notes.append(f"LOST: resuming ended with {code}, see {told}")
        elif different := unlike(case.whole, _programs.results(run)):
            notes.append(f"LOST: {different}, see {run}")
        if "Traceback" in program.said():
            notes.append(f"LOST: a traceback, see {told}")
    except Stuck as stuck:
        notes.append(f"LOST: a program {stuck}, see {told}")
    if not any(note.startswith("LOST") for note in notes):
        shutil.rmtree(out)
        told.unlink()
    return notes or ["had ended before"]


def killed(program: Program, seconds: float, out: Path) -> list[str]:
    """Kills the program, after some seconds, and says where that was; nothing if it had ended by itself."""
    program.wait(seconds)
    program.signal(signal.SIGKILL)
    if program.end() != -signal.SIGKILL:
        return []
    end = time.monotonic() + 20
    while program.others() and time.monotonic() < end:  # a worker looks for its parent once a second
        time.sleep(0.05)
    left = [f"LOST: {len(program.others())} processes are left"] if program.others() else []
    run = _programs.run_in(out)
    later = run is not None and ((run / "weights.safetensors").exists() or (run / "figures").exists())
    return [*left, "after training" if later else "in training"]


def unlike(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The first thing in which two runs differ, in a few words; empty if they are the same."""
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            how = "is missing" if name not in other else "is too much" if name not in one else "differs"
            return f"{name} {how}"
    return ""


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
