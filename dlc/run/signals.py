"""Ctrl-C and SIGTERM: training stops after the steps in progress, anything else at once; a second signal stops it now.

While the main thread waits for XLA, Python runs no signal handler, for minutes perhaps. So a thread reads the signals:
it answers the first one at once, and ends the process at the second.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from dlc import hosts

STOPPING = (signal.SIGINT, signal.SIGTERM)
AGAIN = 0.5  # seconds from one signal to a second: timeout(1) sends each of its own twice


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM, after everything was saved. Like KeyboardInterrupt, it is not an Exception."""

    def __init__(self, signum: int):
        self.signum = signum
        self.exit_code = 128 + signum
        super().__init__(signal.Signals(signum).name)

    def leave(self) -> NoReturn:
        """Ends the process with 130 or 143. XLA may still compute, and could crash if Python waited for it."""
        for stream in (sys.stdout, sys.stderr):
            if stream:
                stream.flush()
        os._exit(self.exit_code)


@dataclass
class Signals:
    """What a signal handler and a training loop tell each other."""

    training: bool = False
    stop: int | None = None  # the signal that asked the run to stop

    def agree(self) -> int | None:
        """The signal by which all processes stop now, or None; on every process the same one."""
        stop = hosts.agreed(self.stop)
        self.stop = self.stop or stop
        return stop

    def obey(self) -> None:
        """Raises Interrupted if a signal came."""
        if self.stop:
            raise Interrupted(self.stop)


@contextlib.contextmanager
def obeyed(signals: Signals, say: Callable[[str], None], last: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Inside, a signal is written to `signals` and said; unless a loop is training, Interrupted is raised.

    A second one calls `last` and ends the process, with 130 or 143. Whatever else happens after a signal, the block
    ends with Interrupted: Python drops an exception that is raised in a callback of its own.
    """

    def handle(signum: int, frame: Any) -> None:
        first, signals.stop = signals.stop is None, signals.stop or signum
        if first and not signals.training:
            raise Interrupted(signum)

    def watch() -> None:
        first = None
        while received := reading.recv(1):
            signum, now = received[0], time.monotonic()
            if signum not in STOPPING:
                continue
            if first is None:
                first = now
                say(f"stopping{' after these steps' if signals.training else ''} ... (again: stop now)")
            elif now - first >= AGAIN:
                say(f"{signal.Signals(signum).name}: stopped now")
                last()
                os._exit(128 + signum)

    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before = {signum: signal.signal(signum, handle) for signum in STOPPING}
    descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        signals.obey()
    except Exception as error:  # perhaps a consequence: the signal ended another process, or a callback of XLA's
        if signals.stop:
            raise Interrupted(signals.stop) from error
        raise
    finally:
        signal.set_wakeup_fd(descriptor)
        for signum, handler in before.items():
            signal.signal(signum, handler)
        writing.close()
        watcher.join()
        reading.close()
