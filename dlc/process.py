"""What a process needs before JAX starts: a calmer malloc, a compilation cache, and correct sums on a CPU.

`experiments/__init__.py` calls `prepare`. Importing `dlc` itself changes nothing in your process.
"""

import contextlib
import ctypes
import importlib.metadata
import io
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()  # close to the start of the process: experiments import this module first

# Parameters of glibc's <malloc.h>. The reasons are in docs/design.md, "Speed".
_MALLOPT = {-1: -1, -2: 2**28, -4: 0, -8: 1}  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX

# Versions of jaxlib that silently compute wrong numbers on a CPU when they fuse a matrix product and a sum over many
# rows, and the XLA flag that turns this fusion off: https://github.com/jax-ml/jax/issues/39103
WRONG_SUMS = ("0.10.2",)
RIGHT_SUMS = "--xla_cpu_experimental_ynn_fusion_type=-reduce"

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of computing in a period, and the period


def cache_dir() -> Path | None:
    """The folder of compiled programs and data in the user's cache directory, ~/.cache/dlc on Linux.

    None for a user without a home: in a container, HOME may be unset and the user unknown to the system.
    """
    import platformdirs  # later than STARTED

    try:
        folder = platformdirs.user_cache_path("dlc", appauthor=False)
    except (RuntimeError, KeyError):
        return None
    return folder if folder.is_absolute() else None  # older versions return ~/.cache/dlc as it is


def programs_dir() -> Path | None:
    """The folder in which JAX keeps compiled programs; None if there is none that can be written."""
    if not (cache := cache_dir()):
        return None
    try:
        (cache / "xla").mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return cache / "xla" if os.access(cache / "xla", os.W_OK | os.X_OK) else None


def cores() -> int:
    """The cores that this process may use: those that a scheduler allotted it, and no more than its container's quota.

    The machine may have many more. Systems other than Linux do not say what is allotted.
    """
    allotted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text("utf-8").split()
        return max(1, min(allotted, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # another system, or "max": no quota
        return allotted


def offer_cpu_devices(count: int) -> None:
    """Makes JAX offer the CPU as that many devices, unless the user has set their number or JAX has begun."""
    import jax  # not before `prepare`

    with contextlib.suppress(RuntimeError):
        unset = jax.config.jax_num_cpu_devices < 0  # type: ignore[attr-defined] # it is made when JAX is imported
        if unset and "device_count" not in os.environ.get("XLA_FLAGS", ""):
            jax.config.update("jax_num_cpu_devices", count)


def prepare() -> None:
    """Sets malloc, warnings, the compilation cache and XLA's flags. Settings of the user are kept."""
    keep_freed_memory()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata; they do not say of which file
    if wrong_sums():
        os.environ.setdefault("XLA_FLAGS", RIGHT_SUMS)
    if programs := programs_dir():
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(programs))
    # By default JAX caches only programs that take a second to compile; a small experiment has none of those.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def keep_programs_whole() -> None:
    """Makes JAX write each program of its cache either completely or not at all, in place of one that it cannot read.

    JAX writes in place and never replaces a file. What a process left half-written when it was killed, or when the disk
    was full, would make every later one warn and compile again.
    """
    try:
        # Private, because JAX has no setting for it. Without this class nothing changes.
        from jax._src.lru_cache import LRUCache

        before = LRUCache.put
    except (ImportError, AttributeError):
        return

    def put(self: Any, key: str, value: bytes) -> None:
        if self.eviction_enabled:  # a user who limits the size: JAX then holds a lock, and keeps count
            return before(self, key, value)
        fresh = self.path / f"{key}.new"
        try:
            fresh.write_bytes(value)
            fresh.replace(self.path / f"{key}-cache")
        except FileNotFoundError:  # another process, which has just compiled the same, was faster
            pass
        except OSError:
            fresh.unlink(missing_ok=True)
            raise

    if before.__module__ != __name__:
        LRUCache.put = put  # type: ignore[method-assign]


def exit_at_signals() -> None:
    """Makes Ctrl-C and SIGTERM end this process with 130 and 143, in silence, where there is nothing to save."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda signum, frame: os._exit(128 + signum))


def keep_printing() -> None:
    """Makes sure that printing never fails: what cannot be written is dropped, such as to a pipe that was closed.

    Characters that the terminal's encoding lacks, and names that are not UTF-8, are written as their codes.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the process began; libraries ask whether it is a terminal
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
            continue
        if stream is not getattr(sys, f"__{name}__"):
            continue  # replaced by someone else
        stream.flush()
        leaky: Any = _Leaky(stream.fileno(), "wb", closefd=False)
        if not stream.write_through:  # as it is with python -u
            leaky = io.BufferedWriter(leaky)
        how = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
        setattr(sys, name, io.TextIOWrapper(leaky, stream.encoding, errors="backslashreplace", **how))


class _Leaky(io.FileIO):
    """A file whose bytes are dropped where they cannot be written."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def wrong_sums() -> bool:
    """Whether a JAX program started in this environment can compute wrong sums on a CPU.

    This is the case if the installed jaxlib is one of `WRONG_SUMS` and XLA_FLAGS lacks `RIGHT_SUMS`. JAX is not
    imported. XLA reads its flags when the first array is made, so setting them later has no effect.
    """
    return importlib.metadata.version("jaxlib") in WRONG_SUMS and RIGHT_SUMS not in os.environ.get("XLA_FLAGS", "")


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for the next step, instead of returning every temporary to the system.

    Returns False, and changes nothing, if the C library is not glibc or the user has set MALLOC_ variables.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, value) for name, value in _MALLOPT.items())
