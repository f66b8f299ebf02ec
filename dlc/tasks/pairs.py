"""What experiments on translation share: a vocabulary, batches of a few shapes, training, beam search, scores, figures.

A model can translate if it has, like `dlc.models.transformer.Transformer` and `dlc.models.seq2seq.Seq2Seq`,

    model(source, target) -> logits                     trained by `losses.sequence`
    model.start(source, length) -> (memory, cache)      reads the source once, before anything is written
    model.step(token, memory, cache) -> (logits, cache) one more token

where a batch of tokens may be several times as large as that of the source: several hypotheses for each sentence.

Glossary: S source tokens, T target tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlc import losses, metrics, optim, sharding, tokens, train
from dlc.batches import bucketed, padded
from dlc.data import text
from dlc.data.text import Pairs, Parallel
from dlc.errors import UserError
from dlc.generate import beam_search
from dlc.run import plot
from dlc.run.fit import Plan, evaluation, start
from dlc.run.fit import fit as fit_plan
from dlc.run.flags import Bound
from dlc.run.run import Run
from dlc.tasks.text import inherited_vocabulary

LENGTHS = (14, 18, 24, 36, 64)  # of the buckets, in tokens; each is a program for training and one for translating
GROUP = 5  # steps in one program
EXAMPLES = 10  # test sentences in the record

Sentence = Annotated[str, Bound(str.strip, "is empty: write a sentence to translate")]
Draw = Callable[[Run, Any, Any, tokens.BPE, str, str], None]  # run, model, variables, tokenizer, sentence, translation


def read(dataset: str, source: Path | None, target: Path | None) -> Parallel:
    """The user's own pair of files, or else the data set. Raises UserError if only one file is given."""
    if (source is None) != (target is None):
        raise UserError("--source and --target are two files, a line of one translating that of the other")
    return text.read_pairs(source, target) if source and target else text.parallel(dataset)


def vocabulary(run: Run, pairs: Parallel, size: int) -> tokens.BPE:
    """One vocabulary for both languages: that of the weights to begin from, or else one learnt from the pairs."""
    return inherited_vocabulary(run) or tokens.train_bpe([sentence for pair in pairs.train for sentence in pair], size)


@dataclass(frozen=True)
class Recipe:
    """How to train: epochs, batches of `batch` tokens on either side, and the papers' settings."""

    epochs: int
    batch: int
    lr: int | float
    warmup: int | float  # the share of the steps in which the rate rises; then it falls to zero
    smoothing: int | float
    seed: int = 0
    parts: int = 1  # of a batch, one after another


def fit(
    run: Run,
    pairs: Parallel,
    tokenizer: tokens.BPE,
    model: Any,
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation],
    recipe: Recipe,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Trains `model`; every epoch reports the loss on the validation pairs, in nats a token and without smoothing.

    `optimizer(rate)` is used with gradients clipped to a norm of 1. Returns the variables and {"validation_loss":
    nats}. Saves the weights and the vocabulary.
    """
    run.facts |= {"dataset": pairs.name, "source": pairs.source}
    run.keep(model)
    if run.folder:
        tokenizer.save(run.folder)
    source, target = encoded(tokenizer, pairs.train)
    batches, steps_per_epoch, left_out = bucketed(
        source, target, lengths=LENGTHS, tokens=recipe.batch, group=GROUP, seed=recipe.seed
    )
    if left_out:
        run.say(
            f"{left_out} of {len(source)} pairs are left out: "
            f"they are longer than {LENGTHS[-1]} tokens, or too few of a length to fill a batch"
        )
    steps = recipe.epochs * steps_per_epoch
    rate = optim.triangle(recipe.lr, steps, recipe.warmup)
    tx = optim.accumulated(optax.chain(optax.clip_by_global_norm(1.0), optimizer(rate)), recipe.parts)
    held_source, held_target = encoded(tokenizer, pairs.validation)
    longest = max(map(len, [*held_source, *held_target]))
    held = {"source": padded(held_source, longest), "target": padded(held_target, longest + 1)}

    def init(key: Any, begun: Any = None) -> train.State:
        some = jnp.full((1, 4), tokens.START, jnp.int32)
        return train.init((begun or model.init(key, some, some))["params"], tx, key)

    loss_fn = losses.sequence(model, recipe.smoothing)
    state = start(run, init, train.seed_keys(recipe.seed), model)
    measure = evaluation(run, loss_fn, held, state)
    last: dict[str, float] = {}

    def evaluate(state: train.State) -> dict[str, float]:
        measured = measure(state)
        last.update(validation_loss=float(measured["nll"]), validation_error=float(measured["error"]))
        return last

    plan = Plan(steps, evaluate_every=steps_per_epoch, report_every=GROUP, rate=rate)
    step = train.in_parts(train.make_step(loss_fn, tx), recipe.parts)
    state = fit_plan(run, state, step, batches, plan, evaluate)
    variables = {"params": sharding.whole(state.params)}
    run.keep(model, variables)
    return variables, {"validation_loss": (last or evaluate(state))["validation_loss"]}


@dataclass(frozen=True)
class Search:
    """How to translate: beam search with `beams` hypotheses and a length penalty `alpha`."""

    beams: int = 4
    alpha: int | float = 0.6
    sentences: tuple[str, ...] = ()  # to be shown at the end


def show(
    run: Run, pairs: Parallel | None, model: Any, variables: Any, tokenizer: tokens.BPE, search: Search, draw: Draw
) -> dict[str, float]:
    """BLEU and chrF on the test pairs, if there are any, and the translations of a few sentences.

    `draw` shows the first of them, a test sentence unless there are others; if the model answers with nothing, it shows
    the test sentence's own translation. Saves the figure "curves" from the log of
    the run, or of the run that is shown.
    """
    if run.history:
        epoch = plot.epoch(run.history, "validation")
        run.figure("curves", plot.curves(run.history, epoch, "validation", "nats a token"))
    translate = translator(run, model, variables, tokenizer, search)
    figures = tested(run, pairs, translate) if pairs else {}
    sentences = search.sentences or (pairs.test[0][0] if pairs else "",)
    translations = translate(sentences)
    for sentence, found in zip(sentences, translations, strict=True):
        run.say(f"{sentence}\n  -> {found}")
    reference = pairs.test[0][1] if pairs and not search.sentences else ""
    draw(run, model, variables, tokenizer, sentences[0], translations[0] or reference)
    return figures


def encoded(tokenizer: tokens.BPE, pairs: Pairs) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Source sentences followed by END, and target sentences between START and END, as int32 [S] and [T + 1]."""
    source, target = (tokenizer.encode_batch(list(side)) for side in zip(*pairs, strict=True))
    start, end = np.array([tokens.START], np.int32), np.array([tokens.END], np.int32)
    return [np.concatenate([s, end]) for s in source], [np.concatenate([start, t, end]) for t in target]


