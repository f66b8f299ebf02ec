"""What a process on this machine should have before JAX is imported: a calmer malloc, and a compilation cache.

`experiments/__init__.py` calls `prepare`. Importing `dlc` itself changes nothing in your process.
"""

import ctypes
import os
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()  # near enough to when the process was started: experiments import this module first

# Numbers of glibc's <malloc.h>; why these: docs/design.md, "Speed".
_MALLOPT = {-1: -1, -2: 2**28, -4: 0, -8: 1}  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX


def cache_dir() -> Path:
    """Where compiled programs and data are kept: $XDG_CACHE_HOME/dlc, or ~/.cache/dlc."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlc"


def prepare() -> None:
    """Sets malloc and the compilation cache. Whatever the user has set already stays as it is."""
    keep_freed_memory()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "xla"))
    # JAX's defaults keep only programs that took a second to compile; a small experiment has none of those.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for the next step, where it would give every temporary back to the system.

    Returns whether it did: not where the C library is another one, or the user has set MALLOC_ variables.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, value) for name, value in _MALLOPT.items())
