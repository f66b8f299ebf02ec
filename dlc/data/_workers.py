"""Worker processes that make batches: how they end, and sentences for what goes wrong with them."""

import contextlib
import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator

from dlc.errors import Stopped


@contextlib.contextmanager
def said() -> Iterator[None]:
    """Turns the errors of Grain and of its workers' system into sentences."""
    shared = (
        "shared memory, through which workers hand over what they have made, {}: make /dev/shm larger (in Docker, "
        "--shm-size=1g), or continue with fewer --workers, or 0"
    )
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM):
            raise
        raise Stopped(shared.format(f"cannot be had ({error.strerror})")) from error
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        if f"exit code -{int(getattr(signal, 'SIGBUS', 0))}." in str(error):  # a page of a full file in memory
            raise Stopped(shared.format("is full")) from None
        raise Stopped(
            "a worker process that makes batches has died, most often because memory ran out: continue with fewer "
            "--workers, or 0"
        ) from None


def free_shared_memory() -> int | None:
    """The free bytes of shared memory, if the system reports them."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:  # not a Linux
        return None


def work_for(parent: int, index: int, count: int) -> None:
    """How a worker starts: its parent handles Ctrl-C and SIGTERM, which schedulers send to all processes of a job.

    The worker goes on, so that the parent can reach its next checkpoint, and ends when its parent does.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
