"""Text <-> token ids: characters, words, byte-pair encoding, and the vocabularies published with GPT-2 and BERT.

    tokenizer = Characters.of(corpus.train)
    ids = tokenizer.encode("To be")  # int32 [5]
    tokenizer.decode(ids)            # "To be"

Vocabularies are saved to a folder and loaded from it, so this module belongs to the effects floor.
"""

import json
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array

from dlc.errors import UserError, needs
from dlc.files import write_whole

PAD, START, END, UNKNOWN, MASK = range(5)  # the special ids of the vocabularies that are trained here
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
FILE = "tokenizer.json"
LONGEST = 1024  # bytes of a piece of llama2.c

Ids = Sequence[int] | np.ndarray | Array


@dataclass(frozen=True)
class Characters:
    """One token for each character.

    Attributes:
        characters: the vocabulary, sorted and without duplicates; the id of a character is its index.
    """

    characters: str

    @classmethod
    def of(cls, text: str) -> "Characters":
        """The vocabulary of all characters in `text`."""
        return cls("".join(sorted(set(text))))

    @property
    def size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, int32 [T].

        Raises:
            UserError: some of its characters are not in the vocabulary.
        """
        known, codes = _codes(self.characters), _codes(text)
        id_of = np.full(
            int(known.max(initial=0)) + 2, -1, np.int32
        )  # by code point; the last entry is for all larger ones
        id_of[known] = np.arange(self.size)
        ids = id_of[np.minimum(codes, len(id_of) - 1)]
        if (ids < 0).any():
            unknown = sorted(set(text) - set(self.characters))
            shown = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise UserError(f"the text has characters outside the vocabulary of {self.size}: {shown}")
        return ids

    def prompt(self, text: str) -> np.ndarray:
        """The ids of `text`: nothing comes before it."""
        return self.encode(text)

    def decode(self, ids: Ids) -> str:
        """The text of `ids`, integers [T] in `[0, size)`."""
        return _codes(self.characters)[np.asarray(ids, np.int32)].tobytes().decode("utf-32-le", "surrogatepass")

    def pieces(self, ids: Ids) -> list[str]:
        """A printable label for each id, for the axes of figures: the character, or its escape sequence."""
        return [_shown(character) for character in self.decode(ids)]

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json` into `folder`, atomically."""
        write_whole(folder / FILE, _written(self))


class BPE:
    """Byte-pair encoding and other vocabularies of words or their pieces: a `tokenizers.Tokenizer` that returns arrays.

    Encoding does not add START and END, nor their equivalents in a published model; whoever makes the batch adds them.
    With vocabularies of `train_bpe` no text is unknown: `decode(encode(text)) == text` for every text that can be
    encoded as UTF-8, even one that spells out a special token.
    """

    def __init__(self, tokenizer: Any) -> None:
        ids = tokenizer.get_vocab().values()
        if max(ids, default=0) >= 2 * len(ids):  # arrays of that many rows would be made for them
            raise UserError(f"a vocabulary of {len(ids):,} tokens has the id {max(ids):,}: fetch it again")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # Ours read "<s>" in a text as three characters. Published vocabularies read their names, such as [MASK].
        tokenizer.encode_special_tokens = all(tokenizer.token_to_id(name) == i for i, name in enumerate(SPECIAL))
        self.tokenizer = tokenizer

    @property
    def size(self) -> int:
        return self.tokenizer.get_vocab_size()

    @property
    def mask(self) -> int:
        """The id of the token that hides another: [MASK] in BERT's vocabulary, <mask> in those trained here."""
        published = self.tokenizer.token_to_id("[MASK]")
        return MASK if published is None else published

    def id(self, name: str) -> int:
        """The id of a token by its name, such as "<mask>", BERT's "[MASK]" or GPT-2's "<|endoftext|>".

        Raises:
            UserError: the vocabulary has no such token.
        """
        found = self.tokenizer.token_to_id(name)
        if found is None:
            raise UserError(f"the vocabulary of {self.size:,} has no token {name!r}")
        return found

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, int32 [T]."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def prompt(self, text: str) -> np.ndarray:
        """The ids of `text` as a model that is to continue it reads them: after "<s>", if the vocabulary says so."""
        return np.array(self.tokenizer.encode(text).ids, np.int32)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, int32 [T] with its own T, computed on all cores."""
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Ids) -> str:
        """The text of `ids`, integers [T] in `[0, size)`; special ids are left out."""
        return self.tokenizer.decode(np.asarray(ids, np.int32).tolist(), skip_special_tokens=True)

    def pieces(self, ids: Ids) -> list[str]:
        """A printable label for each id: " word" with its space, "##ing", "<s>"; � for part of a character."""
        from tokenizers import decoders

        each = np.asarray(ids, np.int32).tolist()
        if isinstance(self.tokenizer.decoder, decoders.ByteLevel):
            shown = [self.tokenizer.decode([i], skip_special_tokens=False) for i in each]
        else:
            shown = [self.tokenizer.id_to_token(i) for i in each]
        return [_shown(piece) for piece in shown]

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json` into `folder` in Hugging Face's format, atomically."""
        write_whole(folder / FILE, _written(self))


