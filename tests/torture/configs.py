"""Any configuration of any experiment runs its smoke or is refused with one sentence.

Hypothesis draws the values of one to three fields of the small configuration, by their types: small ones, with which a
smoke stays one, and absurd ones. Each is given as flags to a program of its own. It may end with 0, or with one of the
codes of `dlc.run.launch` and a sentence; never with a traceback, by a signal, or after more memory than it may have. A
program that is still training when its time is over has run. Needs hypothesis (the extra `torture`).
"""

import contextlib
import importlib.util
import os
import re
import resource
import shutil
import signal
import time
import types
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from tests.torture._programs import Program, run_in
from tests.torture._table import How, Row

ROOT = Path(__file__).parents[2]
SECONDS = 30.0  # for one program
MEMORY = 6 * 2**30  # bytes of addresses for one program
CODES = {0: "ran", 2: "refused", 3: "without its data", 4: "diverged", 5: "missed its target"}

INTEGERS = [1, 2, 3, 5, 8, 17, 0, -1, 1000, 10**6, 2**31, 2**63, 10**30]
NUMBERS = [0.1, 0.5, 1e-3, 0.0, 1.0, 2.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf")]
WORDS = ["digits", "digits32", "numbers", "python", "x", "", "../x", "tfds:x", "tfds:../x", "a\x1b[31mb", "é" * 300]
PATHS = ["nowhere", ".", "/dev/null", "/", "~nobody-of-that-name/x", "a\x1b[31mb"]


def rows(how: How) -> Iterator[Row]:
    if not importlib.util.find_spec("hypothesis"):
        yield Row("any experiment", 0, 0, 0.0, "hypothesis is not installed: the extra `torture` has it")
        return
    how.folder.mkdir(parents=True)
    modules = sorted(path for path in (ROOT / "experiments").glob("*/[!_]*.py") if path.parent.name != "bench")
    for i, path in enumerate(modules):
        began, until = time.monotonic(), time.monotonic() + how.seconds() / (len(modules) - i)
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        counts, notes = tried(module, how.folder / path.stem, how.times, how.seed, until)
        survived = sum(counts.values()) - len(notes)
        told = ", ".join([f"{count} {what}" for what, count in counts.items()] + notes[:3])
        yield Row(module.removeprefix("experiments."), sum(counts.values()), survived, time.monotonic() - began, told)


def tried(module: str, folder: Path, times: int, seed: int, until: float) -> tuple[Counter[str], list[str]]:
    """How often programs with drawn flags ended in which way, and sentences about those that should not."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    config = importlib.import_module(module).Config
    hints = typing.get_type_hints(config, include_extras=True)
    several = st.lists(st.sampled_from(sorted(hints)), min_size=1, max_size=3, unique=True)
    changes = several.flatmap(lambda names: st.fixed_dictionaries({name: drawn(hints[name]) for name in names}))
    counts, notes = Counter[str](), []

    @seeded(seed)
    @settings(
        max_examples=times,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(changes)
    def one(fields: dict[str, list[str]]) -> None:
        if time.monotonic() > until:
            return
        words = [word for name, values in fields.items() for word in flag(name, values)]
        out = folder / str(sum(counts.values()))
        outcome, said = run(module, words, out)
        counts[outcome] += 1
        if outcome.isupper():
            notes.append(f"{outcome} {' '.join(map(ascii, words))[:200]}: {said[-200:]!r}")
        else:
            shutil.rmtree(out, ignore_errors=True)

    one()
    return counts, notes


def drawn(hint: Any) -> Any:
    """The words of values of a type, as Hypothesis draws them."""
    from hypothesis import strategies as st

    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return drawn(arguments[0])
    if origin is Literal:
        return st.sampled_from(arguments).map(lambda value: [str(value)])
    if origin in (Union, types.UnionType):
        return st.one_of(*map(drawn, arguments))
    if origin is tuple:
        return st.lists(drawn(arguments[0]), max_size=3).map(lambda many: [word for words in many for word in words])
    known = {bool: ["True", "False"], int: INTEGERS, float: NUMBERS, str: WORDS, Path: PATHS, type(None): ["None"]}
    return st.sampled_from(known[hint]).map(lambda value: [str(value)])


def flag(name: str, values: list[str]) -> list[str]:
    """A field as words of a command."""
    name = name.replace("_", "-")
    if values in (["True"], ["False"]):
        return [f"--{'no-' * (values == ['False'])}{name}"]
    return [f"--{name}={values[0]}"] if len(values) == 1 else [f"--{name}", *values]


def run(module: str, words: list[str], out: Path) -> tuple[str, str]:
    """How a program with these flags ends, in capitals if it should not, and what it says."""
    program = Program(out / "told", module, "--smoke", *words, "--out", out / "runs", before=_bounded)
    code = program.wait(SECONDS)
    if code is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.process.join()
    said = re.sub(r"\s+", " ", program.said())
    if "Traceback" in said or "\x1b[31m" in said:
        return "TRACEBACK" if "Traceback" in said else "CONTROL CHARACTERS", said
    if code is None:
        return ("still running" if run_in(out / "runs") else "TOO LONG"), said  # its flags were accepted
    return (CODES[code], said) if code in CODES else (f"EXIT {code}", said)


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**31, 2**31))
    os.nice(5)
