"""Texts (`corpus`) and sentences with their translations (`parallel`), in memory.

    from dlc.data import text
    train = text.corpus("tiny_shakespeare").train  # 1,003,854 characters
    train = text.corpus("multi30k").train          # its English side, 29,000 lines
    pairs = text.parallel("multi30k").train        # 29,000 of ("Two young, White males ...", "Deux jeunes hommes ...")

Published files are kept in `<data dir>/sources/<name>/`. A user's own files are read by `read` and `read_pairs`.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dlc.data import _fetch, _tfds, multi30k, numbers, python_source, tiny_shakespeare
from dlc.data._dataset import Corpus, Pairs, Parallel, split_text
from dlc.data._directory import data_dir, readable, say, usable
from dlc.data._errors import DataDamaged
from dlc.data._published import Published, missing
from dlc.data.numbers import english, french
from dlc.errors import UserError
from dlc.files import BOMB, most_unpacked

__all__ = [
    "CORPORA", "OFFLINE", "PARALLEL", "Corpus", "Pairs", "Parallel", "corpus", "english", "french", "parallel", "read",
    "read_pairs",
]  # fmt: skip

SHORTEST = 1000  # characters of a user's text
FEWEST = 100  # pairs of a user's translations


class Text(NamedTuple):
    """A text or translations: the published files, and how checked paths are parsed."""

    published: Published
    parse: Callable[[Sequence[Path]], Any]
    source: str = ""  # where a set without files comes from
    prepared: Callable[[Path], bytes] | None = None  # the one published file, from a folder that TFDS prepared


TEXTS = {
    "tiny_shakespeare": Text(tiny_shakespeare.PUBLISHED, tiny_shakespeare.parse, prepared=tiny_shakespeare.prepared),
    "multi30k": Text(multi30k.PUBLISHED, multi30k.captions),
    "python": Text(python_source.PUBLISHED, python_source.parse, python_source.SOURCE),
}
TRANSLATIONS = {
    "multi30k": Text(multi30k.PUBLISHED, multi30k.parse),
    "numbers": Text(numbers.PUBLISHED, numbers.parse, numbers.SOURCE),
}
CORPORA, PARALLEL = tuple(TEXTS), tuple(TRANSLATIONS)
OFFLINE = tuple(name for name, text in (TEXTS | TRANSLATIONS).items() if not text.published.files)


def corpus(name: str) -> Corpus:
    """The text `name`, one of `CORPORA`, downloaded first if necessary.

    Raises:
        DataUnavailable: it is not on this machine and cannot be downloaded.
        DataDamaged: a file it would come from differs from the published one.
        UserError: there is no such text, or the data directory cannot be used.
    """
    if name not in TEXTS:
        raise UserError(f"there is no text {name!r}: choose from {', '.join(CORPORA)}, or give a file of your own")
    return _load(TEXTS[name])


def parallel(name: str) -> Parallel:
    """The translations `name`, one of `PARALLEL`, downloaded first if necessary.

    Raises:
        DataUnavailable: they are not on this machine and cannot be downloaded.
        DataDamaged: a file they would come from differs from the published one.
        UserError: there are no such translations, or the data directory cannot be used.
    """
    if name not in TRANSLATIONS:
        raise UserError(
            f"there are no translations {name!r}: choose from {', '.join(PARALLEL)}, or give your own files"
        )
    return _load(TRANSLATIONS[name])


def read(path: str | Path) -> Corpus:
    """A user's own text, in UTF-8.

    Raises:
        UserError: it cannot be read, is not UTF-8, or has fewer than 1,000 characters.
    """
    path = Path(path)
    text, sha256 = content(path)
    if len(text) < SHORTEST:
        size = f"has only {len(text):,} characters" if text else "is empty"
        raise UserError(f"{path} {size}: a text to learn from needs at least {SHORTEST:,}")
    return split_text(path.name, text, f"{path.name}, sha256 {sha256}")


def read_pairs(source: str | Path, target: str | Path) -> Parallel:
    """A user's own translations: line n of `target` translates line n of `source`; UTF-8, plain or compressed.

    Pairs with an empty side are dropped. The last 5 %, at most 1,000 pairs, are for testing, and as many before them
    for validation.

    Raises:
        UserError: a file cannot be read or is not UTF-8, the numbers of lines differ, or fewer than 100 pairs are left.
    """
    source, target = Path(source), Path(target)
    (text, sha256), (translation, other) = content(source), content(target)
    lines, translations = multi30k.lines(text), multi30k.lines(translation)
    if len(lines) != len(translations):
        raise UserError(f"{source} has {len(lines):,} lines and {target} {len(translations):,}: "
                        "line n of one must translate line n of the other")  # fmt: skip
    pairs = [pair for pair in zip(lines, translations, strict=True) if all(pair)]
    if len(pairs) < FEWEST:
        raise UserError(f"{source} and {target} hold {len(pairs)} pairs of sentences: at least {FEWEST} are needed")
    held_out = min(len(pairs) // 20, 1000)
    middle, last = len(pairs) - 2 * held_out, len(pairs) - held_out
    return Parallel(
        f"{source.name} to {target.name}", pairs[:middle], pairs[middle:last], pairs[last:],
        f"{source.name}, sha256 {sha256}; {target.name}, sha256 {other}",
    )  # fmt: skip


def state(text: Text) -> tuple[str, str]:
    """For a listing: "ready", "damaged" or "not here"; and from where, or how much is to be downloaded."""
    published, root = text.published, data_dir()
    if not published.files:
        return "ready", f"{text.source}, needs no download"
    wanted = missing(published, root / "sources" / published.name)
    if wanted and not (text.prepared and _tfds.folders(root, published)):
        return "not here", f"{readable(sum(file.size for file in wanted))} to download"
    try:
        return "ready", _load(text).source
    except UserError as error:
        return "damaged", str(error)


def _load(text: Text) -> Any:
    if text.prepared and (found := _from_tfds(text)):
        return found
    return text.parse(_fetch.files(text.published) if text.published.files else ())


def _from_tfds(text: Text) -> Corpus | None:
    """The text as TensorFlow Datasets prepared it, if that holds the published file."""
    assert text.prepared
    root, published = data_dir(), text.published
    with usable(root):
        for folder in _tfds.folders(root, published):
            try:
                content = text.prepared(folder)
            except DataDamaged as error:
                say(f"{folder} is ignored: {error}")
                continue
            if hashlib.sha256(content).hexdigest() == published.files[0].sha256:
                return split_text(published.name, content.decode(), f"tfds {published.name} {folder.name}")
            say(f"{folder} is ignored: it holds another text")
    return None


def content(path: Path) -> tuple[str, str]:
    """A user's file in UTF-8, decompressed if it is a gzip, bzip2 or xz file, and the start of its sha256."""
    try:
        content = path.read_bytes()
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: name a file in it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    sha256 = hashlib.sha256(content).hexdigest()[:12]
    module: Any
    for begin, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\0", lzma)):
        if content.startswith(begin) or (module is gzip and path.suffix == ".gz"):
            most = most_unpacked(len(content))
            try:
                with module.open(io.BytesIO(content)) as packed:
                    content = packed.read(most + 1)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise UserError(f"{path} cannot be decompressed: {error}") from error
            if len(content) > most:
                raise UserError(f"{path} {BOMB}")
            break
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (see byte {error.start:,}): convert it first, for example with iconv"
        ) from error
    if "\0" in text:
        raise UserError(f"{path} has zeros among its bytes, as UTF-16 has: convert it to UTF-8, for example with iconv")
    return text, sha256
