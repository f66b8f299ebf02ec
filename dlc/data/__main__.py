"""`python -m dlc.data` lists what is there; `python -m dlc.data mnist cifar10` prepares sets ahead of time.

`python -m dlc.data cifar10 --pictures FOLDER` writes a set as JPEG files, in a folder for each class.
`python -m dlc.data --records FOLDER --context 1024 FILE ...` packs texts into records of tokens.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from dlc import process
from dlc.data import (
    NAMES,
    OFFLINE,
    SETS,
    DataUnavailable,
    _arrays,
    _cache,
    _tfds,
    check_name,
    data_dir,
    load,
    pictures,
    text,
)
from dlc.data._directory import readable, say
from dlc.errors import UserError

PICTURES = tuple(name for name in pictures.NAMES if name not in NAMES)
EVERY = tuple(dict.fromkeys((*NAMES, *PICTURES, *text.CORPORA, *text.PARALLEL)))  # some are texts and translations


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 2 for a mistake, 3 for unavailable data, 130 for Ctrl-C."""
    process.keep_printing()
    parser = argparse.ArgumentParser(
        prog="python -m dlc.data",
        usage="python -m dlc.data [OPTIONS] [NAME ...]",
        description="Prepares data sets ahead of time, or lists what is there.",
        epilog=f"DLC_DATA moves the data directory. Sets: {' '.join(EVERY)}, and tfds:NAME for image classification "
        "sets of TensorFlow Datasets.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets to prepare; without a name: list them all")
    parser.add_argument(
        "--first-of", nargs="+", metavar="NAME", help="prepare and print only the first of these that is available"
    )
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="write NAME as JPEG files, in a folder for each class"
    )
    packed = "pack texts into records of tokens: NAME is a text file, a *.jsonl, a folder of them or one of the texts"
    parser.add_argument("--records", type=Path, metavar="FOLDER", help=packed)
    records = parser.add_argument_group("of --records")
    records.add_argument("--context", type=int, default=64, metavar="N", help="tokens that a model sees at once")
    records.add_argument("--encoding", choices=("characters", "bpe"), default="characters", help="tokens")
    records.add_argument("--vocab", type=int, default=4096, metavar="N", help="size of the vocabulary, of bpe")
    records.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="take the vocabulary in FOLDER instead")
    options = parser.parse_args(arguments)
    try:
        if options.records:
            pack(options)
        elif options.pictures:
            write(options.names, options.pictures)
        elif options.first_of:
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
        say("stopped; nothing half-prepared is left, and the same command starts again")
        return 130


def prepare(name: str) -> None:
    """Prepares one set and prints a line about it."""
    start = time.perf_counter()
    where = ""
    if name in text.PARALLEL:
        pairs = text.parallel(name)
        counts, source = f"{len(pairs.train):,} train, {len(pairs.validation):,} validation pairs", pairs.source
    elif name in text.CORPORA:
        corpus = text.corpus(name)
        counts = f"{len(corpus.train):,} train, {len(corpus.validation):,} validation characters"
        source = corpus.source
    elif name in PICTURES:
        found = pictures.load(name)
        counts, source = f"{len(found.train):,} train, {len(found.validation):,} validation pictures", found.source
    else:
        dataset = load(name)
        train, test = dataset.train["image"], dataset.test["image"]
        counts = f"{len(train):,} train, {len(test):,} test, {'x'.join(map(str, train.shape[1:]))}"
        source = dataset.source
        where = "" if name in OFFLINE else f", in {_cache.folder(data_dir(), _key(name))}"
    print(f"{name}: {counts}; from {source}{where}; {time.perf_counter() - start:.2g} s")


def write(names: list[str], folder: Path) -> None:
    """Writes one set of arrays as pictures, completely or not at all, and prints a line about it."""
    if len(names) != 1 or names[0] in (*text.CORPORA, *text.PARALLEL):
        raise UserError("--pictures writes one set of images: name it, for example cifar10 --pictures FOLDER")
    found = load(names[0])
    try:
        if folder.exists():
            raise UserError(f"{folder} is there already: give a new folder")
        with tempfile.TemporaryDirectory(prefix=".pictures-", dir=folder.parent) as temporary:
            pictures.write(found, whole := Path(temporary, "whole"))
            whole.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
    print(f"{names[0]}: {len(found.train['label']):,} train and {len(found.test['label']):,} val pictures in {folder}")


def pack(options: argparse.Namespace) -> None:
    """Packs texts into records of tokens, completely or not at all, and prints a line about them."""
    from dlc import tokens  # these import JAX, which takes long
    from dlc.data import _packing

    start, folder = time.perf_counter(), options.records
    if options.context < 2 or not options.names:
        raise UserError("--records takes texts, and a --context greater than 1: --records FOLDER --context 64 FILE ...")
    try:
        if folder.exists():
            raise UserError(f"{folder} is there already: give a new folder")
        if options.tokenizer:
            tokenizer = tokens.load(options.tokenizer)
        else:
            tokenizer = _packing.vocabulary(options.names, options.vocab if options.encoding == "bpe" else None)
        index = _packing.pack(folder, options.names, tokenizer, options.context)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
    windows = [sum(one["windows"] for one in index[half]) for half in ("train", "validation")]
    print(
        f"{index['documents']:,} documents, {tokenizer.size:,} kinds of tokens: {windows[0]:,} train, {windows[1]:,} "
        f"validation windows of {options.context} + 1 tokens in {folder}; {time.perf_counter() - start:.2g} s"
    )


def first_of(names: list[str]) -> str:
    """The first of `names` that is available; prints a line on stderr for each that is not.

    Raises:
        UserError: none is available, or one of the names is unknown.
    """
    for name in names:
        check_name(name, *NAMES)
    for name, following in zip(names, [*names[1:], None], strict=True):
        try:
            return load(name).name
        except UserError as error:
            if following is None:
                raise
            reason = error.reason if isinstance(error, DataUnavailable) else str(error).splitlines()[0]
            say(f"{name} is not available ({reason}); using {following}")
    raise AssertionError("argparse requires at least one name")


def show() -> None:
    """Prints a line for each set: its state, size on disk and source. Nothing is prepared."""
    root = data_dir()
    for name in EVERY:
        if name in NAMES:
            state, source = _arrays.state(SETS[name])
        elif name in PICTURES:
            state, source = pictures.state(name)
        else:
            state, source = text.state((text.TEXTS | text.TRANSLATIONS)[name])
        folders = [_cache.folder(root, name), root / "tfds" / name, root / "sources" / name]
        folders += (root / "pictures").glob(f"{name}*")
        _line(name, state, folders, source)
    cached = _cache.sources(root, "tfds_")
    by_name = {"tfds:{1}:{2}".format(*source.split()): folder for folder, source in cached.items()}
    for name, folder in (_tfds.prepared(root) | by_name).items():
        state, source = ("ready", cached[folder]) if folder in cached else ("found", f"to be read from {folder}")
        _line(name, state, [folder], source)
    print(f"data directory {root} (DLC_DATA moves it{'' if os.environ.get('DLC_DATA') else '; it is not set'})")


def _line(name: str, state: str, folders: list[Path], source: str) -> None:
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    print(f"{name:18} {state:10}{readable(size) if size else '-':>8}  {source}")


def _key(name: str) -> str:
    return _tfds.parse(name).key if name.startswith(_tfds.PREFIX) else name


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.exit(code)