def train_bpe(texts: Iterable[str], size: int) -> BPE:
    """Learns byte-pair encoding (Sennrich et al. 2016) of bytes (Radford et al. 2019) from `texts`.

    The same texts give the same vocabulary. It has `size` tokens, or fewer if the texts have too few pairs to merge:
    the special tokens, 256 bytes, and the most frequent merges within words. A word includes the space before it.

    Raises:
        UserError: `size` leaves no room for a merge.
    """
    smallest = len(SPECIAL) + 256
    if size <= smallest:
        raise UserError(f"a vocabulary of {size} has no room for a merge: {smallest} are special tokens and bytes")
    needs("text", "tokenizers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return BPE(tokenizer)


def train_words(texts: Iterable[str], size: int) -> BPE:
    """A vocabulary of whole words and punctuation marks, in lowercase: the most frequent ones of `texts`.

    The same texts give the same vocabulary. It has `size` tokens, or fewer if the texts have fewer words: the special
    tokens and words. All other words are UNKNOWN, and decoding puts a space between tokens.

    Raises:
        UserError: `size` leaves no room for a word.
    """
    if size <= len(SPECIAL):
        raise UserError(f"a vocabulary of {size} has no room for a word: {len(SPECIAL)} are special tokens")
    needs("text", "tokenizers")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return BPE(tokenizer)


def same(one: Characters | BPE, other: Characters | BPE) -> bool:
    """Whether two vocabularies give every text the same ids."""
    return _written(one) == _written(other)


def load(folder: str | Path) -> Characters | BPE:
    """The vocabulary in `folder`, written by `save` or published on Hugging Face.

    It is read from tokenizer.json; or from vocab.json and merges.txt, as published with GPT-2; or from vocab.txt, as
    published with BERT, where texts are lowercased unless the vocabulary contains capitals; or from the one tok*.bin of
    llama2.c.

    Raises:
        UserError: the folder has none of these files, or they are damaged.
    """
    folder = Path(folder)
    for names, read in _FORMATS:
        paths = [path for name in names for path in folder.glob(name)]
        if len(paths) != len(names):
            continue
        try:
            return read(*paths)
        except UserError:
            raise
        except Exception as error:  # `tokenizers` raises plain Exception
            raise UserError(f"{' and '.join(map(str, paths))} cannot be read: {error}; fetch it again") from error
    wanted = "; or ".join(" and ".join(names) for names, _ in _FORMATS)
    raise UserError(f"there is no vocabulary in {folder}: it should have {wanted}")


def _load_json(path: Path) -> Characters | BPE:
    text = path.read_text(encoding="utf-8")
    if (characters := json.loads(text).get("characters")) is not None:
        if Characters.of(characters).characters != characters:
            raise ValueError("its characters are not in order")
        return Characters(characters)
    needs("text", "tokenizers")
    from tokenizers import Tokenizer

    return BPE(Tokenizer.from_str(text))


def _load_gpt2(vocabulary: Path, merges: Path) -> BPE:
    needs("text", "tokenizers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if tokenizer.token_to_id("<|endoftext|>") is not None:
        tokenizer.add_special_tokens(["<|endoftext|>"])
    return BPE(tokenizer)


def _load_bert(vocabulary: Path) -> BPE:
    needs("text", "tokenizers")
    from tokenizers import BertWordPieceTokenizer

    pieces = vocabulary.read_text(encoding="utf-8").split("\n")
    if "[UNK]" not in pieces:
        raise ValueError("it has no [UNK]")
    lowercase = not any(re.search("[A-Z]", piece) for piece in pieces if not piece.startswith("["))
    return BPE(BertWordPieceTokenizer(str(vocabulary), lowercase=lowercase)._tokenizer)


def _load_llama2c(vocabulary: Path) -> BPE:
    """A file with the length of the longest piece and, for each piece, its score, its length and the piece.

    A space is put before a text. Each letter is one piece, or its bytes are. Then neighbours are joined, always the two
    that make the piece with the highest score. Reference: run.c of llama2.c, `build_tokenizer` and `encode`.
    """
    needs("text", "tokenizers")
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    content, at = vocabulary.read_bytes(), 4
    scores: dict[str, float] = {}
    while at < len(content):
        score, length = struct.unpack_from("<fi", content, at)
        piece = content[at + 8 : at + 8 + length].decode("utf-8").strip("\n" if len(scores) in (1, 2) else "")
        if not 1 <= length <= LONGEST or at + 8 + length > len(content) or piece in scores:
            raise ValueError(f"piece {len(scores)} is damaged")
        scores[piece] = score
        at += 8 + length
    if list(scores)[:4] != ["<unk>", "<s>", "</s>", "<0x00>"]:
        raise ValueError("it does not begin with <unk>, <s>, </s> and 256 bytes")
    ids = {piece: i for i, piece in enumerate(scores)}
    pairs = [(piece[:i], piece[i:]) for piece in list(scores)[259:] for i in range(1, len(piece))]
    pairs = [(left, right) for left, right in pairs if left in scores and right in scores]
    pairs.sort(key=lambda pair: -scores[pair[0] + pair[1]])
    tokenizer = Tokenizer(models.BPE(ids, pairs, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(list(scores)[:3])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return BPE(tokenizer)


_FORMATS: tuple[tuple[tuple[str, ...], Callable[..., Characters | BPE]], ...] = (
    ((FILE,), _load_json),
    (("vocab.json", "merges.txt"), _load_gpt2),
    (("vocab.txt",), _load_bert),
    (("tok*.bin",), _load_llama2c),
)


def _written(tokenizer: Characters | BPE) -> str:
    """The content of its file, in ASCII, whatever the locale."""
    if isinstance(tokenizer, Characters):
        return json.dumps({"characters": tokenizer.characters}) + "\n"
    return json.dumps(json.loads(tokenizer.tokenizer.to_str())) + "\n"


def _shown(piece: str) -> str:
    """The piece with its unprintable characters escaped."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in piece)


def _codes(text: str) -> np.ndarray:
    """The code points of `text`, uint32 [T]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
