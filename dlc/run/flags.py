"""Flags from a frozen dataclass: its fields are the flags, their defaults the values, their comments the help.

@dataclass(frozen=True)
class Config:
    epochs: Positive[int] = 10
    dropout: Share = 0.1
    prompt: Shown[str] = "To be"  # may be given with --weights, too
    workers: Free[int] = 0  # says only how to compute: may differ with --resume

A run can be resumed with a larger `Longer` field and then trains longer. That is right only if the first steps do not
depend on how many follow them: not where the learning rate falls over all steps.
"""

import contextlib
import dataclasses
import json
import math
import shlex
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union

import tyro

from dlc import files
from dlc.errors import UserError

T = TypeVar("T")


class Bound(NamedTuple):
    """What a value must be: a test, and the words for it, with the value in the place of {}."""

    holds: Callable[[Any], bool]
    must: str


class Use(NamedTuple):
    """When a field has a meaning."""

    when: str


Positive = Annotated[T, Bound(lambda value: value > 0, "must be greater than 0, not {}")]
NotNegative = Annotated[T, Bound(lambda value: value >= 0, "must not be negative, as {} is")]
Share = Annotated[float, Bound(lambda value: 0 <= value < 1, "must be at least 0 and less than 1, not {}")]
Some = Annotated[T, Bound(len, "needs at least one value")]
LARGEST = 2**31
SHOWN, FREE, LONGER = Use("with --weights, too"), Use("with --resume, too"), Use("with --resume, if it is more")
Shown = Annotated[T, SHOWN]  # a field that also matters without training
Free = Annotated[T, FREE]  # one that says only how to compute
Longer = Annotated[T, LONGER]  # one that says how long, and decides nothing else


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run an experiment, whatever its configuration."""

    out: Path = Path("runs")  # folder in which the run gets a folder of its own
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None  # continue the run in this folder
    require: Annotated[Literal["cpu", "gpu", "tpu"] | None, tyro.conf.arg(metavar="cpu|gpu|tpu")] = None
    """Stop at once unless JAX runs on this."""
    save_every: NotNegative[float] = 10.0  # seconds of training between checkpoints, at least
    smoke: bool = False  # the small version: a few seconds, no download


@dataclasses.dataclass(frozen=True)
class ModelOptions(Options):
    """How to run an experiment, whatever its configuration, and which weights to show or begin with."""

    weights: Annotated[Path | None, tyro.conf.arg(metavar="RUN|FILE|FOLDER")] = None
    """Show these instead of training."""
    init_from: Annotated[Path | None, tyro.conf.arg(metavar="RUN|FILE|FOLDER")] = None
    """Begin training with these weights."""

    def __post_init__(self) -> None:
        given = [f"--{name.replace('_', '-')}" for name in ("resume", "weights", "init_from") if getattr(self, name)]
        if len(given) > 1:
            raise UserError(f"{given[0]} and {given[1]} exclude each other: leave one of them out")


@dataclasses.dataclass(frozen=True)
class ParallelOptions(ModelOptions):
    """How to run an experiment, whatever its configuration, on one device or several."""

    mesh: Annotated[str | None, tyro.conf.arg(metavar="data=N,fsdp=N,model=N")] = None
    """Devices that share each batch, the weights too, or each layer."""
    plan: bool = False  # say how much memory a device needs, and train nothing
    cluster: Annotated[str | None, tyro.conf.arg(metavar="I/N@HOST:PORT|auto")] = None
    """Process I of N, which meet there; auto: as Slurm, ... say."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cluster and self.weights:
            raise UserError("leave out --cluster: --weights does not train, and needs no other processes")
        if self.plan and self.weights:
            raise UserError("leave out --plan: --weights does not train, so there is nothing to plan")


class Parsed(NamedTuple):
    """What the command line says."""

    config: Any
    options: Any


