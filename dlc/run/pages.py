"""From the records under results/ to the tables in docs/results.md and README.md.

python -m dlc.run.pages              writes the tables anew
python -m dlc.run.pages RUN ...      adds the records of these runs first
"""

import argparse
import itertools
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from dlc import files, process
from dlc.errors import UserError, printable
from dlc.run import flags, record
from dlc.run.launch import cannot_write

FIGURES = (
    "curves",
    "mistakes",
    "seconds",
    "figure6",
    "depth",
    "augmentations",
    "alignment",
    "rollout",
    "compute",
    "batches",
    "bubbles",
)  # shown in pages, beside the one that is named after its experiment
LARGEST = 200_000  # bytes of a picture that the repository holds
FIRST = (
    "python -m experiments.mnist.convnet --seeds 8",
    "python -m experiments.mnist.lenet5 --variant dense --seeds 3",
    "python -m experiments.cifar10.airbench",
    "python -m experiments.attention.gpt --variant modern --optimizer muon --lr 0.02 --context 128 --batch 32 "
    "--steps 960",
    "python -m experiments.attention.seq2seq",
)  # the rows of README.md's table; docs/results.md has all
WHERE = ("--out", "--resume", "--require", "--save-every", "--cluster")
EXAMPLES = "python -m experiments.attention.bert"  # the record whose examples README.md shows
BEGIN, END = "<!-- results: written by `make results` -->", "<!-- end of results -->"


def add(root: Path, run: Path) -> Path:
    """Copies the record of a finished run to results/, and the figures that pages show to docs/figures/.

    The record is named after its experiment, flags and platform; that of a benchmark also after its jaxlib, unless
    constraints.txt has that version: both records are kept. Raises UserError if the run has no record, or one that is
    not a result: of `--smoke`, of a run that is still being trained longer, or of a run that only showed weights.
    """
    if not (run / "result.json").is_file():
        raise UserError(f"{run} has no result.json that can be read: only a finished run has one")
    result = load(run / "result.json")
    if "--smoke" in shlex.split(result["command"]):
        raise UserError(f"{run} is the small version of an experiment, not a result: run it without --smoke")
    begun = flags.read(run) if (run / "config.json").is_file() else {}
    if "weights" in begun and (shown := flags.run_of(Path(begun["weights"]))):
        raise UserError(f"{run} shows what the run {shown} has learnt, and trained nothing: add that one")
    if begun and begun["config"] != result.get("config"):
        raise UserError(f"{run} is being trained longer, and its record is an earlier one: let it finish with --resume")
    what = result.get("experiment") or f"bench.{result['bench']}"
    given = ("-".join(flag).removeprefix("--") for flag in _flags(result["command"]))
    name = ".".join([what, *given, result["device"]["platform"], *_another_jaxlib(root, result)]).replace("/", "_")
    target = root / "results" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    # Where it ran is not part of the result.
    kept = [word for flag in _flags(result["command"]) for word in flag]
    words = shlex.split(result["command"])
    result["command"] = shlex.join([*words[: _start(words)], *kept])
    if "config" in result:
        result["config"] = {name: _without_place(value) for name, value in result["config"].items()}
    files.write_whole(target, files.sealed(result))
    noun = what.rpartition(".")[2]
    for path in sorted((run / "figures").glob("*")):
        if path.stem in (*FIGURES, noun) or path.suffix == ".gif":
            (root / "docs" / "figures").mkdir(parents=True, exist_ok=True)
            _copy_small(path, root / "docs" / "figures" / f"{name}.{path.name}")
    return target


