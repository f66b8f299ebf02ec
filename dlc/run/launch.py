"""From the command line to a finished run: flags, the run's folder, signals, and one sentence for every error."""

import contextlib
import errno
import functools
import inspect
import math
import os
import re
import shlex
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
from flax.errors import FlaxError
from rich.console import Console

from dlc import files, hosts, process, sharding, weights
from dlc.errors import Stopped, UserError, printable
from dlc.run import cluster, flags, log, plan, record
from dlc.run.clock import gerund
from dlc.run.run import Run
from dlc.run.signals import Interrupted, obeyed
from dlc.weights.sources import names_its_model

MISSED = 5
SLOW_INPUT = 0.05  # share of the time of training that may be spent waiting for batches without a word
PLANNED = 1024  # devices of a CPU that a plan may have
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}
UNWRITABLE |= {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EIO, errno.ESTALE}

Figures = dict[str, Any]  # name -> a number, or one for each seed


def launch(
    train: Callable[[Any, Run], Figures] | None,
    default: Any,
    smoke: Any,
    show: Callable[[Any, Run, Any, Any], Figures] | None = None,
    published: Callable[[Any], Any] | None = None,
    argv: list[str] | None = None,
    parallel: bool = False,
) -> None:
    """Runs an experiment from the command line and exits: 0, or non-zero with one sentence for what went wrong.

    Args:
        train: `train(config, run) -> figures`; None if the experiment only shows weights.
        default, smoke: configurations; the small one is for `--smoke`.
        show: `show(config, run, model, variables) -> figures`, which `--weights` reaches without training.
        published: `published(config) -> model` for files of published weights that do not say which model they are.
        parallel: whether it trains with `dlc.run.fit`, and so on as many devices as `--mesh` says.

    Exit codes: 2 a mistake in the flags, a file or the disk; 3 data that cannot be obtained; 4 diverged; 5 a target
    that was not reached; 6 another process of the run has died; 130 and 143 interrupted. If another process of the run
    stopped with one of these codes, this one does, too.
    """
    module = sys.modules[(train or show).__module__]
    argv = sys.argv[1:] if argv is None else argv
    process.keep_printing()
    process.keep_programs_whole()
    console = Console(stderr=True)
    start, folder, resume = "", None, False
    sys.unraisablehook = _hide_late_futures
    try:
        (name, start), claim, about = _started(module), claim_of(module), subject_of(module)
        kind = flags.ParallelOptions if parallel else flags.ModelOptions if show else flags.Options
        config, options = flags.parse(name, start, help_of(module), default, smoke, kind, argv)
        command = " ".join([start, shlex.join(argv)]).rstrip()
        named = getattr(options, "cluster", None)
        start += f" --cluster {named}" if named else ""

        def how_to_resume() -> None:
            _say_how_to_resume(console, start, folder)

        with cluster.together(named and cluster.place(named), functools.partial(_say, console), how_to_resume):
            _offer_devices(options)
            require(options.require)
            mesh = _mesh(options)
            hosts.same("flags", [str(config), {k: str(v) for k, v in vars(options).items() if k != "cluster"}])
            if train and getattr(options, "plan", False):
                _say_plan(train, config, Run(console=console, mesh=mesh, plan=True))
                return
            folder, resume = _folder(options, name), bool(options.resume)
            if not resume and hosts.lead():
                flags.save(folder, name, config, command, options)
            run = _run(options, folder, console, mesh)
            run.file = Path(module.__file__ or "")
            goes_on = _resumed(run, folder, name, config) if resume and hosts.lead() else None
            with _opened(run, folder, console, how_to_resume), goes_on or contextlib.nullcontext(command) as command:
                figures = _figures(train, show, published, config, run, getattr(options, "weights", None))
                result = None
                if hosts.lead():
                    run.doing("writing the record")
                    result = record.finish(run, name, claim, config, figures, command, about)
            if result:
                _conclude(run, result)
                for sentence in run.missed:
                    _say(console, f"not reached: {sentence}", style="red")
            if run.missed:
                sys.exit(MISSED)
    except Interrupted as interrupted:
        if isinstance(interrupted.__cause__, UserError):
            _say(console, f"error: {interrupted.__cause__}", style="red")
        _say(console, f"{interrupted}: stopped")
        _say_how_to_resume(console, start, folder)
        interrupted.leave()
    except UserError as error:
        _say(console, f"error: {error}", style="red")
        if isinstance(error, Stopped):
            _say_how_to_resume(console, start, folder)
        elif folder and hosts.lead() and not resume and not any(folder.rglob("log.jsonl")):
            shutil.rmtree(folder, ignore_errors=True)  # it never began
        sys.exit(error.exit_code)
    except OSError as error:
        gone = folder and error.errno == errno.ENOENT and not (folder / "config.json").exists()
        words = f"{folder} is gone: put it back to continue there" if gone else cannot_write(error)
        _say(console, f"error: {words}", style="red")
        _say_how_to_resume(console, start, folder)
        sys.exit(2)


