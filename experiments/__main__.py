"""The course as a table: every experiment with its claim, its time and what to expect, in the order of the lectures.

    python -m experiments              on the terminal
    python -m experiments --write      to docs/course.md and docs/gallery.md, with pictures; `make results` does it

Claims and expectations are those of the docstrings, times those of the records under results/.
"""

import argparse
import ast
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from dlc import process
from experiments import gallery
from experiments.course import LECTURES

ROOT = Path(__file__).parents[1]
# The picture of an experiment is the first of these that its record left in docs/figures.
PICTURES = (
    "seconds", "alignment", "augmentations", "rollout", "figure6", "bubbles", "compute", "mistakes", "curves"
)  # fmt: skip


class Experiment(NamedTuple):
    """What the docstring of `experiments/room/file.py` says. `name` is room.file."""

    name: str
    summary: str
    claim: str
    expect: str
    commands: str


def experiments() -> dict[str, Experiment]:
    """All of them by name, in the order of the lectures; those that no lecture shows come last."""
    names = {".".join(path.with_suffix("").parts[-2:]) for path in (ROOT / "experiments").glob("*/[!_]*.py")}
    found = {name: read(name) for name in names if "class Config:" in source(name)}
    shown = [name for rows in LECTURES.values() for _, what in rows for name in what.split(", ") if name in found]
    return {name: found[name] for name in dict.fromkeys([*shown, *sorted(found)])}


def source(name: str) -> str:
    return (ROOT / "experiments" / name.replace(".", "/")).with_suffix(".py").read_text("utf-8")


def read(name: str) -> Experiment:
    document = ast.get_docstring(ast.parse(source(name))) or ""
    paragraphs = [" ".join(part.split()) for part in document.split("\n\n")]

    def about(word: str) -> str:
        found = (re.fullmatch(rf"{word}(?: \(.*?\))?: (.*)", paragraph) for paragraph in paragraphs)
        return next((match[1] for match in found if match), "")

    commands = re.sub(r"^    ", "", "\n".join(re.findall(r"^    .*$", document, re.MULTILINE)), flags=re.MULTILINE)
    return Experiment(name, paragraphs[0], about("Claim"), about("Expect"), commands)


def minutes(name: str) -> str:
    """Those of training, or else of all that was timed, from the record with the fewest flags, which are named.

    Of a record with --seeds it is that of one seed; "" if nothing was timed.
    """
    records = [json.loads(path.read_text("utf-8")) for path in sorted((ROOT / "results").glob(f"{name}.*json"))]
    here = [one for one in records if "experiment" in one and _on_two_cores(one["device"])]
    if not here:
        return ""
    first = min(here, key=lambda one: len(one["command"]))
    flags = " ".join(shlex.split(first["command"])[3:])
    seconds = first["seconds"]["train"] or sum(first["seconds"].values())
    if not seconds:
        return ""
    time = f"{seconds / 60 / (len(first['seeds']) if '--seeds' in flags else 1):.1f}"
    return ("under 0.1" if time == "0.0" else time) + (f" ({flags})" if flags and "--seeds" not in flags else "")


def examples(name: str) -> Iterator[str]:
    """The examples of the first record that has any, as the lines of a Markdown table."""
    from dlc.run import pages  # which imports JAX; the list of experiments should appear at once

    records = (json.loads(path.read_text("utf-8")) for path in sorted((ROOT / "results").glob(f"{name}.*json")))
    if lines := pages.examples_table(next((one["examples"] for one in records if one.get("examples")), [])):
        yield from (*lines, "")


def _on_two_cores(device: dict[str, Any]) -> bool:
    return (device["platform"], device["cores"]) == ("cpu", 2)


def table() -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_lines=True, title="The course, in the order of the lectures")
    table.add_column("python -m experiments.", no_wrap=True)
    for title, ratio in (("claim", 4), ("minutes on two cores", 2), ("expect", 4)):
        table.add_column(title, ratio=ratio)
    for one in experiments().values():
        table.add_row(one.name, one.claim or one.summary, minutes(one.name), one.expect.split(". ")[0])
    coming = {name for rows in LECTURES.values() for _, what in rows for name in what.split(", ") if is_to_come(name)}
    table.caption = f"To come: {' '.join(sorted(coming))}. Page by page, with pictures: docs/course.md"
    return table


def is_to_come(name: str) -> bool:
    path = ROOT / "experiments" / name.replace(".", "/")
    return bool(re.fullmatch(r"\w+(\.\w+)?", name)) and not (path.is_dir() or path.with_suffix(".py").exists())


def page() -> Iterator[str]:
    """The lines of docs/course.md."""
    every = experiments()
    yield "# The course, page by page\n"
    yield "Written by `make results` from experiments/course.py, the docstrings of the experiments and their records."
    yield "Pages that several lectures share stand once. What is in *italics* is to come.\n"
    for lecture, rows in LECTURES.items():
        yield f"## {lecture}\n"
        yield "| page | experiment |\n|---|---|"
        for title, what in rows:
            yield f"| {title} | {', '.join(linked(name, every) for name in what.split(', '))} |"
        yield ""
    yield "## The experiments\n"
    for one in every.values():
        yield f"### {one.name}\n"
        yield f"{one.summary} ([source](../experiments/{one.name.replace('.', '/')}.py))\n"
        facts = {"Claim": one.claim, "Expect": one.expect, "Minutes on two cores": minutes(one.name)}
        yield "".join(f"- {name}: {value}\n" for name, value in facts.items() if value)
        yield f"```\n{one.commands}\n```\n"
        yield from examples(one.name)
        if picture := picture_of(one.name):
            yield f"![{one.name}: {picture.stem.rpartition('.')[2]}](figures/{picture.name})\n"


def linked(name: str, every: dict[str, Experiment]) -> str:
    """A name of the course as Markdown: a link to its paragraph below, to come, or as it is."""
    if name in every:
        return f"[{name}](#{name.replace('.', '')})"  # as GitHub names the paragraph
    return f"*{name}*" if is_to_come(name) else name


def picture_of(name: str) -> Path | None:
    found = sorted((ROOT / "docs" / "figures").glob(f"{name}.*png"), key=lambda path: (len(path.name), path.name))
    best: list[Any] = [
        path for kind in (name.partition(".")[2], *PICTURES) for path in found if path.stem.endswith(f".{kind}")
    ]
    return best[0] if best else None


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Lists the course. To start an experiment, or to read more about it with --help: "
        "python -m experiments.mnist.convnet",
    )
    parser.add_argument("--write", action="store_true", help="write docs/course.md and docs/gallery.md instead")
    if parser.parse_args(words).write:
        (ROOT / "docs" / "course.md").write_text("\n".join(page()), "utf-8")
        summaries = {one.name: one.summary for one in experiments().values()}
        (ROOT / "docs" / "gallery.md").write_text("\n".join(gallery.page(ROOT, summaries)), "utf-8")
        print("wrote docs/course.md and docs/gallery.md")
    else:
        process.keep_printing()  # to terminals that only know ASCII, and to `| head`
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
        Console(width=width).print(table())


if __name__ == "__main__":
    main(sys.argv[1:])
