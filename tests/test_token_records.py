"""Texts as records of tokens: what is packed is read, completely or not at all, and nothing else is."""

import contextlib
import gzip
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import cli
import jax
import numpy as np
import optax
import pytest

from dlc import files, hosts, losses, tokens
from dlc.batches import windows
from dlc.data import __main__, _packing, token_records
from dlc.data._errors import DataDamaged
from dlc.data.stream import Batches
from dlc.errors import UserError
from dlc.models.gpt import GPT, GPTConfig
from dlc.run.loop import Loop
from dlc.run.run import Run
from dlc.tasks import text

END = _packing.END


def some(count, seed=0, longest=300):
    draw = np.random.default_rng(seed)
    return ["".join(draw.choice(list("abc \né"), draw.integers(1, longest))) for _ in range(count)]


def written(path, documents):
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in documents), encoding="utf-8")
    return path


def packed(folder, names, context=16, vocab=None):
    _packing.pack(folder, names, _packing.vocabulary(names, vocab), context)
    return token_records.opened(folder)


def rows(half):
    return np.stack([half[i] for i in range(len(half))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("packed")
    packed(root / "packed", [written(root / "some.jsonl", some(40))])
    return root / "packed"


# What is written


@pytest.mark.parametrize("context", [2, 16, 63])
@pytest.mark.parametrize("vocab", [None, 270])
def test_the_documents_joined_are_cut_into_windows(tmp_path, context, vocab):
    documents = some(33)
    found = packed(tmp_path / "packed", [written(tmp_path / "some.jsonl", documents)], context, vocab)
    own = {"train": [d for i, d in enumerate(documents, 1) if i % 10], "validation": documents[9::10]}
    for half, of in (("train", found.train), ("validation", found.validation)):
        end = found.tokenizer.encode(END) if vocab is None else [tokens.END]
        joined = np.concatenate([end] + [part for one in own[half] for part in (found.tokenizer.encode(one), end)])
        np.testing.assert_array_equal(rows(of), windows(joined, context))
    assert found.context == context


def test_of_few_documents_the_end_of_each_is_held_out(tmp_path):
    documents = some(3, longest=2000)
    for i, one in enumerate(documents):
        (tmp_path / f"{i}.txt").write_text(one, encoding="utf-8", newline="")
    found = packed(tmp_path / "packed", [tmp_path / f"{i}.txt" for i in range(3)])
    held = "".join(END + one[len(one) - len(one) // 10 :] for one in documents)
    read = found.tokenizer.decode(rows(found.validation)[:, :-1].reshape(-1))
    assert held.startswith(read)
    assert len(held) - len(read) <= 16


def test_no_more_is_held_out_than_an_evaluation_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(_packing, "HELD_OUT", 500)
    documents = some(200)
    halves, count, _ = _packing.halves([written(tmp_path / "some.jsonl", documents)])
    held = [one for half, one in halves if half == "validation"]
    every = -(-sum(map(len, documents)) // 500)
    assert count == 200
    assert held == documents[every - 1 :: every]


def test_the_same_texts_give_the_same_bytes_and_nothing_else(tmp_path, folder):
    again = tmp_path / "again"
    packed(again, [written(tmp_path / "some.jsonl", some(40))])
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["index.json", "tokenizer.json", "train-00000.array_record", "validation-00000.array_record"]
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {n: (folder / n).read_bytes() for n in names}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "some.jsonl"]
    assert token_records.opened(again).source.split()[-1] == token_records.opened(folder).source.split()[-1]


def test_files_are_bounded(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(_packing, "SHARD", 1000)
    several = packed(tmp_path / "packed", [written(tmp_path / "some.jsonl", some(40))])
    files = sorted((tmp_path / "packed").glob("train-*"))
    assert len(files) > 5
    np.testing.assert_array_equal(rows(several.train), rows(token_records.opened(folder).train))
    files[3].write_bytes(files[2].read_bytes())
    with pytest.raises(DataDamaged, match=r"train-00003.array_record .*: pack the texts again$"):
        token_records.opened(tmp_path / "packed")


def test_a_large_vocabulary_has_wider_tokens(tmp_path):
    text = "".join(map(chr, range(0x20000, 0x20000 + 70_000)))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    found = packed(tmp_path / "packed", [tmp_path / "a.txt"], 100)
    assert found.train.dtype == np.uint32
    assert rows(found.train)[:, :-1].max() > 2**16 - 1 - 7_000
    assert found.tokenizer.decode(rows(found.train)[:, :-1].reshape(-1)) == (END + text)[: 100 * len(found.train)]


def test_what_spells_the_end_of_a_document_does_not_end_it(tmp_path):
    documents = ["one </s> two " * 20] * 12
    found = packed(tmp_path / "packed", [written(tmp_path / "some.jsonl", documents)], 8, 300)
    ends = rows(found.train)[:, 1:] == tokens.END
    assert ends.sum() <= 11
    assert "</s>" in found.tokenizer.decode(rows(found.train)[:, :-1].reshape(-1))


def test_texts_come_from_files_folders_and_sets(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.txt").write_text("second")
    with gzip.open(tmp_path / "in" / "a.jsonl.gz", "wt") as out:
        out.write('{"text": "first"}\n\n{"text": ""}\n')
    assert [one for one in _packing.documents([tmp_path / "in"]) if one] == ["first", "second"]
    assert len(next(_packing.documents(["python"]))) > 1_000_000


# Reading


def test_batches_of_windows_are_those_of_the_array(folder):
    found = token_records.opened(folder)
    streamed = Batches(found.train, token_records.example, batch=4, seed=3)
    in_memory = Batches(list(rows(found.train)), token_records.example, batch=4, seed=3, rows=[1, 3])
    np.testing.assert_array_equal(streamed(5, 4)["tokens"][:, [1, 3]], in_memory(5, 4)["tokens"])
    for each in (streamed, in_memory):
        each.close()


def damages(content):
    draw = np.random.default_rng(0)
    yield b""
    yield content[: len(content) // 2]
    yield bytes(len(content))
    yield b"[" * 100_000
    yield content + b"0"
    for _ in range(8):
        at, flipped = draw.integers(len(content)), bytearray(content)
        flipped[at] ^= 1 << draw.integers(8)
        yield bytes(flipped)


@pytest.mark.parametrize("checked", [0, 2**30])
def test_damage_is_refused_or_changes_nothing(tmp_path, folder, monkeypatch, checked):
    monkeypatch.setattr(token_records, "CHECKED", checked)
    good = token_records.opened(folder)
    expected, alphabet = [rows(half) for half in (good.train, good.validation)], good.tokenizer.characters
    refused = 0
    for path in sorted(folder.iterdir()):
        for content in (None, *damages(path.read_bytes())):
            copy = tmp_path / "copy"
            shutil.copytree(folder, copy)
            (copy / path.name).unlink()
            if content is not None:
                (copy / path.name).write_bytes(content)
            try:
                found = token_records.opened(copy)
                read = [rows(half) for half in (found.train, found.validation)]
            except UserError:
                refused += 1
            else:
                assert all(map(np.array_equal, read, expected)), path
                assert found.tokenizer.characters == alphabet
            shutil.rmtree(copy)
    assert refused >= (45 if checked else 30)


# Completely or not at all


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_is_interrupted_leaves_nothing(tmp_path, monkeypatch, error):
    names, whole = [written(tmp_path / "some.jsonl", some(40))], _packing._Writer.add

    def add(self, ids):
        whole(self, ids)
        if self.tokens > 1000:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(_packing._Writer, "add", add)
        with pytest.raises(type(error) if isinstance(error, OSError) else error):
            packed(tmp_path / "packed", names)
    assert [path.name for path in tmp_path.iterdir()] == ["some.jsonl"]
    killed = tmp_path / ".packed.new"  # what a process that was killed leaves
    killed.mkdir()
    (killed / "train-00000.array_record").write_bytes(b"half")
    packed(tmp_path / "packed", names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "some.jsonl"]


def test_a_full_disk_is_said(command, tmp_path):
    draw = np.random.default_rng(0)
    Path("long.txt").write_text("".join(draw.choice(list("abcdefgh"), 400_000)))
    words = ["dlc.data", "--records", "packed", "long.txt"]
    code, out, err = cli.finish(cli.start(*words, limit=200_000))
    assert (code, out) == (2, "")
    assert err == "cannot write packed: write() failed: File too large\n"
    assert not list(tmp_path.glob("*packed*"))
    assert not list(tmp_path.glob(".packed*"))


def test_two_processes_do_not_write_one_folder(tmp_path):
    names = [written(tmp_path / "some.jsonl", some(40))]
    (tmp_path / ".packed.new").mkdir()
    with files.lock(tmp_path / ".packed.new" / ".lock", print), pytest.raises(UserError, match=r"^another process is"):
        packed(tmp_path / "packed", names)
    packed(tmp_path / "packed", names)


# The command


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "lines.jsonl").write_text('{"text": "a"}\n{"words": 3}\n')
    (tmp_path / "broken.jsonl").write_text("{")
    (tmp_path / "zeros.txt").write_bytes(b"a\0b")
    written(tmp_path / "some.jsonl", some(40))
    tokens.Characters("abc").save(tmp_path / "empty")

    def run(line):
        code = 0
        with contextlib.suppress(SystemExit):
            code = __main__.main(line.split())
        return code, *capsys.readouterr()

    return run


def test_the_command_writes_a_folder(command, tmp_path):
    code, out, _ = command("--records packed --context 8 --encoding bpe --vocab 280 some.jsonl")
    assert code == 0
    assert out.startswith("40 documents, 280 kinds of tokens: ")
    code, out, _ = command("--records again --context 4 --tokenizer packed some.jsonl")
    assert token_records.opened(Path("again")).tokenizer.size == 280


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--records packed", "--records takes texts"),
        ("--records packed --context 1 some.jsonl", "--records takes texts"),
        ("--records empty some.jsonl", "empty is there already"),
        ("--records packed short.txt", "the texts have only 11 tokens for train, and a window 64 + 1"),
        ("--records packed absent.txt", "absent.txt cannot be read: No such file"),
        ("--records packed lines.jsonl", 'lines.jsonl cannot be read: line 2 has no "text"'),
        ("--records packed broken.jsonl", "broken.jsonl cannot be read: "),
        ("--records packed zeros.txt", "zeros.txt has zeros among its bytes"),
        (
            "--records packed --tokenizer empty some.jsonl",
            "this vocabulary of characters has none that ends a document",
        ),
        ("--records packed --encoding bpe --vocab 3 some.jsonl", "a vocabulary of 3 has no room for a merge"),
        ("--records no/packed some.jsonl", "cannot write no/packed: No such file"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(command, tmp_path, line, sentence):
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = command(line)
    assert code == 2
    assert out == ""
    assert err.startswith(sentence), err
    assert len(err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_is_no_such_folder_is_said(tmp_path):
    with pytest.raises(UserError, match=r"is not a folder of packed texts: python -m dlc.data --records"):
        token_records.opened(tmp_path)


# Training


def trained(run, folder, **changes):
    plan = text.Windows(**{"context": 16, "batch": 4, "steps": 9, "evaluate_every": 3} | changes)
    tokenizer, learn, held = text.packed(run, SimpleNamespace(records=folder, text=None), plan)
    model = GPT(GPTConfig(vocab=tokenizer.size, context=16, layers=1, heads=1, width=8))
    return text.fit(run, model, optax.sgd(0.1), losses.next_token(model), learn, {"tokens": held}, plan)


@pytest.mark.usefixtures("_plain")
def test_a_resumed_run_ends_as_an_uninterrupted_one_to_the_bit(folder, tmp_path, monkeypatch):
    with contextlib.closing(Run(tmp_path / "whole")) as run:
        expected = trained(run, folder)
    assert run.facts["source"] == token_records.opened(folder).source
    assert tokens.same(tokens.load(tmp_path / "whole"), tokens.load(folder))
    save = Loop.save

    def and_stop(self, done, state):
        save(self, done, state)
        if done == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.closing(Run(tmp_path / "two")) as run:
        patch.setattr(Loop, "save", and_stop)
        with pytest.raises(KeyboardInterrupt):
            trained(run, folder)
        run.checkpoints.wait()
    with contextlib.closing(Run(tmp_path / "two", resume=True)) as run:
        jax.tree.map(np.testing.assert_array_equal, trained(run, folder), expected)
    assert [line["step"] for line in run.history] == [3, 3, 6, 6, 9, 9]


def test_windows_of_another_length_or_vocabulary_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"has windows of 16 tokens: give --context 16, or pack anew$"):
        trained(Run(), folder, context=8)
    tokens.Characters("abc").save(tmp_path)
    with pytest.raises(UserError, match=rf"another vocabulary than that of .*--tokenizer {tmp_path}$"):
        trained(Run(init_from=tmp_path), folder)


def test_two_texts_to_train_on_are_refused(folder):
    with pytest.raises(UserError, match=r"^--records and --text are two data sets: give one of them$"):
        text.packed(Run(), SimpleNamespace(records=folder, text=folder / "a.txt"), text.Windows(16, 4, 9, 3))


def test_every_process_of_a_resumed_run_reads_the_vocabulary_of_the_run(tmp_path, monkeypatch):
    """Not that of the weights it began from, which may be gone."""
    (tmp_path / "run").mkdir()
    tokens.Characters("abc").save(tmp_path / "run")
    monkeypatch.setattr(hosts, "lead", lambda: False)
    run = Run(tmp_path / "run", resume=True, init_from=tmp_path / "gone")
    assert tokens.same(text.inherited_vocabulary(run), tokens.Characters("abc"))
