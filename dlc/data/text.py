"""Texts to read (`corpus`) and sentences beside their translations (`parallel`), whole and in memory.

    from dlc.data import text
    train = text.corpus("tiny_shakespeare").train  # 1,003,854 characters
    pairs = text.parallel("multi30k").train        # 29,000 of ("Two young, White males ...", "Deux jeunes hommes ...")

Published files are looked for in `<data dir>/sources/<name>/` and kept there once downloaded. A user's own files are
read by `read` and `read_pairs`.
"""

import gzip
import hashlib
import platform
import sysconfig
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dlc.data import cache, tfds
from dlc.data._dataset import DataDamaged, DataUnavailable, data_dir, readable, say, usable
from dlc.data._published import Original, check
from dlc.errors import UserError

CORPORA = ("tiny_shakespeare", "python")
PARALLEL = ("multi30k", "numbers")
OFFLINE = ("python", "numbers")  # need no download

PYTHON_LIMIT = 4_000_000  # characters: four times tiny Shakespeare, and of what there is
SHORTEST = 1000  # characters of a user's text
FEWEST = 100  # pairs of a user's translations

Pairs = list[tuple[str, str]]


class Corpus(NamedTuple):
    """A text: its first 90 % of characters train and the rest validates, as nanoGPT splits tiny Shakespeare."""

    name: str
    train: str
    validation: str
    source: str  # where it came from, for the record


class Parallel(NamedTuple):
    """Sentences and their translations, as pairs of (source sentence, target sentence)."""

    name: str
    train: Pairs
    validation: Pairs
    test: Pairs
    source: str  # where they came from, for the record


def _multi30k(file: str, *rest: int | str) -> Original:
    return Original(file, f"https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/{file}", *rest)  # type: ignore[arg-type]


