"""What every record says about where it was made: device, versions, commit."""

import importlib.metadata
import json
import os
import platform
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def device() -> dict[str, Any]:
    """Platform ("cpu", "gpu", "tpu"), kind, and count of the devices that JAX computes on, and of the host's cores."""
    first = jax.devices()[0]
    kind = _cpu_model() if first.platform == "cpu" else first.device_kind
    return {"platform": first.platform, "kind": kind, "count": jax.device_count(), "cores": os.cpu_count()}


def versions(*extra: str) -> dict[str, str]:
    """The versions of Python, of the packages that decide a result, and of those in `extra`."""
    packages = {name: importlib.metadata.version(name) for name in (*PACKAGES, *extra)}
    return {"python": platform.python_version(), **packages}


def commit() -> str | None:
    """The commit of this checkout, with "+changes" where its code differs from it; None outside a git checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ":/dlc", ":/experiments")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def origin(command: str, *packages: str) -> dict[str, Any]:
    """When, where, with what and by which command a record was made."""
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": device(),
        "versions": versions(*packages),
        "commit": commit(),
        "command": command,
    }


def write(folder: Path, result: dict[str, Any]) -> None:
    """Writes `result.json`, whole or not at all."""
    write_whole(folder / "result.json", json.dumps(result, indent=2) + "\n")


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file under another name and renames it, so that a reader finds the old one or all of the new one."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_bytes(content if isinstance(content, bytes) else content.encode())
    fresh.replace(path)


def peak_memory() -> int | None:
    """The most memory this process has held, in bytes; None where the system does not say."""
    # Not getrusage: on Linux it begins with what the process that started this one held.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None


def summary(values: Any) -> Any:
    """One number as it is; several, one for each seed, as mean, sample standard deviation, and themselves."""
    values = np.asarray(values, np.float64)
    if values.size == 1:
        return float(values.reshape(()))
    return {"mean": float(values.mean()), "std": float(values.std(ddof=1)), "values": values.tolist()}


def show(name: str, value: Any) -> str:
    """A figure for people: errors and accuracies in percent, several seeds as mean ± standard deviation."""
    scale, digits, unit = (100, ".2f", " %") if name.endswith(("error", "accuracy")) else (1, ".4g", "")
    digits = ".2f" if name.endswith("bleu") else digits
    if isinstance(value, dict):
        return f"{scale * value['mean']:{digits}} ± {scale * value['std']:{digits}}{unit}"
    return f"{scale * value:{digits}}{unit}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
