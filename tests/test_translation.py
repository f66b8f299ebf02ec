"""Sequences as batches of a few shapes, and translation from pairs of sentences to BLEU."""

import contextlib
import dataclasses
import functools
from pathlib import Path

import drawn
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlc import metrics, tokens, train, weights
from dlc.batches import bucketed, padded, random_starts, windows
from dlc.data import text
from dlc.errors import UserError
from dlc.models.bert import BertConfig, BertMaskedLM
from dlc.models.gpt import GPT, GPTConfig
from dlc.run import flags, plot
from dlc.run.run import Run
from dlc.tasks import pairs
from dlc.tasks import text as tasks_text
from experiments.attention import bert, gpt, seq2seq, translate
from experiments.cifar10 import resnet


def pairs_of(lengths):
    """A source of n times n, and a target of a start, n times n and an end."""
    source = [np.full(n, n, np.int32) for n in lengths]
    target = [np.array([tokens.START, *[n] * n, tokens.END], np.int32) for n in lengths]
    return source, target


def test_buckets_hold_what_fits_and_groups_have_one_shape():
    lengths = [3, 4, 5, 7, 8, 9, 15] * 40
    batches, epoch, left_out = bucketed(*pairs_of(lengths), lengths=(6, 10), tokens=60, group=4, seed=1)
    assert left_out == 40  # those of 15 tokens
    seen, shapes = [], set()
    for at in range(0, epoch, 4):
        batch = batches(at, 4)
        L = batch["source"].shape[2]
        assert batch["source"].shape == (4, 60 // L, L)
        assert batch["target"].shape == (4, 60 // L, L + 1)
        shapes.add(batch["source"].shape)
        real = (batch["source"] != 0).sum(-1)
        assert ((batch["target"] != 0).sum(-1) == real + 2).all()  # nothing was cut
        assert real.max() < L
        assert L == 6 or real.min() > 5  # the first bucket that holds it
        seen += real.ravel().tolist()
    assert shapes == {(4, 10, 6), (4, 6, 10)}
    assert set(seen) == {3, 4, 5, 7, 8, 9}  # and 15 is longer than any bucket
    for n in (3, 7):
        assert seen.count(n) == pytest.approx(40, abs=16)


def test_batches_are_a_function_of_the_step():
    source, target = pairs_of([3, 4, 8, 9] * 50)
    made = functools.partial(bucketed, source, target, lengths=(6, 10), tokens=60, group=4)
    (one, epoch, _), (again, *_), (other, *_) = made(seed=0), made(seed=0), made(seed=1)
    at = 3 * epoch + 4
    assert (one(at, 4)["source"] == again(at, 4)["source"]).all()
    np.testing.assert_array_equal(one(at + 1, 2)["source"], one(at, 4)["source"][1:3])
    assert any(
        one(i, 4)["source"].shape != other(i, 4)["source"].shape or (one(i, 4)["source"] != other(i, 4)["source"]).any()
        for i in range(0, epoch, 4)
    )


def test_a_bucket_with_too_few_goes_into_the_next():
    source, target = pairs_of([3] * 5 + [8] * 50 + [14] * 2)
    batches, epoch, left_out = bucketed(source, target, lengths=(6, 10, 20), tokens=60, group=1)
    seen = {int(n) for at in range(4 * epoch) for n in (batches(at, 1)["source"] != 0).sum(-1).ravel()}
    assert seen == {3, 8}
    assert left_out == 2  # at the end there is no next


def test_no_bucket_has_enough():
    with pytest.raises(UserError, match=r"^3 pairs do not fill a batch of 60 tokens: choose smaller batches$"):
        bucketed(*pairs_of([3, 3, 3]), lengths=(6,), tokens=60, group=1)


def test_padded_cuts_and_fills():
    rows = padded([np.array([1, 2, 3]), np.array([4])], 2)
    assert rows.tolist() == [[1, 2], [4, 0]]
    assert rows.dtype == np.int32


def test_windows_lie_side_by_side():
    assert windows(np.arange(8, dtype=np.int32), 3).tolist() == [[0, 1, 2, 3], [3, 4, 5, 6]]
    with pytest.raises(UserError, match=r"^a text of 3 tokens has no window of 3 \+ 1: take a longer text$"):
        windows(np.arange(3, dtype=np.int32), 3)


def test_random_starts_reach_the_whole_text_and_depend_on_seed_and_step_alone():
    starts = random_starts(20, 16, 50)
    assert set(np.unique(starts(0, 4))) == {0, 1, 2, 3}
    np.testing.assert_array_equal(starts(0, 4)[2:], starts(2, 2))
    several = random_starts(20, 16, 50, seeds=(0, 7))
    np.testing.assert_array_equal(several(1, 2)[:, 0], starts(1, 2))
    assert (several(1, 2)[:, 1] != starts(1, 2)).any()
    with pytest.raises(UserError, match="a text of 16 tokens has no window of 16"):
        random_starts(16, 16, 2)


def test_windows_of_a_text_reach_the_step():
    step = train.windows(lambda state, batch: (state, batch), np.arange(30, dtype=np.uint16), 4)
    state = train.init(jnp.zeros(()), optax.sgd(0.1), jax.random.key(0))
    _, batch = train.compiled(step)(state, jnp.array([0, 7]))
    assert batch["tokens"].tolist() == [[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]]


class Smallest(nn.Module):
    """The smallest model that can translate: logits from the last token and the mean of the source.

    It compiles in a tenth of the time of a transformer.
    """

    vocab: int

    def setup(self):
        self.source = nn.Embed(self.vocab, self.vocab)
        self.target = nn.Embed(self.vocab, self.vocab)

    def __call__(self, source, target, *, train=False):
        return self.target(target) + self.start(source, 0)[0][:, None]

    def start(self, source, length):
        real = (source != 0)[..., None]
        return (self.source(source) * real).sum(1) / real.sum(1), jnp.zeros((len(source), length))

    def step(self, token, memory, cache):
        return self.target(token) + jnp.repeat(memory, len(token) // len(memory), 0), cache


@pytest.fixture(scope="module")
def trained():
    """A translator of numbers below a hundred that has hardly learnt, and the run that trained it."""
    numbers = [(text.english(n), text.french(n)) for n in range(100)]
    several = [(" ".join([a] * n), " ".join([b] * n)) for n in (5, 8) for a, b in numbers[:50]]
    sentences = text.Parallel("numbers", (numbers + several) * 8, numbers[:20], numbers[:20], "by rule")
    tokenizer = pairs.vocabulary(Run(), sentences, 300)
    model, run = Smallest(tokenizer.size), Run()
    recipe = pairs.Recipe(epochs=1, batch=256, lr=1e-2, warmup=0.0, smoothing=0.1)
    variables, figures = pairs.fit(run, sentences, tokenizer, model, optax.adam, recipe)
    return run, sentences, tokenizer, model, variables, figures


def test_a_run_compiles_a_handful_of_programs(trained):
    run, *_, figures = trained
    losses = [line["loss"] for line in run.history if "loss" in line]
    assert losses[-1] < losses[0]
    assert figures["validation_loss"] == run.history[-1]["validation_loss"]
    steps = [key for key in run.clock.programs if key[-1]]  # those that donate their state
    source, target = pairs.encoded(trained[2], trained[1].train)
    needs = {max(len(s), len(t) - 1) for s, t in zip(source, target, strict=True)}
    buckets = set(np.searchsorted(pairs.LENGTHS, sorted(needs)).tolist())
    assert 3 <= len(steps) == len(buckets) <= len(pairs.LENGTHS)


def test_translating_compiles_once_for_each_bucket(trained):
    _, numbers, tokenizer, model, variables, _ = trained
    traces = []

    class Counted:
        def apply(self, *arguments, method):
            traces.append(method)
            return model.apply(*arguments, method=method)

    translate = pairs.translator(Run(), Counted(), variables, tokenizer, pairs.Search(beams=2), batch=8)
    sentences = [source for source, _ in numbers.test]
    found = translate(sentences)
    assert traces.count("start") == 1
    assert translate(sentences[::-1]) == found[::-1]  # in whatever company
    assert traces.count("start") == 1
    translate([*sentences[:7], " ".join(["seven"] * 80)])  # longer than all buckets
    assert traces.count("start") == 2


def test_bleu_is_a_percentage_with_a_signature():
    references = ["un chien court dans la neige .", "deux hommes sont assis ."]
    score, signature = metrics.bleu(references, references)
    assert score == pytest.approx(100)
    assert "tok:13a" in signature
    assert metrics.bleu(["rien de tout cela ici .", "non non non non ."], references)[0] < 20


def test_chrf_counts_sequences_of_characters():
    references = ["un chien court dans la neige .", "deux hommes sont assis ."]
    score, signature = metrics.chrf(references, references)
    assert score == pytest.approx(100)
    assert "nc:6" in signature
    ending, other = (
        metrics.chrf([references[0], f"deux {word} ."], references)[0] for word in ("homme assise", "gens")
    )
    assert 20 < other < ending < 100
    # By hand: sequences of one and of two letters have a precision of 2/2 and 1/1 and a recall of 2/3 and 1/2; longer
    # ones do not occur. P = 1, R = 7/12, F = 5 P R / (4 P + R).
    assert metrics.chrf(["ab"], ["abc"])[0] == pytest.approx(100 * 5 * (7 / 12) / (4 + 7 / 12))


def test_a_tested_translator_leaves_ten_examples_and_two_signatures(tmp_path):
    sentences = text.Parallel("", [], [], [(f"{n} dogs", f"{n} chiens") for n in range(23)], "")
    run = Run(tmp_path)
    with contextlib.closing(run):
        figures = pairs.tested(run, sentences, lambda source: [line.replace("dogs", "chiens") for line in source])
    assert figures["chrf"] == pytest.approx(100)
    assert figures["bleu"] >= 0
    assert "nc:6" in run.facts["chrf_signature"]
    assert len(run.facts["examples"]) == 8
    assert run.facts["examples"][1] == {"source": "3 dogs", "translation": "3 chiens", "reference": "3 chiens"}
    assert (tmp_path / "translations.txt").read_text().splitlines()[22] == "22 chiens"


def test_pictures_of_attention():
    heads = {f"head {i}": np.full((3, 4), 0.25) for i in range(3)}
    figure = plot.attention(heads, ["a", "b", "c"], ["w", "x", "y", "z"])
    assert [axis.get_xlabel() for axis in figure.axes] == list(heads)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (gpt.Config(top_p=0.0), "--top-p must be greater than 0"),
        (gpt.Config(top_p=1.5), "--top-p must be greater than 0 and at most 1, not 1.5"),
        (gpt.Config(prompt=""), "--prompt is empty: begin with a letter"),
        (gpt.Config(dropout=1.0), "--dropout must be at least 0 and less than 1, not 1.0"),
        (bert.Config(mask_share=1.5), "--mask-share must be at least 0 and less than 1, not 1.5"),
        (bert.Config(masked_sentences=("no mask",)), r"--masked-sentences must have exactly one \[MASK\]: no mask"),
        (gpt.Config(warmup=50), "--warmup must be at least 0 and less than 1, not 50"),
    ],
)
def test_values_that_cannot_be(config, sentence):
    flags.check(type(config)())
    with pytest.raises(UserError, match=sentence):
        flags.check(config)


@pytest.mark.parametrize(
    ("experiment", "changes", "sentence"),
    [
        (translate, {"source": Path("a.txt")}, "--source and --target are two files"),
        (seq2seq, {"target": Path("a.txt")}, "--source and --target are two files"),
        (resnet, {"warmup": 0.5}, "--warmup must be less than 0.5, where the rate falls, not 0.5"),
    ],
)
def test_flags_that_contradict_each_other(experiment, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        experiment.train(dataclasses.replace(experiment.SMOKE, **changes), Run())


@pytest.mark.parametrize("experiment", [translate, seq2seq])
def test_an_empty_sentence_is_refused_before_training(experiment):
    with pytest.raises(UserError, match="--sentences is empty: write a sentence to translate"):
        flags.check(dataclasses.replace(experiment.SMOKE, sentences=("A dog.", " ")))


def test_a_context_without_a_second_token_is_refused():
    with pytest.raises(UserError, match="--context must be greater than 1, not 1"):
        flags.check(dataclasses.replace(bert.SMOKE, context=1))


def shown(experiment, folder, said=None, **changes):
    """The experiment's `show` of the weights in `folder`, which says its lines to `said`."""
    run = Run()
    run.weights = folder
    run.say = (said if said is not None else []).append
    return experiment.show(dataclasses.replace(experiment.Config(), **changes), run, *weights.load(folder))


def test_gpt_continues_with_what_a_run_has_learnt(tmp_path, capsys):
    sizes = dataclasses.replace(gpt.SMOKE, steps=20, layers=1, width=16, context=16, length=8)
    run = Run(tmp_path)
    learnt = gpt.train(sizes, run)
    run.close()
    assert learnt["validation_loss"] > 0
    written = (tmp_path / "written.txt").read_text()
    capsys.readouterr()
    assert shown(gpt, tmp_path, length=8) == {}
    assert capsys.readouterr().out.strip("\n") == written.strip("\n")  # the same weights, prompt and seed
    said = []
    shown(gpt, tmp_path, said, prompt="import sys\nimport os\n", length=2)
    sentence = "the prompt has 21 tokens and the context 16: the model reads the last ones"
    assert said == [sentence, "generating ..."]
    with pytest.raises(UserError, match=r"characters outside the vocabulary of \d+: 'é'"):
        shown(gpt, tmp_path, prompt="é")


def test_a_configuration_comes_back_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in (gpt, bert):
        config = dataclasses.replace(module.SMOKE, text=Path("mine.txt"))
        flags.save(tmp_path, "x", config, "")
        assert flags.load(tmp_path, "x", module.Config) == dataclasses.replace(config, text=tmp_path / "mine.txt")
    pair = translate.Config(source=Path("a"), target=tmp_path / "b", sentences=("one", "two"))
    flags.save(tmp_path, "x", pair, "")
    assert flags.load(tmp_path, "x", translate.Config) == dataclasses.replace(pair, source=tmp_path / "a")


def test_weights_and_a_vocabulary_that_do_not_belong_together(tmp_path):
    model = GPT(GPTConfig(vocab=265, context=8, layers=1, heads=1, width=8))
    weights.save_gpt2(tmp_path, model, drawn.variables(model, jnp.zeros((1, 1), jnp.int32))["params"])
    tokens.train_bpe(["to be or not to be, that is the question"], 270).save(tmp_path)
    with pytest.raises(UserError, match=r"has 270 tokens and the model 265: they do not belong together$"):
        shown(gpt, tmp_path)


def test_published_bert_guesses_a_word(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "how", "are", "you", "doing", "today", "?"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    model = BertMaskedLM(BertConfig(len(words), 12, layers=1, heads=1, width=8, hidden=8))
    weights.save_bert(tmp_path, model, drawn.variables(model, jnp.ones((1, 1), jnp.int32))["params"])
    said = []
    assert shown(bert, tmp_path, said, masked_sentences=("How are you [MASK] today?", "[MASK] you")) == {}
    assert len(said) == 2
    sentence, guesses = said[0].split("\n")
    assert sentence == "How are you [MASK] today?"
    assert len(guesses.split(", ")) == 5
    assert all(guess.split()[0] in words for guess in guesses.split(", "))
    with pytest.raises(UserError, match="do not fit into a context of 12"):
        shown(bert, tmp_path, masked_sentences=("how are you " * 4 + "[MASK]",))
    assert shown(bert, tmp_path, masked_sentences=()) == {}


def test_every_word_of_a_text_is_hidden_once():
    words = tokens.train_words(["a b c d e f g"], 12)
    row = np.resize(words.encode("a b c d e f g z"), 40)
    row[35:] = tokens.PAD
    held = tasks_text.hidden(np.stack([row, row[::-1]]), words, 0.15)
    assert held["tokens"].shape == (14, 40)
    known = ~np.isin(held["tokens"], (tokens.PAD, tokens.UNKNOWN))[:2]
    np.testing.assert_array_equal(held["chosen"].reshape(7, 2, 40).sum(0), known)
    assert (held["masked"] == np.where(held["chosen"], words.mask, held["tokens"])).all()
    assert held["chosen"].sum(1).max() <= 6  # a seventh of 40
    with pytest.raises(UserError, match=r"^no word of the text to validate with is in the vocabulary: take a longer"):
        tasks_text.hidden(np.full((2, 5), tokens.UNKNOWN), words, 0.15)


def test_neighbours_guess_by_counts_as_by_hand(monkeypatch):
    """After an a there is b twice and c once; before d and at an end there are others."""
    monkeypatch.setattr(tasks_text, "PRIOR", 0.1)
    words = tokens.train_words(["a b a b a c d"], 9)
    a, b, c, d = words.encode("a b c d")
    learn, hide = np.array([[a, b, a, b], [a, c, d, tokens.PAD]]), words.mask
    text = np.array([[a, b, a], [a, c, d], [d, c, d], [d, a, a]])
    chosen = np.zeros((4, 3), bool)
    chosen[[0, 1, 2, 3], [1, 1, 1, 0]] = True
    masked = np.array([[a, hide, hide], [a, hide, d], [hide, hide, d], [hide, a, a]])
    found = tasks_text.counted(learn, {"tokens": text, "masked": masked, "chosen": chosen}, words)
    assert found["frequent_accuracy"] == 0  # which says a
    assert found["bigram_accuracy"] == 0.25  # b after a, and a at the beginning where d is
    assert found["neighbours_accuracy"] == 0.75
    count = np.zeros(9)
    count[[tokens.PAD, a, b, c, d]] = 2, 3, 2, 1, 1  # of those on the left of another
    share = (count + 1) / (count + 1).sum()
    possible = ~np.isin(np.arange(9), (tokens.PAD, tokens.UNKNOWN))
    after = {a: (3, {b: 2, c: 1}), tokens.PAD: (2, {a: 2})}
    nats = []
    for left, word in ((a, b), (a, c), (None, c), (tokens.PAD, d)):
        p = share.copy()
        if left is not None:
            total, pairs = after[left]
            p = np.array([(pairs.get(w, 0) + 0.1 * share[w]) / (total + 0.1) for w in range(9)])
        nats.append(-np.log(p[word] / p[possible].sum()))
    assert found["bigram_perplexity"] == pytest.approx(np.exp(np.mean(nats)), rel=1e-5)
    assert found["neighbours_perplexity"] < found["bigram_perplexity"]


def test_lines_are_rows_of_words(tmp_path):
    (tmp_path / "text").write_text("a b c\n\n" * 200 + "d e f g h\n" * 20)
    tokenizer, learn, held = tasks_text.read_lines(Run(), "", tmp_path / "text", 20, 4)
    assert learn.shape == (208, 4)
    assert tokenizer.decode(learn[0]) == "a b c"
    assert learn[0, 3] == tokens.PAD
    assert [tokenizer.decode(row) for row in held[-2:]] == ["d e f g", "h"]  # a longer line has several rows
    tokens.Characters.of("abc").save(tmp_path)
    with pytest.raises(UserError, match=r"knows characters and not words: begin with the weights of an attention.bert"):
        tasks_text.read_lines(Run(init_from=tmp_path), "", tmp_path / "text", 20, 4)


def test_a_run_that_has_not_trained_has_nothing_to_say(tmp_path):
    weights.write_model(tmp_path, GPT(GPTConfig(vocab=3, context=8, layers=1, heads=1, width=8)))
    with pytest.raises(UserError, match="has not saved any weights yet: wait for its first checkpoint"):
        shown(gpt, tmp_path)
    with pytest.raises(UserError, match="there is no vocabulary in"):
        tasks_text.tokenizer_of(tmp_path, None)


def test_training_that_begins_from_weights_keeps_their_vocabulary(tmp_path):
    """Another text would give as many tokens, but different ones."""
    for name, letters in (("first", "abcd"), ("second", "cdab"), ("third", "wxyz")):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.txt").write_text(f"{letters} {letters[:2]} " * 200)
    first = Run(tmp_path / "first")
    tokenizer, *_ = tasks_text.read(first, "", tmp_path / "first.txt", "bpe", 270)
    second = Run(tmp_path / "second", init_from=tmp_path / "first" / "weights.safetensors")
    inherited, learn, _ = tasks_text.read(second, "", tmp_path / "second.txt", "bpe", 270)
    np.testing.assert_array_equal(inherited.encode("abcd"), tokenizer.encode("abcd"))
    assert tokenizer.decode(learn).startswith("cdab cd cdab")
    resumed = Run(tmp_path / "second", resume=True, init_from=tmp_path / "gone")
    assert tasks_text.read(resumed, "", tmp_path / "third.txt", "bpe", 270)[0].size == tokenizer.size
    with pytest.raises(UserError, match="there is no vocabulary in"):
        tasks_text.read(Run(init_from=tmp_path / "third"), "", tmp_path / "third.txt", "bpe", 270)
