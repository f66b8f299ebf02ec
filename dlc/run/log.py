"""The log of a run: a JSON line with its checksum for every report and evaluation, and the same for TensorBoard."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dlc import files

SPEEDS = ("examples_per_second", "steps_per_second")


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of `log.jsonl`, up to the first that is damaged, or was being written when the run was killed."""
    path = folder / "log.jsonl"
    for text in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            line = files.unsealed(text)
        except ValueError:
            return
        if not _is_line(line):
            return
        yield line


def is_evaluation(line: dict[str, Any]) -> bool:
    """Whether a line is that of an evaluation; otherwise it reports training steps, and has their speed."""
    return not any(speed in line for speed in SPEEDS)


def _is_line(line: Any) -> bool:
    """Whether `Log.write` writes such lines: a step, seconds by what they were spent on, and numbers or summaries."""
    if not (isinstance(line, dict) and type(line.get("step")) is int):
        return False

    def number(value: Any) -> bool:
        return isinstance(value, int | float)

    def summary(value: Any) -> bool:
        return isinstance(value, dict) and number(value.get("mean"))

    seconds = line.get("seconds", {})
    timed = isinstance(seconds, dict) and all(map(number, seconds.values()))
    return timed and all(number(value) or summary(value) for name, value in line.items() if name != "seconds")


class Log:
    """The open files. When `write` returns, its line has been handed to the system. Raises OSError if that fails.

    It also fails if the folder was moved or deleted: the open files could still be written, but nobody would find them.
    """

    def __init__(self, folder: Path, history: list[dict[str, Any]]):
        """Starts with `history`, the lines that count so far. Later ones will be written again, and are left out."""
        files.write_whole(folder / "log.jsonl", "".join(files.sealed(line, None) for line in history))
        self._lines = open(folder / "log.jsonl", "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (closed in `close`)
        self._tensorboard = _tensorboard()
        # One file, made anew: otherwise every process leaves one, and two in the same second, or by a clock that was
        # set back, write the same.
        for older in folder.glob("events.out.tfevents.*"):
            older.unlink()
        # Not SummaryWriter: its thread dies when the disk is full, and the run then waits forever.
        self._events = self._tensorboard.EventsWriter(str(folder / "events"))  # TensorBoard names a run by its folder
        now, spent = time.time(), [sum(line.get("seconds", {}).values()) for line in history]
        for line, seconds in zip(history, spent, strict=True):
            self._show(line, now - spent[-1] + seconds)
        self._events.flush()

    def write(self, line: dict[str, Any]) -> None:
        """Writes a line: `step`, and numbers or summaries of seeds by name."""
        try:
            os.stat(self._lines.name)
            self._lines.write(files.sealed(line, None))
            self._show(line, time.time())
            self._events.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._lines.name) from None  # Python leaves the file out

    def figure(self, name: str, png: bytes, step: int) -> None:
        """Shows a picture in TensorBoard, at a step."""
        width, height = (int.from_bytes(png[at : at + 4]) for at in (16, 20))  # of the file's header
        kind = self._tensorboard.Summary
        image = kind.Image(encoded_image_string=png, width=width, height=height, colorspace=4)
        self._event(step, time.time(), summary=kind(value=[kind.Value(tag=name, image=image)]))
        self._events.flush()

    def close(self) -> None:
        """Closes the files. Their content stays."""
        self._lines.close()
        self._events.close()

    def _show(self, line: dict[str, Any], at: float) -> None:
        for name, value in line.items():
            if name not in ("step", "seconds"):
                number = value["mean"] if isinstance(value, dict) else value
                self._event(line["step"], at, summary=self._tensorboard.scalar(_tag(name, line), number))

    def _event(self, step: int, at: float, **what: Any) -> None:
        self._events.write_event(self._tensorboard.Event(step=step, wall_time=at, **what))


def _tag(name: str, line: dict[str, Any]) -> str:
    """loss/train and loss/test, which TensorBoard draws side by side; other names as they are."""
    for held_out in ("test", "validation"):
        if name.startswith(f"{held_out}_"):
            return f"{name.removeprefix(f'{held_out}_')}/{held_out}"
    return name if is_evaluation(line) or name in (*SPEEDS, "learning_rate") else f"{name}/train"


def _tensorboard() -> Any:
    """The parts of tensorboardX that `Log` needs, without PyTorch, which tensorboardX imports if it is installed."""
    hidden = sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import scalar
    finally:
        if hidden is None:
            del sys.modules["torch"]
    return SimpleNamespace(EventsWriter=EventsWriter, Event=Event, Summary=Summary, scalar=scalar)
