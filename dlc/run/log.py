"""The log of a run: a JSON line for every report and evaluation, and the same for TensorBoard."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dlc import files


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of `log.jsonl`, up to the first incomplete one, which was being written when the run was killed."""
    path = folder / "log.jsonl"
    for text in path.read_bytes().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            return
        if not (isinstance(line, dict) and isinstance(line.get("step"), int)):
            return
        yield line


class Log:
    """The open files. When `write` returns, its line has been handed to the system. Raises OSError if that fails."""

    def __init__(self, folder: Path, history: list[dict[str, Any]], step: int):
        """Starts with `history`, the lines up to `step`. Later lines will be written again."""
        files.write_whole(folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in history))
        self._lines = open(folder / "log.jsonl", "a", buffering=1)  # noqa: SIM115 (closed in `close`)
        (folder / "tensorboard").mkdir(exist_ok=True)
        self._tensorboard = _tensorboard()
        # Not SummaryWriter: its thread dies when the disk is full, and the run then waits forever.
        self._events = self._tensorboard.EventsWriter(str(folder / "tensorboard" / "events"))
        start = self._tensorboard.SessionLog(status=1)  # TensorBoard then ignores older events from this step on
        self._event(step + 1, session_log=start)

    def write(self, line: dict[str, Any]) -> None:
        """Writes a line: `step`, and numbers or summaries of seeds by name."""
        try:
            self._lines.write(json.dumps(line) + "\n")
            for name, value in line.items():
                if name not in ("step", "seconds"):
                    number = value["mean"] if isinstance(value, dict) else value
                    self._event(line["step"], summary=self._tensorboard.scalar(name, number))
            self._events.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._lines.name) from None  # Python leaves the file out

    def close(self) -> None:
        """Closes the files. Their content stays."""
        self._lines.close()
        self._events.close()

    def _event(self, step: int, **what: Any) -> None:
        self._events.write_event(self._tensorboard.Event(step=step, wall_time=time.time(), **what))


def _tensorboard() -> Any:
    """The parts of tensorboardX that `Log` needs, without PyTorch, which tensorboardX imports if it is installed."""
    hidden = sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar
    finally:
        if hidden is None:
            del sys.modules["torch"]
    return SimpleNamespace(EventsWriter=EventsWriter, Event=Event, SessionLog=SessionLog, scalar=scalar)
