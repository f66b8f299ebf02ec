"""Text files -> a folder of windows of tokens, which `token_records` reads.

A text file is one document, and so is each line {"text": ...} of a file *.jsonl; both may be compressed. The documents
of each half are joined, with the token END before the first and after every one, and cut into windows, each of which
begins with the last token of the previous one. There is no padding, and every token is predicted once; only the tokens
that do not fill the last window are lost. A window may hold the end of one document and the beginning of the next, and
attention looks at both.

References: Brown et al. 2020, "Language models are few-shot learners", appendix B, packs documents so.
"""

import bz2
import contextlib
import gzip
import json
import lzma
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlc import files, tokens
from dlc.data import _array_record, text
from dlc.data._directory import say
from dlc.data.token_records import FORMAT, INDEX, crc32
from dlc.errors import UserError

SHARD = 2**28  # bytes of tokens in a file, at most
HELD_OUT = 2**20  # characters that are held out, about, if that is less than a tenth
AT_ONCE = 2**22  # characters that are encoded at once, at least one document
END = "\0"  # ends a document in a vocabulary of characters; no text that is read here has it
ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[SEP]")  # in other vocabularies, the first that it has
OPEN: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def documents(names: Sequence[str | Path]) -> Iterator[str]:
    """The documents of text files and of *.jsonl, one after the other.

    A folder stands for the files in it, in the order of their names, and a name of `text.CORPORA` for that text. Raises
    UserError if one cannot be read.
    """
    for path in map(Path, names):
        if str(path) in text.CORPORA and not path.exists():
            corpus = text.corpus(str(path))
            yield corpus.train + corpus.validation
        elif path.is_dir():
            found = sorted(each for each in path.rglob("*") if each.is_file() and not each.name.startswith("."))
            if not found:
                raise UserError(f"{path} has no files: name a folder of texts")
            yield from documents(found)
        elif path.with_suffix("" if path.suffix in OPEN else path.suffix).suffix == ".jsonl":
            yield from _lines(path)
        else:
            yield text.content(path)[0]


