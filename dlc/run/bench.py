"""From the flags of a benchmark to its record: the table that it prints, its figures, and `result.json`.

A benchmark is a module `experiments.bench.NAME` with a frozen dataclass of flags, which has a field `out`, and a
function that measures:

if __name__ == "__main__":
    launch(measured, Config, FORMS, peers=("torch",))
"""

import functools
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from dlc import process
from dlc.errors import UserError
from dlc.run import flags, pages, record, timing
from dlc.run.launch import cannot_write, help_of, new_folder
from dlc.run.launch import require as require_device
from dlc.run.signals import Interrupted, Signals, obeyed

Forms = dict[str, Callable[..., Callable[..., float]]]  # name -> a function that prepares a form and returns its chunk


class Bench(NamedTuple):
    """What a benchmark measured.

    Attributes:
        name: "module" or, if the module has several parts, "module.part".
        title, method: what is timed, and how.
        rows: the table: name -> column -> value, with the same columns in every row.
        words: the flags that measure this again; None: those that differ from the defaults.
        more: further entries of the record, which the table does not show.
        figures: matplotlib figures by name.
    """

    name: str
    title: str
    method: str
    rows: dict[str, dict[str, Any]]
    words: list[Any] | None = None
    more: dict[str, Any] = {}  # noqa: RUF012, nobody writes to it
    figures: dict[str, Any] = {}  # noqa: RUF012


def launch(
    measured: Callable[[Any], Iterable[Bench]],
    config: type[Any],
    forms: Forms | None = None,
    peers: tuple[str, ...] = (),
    argv: list[str] | None = None,
) -> None:
    """Runs a benchmark from the command line, and saves each part of `measured(config)` as soon as it is there.

    With `--worker` it serves one of the `forms` instead; only `timing.Worker` uses that. `peers` are the packages that
    it is compared with: they must be installed, and the record has their versions.
    """
    module = sys.modules[measured.__module__]
    argv = sys.argv[1:] if argv is None else argv
    process.keep_printing()
    process.keep_programs_whole()
    try:
        if forms and argv[:1] == ["--worker"]:
            form, *arguments = json.loads(argv[1])
            return timing.serve(forms[form](*arguments))
        prog = f"python -m {module.__spec__.name if module.__spec__ else module.__name__}"
        parsed: Any = flags.expanded(tyro.cli(config, prog=prog, description=help_of(module), args=argv))
        flags.check(parsed)
        require(peers)
        if os.environ.get("JAX_PLATFORMS"):
            require_device(None)
        with obeyed(Signals(), functools.partial(print, file=sys.stderr)):
            for bench in measured(parsed):
                words = given(parsed) if bench.words is None else bench.words
                save(parsed.out, bench, words, peers, Path(module.__file__ or ""))
    except Interrupted as interrupted:
        print(f"{interrupted}: stopped", file=sys.stderr)
        interrupted.leave()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"error: {cannot_write(error)}", file=sys.stderr)
        sys.exit(2)


def require(packages: Iterable[str]) -> None:
    """Raises UserError unless all `packages` are installed."""
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed: make .venv/.peers installs it")


def given(config: Any) -> list[Any]:
    """The flags in which a configuration differs from its defaults, without `--out`."""
    words: list[Any] = []
    for name, value in vars(config).items():
        if name != "out" and value != getattr(type(config)(), name):
            rest = value if isinstance(value, tuple) else [] if value is True else [value]
            words += [f"--{name.replace('_', '-')}", *rest]
    return words


def save(out: Path, bench: Bench, words: list[Any], packages: tuple[str, ...] = (), file: Path | None = None) -> None:
    """Writes the record of a benchmark that ran with the flags `words`, and its figures; prints the table.

    `packages` are further packages whose versions belong into the record, and `file` is the benchmark's.
    """
    module = bench.name.partition(".")[0]
    command = shlex.join(["python", "-m", f"experiments.bench.{module}", *map(str, words)])
    result = {
        "bench": bench.name,
        "title": bench.title,
        "method": bench.method,
        "rows": bench.rows,
        **bench.more,
        "columns": list(next(iter(bench.rows.values()))),
        **record.origin(command, *packages, file=file),
    }
    folder = new_folder(out, f"bench.{bench.name}")
    for name, figure in bench.figures.items():
        (folder / "figures").mkdir(exist_ok=True)
        figure.savefig(folder / "figures" / f"{name}.png", bbox_inches="tight")
    record.write(folder, result)
    print(f"{pages.bench_table(result)}\n\nrecord {folder}/result.json\n")


def step_rows(
    times: dict[str, np.ndarray], against: str, compiling: dict[str, timing.Compiling]
) -> dict[str, dict[str, str]]:
    """The rows of a table of times per step: medians, quartiles, ratios to the form `against`, and compiling."""
    ratio = timing.ratios(times, against)
    return {
        name: {
            "ms per step": f"{1e3 * np.median(seconds):.2f}",
            "quartiles": "{:.2f} to {:.2f}".format(*1e3 * np.percentile(seconds, [25, 75])),
            "of PyTorch's best": f"{ratio[name]:.2f}",
            **compile_columns(compiling.get(name)),
        }
        for name, seconds in times.items()
    }


def compile_columns(compiling: timing.Compiling | None) -> dict[str, str]:
    """What compiling takes, as columns of a table; empty for a form that compiles nothing."""
    return {
        "s to compile": f"{compiling.cold:.1f}" if compiling else "",
        "with a warm cache": f"{compiling.warm:.1f}" if compiling else "",
        "programs": f"{compiling.programs or ''}" if compiling else "",
    }


def three(value: float) -> str:
    """A number with three significant digits, or all those before its point; never with a positive exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
