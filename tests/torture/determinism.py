"""The same command twice gives the same bits on a CPU; and what else gives the same bits, as a table of notes.

Each experiment's small version is run twice, alone and on two devices: every array of its last checkpoint, its log but
for times, its record's figures and its weights must agree. Then one thing at a time is changed. There nothing is
promised, so nothing can be lost: the notes say whether the weights were the same, and how far apart they were if not.
docs/run.md has the table.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.torture._programs import Program, Stuck, inside, results, run_in
from tests.torture._table import How, Row

PARALLEL = ("mnist.mlp", "mnist.convnet", "attention.gpt", "cifar10.resnet", "attention.translate")
ALONE = ("insight.dream", "history.backprop", "attention.bert", "attention.vit")
MESH = ("--mesh", "data=2")
VARIED = ("mnist.mlp", "mnist.convnet", "attention.gpt")
SAME_MATH = "--xla_cpu_enable_platform_dependent_math=false"


def flags(*words: str) -> Callable[[], None]:
    """Sets flags of XLA, before it reads them."""

    def set_flags() -> None:
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *words])

    return set_flags


def one_core() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])


# What is changed: words of the command, and what happens in the process before
VARIATIONS: dict[str, tuple[tuple[str, ...], Callable[[], None] | None]] = {
    "one core instead of two": ((), one_core),
    "two devices instead of one": (MESH, None),
    "without AVX-512": ((), flags("--xla_cpu_max_isa=AVX2")),
    "without AVX and FMA": ((), flags("--xla_cpu_max_isa=SSE4_2")),
    "with the flag for the same mathematics": ((), flags(SAME_MATH)),
    "  and without AVX-512": ((), flags(SAME_MATH, "--xla_cpu_max_isa=AVX2")),
    "  and without AVX and FMA": ((), flags(SAME_MATH, "--xla_cpu_max_isa=SSE4_2")),
}


def rows(how: How) -> Iterator[Row]:
    how.folder.mkdir(parents=True)
    commands = [*((name, words) for name in PARALLEL for words in ((), MESH)), *((name, ()) for name in ALONE)]
    for name, words in commands:
        began, what = time.monotonic(), " ".join([name, *words])
        if how.seconds() < 30:
            yield Row(what, 0, 0, 0.0, "no time was left")
            continue
        survived, notes = 0, ""
        try:
            one, other = (results(ran(how.folder / "twice", name, words)) for _ in range(2))
            differing = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
            survived, notes = int(not differing), ", ".join(map(str, differing))
        except Stuck as error:
            notes = str(error)
        yield Row(f"{what}, twice", 1, survived, time.monotonic() - began, notes)
    for name in VARIED:
        if how.seconds() < 60:
            break
        first = ran(how.folder / f"{name}-first", name, (), keep=True)
        told = {
            what: compared(first, ran(how.folder / "varied", name, *how_else)) for what, how_else in VARIATIONS.items()
        }
        mathematics = ran(how.folder / f"{name}-flag", name, (), flags(SAME_MATH), keep=True)
        for what in list(VARIATIONS)[-2:]:  # beside the flag alone
            told[what] += "; beside the flag alone: " + compared(
                mathematics, ran(how.folder / "varied", name, *VARIATIONS[what])
            )
        for what, words in told.items():
            yield Row(f"{name} {what}", 0, 0, 0.0, words)


def ran(
    out: Path, name: str, words: tuple[str, ...], before: Callable[[], None] | None = None, keep: bool = False
) -> Path:
    """The folder of the small version of an experiment. Raises Stuck if it fails."""
    if not keep:
        shutil.rmtree(out, ignore_errors=True)
    program = Program(out / "told", f"experiments.{name}", "--smoke", *words, "--out", out / "runs", before=before)
    if (code := program.end()) not in (0, 5):
        raise Stuck(f"ended with {code}: {program.said()[-200:]!r}")
    folder = run_in(out / "runs")
    assert folder
    return folder


def compared(one: Path, other: Path) -> str:
    """Whether the weights of two runs are the same bits, or else how far apart they are at most."""
    same, largest, scale = inside(_apart, str(one), str(other))
    return "the same bits" if same else f"up to {largest:.1e} apart, of weights up to {scale:.2g}"


def _apart(one: str, other: str) -> tuple[bool, float, float]:
    import jax

    from dlc import weights

    trees = [jax.tree.leaves(weights.load(weights_of(Path(folder)))[1]) for folder in (one, other)]
    pairs = [tuple(np.asarray(leaf, np.float64) for leaf in pair) for pair in zip(*trees, strict=True)]
    same = all(np.array_equal(a, b) for a, b in pairs)
    return same, max(float(abs(a - b).max()) for a, b in pairs), max(float(abs(a).max()) for a, _ in pairs)


def weights_of(folder: Path) -> Any:
    """The folder of the run, or of its first part, that holds weights."""
    return min(folder.rglob("weights.safetensors"), key=lambda path: len(path.parts)).parent
