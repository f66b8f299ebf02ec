"""The pictures of the experiments on history and on what is inside networks, as the page docs/gallery.md."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOMS = {"history": "Where it came from", "insight": "What is really happening inside"}


def page(root: Path, summaries: dict[str, str]) -> Iterator[str]:
    """The lines of the page, from the records under results/. `summaries` are those of the experiments by name."""
    yield "# Gallery\n"
    yield "Written by `make gallery` from the records under results/: pictures, what was claimed and found, and how.\n"
    for room, title in ROOMS.items():
        yield f"## {title}\n"
        for name, summary in summaries.items():
            if name.startswith(f"{room}."):
                yield f"### {name}\n"
                yield f"{summary} ([source](../experiments/{name.replace('.', '/')}.py))\n"
                for path in sorted((root / "results").glob(f"{name}.*json"), key=lambda path: (len(path.name), path)):
                    yield from _exhibit(path, pictures(root, path.stem, name.partition(".")[2]))


def pictures(root: Path, record: str, noun: str) -> list[Path]:
    """The pictures of a record that are shown: the one named after the experiment, and animations."""
    found = sorted((root / "docs" / "figures").glob(f"{record}.*"))
    return [path for path in found if path.name == f"{record}.{noun}.png" or path.suffix == ".gif"]


def _exhibit(path: Path, shown: Iterable[Path]) -> Iterator[str]:
    from dlc.run import record  # which imports JAX

    one: dict[str, Any] = json.loads(path.read_text("utf-8"))
    for picture in shown:
        yield f"![{picture.stem}](figures/{picture.name})\n"
    if one["claim"]:
        yield f"- Claim: {one['claim']}"
    found = ", ".join(f"{name.replace('_', ' ')} {record.show(name, value)}" for name, value in one["figures"].items())
    yield f"- Found: {found}"
    yield from (f"- Not reached: {sentence}" for sentence in one.get("missed", ()))
    yield ""
    yield f"```\n{one['command']}\n```\n"
