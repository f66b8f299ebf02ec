"""Files that several processes may want at once: written whole, locked, and with a checksum where they are JSON.

Also how much a compressed file of a stranger may unpack to.
"""

import contextlib
import errno
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}  # what file systems without locks answer
SEAL = "crc32"  # the last key of a sealed object
LARGE, RATIO = 2**26, 100  # bytes to which any file may unpack, and how much larger than packed a larger one may be
BOMB = "becomes suspiciously large when it is unpacked: unpack it yourself, if you trust it"


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file under another name and renames it: a reader finds the old content or all of the new one.

    Raises OSError naming the file; nothing is left of it then.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        fresh.write_bytes(content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()  # on a full disk every byte counts
        raise OSError(error.errno, error.strerror, str(path)) from None  # a full disk is said without a name


def sealed(content: dict[str, Any], indent: int | None = 2) -> str:
    """The object as JSON, with a checksum by which `unsealed` notices that a file was altered."""
    content = {name: value for name, value in content.items() if name != SEAL}
    return json.dumps({**content, SEAL: _checksum(content)}, indent=indent) + "\n"


def unsealed(text: str | bytes) -> dict[str, Any]:
    """The object that `sealed` wrote. One without a checksum, as earlier versions wrote it, is believed.

    Raises ValueError if it is damaged.
    """
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
        if (expected := content.pop(SEAL, None)) is not None and expected != _checksum(content):
            raise ValueError("it was altered: its checksum differs")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError("it is not valid JSON") from None
    return content


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())


def most_unpacked(packed: int) -> int:
    """The largest size to which a file of `packed` bytes may unpack. One that becomes larger is a `BOMB`."""
    return max(LARGE, RATIO * packed)


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
