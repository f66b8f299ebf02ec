"""`dlc.data.text` on small files of this machine; and on the published ones where DLC_TEST_DATA is set.

No test needs a network: every published address is replaced by one of this machine.
"""

import bz2
import gzip
import hashlib
import lzma
import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dlc.data import DataDamaged, DataUnavailable, python_source, text
from dlc.data.__main__ import main
from dlc.data._published import File
from dlc.errors import UserError

REAL = os.environ.get("DLC_TEST_DATA")
needs_real = pytest.mark.skipif(
    not (REAL and Path(REAL, "tiny_shakespeare").is_dir() and Path(REAL, "multi30k").is_dir()),
    reason="DLC_TEST_DATA does not name a folder with the real tiny_shakespeare and multi30k",
)

VERSE = "".join(f"First Citizen:\nLine {i}, speak.\n\n" for i in range(100))
TABLE = {  # by hand
    0: ("zero", "zéro"),
    7: ("seven", "sept"),
    16: ("sixteen", "seize"),
    17: ("seventeen", "dix-sept"),
    20: ("twenty", "vingt"),
    21: ("twenty-one", "vingt et un"),
    22: ("twenty-two", "vingt-deux"),
    61: ("sixty-one", "soixante et un"),
    70: ("seventy", "soixante-dix"),
    71: ("seventy-one", "soixante et onze"),
    72: ("seventy-two", "soixante-douze"),
    77: ("seventy-seven", "soixante-dix-sept"),
    80: ("eighty", "quatre-vingts"),
    81: ("eighty-one", "quatre-vingt-un"),
    90: ("ninety", "quatre-vingt-dix"),
    91: ("ninety-one", "quatre-vingt-onze"),
    97: ("ninety-seven", "quatre-vingt-dix-sept"),
    99: ("ninety-nine", "quatre-vingt-dix-neuf"),
    100: ("one hundred", "cent"),
    101: ("one hundred and one", "cent un"),
    180: ("one hundred and eighty", "cent quatre-vingts"),
    200: ("two hundred", "deux cents"),
    201: ("two hundred and one", "deux cent un"),
    280: ("two hundred and eighty", "deux cent quatre-vingts"),
    999: ("nine hundred and ninety-nine", "neuf cent quatre-vingt-dix-neuf"),
    1000: ("one thousand", "mille"),
    1001: ("one thousand and one", "mille un"),
    1100: ("one thousand one hundred", "mille cent"),
    1971: ("one thousand nine hundred and seventy-one", "mille neuf cent soixante et onze"),
    2000: ("two thousand", "deux mille"),
    2080: ("two thousand and eighty", "deux mille quatre-vingts"),
    4300: ("four thousand three hundred", "quatre mille trois cents"),
    9081: ("nine thousand and eighty-one", "neuf mille quatre-vingt-un"),
}


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data directory, no proxies, and no address that leads off this machine."""
    monkeypatch.setenv("DLC_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("no_proxy", "*")
    for sets, name in ((text.TEXTS, "tiny_shakespeare"), (text.TRANSLATIONS, "multi30k")):
        files = sets[name].published.files
        describe(monkeypatch, name, tuple(file._replace(url=f"http://127.0.0.1:9/{file.name}") for file in files))
    return tmp_path / "data"


def describe(monkeypatch: pytest.MonkeyPatch, name: str, files: tuple[File, ...]) -> None:
    for sets in (text.TEXTS, text.TRANSLATIONS):
        if name in sets:
            monkeypatch.setitem(sets, name, sets[name]._replace(published=sets[name].published._replace(files=files)))


def files(name: str) -> tuple[File, ...]:
    return (text.TEXTS | text.TRANSLATIONS)[name].published.files


def publish(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path, contents: list[bytes], url: str = "") -> None:
    """Writes `contents` as the published files of `name` to `folder` and describes them."""
    folder.mkdir(parents=True, exist_ok=True)
    described = []
    for file, content in zip(files(name), contents, strict=True):
        packed = gzip.compress(content, mtime=0) if file.name.endswith(".gz") else content
        (folder / file.name).write_bytes(packed)
        sums = (hashlib.sha256(packed).hexdigest(), hashlib.sha256(content).hexdigest())
        described.append(File(file.name, (url or "http://127.0.0.1:9/") + file.name, len(packed), *sums))
    describe(monkeypatch, name, tuple(described))


def sentences(count: int, language: str, last: str = "\n") -> bytes:
    return ("\n".join(f" {language}\u2028 {i} " for i in range(count)) + last).encode()


def small_multi30k() -> list[bytes]:
    return [sentences(count, language) for count in (40, 5, 4) for language in ("en", "fr")]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves `tmp_path / "web"`; the address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web")))
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/"
    http.shutdown()
    http.server_close()


# Without a download --------------------------------------------------------------------------------------------------


def test_python_is_its_own_source() -> None:
    found = text.corpus("python")
    whole = found.train + found.validation
    assert whole.isascii()
    assert 1_000_000 < len(whole) <= python_source.LIMIT
    assert len(found.train) == len(whole) * 9 // 10
    assert "import" in found.validation
    assert found.source.startswith("standard library of Python 3.")
    assert found == text.corpus("python")


@pytest.mark.parametrize("n", TABLE)
def test_numbers_in_words(n: int) -> None:
    assert (text.english(n), text.french(n)) == TABLE[n]


def test_numbers_are_split_once_and_for_all() -> None:
    numbers = text.parallel("numbers")
    splits = (numbers.train, numbers.validation, numbers.test)
    assert [len(split) for split in splits] == [9000, 500, 500]
    everything = [pair for split in splits for pair in split]
    assert len({source for source, _ in everything}) == len({target for _, target in everything}) == 10_000
    assert numbers.train[0] == (
        "three thousand five hundred and seventy-seven",
        "trois mille cinq cent soixante-dix-sept",
    )
    assert numbers == text.parallel("numbers")
    for side in (0, 1):  # no word is new in the test
        words = {word for pair in numbers.train for word in pair[side].replace("-", " ").split()}
        assert all(set(pair[side].replace("-", " ").split()) <= words for pair in numbers.validation + numbers.test)


@pytest.mark.parametrize(("find", "said"), [(text.corpus, "no text"), (text.parallel, "no translations")])
def test_unknown_name_is_one_sentence(find, said: str) -> None:
    with pytest.raises(UserError, match=f"^there (is|are) {said} 'minst': choose from .*, or give "):
        find("minst")


# Published files -----------------------------------------------------------------------------------------------------


def test_original_text(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, "tiny_shakespeare", nowhere / "sources" / "tiny_shakespeare", [VERSE.encode()])
    found = text.corpus("tiny_shakespeare")
    assert found.train + found.validation == VERSE
    assert len(found.train) == int(0.9 * len(VERSE))
    assert found.source == "original files in sources/tiny_shakespeare"
    (nowhere / "sources" / "tiny_shakespeare" / "input.txt").write_text(VERSE.replace("speak", "Speak"))
    with pytest.raises(DataDamaged, match=r"input.txt is not the published file: .*; delete it and fetch it again"):
        text.corpus("tiny_shakespeare")


@pytest.mark.parametrize("packed", [True, False])
def test_original_translations(packed: bool, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = nowhere / "sources" / "multi30k"
    publish(monkeypatch, "multi30k", folder, small_multi30k())
    if not packed:
        for path in list(folder.iterdir()):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    found = text.parallel("multi30k")
    assert [len(split) for split in found[1:4]] == [40, 5, 4]
    assert found.train[7] == ("en\u2028 7", "fr\u2028 7")  # stripped, and cut at line feeds alone
    captions = text.corpus("multi30k")
    assert captions.train.split("\n")[7] == "en\u2028 7"
    assert [split.count("\n") for split in captions[1:3]] == [40, 5]
    name = "val.fr.gz" if packed else "val.fr"
    (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"?")  # of the same size
    with pytest.raises(DataDamaged, match=f"{name} is not the published file"):
        text.parallel("multi30k")


def test_sides_of_different_length(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = small_multi30k()
    contents[3] = sentences(6, "fr")
    publish(monkeypatch, "multi30k", nowhere / "sources" / "multi30k", contents)
    with pytest.raises(DataDamaged, match=r"^val.en.gz of multi30k has 5 lines and its translation 6"):
        text.parallel("multi30k")


def test_no_network(nowhere: Path) -> None:
    with pytest.raises(DataUnavailable) as caught:
        text.corpus("tiny_shakespeare")
    first, _, place = str(caught.value).split("\n")
    assert first.startswith("tiny_shakespeare is not on this machine and cannot be downloaded: no network (127.0.0.1: ")
    assert first.endswith("; `python` is a text that needs no download.")
    where = nowhere / "sources" / "tiny_shakespeare" / "input.txt"
    assert place == f"  http://127.0.0.1:9/input.txt (1.12 MB) at {where}"
    with pytest.raises(DataUnavailable, match="`numbers` is a set of translations") as caught:
        text.parallel("multi30k")
    assert str(caught.value).count("http://") == 6
    assert caught.value.exit_code == 3


def test_unusable_data_directory(nowhere: Path) -> None:
    nowhere.write_text("a file")
    with pytest.raises(
        UserError, match=f"^the data directory {nowhere} cannot be used: .*; correct that, or set DLC_DATA"
    ):
        text.corpus("tiny_shakespeare")


def test_download_is_kept(
    nowhere: Path, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    publish(monkeypatch, "multi30k", tmp_path / "web", small_multi30k(), server)
    folder = nowhere / "sources" / "multi30k"
    folder.mkdir(parents=True)
    shutil.copy(tmp_path / "web" / "train.en.gz", folder)  # what is there is not downloaded
    os.truncate(tmp_path / "web" / "train.en.gz", 3)
    found = text.parallel("multi30k")
    assert [len(split) for split in found[1:4]] == [40, 5, 4]
    assert found.source == "original files in sources/multi30k"
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("downloading multi30k: ")
    assert err.count("\n") == 1
    kept = {path for path in nowhere.rglob("*") if path.is_file() and not path.name.startswith(".lock-")}
    assert kept == {folder / file.name for file in files("multi30k")}
    shutil.rmtree(tmp_path / "web")
    assert text.parallel("multi30k") == found


def test_download_of_another_file(nowhere: Path, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, "tiny_shakespeare", tmp_path / "web", [VERSE.encode()], server)
    (tmp_path / "web" / "input.txt").write_text(VERSE.replace("speak", "spoke"))
    with pytest.raises(
        DataDamaged, match=r"is not the published file: input.txt has another size or sha256; try again"
    ):
        text.corpus("tiny_shakespeare")
    assert not [path for path in (nowhere / "sources").rglob("*") if path.is_file()]


# A user's own files --------------------------------------------------------------------------------------------------


def test_own_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("é\r\n" * 400, encoding="utf-8", newline="")
    found = text.read(path)
    assert found.name == "mine.txt"
    assert (found.train + found.validation) == "é\r\n" * 400
    assert len(found.validation) == 120
    assert found.source == f"mine.txt, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    packed = tmp_path / "mine.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert text.read(packed).train == found.train


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        ("folder", "is a folder: name a file in it"),
        (b"", "is empty: a text to learn from needs at least 1,000"),
        (b"x" * 999, "has only 999 characters: a text to learn from needs at least 1,000"),
        (b"x" * 1500 + b"\xe9" + b"x" * 10, r"is not UTF-8 \(see byte 1,500\): convert it first"),
        ("x\n".encode("utf-16-le") * 1500, "has zeros among its bytes, as UTF-16 has: convert it to UTF-8"),
        (gzip.compress(b"x" * 5000, mtime=0)[:-3], "cannot be decompressed: "),
        (bz2.compress(b"x" * 5000)[:-3], "cannot be decompressed: "),
        (lzma.compress(b"x" * 5000)[:-3], "cannot be decompressed: "),
        (b"BZh no archive" * 99, "cannot be decompressed: "),
    ],
)
def test_own_text_that_will_not_do(content: bytes | str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path} {said}"):
        text.read(path)


@pytest.mark.parametrize("name", ["mine.GZ", "mine", "mine.txt"])
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_text_is_packed_if_its_bytes_are(tmp_path: Path, name: str, pack: Any) -> None:
    (tmp_path / name).write_bytes(pack(VERSE.encode()))
    assert text.read(tmp_path / name).train + text.read(tmp_path / name).validation == VERSE


def test_own_translations(tmp_path: Path) -> None:
    source, target = tmp_path / "mine.en", tmp_path / "mine.fr.gz"
    lines = [f"line\u2028 {i} " for i in range(203)]
    source.write_text("\n".join(["", *lines[1:]]), encoding="utf-8")  # without a last line feed
    target.write_bytes(
        gzip.compress("".join(f"ligne {i}\r\n" * (i != 9) + " \n" * (i == 9) for i in range(203)).encode())
    )
    found = text.read_pairs(source, target)
    assert [len(split) for split in found[1:4]] == [181, 10, 10]
    assert found.train[0] == ("line\u2028 1", "ligne 1")
    assert [pair[1] for pair in found.train + found.validation + found.test] == [
        f"ligne {i}" for i in range(203) if i not in (0, 9)
    ]
    assert found.name == "mine.en to mine.fr.gz"
    assert found.source.count("sha256") == 2


def test_at_most_a_thousand_are_held_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(sentences(25_000, "a"))
    found = text.read_pairs(tmp_path / "a", tmp_path / "a")
    assert [len(split) for split in found[1:4]] == [23_000, 1000, 1000]


def test_own_translations_that_will_not_do(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(sentences(100, "a"))
    with pytest.raises(UserError, match=f"^{target} cannot be read: No such file"):
        text.read_pairs(source, target)
    target.write_bytes(sentences(99, "b"))
    with pytest.raises(
        UserError, match=f"^{source} has 100 lines and {target} 99: line n of one must translate line n"
    ):
        text.read_pairs(source, target)
    target.write_bytes(sentences(99, "b", last="\n\n"))
    with pytest.raises(UserError, match="hold 99 pairs of sentences: at least 100 are needed"):
        text.read_pairs(source, target)
    target.write_bytes(b"")
    with pytest.raises(UserError, match=f"has 100 lines and {target} 0"):
        text.read_pairs(source, target)
    target.write_bytes(b"ab\xff")
    with pytest.raises(UserError, match=r"is not UTF-8 \(see byte 2\)"):
        text.read_pairs(source, target)
    packed = tmp_path / "b.gz"
    for content in (b"plain", gzip.compress(b"cut" * 99)[:-9]):
        packed.write_bytes(content)
        with pytest.raises(UserError, match=f"^{packed} cannot be decompressed: "):
            text.read_pairs(source, packed)


# The command ---------------------------------------------------------------------------------------------------------


def test_command(nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def lines() -> dict[str, list[str]]:
        assert main([]) == 0
        return {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}

    listed = lines()
    assert " ".join(listed["multi30k"]) == "not here - 1.26 MB to download"
    assert listed["numbers"][0] == "ready"
    publish(monkeypatch, "multi30k", nowhere / "sources" / "multi30k", small_multi30k())
    assert lines()["multi30k"][0] == "ready"
    assert main(["multi30k", "python"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("multi30k: 40 train, 5 validation pairs; from original files in sources/multi30k; ")
    assert "validation characters; from standard library of Python" in second
    (nowhere / "sources" / "multi30k" / "val.en.gz").write_bytes(b"?")
    assert lines()["multi30k"][0] == "damaged"
    assert main(["tiny_shakespeare"]) == 3


# The real files ------------------------------------------------------------------------------------------------------


@needs_real
def test_real_texts(nowhere: Path) -> None:
    assert REAL
    (nowhere / "sources").mkdir(parents=True)
    for name in ("tiny_shakespeare", "multi30k"):
        (nowhere / "sources" / name).symlink_to(Path(REAL, name).absolute())
    shakespeare = text.corpus("tiny_shakespeare")
    assert (len(shakespeare.train), len(shakespeare.validation)) == (1_003_854, 111_540)
    assert shakespeare.train.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")
    assert len(set(shakespeare.train + shakespeare.validation)) == 65
    multi30k = text.parallel("multi30k")
    assert [len(split) for split in multi30k[1:4]] == [29_000, 1014, 1000]
    assert multi30k.train[0] == (
        "Two young, White males are outside near many bushes.",
        "Deux jeunes hommes blancs sont dehors près de buissons.",
    )
    captions = text.corpus("multi30k")
    assert captions.train.startswith("Two young, White males are outside near many bushes.\n")
    assert captions.validation == "".join(f"{english}\n" for english, _ in multi30k.validation)
    assert all(source and target for split in multi30k[1:4] for source, target in split)
