"""The record of a run: its figures, and where, when, with what and by which command they were measured."""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dlc import files, process
from dlc.run import flags
from dlc.run.run import Run

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def device() -> dict[str, Any]:
    """Platform ("cpu", "gpu", "tpu"), kind and number of JAX's devices, and how many cores this process may use."""
    first = jax.devices()[0]
    kind = _cpu_model() if first.platform == "cpu" else first.device_kind
    return {"platform": first.platform, "kind": kind, "count": jax.device_count(), "cores": process.cores()}


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


def finish(
    run: Run, name: str, claim: str, config: Any, figures: dict[str, Any], command: str, about: Sequence[str] = ()
) -> dict[str, Any]:
    """Writes result.json and returns what it holds. Seconds and operations are the sums over all parts.

    A claim about a data set and values of flags is left out of the record of a run that had others.
    """
    for part in run.parts:
        run.facts = {**part.facts, **run.facts}
        for key, value in part.clock.seconds.items():
            run.clock.seconds[key] = run.clock.seconds.get(key, 0.0) + value
    facts = [part.facts for part in run.parts] or [run.facts]
    trained = sum(each.get("steps", 0) * each.get("examples_per_step", 0) for each in facts)
    seed, seconds = getattr(config, "seed", 0), run.clock.seconds
    result = {
        "experiment": name,
        "claim": claim if figures and _speaks_of(about, run, config) else None,
        "figures": {key: summary(value) for key, value in figures.items()},
        **run.facts,
        "seeds": list(range(seed, seed + run.facts.get("seeds", 1))),
        "seconds": {key: round(value, 3) for key, value in seconds.items()},
        "examples_per_second": round(trained / seconds["train"], 1) if trained and seconds["train"] else None,
        **({"missed": run.missed} if run.missed else {}),
        "train_flops": _flops(run),
        "peak_memory_bytes": peak_memory(),
        "config": flags.to_json(config),
        **origin(command),
    }
    if run.folder:
        write(run.folder, result)
    return result


def write(folder: Path, result: dict[str, Any]) -> None:
    """Writes `result.json`."""
    files.write_whole(folder / "result.json", json.dumps(result, indent=2) + "\n")


def peak_memory() -> int | None:
    """The peak memory of this process in bytes, or None if the system does not say."""
    # Not getrusage: on Linux it starts from the memory of the parent process.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None


def summary(values: Any) -> Any:
    """One number as a float; several, one for each seed, as their mean, sample standard deviation, and values."""
    values = np.asarray(values, np.float64)
    if values.size == 1:
        return float(values.reshape(()))
    return {"mean": float(values.mean()), "std": float(values.std(ddof=1)), "values": values.tolist()}


def show(name: str, value: Any) -> str:
    """A number for people: errors and accuracies in percent, several seeds as mean ± standard deviation."""
    scale, digits, unit = (100, ".2f", " %") if name.endswith(("error", "accuracy")) else (1, ".4g", "")
    digits = ".2f" if name.endswith("bleu") else digits
    if isinstance(value, dict):
        return f"{scale * value['mean']:{digits}} ± {scale * value['std']:{digits}}{unit}"
    return f"{scale * value:{digits}}{unit}"


def _speaks_of(about: Sequence[str], run: Run, config: Any) -> bool:
    flagged = {str(value) for value in flags.to_json(config).values()}
    return not about or (run.facts.get("dataset") == about[0] and flagged.issuperset(about[1:]))


def _flops(run: Run) -> float | None:
    """Operations of the training of a run and its parts; None if nothing was trained."""
    try:
        own = [count() * steps for count, steps in run.work]
    except Exception:  # failing to count must not cost the result
        return None
    return sum(own + [_flops(part) or 0.0 for part in run.parts]) or None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