def translator(
    run: Run, model: Any, variables: Any, tokenizer: tokens.BPE, search: Search = Search(), batch: int = 32
) -> Callable[[Sequence[str]], list[str]]:
    """`sentences -> translations`, by beam search over batches of about the same length.

    A translation has at most one and a half times as many tokens as its bucket, and ten more.
    """
    beams = search.beams

    def found_in(variables: Any, source: Any) -> Any:
        length = source.shape[1] * 3 // 2 + 10
        memory, cache = model.apply(variables, source, length, method="start")
        cache = jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0) if leaf.ndim else leaf, cache)

        def step(token: Any, cache: Any) -> Any:
            return model.apply(variables, token, memory, cache, method="step")

        found, _ = beam_search(
            step,
            cache,
            batch=len(source),
            beams=beams,
            length=length,
            start=tokens.START,
            end=tokens.END,
            vocab=tokenizer.size,
            alpha=search.alpha,
        )
        return found[:, 0]

    def translate(sentences: Sequence[str]) -> list[str]:
        source, _ = encoded(tokenizer, [(sentence, "") for sentence in sentences])
        found: list[str] = [""] * len(source)
        size = min(batch, len(source))
        # Longer sentences than the last bucket are padded to the next power of two.
        lengths = np.array([next((L for L in LENGTHS if len(s) <= L), 1 << (len(s) - 1).bit_length()) for s in source])
        for length in np.unique(lengths).tolist():
            rows = np.flatnonzero(lengths == length)
            for at in range(0, len(rows), size):
                some = np.resize(rows[at : at + size], size)  # the last batch is filled up with copies
                array = padded([source[row] for row in some], length)
                program = run.clock.compiled(found_in, variables, array)
                out = run.clock.timed("translate", program, variables, array)
                for row, ids in zip(rows[at : at + size], np.asarray(out), strict=False):
                    found[row] = tokenizer.decode(ids)
        return found

    return translate


def tested(run: Run, pairs: Parallel, translate: Callable[[Sequence[str]], list[str]]) -> dict[str, float]:
    """BLEU and chrF (percent) on the test pairs, computed by sacrebleu, whose signatures go into the record.

    So do up to ten test sentences, at equal distances, with both translations. Saves ours as translations.txt, one a
    line.
    """
    source, reference = zip(*pairs.test, strict=True)
    hypotheses = translate(source)
    bleu, run.facts["signature"] = metrics.bleu(hypotheses, reference)
    chrf, run.facts["chrf_signature"] = metrics.chrf(hypotheses, reference)
    run.text("translations", "".join(line.replace("\n", " ") + "\n" for line in hypotheses))
    rows = zip(source, hypotheses, reference, strict=True)
    named = [{"source": s, "translation": t, "reference": r} for s, t, r in rows]
    run.facts["examples"] = named[:: -(-len(named) // EXAMPLES)]
    return {"bleu": bleu, "chrf": chrf}