def _copy_small(path: Path, target: Path) -> None:
    """Copies a picture; one of more than `LARGEST` bytes with 256 colours, and smaller if it is still too large."""
    shutil.copyfile(path, target)
    if path.suffix == ".png" and path.stat().st_size > LARGEST:
        from PIL import Image

        with Image.open(path) as picture:
            small = picture.convert("RGB")
        while target.stat().st_size > LARGEST:
            small.quantize(256).save(target, optimize=True)
            small = small.resize((small.width * 7 // 8, small.height * 7 // 8))


def tables(results: Path) -> tuple[str, str]:
    """The Markdown of docs/results.md, and the table in README.md."""
    records = [load(path) for path in sorted(results.glob("*.json"), key=lambda path: path.stem)]
    runs = [r for r in records if "experiment" in r]
    benches = [r for r in records if "bench" in r]
    first = [run for run in runs if run["command"] in FIRST]
    short = _experiments(sorted(first, key=lambda run: FIRST.index(run["command"])))
    shown = [line for run in runs if run["command"] == EXAMPLES for line in examples_table(run.get("examples", []))]
    if shown:
        short = "\n".join([short, "", "What BERT guesses after it has read the captions of pictures:", "", *shown])
    page = [
        "# Results",
        "",
        "Written by `make results` from the records under `results/`. Nothing here is typed by hand.",
        "",
    ]
    page += ["## Experiments", "", _experiments(runs), ""]
    for title, same in itertools.groupby(benches, key=lambda bench: bench["title"]):
        page += [f"## {title}", ""]
        for bench in same:
            page += [bench["method"], "", bench_table(bench), ""]
    page += ["## Where and with what", "", _origins(records), ""]
    return "\n".join(page), short


def write(root: Path) -> None:
    """Writes docs/results.md, and the part of README.md between its two marks. Raises UserError without marks."""
    readme = root / "README.md"
    page, short = tables(root / "results")
    text = readme.read_text("utf-8")
    if BEGIN not in text or END not in text:
        raise UserError(f"{readme} has no place for the results: it needs the lines {BEGIN} and {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    (root / "docs").mkdir(exist_ok=True)
    files.write_whole(root / "docs" / "results.md", page)
    files.write_whole(readme, f"{before}{BEGIN}\n\n{short}\n\n{END}{after}")


def load(path: Path) -> dict[str, Any]:
    """The record in a file. Raises UserError unless it is one that can be shown."""
    try:
        result = files.unsealed(path.read_bytes())
        # Whatever the pages will show of it is made once, and thrown away: what is missing raises here.
        _flags(result["command"])
        _origins([result])
        if "experiment" in result:
            _experiments([result])
        else:
            "\n".join([bench_table(result), result["bench"], result["title"], result["method"]])
        return result
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise UserError(f"{path} is damaged: restore it, or delete it") from None


def _another_jaxlib(root: Path, result: dict[str, Any]) -> list[str]:
    """["jaxlib-0.12"] for a benchmark of that version of jaxlib if constraints.txt has another."""
    if "experiment" in result:
        return []
    (pinned,) = re.findall(r"^jaxlib==(\d+\.\d+)", (root / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    found = ".".join(result["versions"]["jaxlib"].split(".")[:2])
    return [] if found == pinned else [f"jaxlib-{found}"]


def _without_place(value: Any) -> Any:
    """The value of a flag, but of files and folders only their names."""
    if isinstance(value, list):
        return [_without_place(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _flags(command: str) -> list[list[str]]:
    """What distinguishes records of one experiment: flags with their values, without those about where it runs."""
    found: list[list[str]] = []
    words = shlex.split(command)
    for word in words[_start(words) :]:
        if word.startswith("--"):
            found.append(word.split("=", 1))
        elif found:
            found[-1].append(word)
    return [flag for flag in found if flag[0] not in WHERE]


def _start(words: list[str]) -> int:
    """How many words of a command come before its flags: `python -m module`, or `python file`."""
    return 3 if words[1] == "-m" else 2


def _experiments(runs: list[dict[str, Any]]) -> str:
    rows = ["| experiment | claim | measured | seeds | training | device |", "|---|---|---|---|---|---|"]
    for run in runs:
        figures = ", ".join(f"{k.replace('_', ' ')} {record.show(k, v)}" for k, v in run["figures"].items())
        what = " ".join([run["experiment"], *(" ".join(flag) for flag in _flags(run["command"]))])
        seconds = f"{run['seconds']['train']:.1f} s" + (" for all" if len(run["seeds"]) > 1 else "")
        where = f"on {run['dataset']}" if "dataset" in run else ""
        measured = f"**{figures}** {where}"
        rows.append(
            f"| `{what}` | {run['claim'] or ''} | {measured} | {len(run['seeds'])} | {seconds} | {_device(run)} |"
        )
    return "\n".join(rows)


def bench_table(bench: dict[str, Any]) -> str:
    """The rows of a benchmark's record as a Markdown table, and where and with what they were measured."""
    rows = [f"| | {' | '.join(bench['columns'])} |", "|---" * (len(bench["columns"]) + 1) + "|"]
    rows += [
        f"| {name} | {' | '.join(str(row[column]) for column in bench['columns'])} |"
        for name, row in bench["rows"].items()
    ]
    versions = bench["versions"]
    about = [f"{name} {versions[name]}" for name in ("python", "jaxlib", "torch") if name in versions]
    return "\n".join(rows) + f"\n\n{', '.join([_device(bench), bench['date'][:10], *about])}."


def examples_table(examples: list[dict[str, str]]) -> list[str]:
    """The examples of a record as the lines of a Markdown table; none if there are none."""
    if not examples:
        return []
    rows = [" | ".join(" ".join(text.split()).replace("|", "\\|") for text in row.values()) for row in examples]
    return [f"| {' | '.join(examples[0])} |", "|---" * len(examples[0]) + "|", *(f"| {row} |" for row in rows)]


def _origins(records: list[dict[str, Any]]) -> str:
    rows = ["| record | date | commit | versions |", "|---|---|---|---|"]
    for one in records:
        versions = ", ".join(f"{name} {version}" for name, version in one["versions"].items())
        rows.append(f"| `{one['command']}` | {one['date'][:10]} | {one['commit']} | {versions} |")
    return "\n".join(rows)


def _device(one: dict[str, Any]) -> str:
    device = one["device"]
    return f"{device['cores']} cores of {device['kind']}" if device["platform"] == "cpu" else device["kind"]


def main(arguments: list[str] | None = None, root: Path | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dlc.run.pages", description="Writes the tables of results.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders of runs whose records to add first")
    options = parser.parse_args(arguments)
    process.keep_printing()
    root = root or Path(__file__).parents[2]
    try:
        if not (root / "README.md").is_file():
            raise UserError(f"{root} is not a checkout of dlc: results/, docs/ and README.md are written in one")
        for run in options.runs:
            print(printable(f"added {add(root, run.expanduser()).relative_to(root)}"))
        write(root)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(printable(f"error: {cannot_write(error)}"), file=sys.stderr)
        return 2
    print("wrote docs/results.md and the table in README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
