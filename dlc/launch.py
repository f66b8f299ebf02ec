"""From the command line to a finished run: flags, the run's folder, signals, and one sentence for what went wrong."""

import contextlib
import errno
import fcntl
import inspect
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from dlc import config as configs
from dlc import record
from dlc.checkpoint import Unwritten
from dlc.errors import UserError
from dlc.run import Interrupted, Run

MISSED = 5
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}


def launch(main: Callable[[Any, Run], dict[str, Any]], default: Any, smoke: Any, argv: list[str] | None = None) -> None:
    """Runs an experiment from the command line and exits: 0, or non-zero with one sentence for what went wrong.

    2 a mistake in the flags, a file or the disk; 3 data that cannot be had; 4 diverged; 5 a target that
    the run did not reach; 130 and 143 interrupted.
    """
    module = sys.modules[main.__module__]
    argv = sys.argv[1:] if argv is None else argv
    console = Console(stderr=True)
    name, folder, resume = "", None, False
    sys.unraisablehook = _say_no_late_futures
    try:
        name, claim = _name(module), claim_of(module)
        config, options = configs.parse(name, summary_of(module), default, smoke, argv)
        require(options.require)
        command = shlex.join(["python", "-m", f"experiments.{name}", *argv])
        folder, resume = options.resume or new_folder(options.out, name), bool(options.resume)
        if resume:
            command = configs.read(folder)["command"]
        else:
            configs.save(folder, name, config, command)
        run = Run(folder, resume, console, options.save_every)
        with _alone(folder), _signals(run), contextlib.closing(run):
            figures = main(config, run)
            result = run.finish(name, claim, config, figures, command)
        _conclude(run, result)
        for sentence in run.missed:
            _say(console, f"not reached: {sentence}", style="red")
        if run.missed:
            sys.exit(MISSED)
    except Interrupted as interrupted:
        _say(console, f"{interrupted}: stopped")
        _say_how_to_resume(console, name, folder)
        sys.exit(128 + interrupted.signum)
    except UserError as error:
        _say(console, f"error: {error}", style="red")
        if isinstance(error, Unwritten):
            _say_how_to_resume(console, name, folder)
        elif folder and not resume and not any(folder.rglob("log.jsonl")):
            shutil.rmtree(folder, ignore_errors=True)  # it never began
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        where = f" {error.filename}" if error.filename else ""
        _say(console, f"error: cannot write{where}: {os.strerror(error.errno)}", style="red")
        _say_how_to_resume(console, name, folder)
        sys.exit(2)


def require(platform: str | None) -> None:
    """Raises UserError unless JAX computes on `platform`."""
    try:
        found = jax.default_backend()
    except RuntimeError as error:  # JAX_PLATFORMS names one that is not there
        raise UserError(f"JAX finds no device: {str(error).splitlines()[0]}") from None
    if platform and found != platform:
        extra = {"gpu": "cuda", "tpu": "tpu"}.get(platform)
        hint = f"on a machine that has one, pip install -e .[{extra}]" if extra else "unset JAX_PLATFORMS"
        raise UserError(f"a {platform} is required, but JAX finds only {found} here: {hint}")


def new_folder(out: Path, name: str) -> Path:
    """A folder of its own for a run begun now: `out`/`name`/date-and-time. Raises UserError if none can be made."""
    stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    try:
        (out / name).mkdir(parents=True, exist_ok=True)
        for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
            with contextlib.suppress(FileExistsError):
                (out / name / (stamp + suffix)).mkdir()
                return out / name / (stamp + suffix)
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        raise UserError(f"cannot write {out / name}: {reason}; choose another folder with --out") from None
    raise UserError(f"{out / name} is full of runs begun at {stamp}; choose another folder with --out")


def summary_of(module: Any) -> str:
    """The experiment's docstring up to its first blank line: what --help shows."""
    return inspect.cleandoc(module.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def claim_of(module: Any) -> str:
    """The paragraph of the experiment's docstring that begins with "Claim:". Raises UserError if there is none."""
    for paragraph in inspect.cleandoc(module.__doc__ or "").split("\n\n"):
        if paragraph.startswith("Claim:"):
            return " ".join(paragraph.removeprefix("Claim:").split())
    raise UserError(f'the docstring of {module.__file__} has no paragraph that begins with "Claim:"')


def _name(module: Any) -> str:
    if module.__spec__ is None:  # started as a file, which leaves out what experiments/__init__.py sets
        path = Path(module.__file__).with_suffix("").parts[-3:]
        raise UserError(f"start it as a module, from the root of the repository: python -m {'.'.join(path)}")
    return module.__spec__.name.removeprefix("experiments.")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which ends with this process however it ends. Raises UserError if it is held."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"{folder} is still being written by another process; stop that first") from None
    finally:
        os.close(handle)


@contextlib.contextmanager
def _signals(run: Run) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop training after the steps under way, and anything else, or a second one, at once."""

    def handle(signum: int, frame: Any) -> None:
        if run.signals.training and not run.signals.stop:
            run.signals.stop = signum
        else:
            raise Interrupted(signum)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _say_no_late_futures(unraisable: Any) -> None:
    """Where one file of a checkpoint cannot be written, TensorStore's threads print a traceback for every other one."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _say(console: Console, sentence: str, style: str | None = None) -> None:
    console.print(sentence, style=style, highlight=False, markup=False, soft_wrap=True)


def _say_how_to_resume(console: Console, name: str, folder: Path | None) -> None:
    if folder and (folder / "config.json").exists():
        _say(console, f"continue with: python -m experiments.{name} --resume {shlex.quote(str(folder))}")


def _conclude(run: Run, result: dict[str, Any]) -> None:
    rows = {key.replace("_", " "): record.show(key, value) for key, value in result["figures"].items()}
    rows["claim"] = result["claim"]
    seconds = result["seconds"]
    shown = {name: value for name, value in seconds.items() if value >= 0.05 and name != "save"}
    if shown:
        rows["time"] = ", ".join(f"{value:.1f} s {name.removesuffix('e')}ing" for name, value in shown.items())
    if result["examples_per_second"]:
        rows["speed"] = f"{result['examples_per_second']:,.0f} examples/s on {result['device']['kind']}"
    rows["figures"] = f"{run.folder}/figures"
    rows["record"] = f"{run.folder}/result.json"
    width = max(map(len, rows))
    for key, value in rows.items():
        print(f"{key:{width}}  {value}")
