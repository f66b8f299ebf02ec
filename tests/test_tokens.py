"""`dlc.tokens`: what goes in comes out, the same vocabulary every time, and vocabularies that others publish."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dlc.data import text
from dlc.errors import UserError
from dlc.tokens import BPE, END, MASK, PAD, SPECIAL, START, UNKNOWN, Characters, load, train_bpe, train_words

TEXTS = [french for _, french in text.parallel("numbers").train[:500]]
ODD = [
    "",
    " ",
    "  two spaces",
    "trailing \n\n",
    "Où est l'été ?",
    "naïve café — œuvre",
    "🎉👩\u200d👧 e\u0301",
    "\0\x7f\t\r\n\u2028",
    "<s>quatre</s><pad><mask>",
    " <unk> ",
    "漢字かな",
    "a" * 300,
    "Ġthe ##ing [MASK]",
    "\U0010ffff",
]


@pytest.fixture(scope="module")
def bpe() -> BPE:
    return train_bpe(TEXTS, 320)


def random_texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, high, rng.integers(1, 40)) for high in rng.choice([128, 256, 0x3000, 0x110000], count)]
    return ["".join(chr(c) for c in line if not 0xD800 <= c < 0xE000) for line in codes]


# Characters ----------------------------------------------------------------------------------------------------------


def test_characters() -> None:
    vocabulary = Characters.of("hello")
    assert vocabulary == Characters("ehlo")
    assert vocabulary.size == 4
    ids = vocabulary.encode("hole")
    assert ids.dtype == np.int32
    assert ids.tolist() == [1, 3, 2, 0]
    assert vocabulary.decode(ids) == vocabulary.decode(jnp.asarray(ids)) == vocabulary.decode([1, 3, 2, 0]) == "hole"
    assert vocabulary.encode("").shape == (0,)
    assert vocabulary.decode([]) == ""


@pytest.mark.parametrize("line", [*ODD, "lone \ud800 surrogate"])
def test_characters_come_back(line: str) -> None:
    vocabulary = Characters.of(line + "xyz")
    ids = vocabulary.encode(line)
    assert vocabulary.decode(ids) == line
    assert [vocabulary.characters[i] for i in ids] == list(line)


def test_unknown_characters_are_named() -> None:
    vocabulary = Characters.of("abc")
    with pytest.raises(UserError, match=r"^the text has characters outside the vocabulary of 3: '\\n', 'é'$"):
        vocabulary.encode("abécé\n")
    with pytest.raises(UserError, match=r"of 3: '0', '1', '2', '3', '4', \.\.\.$"):
        vocabulary.encode("0123456789")
    with pytest.raises(UserError, match="of 0: 'a'"):
        Characters("").encode("a")


def test_a_million_characters_are_fast() -> None:
    line = "".join(map(chr, np.random.default_rng(0).integers(32, 127, 1_000_000)))
    vocabulary = Characters.of(line)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        ids = vocabulary.encode(line)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1
    assert vocabulary.decode(ids) == line


# Byte-pair encoding --------------------------------------------------------------------------------------------------


def test_special_ids(bpe: BPE) -> None:
    assert [bpe.id(name) for name in SPECIAL] == [PAD, START, END, UNKNOWN, MASK] == list(range(5))
    with pytest.raises(UserError, match=r"^the vocabulary of 320 has no token '\[MASK\]'$"):
        bpe.id("[MASK]")
    assert bpe.mask == MASK
    ids = bpe.encode("cent")
    assert bpe.decode([START, *ids.tolist(), END, PAD, PAD]) == "cent"


@pytest.mark.parametrize("line", ODD)
def test_odd_texts_come_back(bpe: BPE, line: str) -> None:
    ids = bpe.encode(line)
    assert ids.dtype == np.int32
    assert bpe.decode(ids) == line
    assert not np.isin(ids, range(5)).any()


def test_any_text_comes_back(bpe: BPE) -> None:
    lines = random_texts(200)
    batch = bpe.encode_batch(lines)
    for line, ids in zip(lines, batch, strict=True):
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids, bpe.encode(line))
        assert bpe.decode(ids) == line
        assert ids.max(initial=0) < bpe.size == 320


def test_merges_shorten(bpe: BPE) -> None:
    assert len(bpe.encode(" cent")) == 1
    assert len(bpe.encode("tnec")) == 4
    assert sum(map(len, bpe.encode_batch(TEXTS))) < 0.5 * sum(len(line.encode()) for line in TEXTS)


def test_pieces_can_be_read(bpe: BPE) -> None:
    ids = bpe.encode("deux cent\tonze\n")
    pieces = bpe.pieces([START, *ids.tolist(), END])
    assert pieces[0] == "<s>"
    assert pieces[-2:] == ["\\n", "</s>"]
    assert "".join(pieces[1:-1]) == "deux cent\\tonze\\n"
    assert " cent" in pieces
    assert bpe.pieces(bpe.encode("漢")) == ["\ufffd"] * 3


def test_same_texts_same_vocabulary(bpe: BPE, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from dlc.data import text; from dlc.tokens import train_bpe\n"
        "train_bpe((b for _, b in text.parallel('numbers').train[:500]), 320).save(Path())"
    )
    root = str(Path(__file__).parents[1])
    environment = {"PYTHONPATH": root, "PATH": "", "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == json.loads(bpe.tokenizer.to_str())


def test_vocabulary_has_a_least_and_a_greatest_size() -> None:
    with pytest.raises(
        UserError, match=r"^a vocabulary of 261 has no room for a merge: 261 are special tokens and bytes"
    ):
        train_bpe(TEXTS, 261)
    assert train_bpe(["aaaa"], 1000).size == 263  # aa, aaaa: no more to merge


# Words ---------------------------------------------------------------------------------------------------------------


def test_words_are_the_most_frequent_ones_in_small_letters(tmp_path: Path) -> None:
    words = train_words(["A man, a dog.", "a man in A HAT."], len(SPECIAL) + 4)
    assert words.size == len(SPECIAL) + 4
    ids = words.encode("A MAN eats a hat, <mask> .")
    assert ids.dtype == np.int32
    assert words.decode(ids) == "a man a , ."
    assert (ids == UNKNOWN).tolist() == [False, False, True, False, True, False, True, True, True, False]
    assert words.pieces(ids[:3]) == ["a", "man", "<unk>"]
    assert words.mask == MASK
    words.save(tmp_path)
    np.testing.assert_array_equal(load(tmp_path).encode("a man, a hat"), words.encode("a man, a hat"))
    assert train_words(["a b"], 100).size == len(SPECIAL) + 2  # the text has two words
    with pytest.raises(UserError, match=r"^a vocabulary of 5 has no room for a word: 5 are special tokens$"):
        train_words(["a"], 5)


# On the disk ---------------------------------------------------------------------------------------------------------


def test_saved_and_loaded(bpe: BPE, tmp_path: Path) -> None:
    line = "vingt et un <s> été"
    characters = Characters.of(line + "\ud800\n")
    characters.save(tmp_path)
    assert load(tmp_path) == characters
    bpe.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    assert (tmp_path / "tokenizer.json").read_bytes().isascii()
    found = load(tmp_path)
    assert isinstance(found, BPE)
    assert found.tokenizer.to_str() == bpe.tokenizer.to_str()
    np.testing.assert_array_equal(found.encode(line), bpe.encode(line))
    assert found.decode(found.encode(line)) == line


def test_characters_need_no_library(tmp_path: Path) -> None:
    Characters.of("abc").save(tmp_path)
    code = (
        "import sys; from pathlib import Path; from dlc.tokens import load\n"
        f"load(Path({str(tmp_path)!r})).encode('abc'); print('tokenizers' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert run.stdout == "False\n"


def test_vocabulary_beside_gpt2(bpe: BPE, tmp_path: Path) -> None:
    model = json.loads(bpe.tokenizer.to_str())["model"]
    vocabulary = {f"none{i}" if i < len(SPECIAL) else name: i for name, i in model["vocab"].items()}
    vocabulary["<|endoftext|>"] = len(vocabulary)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(
        UserError, match=r"^there is no vocabulary in .*: it should have tokenizer.json; or vocab.json and"
    ):
        load(tmp_path)
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])])
    (tmp_path / "merges.txt").write_text(merges + "\n", encoding="utf-8")
    found = load(tmp_path)
    assert isinstance(found, BPE)
    for line in (*ODD[:8], *TEXTS[:20]):
        np.testing.assert_array_equal(found.encode(line), bpe.encode(line))
        assert found.decode(found.encode(line)) == line
    end = found.id("<|endoftext|>")
    assert found.encode("cent<|endoftext|>")[-1] == end == 320
    assert found.decode([*found.encode("cent").tolist(), end]) == "cent"


@pytest.mark.parametrize("cased", [False, True])
def test_vocabulary_beside_bert(cased: bool, tmp_path: Path) -> None:
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "capital", "play", "##ing", "ete", "."]
    words += ["The", "Été"] if cased else []
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    found = load(tmp_path)
    assert isinstance(found, BPE)
    assert found.size == len(words)
    assert found.mask == words.index("[MASK]") != MASK
    ids = found.encode("The playing [MASK] Été.")
    expected = ["The" if cased else "the", "play", "##ing", "[MASK]", "Été" if cased else "ete", "."]
    assert found.pieces(ids) == expected  # and neither [CLS] nor [SEP]
    assert found.encode("xyz").tolist() == [found.id("[UNK]")]
    assert found.decode(found.encode("the playing.")) == "the playing."
    found.tokenizer.enable_truncation(2)  # as some published files have it
    found.tokenizer.enable_padding(length=9)
    found.tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = load(tmp_path)
    assert isinstance(again, BPE)
    np.testing.assert_array_equal(again.encode("The playing [MASK] Été."), ids)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "there is no vocabulary in .*; or vocab.txt"),
        ({"tokenizer.json": "{"}, "tokenizer.json cannot be read: .*; fetch it again"),
        ({"tokenizer.json": "[]"}, "tokenizer.json cannot be read"),
        ({"tokenizer.json": '{"model": 1}'}, "tokenizer.json cannot be read"),
        ({"tokenizer.json": '{"characters": "ba"}'}, "cannot be read: its characters are not in order"),
        ({"vocab.json": "{}", "merges.txt": "a b\n"}, "vocab.json and .*merges.txt cannot be read"),
        ({"vocab.txt": "the\n"}, r"vocab.txt cannot be read: it has no \[UNK\]"),
    ],
)
def test_what_cannot_be_loaded(files: dict[str, str], said: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        load(tmp_path)