def parse(name: str, prog: str, summary: str, default: Any, smoke: Any, kind: type[Options], argv: list[str]) -> Parsed:
    """Reads the flags of the experiment called `name`, which the command `prog` starts.

    A mistake in them prints one sentence and exits with 2.

    With `--smoke` the defaults are those of `smoke`; with `--resume RUN` and `--weights RUN` those of that run. A flag
    that contradicts them is an error, except for `Shown` fields with `--weights`, `Free` and `Longer` ones with
    `--resume`.
    """
    peeked = [word for word in argv if word not in ("-h", "--help")]
    peek, _ = tyro.cli(kind, prog=prog, args=peeked, return_unknown_args=True)
    peek = expanded(peek)
    weights = getattr(peek, "weights", None)
    if peek.resume:
        default = load(peek.resume, name, type(default))
        if "weights" in read(peek.resume):
            raise UserError(f"{peek.resume} only showed weights, and has nothing to continue: start a new run")
    elif weights and (run := run_of(weights)) and read(run)["experiment"] == name:
        default = load(run, name, type(default))
    elif weights and not run and _of_a_run(weights):
        raise UserError(
            f"the config.json beside {weights} is missing or damaged: restore it, or copy weights.safetensors elsewhere"
        )
    elif peek.smoke:
        default = smoke
    if peek.smoke and default is not smoke:
        raise UserError("leave out --smoke: the configuration is that of the run")

    flat = tyro.conf.OmitArgPrefixes
    fields = [("experiment", Annotated[type(default), flat], default), ("run", Annotated[kind, flat], kind())]
    both = dataclasses.make_dataclass("both", fields, frozen=True)
    found: Any = tyro.cli(both, prog=prog, description=summary, args=argv)
    parsed = Parsed(expanded(found.experiment), expanded(found.run))
    check(parsed.config)
    check_numbers(parsed.config)
    check(parsed.options)
    if peek.resume:
        _check_resumed(peek.resume, default, parsed.config)
    if peek.resume and kind is ParallelOptions and parsed.options.mesh is None:
        parsed = parsed._replace(options=dataclasses.replace(parsed.options, mesh=read(peek.resume).get("mesh")))
    if weights and (idle := sorted(_changed(default, parsed.config) - _used(type(default), SHOWN))):
        flags = ", ".join(f"--{field.replace('_', '-')}" for field in idle)
        raise UserError(f"leave out {flags}: --weights does not train, so that would have no effect")
    return parsed


def expanded(config: Any) -> Any:
    """The configuration with `~` and `~user` replaced in its paths. Raises UserError if there is no such user."""

    def path(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(path, value))
        try:
            return value.expanduser() if isinstance(value, Path) else value
        except RuntimeError:
            raise UserError(f"{value} is in the home of a user that this machine does not know") from None

    return dataclasses.replace(config, **{name: path(value) for name, value in vars(config).items()})


def check(config: Any) -> None:
    """Raises UserError if a field of `config` is not what its type's `Bound` says."""
    for field, hint in typing.get_type_hints(type(config), include_extras=True).items():
        for bound, value in _bounded(hint, getattr(config, field)):
            if not bound.holds(value):
                raise UserError(f"--{field.replace('_', '-')} {bound.must.format(value)}")


def check_numbers(config: Any) -> None:
    """Raises UserError if a number in `config` is not finite, or is larger than any size that an array can have."""
    for field, value in vars(config).items():
        for number in value if isinstance(value, tuple) else (value,):
            flag = f"--{field.replace('_', '-')}"
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{flag} must be a number, not {number}")
            if isinstance(number, int) and abs(number) >= LARGEST:
                raise UserError(f"{flag} must be smaller than {LARGEST:,}, which {number:,} is not")


def _check_resumed(folder: Path, old: Any, new: Any) -> None:
    """Raises UserError if the run in `folder` cannot go on with another configuration."""
    changed = _changed(old, new) - _used(type(old), FREE)
    lengths = changed & _used(type(old), LONGER)
    refused = changed - {field for field in lengths if getattr(new, field) > getattr(old, field)}
    if refused:
        what = "; ".join(
            f"--{f.replace('_', '-')} {_words(getattr(old, f))} (not {_words(getattr(new, f))})"
            for f in sorted(refused)
        )
        why = "it can only become longer" if refused <= lengths else "what it has learnt so far depends on that"
        raise UserError(f"{folder} was started with {what}: leave that out, or start a new run; {why}")


def _words(value: Any) -> Any:
    """A value as it is given on the command line."""
    return (" ".join(map(str, value)) or "without a value") if isinstance(value, tuple) else value


def resumed(folder: Path, name: str, config: Any) -> str:
    """Writes the configuration with which a run goes on. Returns the command that gives what it then gives."""
    content = read(folder)
    old = load(folder, name, type(config))
    if _changed(old, config):
        content |= {"command": _replaced(content["command"], old, config), "config": to_json(config)}
        files.write_whole(folder / "config.json", files.sealed(content))
    return content["command"]


def _replaced(command: str, old: Any, new: Any) -> str:
    """The `command` that gave the configuration `old`, with the flags that give `new`."""
    changed = {f"--{field.replace('_', '-')}": getattr(new, field) for field in sorted(_changed(old, new))}
    words, dropping = [], False
    for word in shlex.split(command):
        if word.startswith("--"):
            dropping = word.split("=")[0].replace("_", "-") in changed
        words += [] if dropping else [word]
    return shlex.join([*words, *(str(word) for flag in changed.items() for word in flag)])