def halves(names: Sequence[str | Path]) -> tuple[Iterator[tuple[str, str]], int, set[str]]:
    """Which half each document belongs to, as ("train" or "validation", text); their number, and their characters.

    A tenth is held out, or about `HELD_OUT` characters if that is less: the last of every N documents or, if there
    are fewer than N, the end of each. Raises UserError if a file cannot be read.
    """
    count, size, characters = 0, 0, set[str]()
    for one in documents(names):
        count, size, characters = count + 1, size + len(one), characters | set(one)
    every = max(10, -(-size // HELD_OUT))

    def each() -> Iterator[tuple[str, str]]:
        for number, one in enumerate(documents(names), 1):
            if count >= every:
                yield "train" if number % every else "validation", one
            else:
                cut = len(one) - len(one) // every
                yield from (("train", one[:cut]), ("validation", one[cut:]))

    return each(), count, characters


def vocabulary(names: Sequence[str | Path], size: int | None) -> tokens.Characters | tokens.BPE:
    """A new vocabulary for these texts: byte-pair encoding of that `size`, learnt from what is trained on; or, without
    a size, all of their characters. Raises UserError if a text cannot be read."""
    each, _, characters = halves(names)
    if size is None:
        return tokens.Characters("".join(sorted(characters | {END})))
    return tokens.train_bpe((one for half, one in each if half == "train"), size)


def pack(
    folder: Path, names: Sequence[str | Path], tokenizer: tokens.Characters | tokens.BPE, context: int
) -> dict[str, Any]:
    """Writes the windows of these texts to a new folder, completely or not at all; returns what its index says.

    The same texts and vocabulary give the same bytes.

    Raises UserError if there is such a folder, a text cannot be read or is too short, or the vocabulary lacks a token.
    """
    end = _end(tokenizer)
    wide = 2 if tokenizer.size <= 2**16 else 4
    with _fresh(folder) as fresh:
        tokenizer.save(fresh)
        each, count, _ = halves(names)
        parts = {half: _Writer(fresh, half, context, np.dtype(f"<u{wide}"), end) for half in ("train", "validation")}
        for some in _groups(each):
            encoded = _encode(tokenizer, [one for _, one in some])
            for (half, one), ids in zip(some, encoded, strict=True):
                if one:
                    parts[half].add(np.append(ids, end))
        of = {half: part.close() for half, part in parts.items()}
        for half, written in of.items():
            if not written:
                raise UserError(
                    f"the texts have only {parts[half].tokens:,} tokens for {half}, and a window {context} + 1: take "
                    "longer texts, or a smaller --context"
                )
        index = {
            "format": FORMAT,
            "context": context,
            "bytes_of_token": wide,
            "end": end,
            "documents": count,
            "tokens": {half: part.tokens for half, part in parts.items()},
            "tokenizer": _described(fresh / tokens.FILE),
            **of,
        }
        files.write_whole(fresh / INDEX, files.sealed(index, indent=1))
        _described(fresh / INDEX)  # which flushes it
    return index


class _Writer:
    """The windows of one half, in files of about `SHARD` bytes."""

    def __init__(self, folder: Path, half: str, context: int, dtype: np.dtype, end: int):
        self.folder, self.half, self.context, self.dtype = folder, half, context, dtype
        self.rest = np.array([end], dtype)
        self.tokens, self.files = 1, list[dict[str, Any]]()
        self._file: Any = None
        self._windows = 0  # in the file that is being written

    def add(self, ids: np.ndarray) -> None:
        self.tokens += len(ids)
        rest = np.concatenate([self.rest, ids.astype(self.dtype)])
        whole = (len(rest) - 1) // self.context * self.context
        for at in range(0, whole, self.context):
            if self._file is None:
                self._file = _writer(self._path())
            with _said():
                self._file.write(rest[at : at + self.context + 1].tobytes())
            self._windows += 1
            if self._windows * (self.context + 1) * self.dtype.itemsize >= SHARD:
                self.close()
        self.rest = rest[whole:]

    def close(self) -> list[dict[str, Any]]:
        """What was written: name, windows, size and CRC-32 of each file."""
        if self._file is not None:
            with _said():
                self._file.close()
            path, self._file = self._path(), None
            if len(_array_record.array_record([path])) != self._windows:
                raise OSError(f"{path} could not be written")
            self.files.append({**_described(path), "windows": self._windows})
            self._windows = 0
        return self.files

    def _path(self) -> Path:
        return self.folder / f"{self.half}-{len(self.files):05d}.array_record"


@contextlib.contextmanager
def _fresh(folder: Path) -> Iterator[Path]:
    """A folder beside `folder`, which gets that name at the end; if anything fails, there is none. What a process that
    was killed has left is removed. Raises UserError if `folder` is there, or if another process is writing it."""
    if folder.exists():
        raise UserError(f"{folder} is there already: give a new folder")
    fresh = folder.with_name(f".{folder.name}.new")
    fresh.mkdir(exist_ok=True)
    try:
        lock = files.lock(fresh / ".lock", say)
    except TimeoutError:
        raise UserError(f"another process is writing {folder}: wait for it, or give another folder") from None
    with lock:
        try:
            for leftover in fresh.iterdir():
                if leftover.name != ".lock":
                    leftover.unlink()
            yield fresh
            (fresh / ".lock").unlink(missing_ok=True)
            fresh.rename(folder)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """array_record's word for a full disk is a RuntimeError of several sentences."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error).partition(";")[0]) from None


def _encode(tokenizer: tokens.Characters | tokens.BPE, texts: list[str]) -> list[np.ndarray]:
    if isinstance(tokenizer, tokens.Characters):
        return [tokenizer.encode(one) for one in texts]
    tokenizer.tokenizer.encode_special_tokens = True  # a document that spells "</s>" does not end there
    return tokenizer.encode_batch(texts)


def _end(tokenizer: tokens.Characters | tokens.BPE) -> int:
    if isinstance(tokenizer, tokens.Characters):
        if END not in tokenizer.characters:
            raise UserError("this vocabulary of characters has none that ends a document: let a new one be made")
        return int(tokenizer.encode(END)[0])
    found = [tokenizer.tokenizer.token_to_id(name) for name in ENDS]
    if not any(one is not None for one in found):
        raise UserError(f"the vocabulary has no token that ends a document: one of {' '.join(ENDS)}")
    return next(one for one in found if one is not None)


def _groups(each: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """The documents in groups of at least `AT_ONCE` characters, which are encoded on all cores."""
    size, some = 0, list[tuple[str, str]]()
    for one in each:
        some.append(one)
        size += len(one[1])
        if size >= AT_ONCE:
            yield some
            size, some = 0, []
    if some:
        yield some


def _lines(path: Path) -> Iterator[str]:
    try:
        with OPEN.get(path.suffix, open)(path, "rt", encoding="utf-8") as lines:
            left, number = files.most_unpacked(path.stat().st_size), 0
            while line := lines.readline(left + 1):
                left, number = left - len(line), number + 1
                if left < 0:
                    raise UserError(f"{path} {files.BOMB}")
                found = json.loads(line).get("text") if line.strip() else ""
                if not isinstance(found, str) or END in found:
                    raise ValueError(f'line {number:,} has no "text" of letters')
                yield found
    except UserError:
        raise
    except (OSError, EOFError, ValueError, AttributeError, RecursionError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f'{path} cannot be read: {error}; every line must be like {{"text": "..."}}, in UTF-8'
        ) from None


def _writer(path: Path) -> Any:
    try:
        from array_record.python.array_record_module import ArrayRecordWriter
    except ImportError:  # there is none for Windows
        raise UserError("records cannot be written: the package array_record is not installed") from None
    return ArrayRecordWriter(str(path), "group_size:1")  # each window can be read alone


def _described(path: Path) -> dict[str, Any]:
    """Name, size and CRC-32 of a file, once it is on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return {"name": path.name, "bytes": path.stat().st_size, "crc32": crc32(path)}
