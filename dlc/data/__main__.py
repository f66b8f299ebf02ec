"""`python -m dlc.data`: what is there; `python -m dlc.data mnist cifar10`: prepares ahead."""

import argparse
import os
import sys
import time
from pathlib import Path

from dlc.data import NAMES, OFFLINE, DataUnavailable, cache, data_dir, load, pictures, sources, text, tfds
from dlc.data._dataset import readable, say
from dlc.errors import UserError

PICTURES = tuple(name for name in pictures.NAMES if name not in OFFLINE)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 2 for a mistake, 3 for data that cannot be had, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m dlc.data",
        description="Prepares data sets ahead, or lists what is there.",
        epilog="DLC_DATA moves the data directory. Sets: "
        + " ".join((*NAMES, *PICTURES, *text.CORPORA, *text.PARALLEL)),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets to prepare; none: list what is there")
    parser.add_argument(
        "--first-of", nargs="+", metavar="NAME", help="print only the first of these that can be had, once prepared"
    )
    options = parser.parse_args(arguments)
    try:
        if options.first_of:
            print(first_of(options.first_of))
        elif options.names:
            for name in options.names:
                prepare(name)
        else:
            show()
        return 0
    except UserError as error:
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        say("stopped; nothing half-prepared is left, and the same command begins again")
        return 130


def prepare(name: str) -> None:
    """Prepares one set and prints a line about it."""
    start = time.perf_counter()
    if name in (*text.CORPORA, *text.PARALLEL):
        found, what = _text(name), "characters" if name in text.CORPORA else "pairs"
        counts = f"{len(found.train):,} train, {len(found.validation):,} validation {what}"
        print(f"{name}: {counts}; from {found.source}; {time.perf_counter() - start:.2g} s")
        return
    if name in PICTURES:
        counts = "{:,} train, {:,} validation".format(*map(len, (of := pictures.load(name))[1:3]))
        print(f"{name}: {counts} pictures; from {of.source}; {time.perf_counter() - start:.2g} s")
        return
    dataset = load(name)
    seconds = time.perf_counter() - start
    train, test = dataset.train["image"], dataset.test["image"]
    where = "" if name in OFFLINE else f", in {cache.folder(data_dir(), name)}"
    shape = "x".join(map(str, train.shape[1:]))
    print(f"{name}: {len(train):,} train, {len(test):,} test, {shape}; from {dataset.source}{where}; {seconds:.2g} s")


def first_of(names: list[str]) -> str:
    """The first of `names` that can be had; one line for each that cannot.

    Raises:
        UserError: none can be had, or one of the names is unknown.
    """
    for unknown in set(names) - set(NAMES):
        load(unknown)
    for name, following in zip(names, [*names[1:], None], strict=True):
        try:
            return load(name).name
        except UserError as error:
            if following is None:
                raise
            reason = error.reason if isinstance(error, DataUnavailable) else str(error).splitlines()[0]
            say(f"{name} cannot be had ({reason}); using {following}")
    raise AssertionError("argparse gives at least one name")


def show() -> None:
    """One line a set: ready or not, size on disk, source; nothing is prepared and nothing is imported for it."""
    root = data_dir()
    for name in (*NAMES, *PICTURES, *text.CORPORA, *text.PARALLEL):
        if name in PICTURES:
            state, source = pictures.state(name)
        else:
            state, source = _text_state(name) if name not in NAMES else _state(root, name)
        folders = [cache.folder(root, name), root / "tfds" / name, root / "sources" / name]
        folders += (root / "pictures").glob(f"{name}*")
        size = sum(p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file())
        print(f"{name:18}{state:11}{readable(size) if size else '-':>8}  {source}")
    print(f"data directory {root} (DLC_DATA moves it{'' if os.environ.get('DLC_DATA') else '; it is not set'})")


def _state(root: Path, name: str) -> tuple[str, str]:
    if name in OFFLINE:
        return "ready", "scikit-learn digits, needs no download"
    try:
        if kept := cache.read(root, name):
            return "ready", kept.source
    except UserError as error:
        return "damaged", str(error)
    if folders := tfds.folders(root, name):
        return "at hand", f"to be read from {folders[0]}"
    here = root / "sources" / name
    if not sources.missing(name, here) or (name == "cifar10" and (here / "cifar-10-batches-py").is_dir()):
        return "at hand", f"to be read from {here}"
    return "not here", f"{readable(sum(o.size for o in sources.missing(name, here)))} to download"


def _text_state(name: str) -> tuple[str, str]:
    if wanted := text.missing(name):
        return "not here", f"{readable(sum(o.size for o in wanted))} to download"
    try:
        return "ready", _text(name).source + (", needs no download" if name in text.OFFLINE else "")
    except UserError as error:
        return "damaged", str(error)


def _text(name: str) -> text.Corpus | text.Parallel:
    return text.corpus(name) if name in text.CORPORA else text.parallel(name)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.exit(code)
