"""Programs as a person starts them, in processes that can be killed.

They are forked from this one, which has imported what all of them need but has not begun to compute: that saves each of
them three seconds. So nothing here, or in a part, may make an array of JAX's, or start a thread: `inside` does such
work in a process of its own.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dlc.run import launch  # and with it what every program imports
from dlc.weights.checkpoint import Checkpoints

assert launch
FORK = multiprocessing.get_context("fork")
SILENT = 300.0  # seconds after which a program that should have ended is called stuck
TIMES = ("seconds", "examples_per_second", "steps_per_second", "crc32")  # of a line of the log


class Stuck(Exception):
    """A program did not end, or did not begin."""


class Program:
    """`python -m module words...` in a process group of its own; everything it prints is added to the file `told`."""

    def __init__(self, told: Path, module: str, *words: Any, before: Callable[[], None] | None = None):
        self.told = told
        told.parent.mkdir(parents=True, exist_ok=True)
        self.process = FORK.Process(target=_program, args=(told, module, [str(word) for word in words], before))
        self.process.start()
        self.pid = self.process.pid or 0

    def signal(self, signum: int, to_all: bool = False) -> None:
        """Sends a signal to the program, or to the workers that it has started, too."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if to_all else os.kill)(self.pid, signum)

    def wait(self, seconds: float) -> int | None:
        """The exit code, negative after a signal; None if the program runs for longer than that."""
        self.process.join(seconds)
        return self.process.exitcode

    def end(self, seconds: float = SILENT) -> int:
        """The exit code. Raises Stuck, and kills the program, if it runs for longer than that."""
        if (code := self.wait(seconds)) is None:
            self.signal(signal.SIGKILL, to_all=True)
            self.process.join()
            raise Stuck(f"did not end within {seconds:.0f} s")
        return code

    def others(self) -> list[int]:
        """The processes that the program has started and that are still there."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has just ended
                state, _, group = path.read_text().rpartition(")")[2].split()[:3]
                if int(group) == self.pid and state != "Z":
                    found.append(int(path.parent.name))
        return found

    def said(self) -> str:
        """Everything that this program, and others with the same file, printed."""
        return self.told.read_text(errors="replace") if self.told.exists() else ""

    def until(self, there: Callable[[], bool], seconds: float = SILENT) -> None:
        """Waits until something is there, or the program has ended. Raises Stuck if neither happens."""
        end = time.monotonic() + seconds
        while not there() and self.wait(0.01) is None:
            if time.monotonic() > end:
                self.end(0)


def _program(told: Path, module: str, words: list[str], before: Callable[[], None] | None) -> None:
    os.setpgid(0, 0)
    sink = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(sink, stream)
    sys.stdin, sys.argv = open(os.devnull), [module, *words]  # noqa: SIM115
    if before:
        before()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def inside(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns, which JSON must be able to hold, in a process of its own."""
    reading, writing = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_answer, args=(writing, function, arguments))
    process.start()
    writing.close()
    try:
        return json.loads(reading.recv_bytes())
    except EOFError:
        raise Stuck(f"{function.__name__} failed") from None
    finally:
        process.join()


def _answer(writing: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    writing.send_bytes(json.dumps(function(*arguments)).encode())


def run_in(out: Path) -> Path | None:
    """The folder of the only run below `out`, if it has begun."""
    found = [path.parent for path in out.glob("*/*/config.json")]
    return found[0] if found else None


def results(folder: Path) -> dict[str, Any]:
    """What a finished run leaves, without times and names that differ from run to run: equal runs have equal results.

    The arrays of the newest checkpoints, the logs, the record's figures, and each other file: its content's checksum.
    """
    found: dict[str, Any] = {}
    for path in files(folder):
        name = str(path.relative_to(folder))
        if path.name == "log.jsonl":
            found[name] = logged(path.parent)
        elif path.name == "result.json":
            record = json.loads(path.read_text())
            found[name] = [record["figures"], record["config"], record["seeds"], record["train_flops"]]
        elif path.suffix in (".safetensors", ".png", ".gif", ".txt") or path.name == "model.json":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "here"
    for checkpoints in sorted(folder.rglob("checkpoints")):
        found[str(checkpoints.relative_to(folder))] = inside(newest, str(checkpoints))
    return found


def logged(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without times."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def files(folder: Path) -> Iterator[Path]:
    """Every file of a run, but one for all files of a checkpoint, and of TensorBoard's events."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder).parts
        if "checkpoints" in inner[:-1]:
            if inner[-2] == "checkpoints":
                yield path
        elif path.is_file():
            yield path.with_name("events") if path.name.startswith("events.") else path


def newest(checkpoints: str) -> dict[str, str]:
    """The checksum of every array of the newest checkpoint in a folder, and its step."""
    opened = Checkpoints(Path(checkpoints))
    step, arrays = opened.steps()[-1], opened.read(("",), print) or {}
    opened.close()
    sums = {name: hashlib.sha256(np.asarray(array).tobytes()).hexdigest() for name, array in arrays.items()}
    return {**sums, "step of it": str(step)}