def to_json(config: Any) -> dict[str, Any]:
    """The fields as JSON writes them: tuples become lists, and paths absolute strings."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=lambda path: str(path.absolute())))


def save(folder: Path, name: str, config: Any, command: str, options: Any = None) -> None:
    """Writes `config.json`, which `load` reads: of the options, `--weights`, `--init-from` and `--mesh`."""
    given = {option: getattr(options, option, None) for option in ("weights", "init_from", "mesh")}
    words = {
        name: str(value.absolute() if isinstance(value, Path) else value) for name, value in given.items() if value
    }
    content = {"experiment": name, "command": command, **words, "config": to_json(config)}
    files.write_whole(folder / "config.json", files.sealed(content))


def run_of(weights: Path) -> Path | None:
    """The folder of the run that wrote `weights`, which are that folder, a part of the run, or a file in either.

    None if no run wrote them. Published weights have a config.json, too.
    """
    for folder in (weights, *weights.absolute().parents[:2]):
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            if "experiment" in json.loads((folder / "config.json").read_bytes()):
                return folder
    return None


def _of_a_run(weights: Path) -> bool:
    """Whether files lie beside weights that only runs leave."""
    beside = weights if weights.is_dir() else weights.parent
    return any((beside / name).exists() for name in ("model.json", "log.jsonl", "origins.json"))


def read(folder: Path) -> dict[str, Any]:
    """What `save` wrote: experiment, command and config. Raises UserError if it is missing or damaged."""
    try:
        content = files.unsealed((folder / "config.json").read_bytes())
        kinds = {"experiment": str, "command": str, "config": dict}
        if not all(isinstance(content[key], kind) for key, kind in kinds.items()):
            raise TypeError
        if not all(isinstance(content.get(key, ""), str) for key in ("weights", "init_from", "mesh")):
            raise TypeError
        shlex.split(content["command"])
    except OSError as error:
        reason = f"its config.json cannot be read ({error.strerror})"
        raise UserError(f"{folder} is not the folder of a run: {reason}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder}/config.json is damaged or was altered; start a new run") from None
    return content


def load(folder: Path, name: str, kind: type) -> Any:
    """The configuration of a run. Raises UserError if there is none, or if another experiment wrote it."""
    content = read(folder)
    if content["experiment"] != name:
        raise UserError(f"{folder} is a run of {content['experiment']}, not of {name}")
    fields = {field.name for field in dataclasses.fields(kind)}
    if unknown := set(content["config"]) ^ fields:
        raise UserError(f"{folder} was made by another version of the experiment: it differs in {sorted(unknown)}")
    try:
        config = from_json(kind, content["config"])
        hints = typing.get_type_hints(kind, include_extras=True)
        if not all(_fits(hint, getattr(config, name)) for name, hint in hints.items()):
            raise TypeError
        return config
    except (TypeError, RecursionError):
        raise UserError(f"{folder}/config.json is damaged or was altered; start a new run") from None


def from_json(kind: type, fields: dict[str, Any]) -> Any:
    """The configuration whose `to_json` gave these fields; missing ones get their defaults.

    Raises TypeError if one is unknown.
    """
    hints = typing.get_type_hints(kind)

    def value(name: str, written: Any) -> Any:
        if isinstance(written, list):
            return tuple(value(name, item) for item in written)
        paths = Path in (hints.get(name), *typing.get_args(hints.get(name)))
        return Path(written) if isinstance(written, str) and paths else written

    return kind(**{name: value(name, written) for name, written in fields.items()})


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a type that the field of a configuration may have."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _fits(arguments[0], value)
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(_fits(argument, value) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(arguments[0], item) for item in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def _bounded(hint: Any, value: Any) -> Iterator[tuple[Bound, Any]]:
    """The bounds in a type, each with the part of the value that it is about."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        yield from ((extra, value) for extra in hint.__metadata__ if isinstance(extra, Bound))
        yield from _bounded(arguments[0], value)
    elif origin in (Union, types.UnionType) and value is not None:
        for argument in arguments:
            yield from _bounded(argument, value)
    elif origin is tuple:
        for item in value:
            yield from _bounded(arguments[0], item)


def _used(kind: type, use: Use) -> set[str]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name for name, hint in hints.items() if use in getattr(hint, "__metadata__", ())}


def _changed(old: Any, new: Any) -> set[str]:
    a, b = to_json(old), to_json(new)
    return {key for key in a if a[key] != b[key]}