# tiny_shakespeare is as TFDS registers it; multi30k is not in its catalogue: github.com/multi30k/dataset at a3d2e0d.
PUBLISHED = {
    "tiny_shakespeare": (
        Original(
            "input.txt", "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            1115394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
    ),
    "multi30k": (
        _multi30k("train.en.gz", 568929, "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
                  "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6"),
        _multi30k("train.fr.gz", 604242, "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c",
                  "5925a3c18f1587b6b54b87743106e6e8ab93618edb6f65d19eac0621f853a10d"),
        _multi30k("val.en.gz", 21650, "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
                  "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227"),
        _multi30k("val.fr.gz", 23001, "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9",
                  "5304e444d842e962b2dda4d816b70b22a1765b15401642b7ca37a67477e708dc"),
        _multi30k("test_2016_flickr.en.gz", 21077, "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
                  "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182"),
        _multi30k("test_2016_flickr.fr.gz", 22310, "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90",
                  "cb3160d69b002bb638e66cc7612fcd56cb0af82eadc9c142dedc438afb885ef6"),
    ),
}  # fmt: skip


def corpus(name: str) -> Corpus:
    """The text `name`, one of `CORPORA`, downloaded first if it has to be.

    tiny_shakespeare is 1,115,394 characters of 65 kinds; python is up to 4,000,000 ASCII characters of the source of
    the running Python's own standard library, so it differs from one version of Python to the next.

    Raises:
        DataUnavailable: it is nowhere on this machine and cannot be downloaded.
        DataDamaged: a file it would come from is not the one that was published.
        UserError: there is no such text, or the data directory cannot be used.
    """
    if name not in CORPORA:
        raise UserError(f"there is no text {name!r}: choose from {', '.join(CORPORA)}, or give a file of your own")
    if name == "python":
        return _split(name, _standard_library(), f"standard library of Python {platform.python_version()}")
    (text,) = _originals(name)
    return _split(name, text, f"original files in sources/{name}")


def parallel(name: str) -> Parallel:
    """The translations `name`, one of `PARALLEL`, downloaded first if they have to be.

    multi30k is English to French, descriptions of photographs: 29,000 pairs to train, 1,014 to validate and 1,000 to
    test (test_2016_flickr). numbers is 0 to 9,999 in English and in French words: 9,000, 500 and 500 pairs.

    Raises:
        DataUnavailable: they are nowhere on this machine and cannot be downloaded.
        DataDamaged: a file they would come from is not the one that was published.
        UserError: there are no such translations, or the data directory cannot be used.
    """
    if name not in PARALLEL:
        raise UserError(
            f"there are no translations {name!r}: choose from {', '.join(PARALLEL)}, or give your own files"
        )
    if name == "numbers":
        order = np.random.default_rng(0).permutation(10_000).tolist()
        pairs = [(english(n), french(n)) for n in order]
        return Parallel(name, pairs[:9000], pairs[9000:9500], pairs[9500:], "0 to 9,999 in words, by rule")
    sides = [_lines(content) for content in _originals(name)]
    splits: list[Pairs] = []
    for original, source, target in zip(PUBLISHED[name][::2], sides[::2], sides[1::2], strict=True):
        if len(source) != len(target):
            raise DataDamaged(f"{original.file} of {name} has {len(source):,} lines and its translation "
                              f"{len(target):,}: fetch both files again")  # fmt: skip
        splits.append(list(zip(source, target, strict=True)))
    train, validation, test = splits
    return Parallel(name, train, validation, test, f"original files in sources/{name}")


def read(path: Path) -> Corpus:
    """A user's own text, in UTF-8.

    Raises:
        UserError: it cannot be read, is not UTF-8, or has fewer than 1,000 characters.
    """
    text, sha256 = _read(path)
    if len(text) < SHORTEST:
        size = f"has only {len(text):,} characters" if text else "is empty"
        raise UserError(f"{path} {size}: a text to learn from needs {SHORTEST:,} at the very least")
    return _split(path.name, text, f"{path.name}, sha256 {sha256}")


def read_pairs(source: Path, target: Path) -> Parallel:
    """A user's own translations: line n of `target` translates line n of `source`; UTF-8, plain or .gz.

    Pairs with an empty side are dropped. The last 5 % test, at most 1,000 pairs, and as many before those validate.

    Raises:
        UserError: a file cannot be read or is not UTF-8, the numbers of lines differ, or fewer than 100 pairs are left.
    """
    (text, sha256), (translation, other) = _read(source), _read(target)
    lines, translations = _lines(text), _lines(translation)
    if len(lines) != len(translations):
        raise UserError(f"{source} has {len(lines):,} lines and {target} {len(translations):,}: "
                        "line n of one must translate line n of the other")  # fmt: skip
    pairs = [pair for pair in zip(lines, translations, strict=True) if all(pair)]
    if len(pairs) < FEWEST:
        raise UserError(f"{source} and {target} hold {len(pairs)} pairs of sentences: {FEWEST} are the fewest")
    held_out = min(len(pairs) // 20, 1000)
    middle, last = len(pairs) - 2 * held_out, len(pairs) - held_out
    return Parallel(
        f"{source.name} to {target.name}", pairs[:middle], pairs[middle:last], pairs[last:],
        f"{source.name}, sha256 {sha256}; {target.name}, sha256 {other}",
    )  # fmt: skip


def missing(name: str) -> list[Original]:
    """The published files of `name` that would have to be downloaded."""
    return [original for original, path in _find(name, data_dir() / "sources" / name) if path is None]


# Numbers in words ----------------------------------------------------------------------------------------------------

_ENGLISH = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_ENGLISH_TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
_FRENCH = "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize".split()
_FRENCH_TENS = "- dix vingt trente quarante cinquante soixante".split()


def english(n: int) -> str:
    """0 <= n < 10,000 in English words, with the British `and`: 2080 is two thousand and eighty."""
    if n < 20:
        return _ENGLISH[n]
    if n < 100:
        ten, unit = divmod(n, 10)
        return _ENGLISH_TENS[ten] + (f"-{_ENGLISH[unit]}" if unit else "")
    many, rest = divmod(n, 1000 if n >= 1000 else 100)
    words = f"{english(many)} {'thousand' if n >= 1000 else 'hundred'}"
    return words + (" and " if 0 < rest < 100 else " " if rest else "") + (english(rest) if rest else "")


def french(n: int) -> str:
    """0 <= n < 10,000 in French words, in the traditional spelling: 2080 is deux mille quatre-vingts.

    Its rules, those before the rectifications in the Journal officiel of 6 December 1990: hyphens join what is below a
    hundred, except beside `et`; `et` stands before un and onze after vingt to soixante, not after quatre-vingt; vingt
    and cent take an s where they are multiplied and end the number; mille never changes, and neither it nor cent is
    preceded by un.
    """
    if n <= 16:
        return _FRENCH[n]
    if n >= 100:
        many, rest = divmod(n, 1000 if n >= 1000 else 100)
        words = "mille" if n >= 1000 else "cent"
        if many > 1:
            words = f"{_FRENCH[many]} {words}" + ("s" if n < 1000 and not rest else "")
        return f"{words} {french(rest)}" if rest else words
    ten, unit = divmod(n, 10)
    if ten in (7, 9):  # soixante-dix, quatre-vingt-dix: counted on from the ten before
        ten, unit = ten - 1, unit + 10
    if ten == 8:
        return f"quatre-vingt-{french(unit)}" if unit else "quatre-vingts"
    if not unit:
        return _FRENCH_TENS[ten]
    return _FRENCH_TENS[ten] + (" et " if unit in (1, 11) else "-") + french(unit)


# Files ---------------------------------------------------------------------------------------------------------------


def _split(name: str, text: str, source: str) -> Corpus:
    train = len(text) * 9 // 10
    return Corpus(name, text[:train], text[train:], source)


def _lines(text: str) -> list[str]:
    # Not str.splitlines: it also cuts at U+2028 and other characters that occur inside sentences.
    return [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []


def _standard_library() -> str:
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    contents = [path.read_bytes() for path in paths]
    # The few files with other characters would double the vocabulary for the sake of some names.
    text = b"".join(content for content in contents if content.isascii()).decode()[:PYTHON_LIMIT]
    if len(text) < SHORTEST:
        raise UserError("this Python has no source of its standard library: choose another text")
    return text


def _read(path: Path) -> tuple[str, str]:
    """A user's file in UTF-8, unpacked where its name ends in .gz, and the start of its sha256."""
    try:
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()[:12]
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig"), sha256
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: name a file in it") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (see byte {error.start:,}): convert it first, for example with iconv"
        ) from error


def _find(name: str, folder: Path) -> list[tuple[Original, Path | None]]:
    """Each published file of `name` and where it lies in `folder`, packed or not, or None."""
    found: list[tuple[Original, Path | None]] = []
    for original in PUBLISHED.get(name, ()):
        places = (folder / original.file, folder / original.file.removesuffix(".gz"))
        found.append((original, next((place for place in places if place.is_file()), None)))
    return found


def _originals(name: str) -> list[str]:
    """The content of each published file of `name`, checked and unpacked; those that are missing are had first."""
    root = data_dir()
    folder = root / "sources" / name
    with usable(root):
        if missing(name):
            with cache.lock(root, name) as held:
                _bring(root, name, held)
        contents = [(path, check(original, path)) for original, path in _find(name, folder) if path]
    return [(gzip.decompress(content) if path.suffix == ".gz" else content).decode() for path, content in contents]


def _bring(root: Path, name: str, held: int) -> None:
    """Puts what is missing into `<root>/sources/<name>`: from what TFDS prepared, or from the network."""
    folder = root / "sources" / name
    if not (wanted := missing(name)):
        return  # another process, which we waited for, has brought it
    if name == "tiny_shakespeare" and _from_tfds(root, folder, held):
        return
    tfds.fetch(root, name, wanted, held, lambda reason: _unavailable(root, name, reason))


def _from_tfds(root: Path, folder: Path, held: int) -> bool:
    """Whether a prepared folder had the text, which is cut there into 90, 5 and 5 %."""
    (original,) = PUBLISHED["tiny_shakespeare"]
    for prepared in tfds.folders(root, "tiny_shakespeare", version="1.0.0"):
        try:
            content = tfds.read_text(root, "tiny_shakespeare", prepared, held).encode()
        except UserError as error:
            say(f"{prepared} is passed over: {error}")
            continue
        if hashlib.sha256(content).hexdigest() == original.sha256:
            folder.mkdir(parents=True, exist_ok=True)
            fresh = folder / f"{original.file}.new"
            fresh.write_bytes(content)
            fresh.replace(folder / original.file)  # whole or not there at all
            return True
        say(f"{prepared} is passed over: it holds another text")
    return False


def _unavailable(root: Path, name: str, reason: str) -> DataUnavailable:
    """The error that says in one sentence why, and then what to put where."""
    folder = root / "sources" / name
    instead, what = ("`python`", "a text") if name in CORPORA else ("`numbers`", "a set of translations")
    lines = [f"{name} is not on this machine and cannot be downloaded: {reason}; {instead} is {what} that needs no "
             "download.", "To bring it by hand, put"]  # fmt: skip
    lines += [f"  {o.url} ({readable(o.size)}) at {folder / o.file}" for o in missing(name)]
    return DataUnavailable("\n".join(lines), reason)
