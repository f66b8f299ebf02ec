"""Flags from a frozen dataclass: its fields are the flags, its defaults their values, its comments their help."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from dlc import record
from dlc.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run an experiment, whatever its configuration."""

    out: Path = Path("runs")  # folder in which the run gets a folder of its own
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None  # continue the run in this folder
    require: Annotated[Literal["cpu", "gpu", "tpu"] | None, tyro.conf.arg(metavar="cpu|gpu|tpu")] = None
    """Stop at once unless JAX runs on this."""
    save_every: float = 10.0  # seconds of training between checkpoints, at the least; the last state is always saved
    smoke: bool = False  # the small version: a few seconds, no download

    def __post_init__(self) -> None:
        not_negative(self, "save_every")


class Parsed(NamedTuple):
    """What the command line says."""

    config: Any
    options: Options


def parse(name: str, summary: str, default: Any, smoke: Any, argv: list[str]) -> Parsed:
    """Reads the flags of the experiment called `name`. A mistake in them prints one sentence and exits with 2.

    With `--smoke` the defaults are those of `smoke`; with `--resume RUN` those of that run, and a flag that says
    otherwise is an error.
    """
    prog, peeked = f"python -m experiments.{name}", [word for word in argv if word not in ("-h", "--help")]
    peek, _ = tyro.cli(Options, prog=prog, args=peeked, return_unknown_args=True)
    if peek.resume:
        default = load(peek.resume, name, type(default))
    elif peek.smoke:
        default = smoke

    def together(experiment: Any, run: Options) -> Parsed:
        return Parsed(experiment, run)

    flat = tyro.conf.OmitArgPrefixes
    together.__annotations__ = {"experiment": Annotated[type(default), flat], "run": Annotated[Options, flat]}
    together.__defaults__ = (default, Options())
    parsed = tyro.cli(together, prog=prog, description=summary, args=argv)
    if peek.resume and (changed := differences(default, parsed.config)):
        raise UserError(f"{peek.resume} was started with {'; '.join(changed)}: leave that out, or start a new run")
    return parsed


def positive(config: Any, *names: str) -> None:
    """Raises UserError unless each of these fields of `config` is greater than zero."""
    for name in names:
        if not (value := getattr(config, name)) > 0:
            raise UserError(f"--{name.replace('_', '-')} must be greater than 0, not {value}")


def not_negative(config: Any, *names: str) -> None:
    """Raises UserError unless each of these fields of `config` is zero or greater."""
    for name in names:
        if not (value := getattr(config, name)) >= 0:
            raise UserError(f"--{name.replace('_', '-')} must not be negative, as {value} is")


def share(config: Any, *names: str) -> None:
    """Raises UserError unless each of these fields of `config` is a share: zero or greater, and less than one."""
    for name in names:
        if not 0 <= (value := getattr(config, name)) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 0 and less than 1, not {value}")


def only(config: Any, given: str, *names: str) -> None:
    """Raises UserError if a field of `config` is no default though, `given` another, only these have a meaning."""
    default = type(config)()
    if idle := [name for name in vars(config) if name not in names and getattr(config, name) != getattr(default, name)]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise UserError(f"{flags} means nothing with {given}: leave it out")


def differences(old: Any, new: Any) -> list[str]:
    """The flags in which two configurations differ, as `--lr 0.1 (not 0.2)`."""
    a, b = to_json(old), to_json(new)
    return [f"--{key.replace('_', '-')} {a[key]} (not {b[key]})" for key in a if a[key] != b[key]]


def to_json(config: Any) -> dict[str, Any]:
    """The fields as JSON writes them: tuples become lists, and paths strings that hold from every folder."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=lambda path: str(path.absolute())))


def save(folder: Path, name: str, config: Any, command: str) -> None:
    """Writes `config.json`, which `load` reads, whole or not at all."""
    content = {"experiment": name, "command": command, "config": to_json(config)}
    record.write_whole(folder / "config.json", json.dumps(content, indent=2) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """What `save` wrote: experiment, command and config. Raises UserError if it is missing or damaged."""
    try:
        content = json.loads((folder / "config.json").read_bytes())
        kinds = {"experiment": str, "command": str, "config": dict}
        if not all(isinstance(content[key], kind) for key, kind in kinds.items()):
            raise TypeError
    except OSError as error:
        raise UserError(f"{folder} is no folder of a run: its config.json cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder}/config.json is damaged; start a new run") from None
    return content


def load(folder: Path, name: str, kind: type) -> Any:
    """The configuration of a run. Raises UserError if there is none, or if it is that of another experiment."""
    content = read(folder)
    if content["experiment"] != name:
        raise UserError(f"{folder} is a run of experiments.{content['experiment']}, not of experiments.{name}")
    fields = {field.name for field in dataclasses.fields(kind)}
    if unknown := set(content["config"]) ^ fields:
        raise UserError(f"{folder} was made by another version of the experiment: it differs in {sorted(unknown)}")
    try:
        return from_json(kind, content["config"])
    except TypeError:
        raise UserError(f"{folder}/config.json is damaged; start a new run") from None


def from_json(kind: type, fields: dict[str, Any]) -> Any:
    """The configuration whose `to_json` gave these fields; those left out have their defaults.

    Raises TypeError if one is unknown.
    """
    hints = typing.get_type_hints(kind)

    def value(name: str, written: Any) -> Any:
        if isinstance(written, list):
            return tuple(value(name, item) for item in written)
        return Path(written) if isinstance(written, str) and Path in typing.get_args(hints[name]) else written

    return kind(**{name: value(name, written) for name, written in fields.items()})