def _devices(options: Any) -> int:
    """How many devices `--mesh` names; 0 without it. Raises UserError if it has another form."""
    text = getattr(options, "mesh", None)
    return 0 if text is None else math.prod(sharding.sizes(text).values())


def _offer_devices(options: Any) -> None:
    """Before JAX begins: offers the CPU as the devices that `--mesh` names, up to its cores, or for a plan as all."""
    if count := _devices(options):
        process.offer_cpu_devices(min(-(-count // hosts.count()), PLANNED if options.plan else process.cores()))


def _mesh(options: Any) -> jax.sharding.Mesh | None:
    """The devices that `--mesh` names.

    Raises UserError if there are too few or, of several processes, if it names others than all of their devices.
    """
    count = _devices(options)
    if hosts.count() > 1 and count != (there := jax.device_count()):
        raise UserError(
            f"{hosts.count()} processes have {there} devices: --mesh must name all, as data={there}, for example"
        )
    if count and jax.process_count() > hosts.count():
        raise UserError("this host is one of several of a TPU pod: start the same command on each, with --cluster auto")
    return sharding.mesh(options.mesh) if count else None


def _say_plan(train: Callable[[Any, Run], Any], config: Any, run: Run) -> None:
    """Prints what `train` would put where. If a compiler refuses what does not fit, one sentence says so."""
    with obeyed(run.signals, run.say), _within_memory(run):
        for line in plan.lines(plan.of(train, config, run)):
            if hosts.lead():
                print(line)


def _run(options: Any, folder: Path, console: Console, mesh: jax.sharding.Mesh | None) -> Run:
    """The run in a folder. Of several processes, only the lead prints."""
    init_from = getattr(options, "init_from", None)
    if options.resume and (begun := flags.read(folder).get("init_from")):
        init_from = Path(begun)
    told = console if hosts.lead() else Console(quiet=True)
    return Run(folder, bool(options.resume), told, options.save_every, init_from, mesh)


@contextlib.contextmanager
def _opened(run: Run, folder: Path, console: Console, how_to_resume: Callable[[], None]) -> Iterator[None]:
    """Holds the folder of a run, obeys signals, says in one sentence that memory ran out, and closes the files."""
    with (
        _alone(folder, console),
        obeyed(run.signals, run.say, how_to_resume),
        contextlib.closing(run),
        _within_memory(run),
    ):
        yield


def _figures(train: Any, show: Any, published: Any, config: Any, run: Run, source: Path | None) -> Figures:
    """Shows the weights in `source`, if they are given, and otherwise trains. Returns the figures."""
    if source and show:
        return _shown(source, config, run, show, published)
    if train:
        return train(config, run)
    raise UserError("this experiment does not train: name a file or folder of weights with --weights")


def _folder(options: Any, name: str) -> Path:
    """The folder of the run, for all processes: that of `--resume`, or a new one that process 0 makes."""
    made = str(options.resume or new_folder(options.out, name)) if hosts.lead() else ""
    folder = Path(hosts.told(made))
    hosts.shared(folder)
    return folder


def _shown(source: Path, config: Any, run: Run, show: Any, published: Any) -> Figures:
    """The figures of the weights in `source`. Raises UserError if they are those of another kind of model."""
    described = published is None or names_its_model(source)
    model, variables = weights.load(source, None if described else published(config))
    expected = typing.get_type_hints(show).get("model", Any)
    if expected is not Any and not isinstance(model, expected):
        names = " or ".join(kind.__name__ for kind in typing.get_args(expected) or (expected,))
        raise UserError(f"{source} has weights of {type(model).__name__}, but this experiment shows {names}")
    run.weights = source
    run.history = list(log.read(source if source.is_dir() else source.parent))  # of the run that left them, if one did
    run.facts["weights"] = str(source)
    try:
        return show(config, run, model, variables)
    except FlaxError as error:
        reason = str(error).partition(" (http")[0]
        raise UserError(f"{source} has weights that do not fit the model it describes: {reason}") from None


@contextlib.contextmanager
def _within_memory(run: Run) -> Iterator[None]:
    """Says in one sentence that memory ran out: Stopped, if training had begun."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        kind = Stopped if any(each.trained for each in (run, *run.parts)) else UserError
        raise kind("memory does not suffice: choose a smaller batch, network or data set") from None


def cannot_write(error: OSError) -> str:
    """What to say of an error of writing, such as a full disk. Raises the error again if it is another one."""
    if error.errno not in UNWRITABLE:
        raise error
    where = f" {error.filename}" if error.filename else ""
    return f"cannot write{where}: {os.strerror(error.errno)}"


def require(platform: str | None) -> None:
    """Raises UserError unless JAX computes on `platform`."""
    try:
        found = jax.default_backend()
    except Exception as error:  # JAX_PLATFORMS names a missing one; for "cuda" JAX fails an assertion
        wanted = os.environ.get("JAX_PLATFORMS", "")
        if not wanted:
            raise
        why = f" ({str(error).splitlines()[0].partition(' (set ')[0]})" if str(error) else ""
        raise UserError(f"JAX_PLATFORMS={wanted}, but JAX finds no such device here: unset it{why}") from None
    if platform and found != platform:
        extra = {"gpu": "cuda", "tpu": "tpu"}.get(platform)
        hint = f"on a machine that has one, pip install -e .[{extra}]" if extra else "unset JAX_PLATFORMS"
        raise UserError(f"a {platform} is required, but JAX finds only {found} here: {hint}")


def new_folder(out: Path, name: str) -> Path:
    """A new folder for a run that begins now: `out`/`name`/date-and-time. Raises UserError if it cannot be made."""
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


def help_of(module: Any) -> str:
    """The experiment's docstring, which --help shows, as wide as the terminal. Indented lines stay as they are."""
    width = shutil.get_terminal_size().columns
    paragraphs = inspect.cleandoc(module.__doc__ or "").split("\n\n")
    return "\n\n".join(
        part if part[:1] == " " else textwrap.fill(part, width, subsequent_indent="  ") for part in paragraphs
    )


def claim_of(module: Any) -> str:
    """The paragraph of the experiment's docstring that begins with "Claim:", or "Claim (...):" as in `subject_of`.

    Raises UserError if it has none.
    """
    return _claim(module)[1]


def subject_of(module: Any) -> list[str]:
    """What the claim speaks of: ["mnist"] for "Claim (mnist): ...", and [] for a claim that holds for all data.

    The first is a data set, the others are values of flags. A claim with a figure says them: it is shown only beside
    figures that were measured there.
    """
    return [word.strip() for word in (_claim(module)[0] or "").split(",") if word]


def _claim(module: Any) -> tuple[str | None, str]:
    for paragraph in inspect.cleandoc(module.__doc__ or "").split("\n\n"):
        if found := re.fullmatch(r"Claim(?: \((.*?)\))?: (.*)", " ".join(paragraph.split())):
            return found[1], found[2]
    raise UserError(f'the docstring of {module.__file__} has no paragraph that begins with "Claim:"')


def _started(module: Any) -> tuple[str, str]:
    """The name of the experiment, and the command that starts it: as a module of any package, or as a file."""
    if module.__spec__:
        full = module.__spec__.name.removesuffix(".__main__")
        return full.removeprefix("experiments."), f"python -m {full}"
    if not getattr(module, "__file__", None):
        raise UserError("launch reads the command that starts a file: here, call train(Config(), Run()) instead")
    path = Path(module.__file__)
    if path.parts[-3:-2] == ("experiments",):  # as a file it skips experiments/__init__.py
        words = ".".join(path.with_suffix("").parts[-3:])
        raise UserError(f"start it as a module, from the root of the repository: python -m {words}")
    return path.stem, f"python {shlex.quote(sys.argv[0])}"


@contextlib.contextmanager
def _alone(folder: Path, console: Console) -> Iterator[None]:
    """Holds the folder's lock, which ends with this process. Raises UserError if another run holds it.

    Of several processes of one run, process 0 holds it.
    """
    if not hosts.lead():
        yield
        return
    try:
        held = files.lock(folder / ".lock", lambda line: _say(console, line))
    except TimeoutError:
        raise UserError(f"{folder} is still being written by another process; stop that first") from None
    with held:
        yield


@contextlib.contextmanager
def _resumed(run: Run, folder: Path, name: str, config: Any) -> Iterator[str]:
    """Writes the configuration with which a run goes on, and the old one again if it does not go on with that.

    Gives the command of the record.
    """
    before = (folder / "config.json").read_bytes()
    try:
        yield flags.resumed(folder, name, config)
    except BaseException:
        if not any(each.trained for each in (run, *run.parts)):
            files.write_whole(folder / "config.json", before)
        raise


def _hide_late_futures(unraisable: Any) -> None:
    """If one file of a checkpoint cannot be read or written, Orbax prints a traceback for every other file."""
    begun = getattr(getattr(unraisable.object, "cr_code", None), "co_filename", "")  # of a coroutine
    if str(unraisable.exc_value) != "Event loop is closed" and "/orbax/" not in Path(begun).as_posix():
        sys.__unraisablehook__(unraisable)


def _say(console: Console, sentence: str, style: str | None = None) -> None:
    console.print(printable(sentence), style=style, highlight=False, markup=False, soft_wrap=True)


def _say_how_to_resume(console: Console, start: str, folder: Path | None) -> None:
    with contextlib.suppress(UserError):  # with a damaged config.json it cannot be continued
        if folder and (folder / "config.json").exists() and "weights" not in flags.read(folder):
            _say(console, f"continue with: {start} --resume {shlex.quote(str(folder))}")


def _conclude(run: Run, result: dict[str, Any]) -> None:
    rows = {key.replace("_", " "): record.show(key, value) for key, value in result["figures"].items()}
    if result["claim"]:
        rows["claim"] = result["claim"]
    seconds = result["seconds"]
    shown = {name: value for name, value in seconds.items() if value >= 0.05 and name not in ("save", "input")}
    if shown:
        rows["time"] = ", ".join(f"{value:.1f} s {gerund(name)}" for name, value in shown.items())
    if (waited := seconds.get("input", 0.0)) > SLOW_INPUT * seconds["train"]:
        share = f"{100 * waited / seconds['train']:.0f} % of the time of training was spent waiting for batches"
        rows["input"] = f"{share}: more --workers make them faster, where cores are free"
    if result["examples_per_second"]:
        rows["speed"] = f"{result['examples_per_second']:,.0f} examples/s on {result['device']['kind']}"
    rows["figures"] = f"{run.folder}/figures"
    rows["record"] = f"{run.folder}/result.json"
    width = max(map(len, rows))
    for key, value in rows.items():
        print(printable(f"{key:{width}}  {value}"))
