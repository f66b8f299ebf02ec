"""The record of a run: its figures, and where, when, with what and by which command they were measured."""

import contextlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dlc import files, hosts, process
from dlc.errors import UserError
from dlc.run import flags
from dlc.run.run import Run

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
OF_TRAINING = (
    *("seconds", "seconds_to_first_step", "examples_per_second", "train_flops", "peak_memory_bytes"),
    *("date", "device", "versions", "commit", "command"),
)  # what a record says about it


def device() -> dict[str, Any]:
    """Platform ("cpu", "gpu", "tpu"), kind and number of JAX's devices, and how many cores this process may use.

    Also how many processes there are, if there are several.
    """
    first = jax.devices()[0]
    kind = _cpu_model() if first.platform == "cpu" else first.device_kind
    found = {"platform": first.platform, "kind": kind, "count": jax.device_count(), "cores": process.cores()}
    return {**found, "processes": hosts.count()} if hosts.count() > 1 else found


def device_name() -> str:
    """What JAX computes on, in a few words."""
    found = device()
    many = found["cores"] if found["platform"] == "cpu" else found["count"]
    return f"{many} {'cores of ' if found['platform'] == 'cpu' else 'x '}{found['kind']}"


def versions(*extra: str) -> dict[str, str]:
    """The versions of Python, of the packages that decide a result, and of those in `extra`."""
    packages = {name: importlib.metadata.version(name) for name in (*PACKAGES, *extra)}
    return {"python": platform.python_version(), **packages}


def commit(file: Path | None = None) -> str | None:
    """The commit of the git checkout that `file`, by default this one, belongs to; None outside a checkout.

    It ends with "+changes" if Python files of the checkout differ from it. An ignored file belongs to none.
    """
    file = (file or Path(__file__)).resolve()

    def git(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        words = ("--no-optional-locks", *words)  # git would leave a lock in the checkout if it were killed
        return subprocess.run(["git", *words], cwd=file.parent, capture_output=True, text=True, check=check)

    try:
        head = git("rev-parse", "--short=12", "HEAD").stdout.strip()
        if git("check-ignore", "--quiet", file.name, check=False).returncode == 0:
            return None
        return head + ("+changes" if git("status", "--porcelain", "--", ":/*.py").stdout else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def origin(command: str, *packages: str, file: Path | None = None) -> dict[str, Any]:
    """When, where, with what and by which command a record was made. `file` decides whose commit it names."""
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": device(),
        "versions": versions(*packages),
        "commit": commit(file),
        "command": command,
    }


def add_origin(run: Run, done: int) -> None:
    """Adds to `origins.json` that this process trains now, after `done` steps.

    Raises UserError if the run began with another text of the user's own.
    """
    assert run.folder
    found = {"device": device(), "versions": versions(), "commit": commit(run.file)}
    earlier = _origins(run.folder)
    if "sha256" in (source := run.facts.get("source", "")):
        found["source"] = source
        if done and (others := [one["source"] for one in earlier if one.get("source", source) != source]):
            raise UserError(
                f"the text has changed since the run began: it was {others[0]}, and is {source}; restore it, or start "
                "a new run"
            )
    if done and not earlier:
        run.say(f"origins.json is damaged: the record will not say where the first {done} steps were trained")
    if found not in earlier:
        files.write_whole(run.folder / "origins.json", files.sealed({"origins": [*earlier, found]}))


def _origins(folder: Path | None) -> list[dict[str, Any]]:
    """What `add_origin` wrote; nothing if that is damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        found = files.unsealed((folder / "origins.json").read_bytes())["origins"] if folder else []
        if found:
            _together(found)  # which fails if they are others than `add_origin` writes
        return found
    return []


def _together(origins: list[dict[str, Any]]) -> dict[str, Any]:
    """Device, versions and commit of what several processes trained: where they differ, one after the other."""

    def each(values: Iterable[str | None]) -> str | None:
        return ", then ".join(dict.fromkeys(filter(None, values))) or None

    names = dict.fromkeys(name for one in origins for name in one["versions"])
    return {
        "device": {**origins[-1]["device"], "kind": each(one["device"]["kind"] for one in origins)},
        "versions": {name: each(one["versions"].get(name) for one in origins) for name in names},
        "commit": each(one["commit"] for one in origins),
    }


def finish(
    run: Run, name: str, claim: str, config: Any, figures: dict[str, Any], command: str, about: Sequence[str] = ()
) -> dict[str, Any]:
    """Writes result.json and returns what it holds. Seconds and operations are the sums over all parts.

    Device, versions and commit are those that trained. If the run had ended before, only its figures are new. A claim
    about a data set and values of flags is left out of the record of a run that had others.
    """
    every = [run, *run.parts]
    earlier = {} if any(each.trained for each in every) else _earlier(run)
    origins = [origin for each in every for origin in _origins(each.folder)]
    for part in run.parts:
        run.facts = {**part.facts, **run.facts}
        for key, value in part.clock.seconds.items():
            run.clock.seconds[key] = run.clock.seconds.get(key, 0.0) + value
    timed = sum(
        max(each.facts.get("steps", 0) - each.untimed, 0) * each.facts.get("examples_per_step", 0)
        for each in run.parts or [run]
    )
    seed, seconds = getattr(config, "seed", 0), run.clock.seconds
    result = {
        "experiment": name,
        "claim": claim if figures and _speaks_of(about, run, config) else None,
        "figures": {key: summary(value) for key, value in figures.items()},
        **run.facts,
        "seeds": list(range(seed, seed + run.facts.get("seeds", 1))),
        "seconds": {key: round(value, 3) for key, value in seconds.items()},
        "examples_per_second": round(timed / seconds["train"], 1) if timed and seconds["train"] else None,
        **({"missed": run.missed} if run.missed else {}),
        "train_flops": _flops(run),
        "peak_memory_bytes": peak_memory(),
        "config": flags.to_json(config),
        **origin(command, file=run.file),
        **(_together(origins) if origins else {}),
        **earlier,
    }
    if run.folder:
        write(run.folder, result)
    return result


def _earlier(run: Run) -> dict[str, Any]:
    """What an earlier record says about the training."""
    if not (run.folder and run.resume and (run.folder / "result.json").exists()):
        return {}
    with contextlib.suppress(OSError, ValueError):
        result = files.unsealed((run.folder / "result.json").read_bytes())
        if all(isinstance(result.get(name), dict) for name in ("seconds", "device", "versions")):
            return {name: value for name, value in result.items() if name in OF_TRAINING}
    run.say("result.json is damaged: a new one is written, without what it said about the training")
    return {}


def write(folder: Path, result: dict[str, Any]) -> None:
    """Writes `result.json`."""
    files.write_whole(folder / "result.json", files.sealed(result))


def peak_memory() -> int | None:
    """The peak memory of this process in bytes, or None if the system does not say."""
    # Not getrusage: on Linux it starts from the memory of the parent process.
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
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
    digits = ".2f" if name.endswith(("bleu", "chrf")) else digits
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
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
