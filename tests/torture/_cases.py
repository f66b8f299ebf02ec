"""Small runs, what each leaves behind if it is let alone, and whether one that was harmed leaves the same."""

import functools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.torture import _programs
from tests.torture._programs import FORK, Program, Stuck
from tests.torture._table import How, Row

LOST = "LOST"  # begins a note of a try in which something was lost
RUNS = {
    "a plain run": "experiments.mnist.mlp --hidden --dataset digits --lr 0.02 --epochs 40",
    "a run of parts": "tests.torture._runs --kind parts",
    "a streamed run": "tests.torture._runs --kind stream",
    "two players": "tests.torture._runs --kind players",
}


class Case(NamedTuple):
    """A program, what it leaves behind if it is let alone, and how long it runs after its first line in the log."""

    words: list[str]
    whole: dict[str, Any]
    seconds: float


class Try(NamedTuple):
    """One harm to one run: where it may write, where its words go, and its random numbers."""

    case: Case
    out: Path
    told: Path
    rng: np.random.Generator

    def start(self, before: Callable[[], None] | None = None) -> Program:
        """The program, once it has begun to log."""
        program = Program(self.told, *self.case.words, "--save-every", 0, "--out", self.out, before=before)
        program.until(lambda: logged(self.out))
        return program

    def resume(self, before: Callable[[], None] | None = None) -> Program:
        """The same, continued."""
        run = _programs.run_in(self.out)
        return Program(self.told, self.case.words[0], "--resume", run, "--save-every", 0, before=before)

    def moment(self) -> float:
        """Seconds, from 0 to about as many as the program runs after its first line."""
        return float(self.rng.uniform(0, self.case.seconds))


def cases(how: How) -> list[Case]:
    """The four kinds of runs, let alone."""
    return [let_alone(how.folder.parent / "alone" / f"{i}", words) for i, words in enumerate(RUNS.values())]


@functools.cache
def let_alone(folder: Path, command: str) -> Case:
    """The program runs twice: the first time it compiles, and the second is the measure. Both have to be equal."""
    found: list[Case] = []
    for name in ("first", "second"):
        one = Try(Case(command.split(), {}, 0), folder / name, folder / f"{name}.txt", np.random.default_rng())
        program = one.start()
        began = time.monotonic()
        if code := program.end():
            raise Stuck(f"{command} ended with {code}:\n{program.said()}")
        run = _programs.run_in(one.out)
        assert run
        found.append(Case(one.case.words, _programs.results(run), time.monotonic() - began))
    if different := unlike(found[0].whole, found[1].whole):
        raise Stuck(f"{command} is another run the second time: {different}")
    return found[1]


def logged(out: Path) -> bool:
    """Whether a run below `out` has begun to log."""
    return any(path.stat().st_size for path in out.glob("*/*/**/log.jsonl"))


def each(
    what: str,
    harm: Callable[[Try], list[str]],
    cases: list[Case],
    folder: Path,
    seed: tuple[int, ...],
    limits: tuple[int, float],
) -> Row:
    """The row of one kind of harm: tried on the cases in turn, two at once, so many times or until a time is over.

    `harm` does it to one run and returns notes; then the run is resumed until it ends, and has to be what it would have
    been without. Empty notes: it had ended before, and another one is started.
    """
    began, (times, until) = time.monotonic(), limits
    work = [(harm, cases[i % len(cases)], folder / f"{i}", (*seed, i), until) for i in range(times)]
    with ProcessPoolExecutor(2, mp_context=FORK) as lanes:
        found = [notes for notes in lanes.map(_one, work) if notes is not None]
    lost = [notes for notes in found if any(note.startswith(LOST) for note in notes)]
    counted = Counter(note for notes in found for note in notes)
    counted = counted or Counter(["no time left"])
    said = "; ".join(f"{count} {note}" for note, count in sorted(counted.items(), key=lambda item: LOST not in item[0]))
    return Row(what, len(found), len(found) - len(lost), time.monotonic() - began, said)


def _one(work: tuple[Callable[[Try], list[str]], Case, Path, tuple[int, ...], float]) -> list[str] | None:
    harm, case, out, seed, until = work
    if time.monotonic() > until:
        return None
    one = Try(case, out, out.with_suffix(".txt"), np.random.default_rng(seed))
    try:
        while not (notes := harm(one)):
            shutil.rmtree(out)
        notes += ends_well(one)
    except Stuck as stuck:
        notes = [f"{LOST}: a program {stuck}, see {one.told}"]
    if "Traceback" in one.told.read_text(errors="replace"):
        notes.append(f"{LOST}: a traceback, see {one.told}")
    if not any(note.startswith(LOST) for note in notes):
        shutil.rmtree(out)
        one.told.unlink()
    return notes


def ends_well(one: Try) -> list[str]:
    """Resumes the run until it ends: notes of what is not as it would have been if it had been let alone."""
    if not (run := _programs.run_in(one.out)):
        return [f"{LOST}: the run's folder, see {one.told}"]
    program = one.resume()
    if code := program.end():
        return [f"{LOST}: resuming ended with {code}, see {one.told}"]
    if "damaged" in program.said():
        return [f"{LOST}: something is damaged, see {one.told}"]
    different = unlike(one.case.whole, _programs.results(run))
    return [f"{LOST}: {different}, see {run}"] if different else []


def unlike(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The first thing in which two runs differ, in a few words; empty if they are the same."""
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            how = "is missing" if name not in other else "is too much" if name not in one else "differs"
            return f"{name} {how}"
    return ""


def trained(out: Path) -> bool:
    """Whether a run is over but for its figures and its record."""
    run = _programs.run_in(out)
    return run is not None and ((run / "weights.safetensors").exists() or (run / "figures").exists())


def shares(seconds: float, count: int) -> Iterable[float]:
    """When each of `count` equal parts of the next `seconds` ends; what one leaves over is for the next ones."""
    end = time.monotonic() + seconds
    for left in range(count, 0, -1):
        now = time.monotonic()
        yield now + max(0.0, end - now) / left
