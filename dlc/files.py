"""Files that several processes may want at once: written whole, and locked."""

import contextlib
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}  # what file systems without locks answer


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file under another name and renames it: a reader finds the old content or all of the new one."""
    fresh = path.with_name(f"{path.name}.new")
    try:
        fresh.write_bytes(content if isinstance(content, bytes) else printable(content).encode())
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()  # on a full disk every byte counts
        raise


def printable(text: str) -> str:
    """The text, or the name of a file, with escapes for what is not UTF-8: such a name cannot be printed or drawn."""
    return text.encode(errors="backslashreplace").decode()


def lock(path: Path, say: Callable[[str], None], waiting: str = "") -> contextlib.AbstractContextManager[Any]:
    """Holds the lock in the file `path`, and returns a context that releases it.

    The system releases it, too, when the process ends, however it ends. If another process holds it, says `waiting` and
    waits, or raises TimeoutError if that is empty. On a file system without locks, says so and goes on.
    """
    import filelock  # 60 ms, needed only where something is written

    held = filelock.FileLock(path, fallback_to_soft=False)
    try:
        try:
            return held.acquire(blocking=False)
        except filelock.Timeout:
            if not waiting:
                raise
            say(waiting)
            return held.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        say(f"{path.parent} is on a file system without locks: let no other process write there at the same time")
        return contextlib.nullcontext()
