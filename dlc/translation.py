"""What experiments on translation share: a vocabulary, batches of a few shapes, training, beam search, BLEU, figures.

A model translates if it has, as `dlc.models.transformer.Transformer` and `dlc.models.seq2seq.Seq2Seq` have,

    model(source, target) -> logits                     to be trained by `losses.sequence`
    model.start(source, length) -> (memory, cache)      the source, read once, and nothing written yet
    model.step(token, memory, cache) -> (logits, cache) one token more

where a batch of tokens may be several times that of the source: hypotheses about one sentence, side by side.

Glossary: S source tokens, T target tokens.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlc import checkpoint, losses, metrics, plot, tokens, train
from dlc.batches import bucketed, padded
from dlc.data import text
from dlc.data.text import Pairs, Parallel
from dlc.generate import beam_search
from dlc.run import Run

LENGTHS = (14, 18, 24, 36, 64)  # of the buckets, in tokens: each is a program to train with and one to translate with
GROUP = 5  # steps in one program


def pairs(dataset: str, source: Path | None, target: Path | None) -> Parallel:
    """The user's own pair of files, or else the data set."""
    return text.read_pairs(source, target) if source and target else text.parallel(dataset)


def vocabulary(pairs: Parallel, size: int) -> tokens.BPE:
    """One vocabulary for both languages, learnt from the pairs to train on."""
    return tokens.train_bpe([sentence for pair in pairs.train for sentence in pair], size)


def init(model: Any, tx: optax.GradientTransformation, key: Any) -> train.State:
    """The state before the first step."""
    some = jnp.full((1, 4), tokens.START, jnp.int32)
    return train.init(model.init(key, some, some)["params"], tx, key)


def fit(
    run: Run,
    pairs: Parallel,
    tokenizer: tokens.BPE,
    model: Any,
    tx_of: Callable[[int], optax.GradientTransformation],
    *,
    epochs: int,
    batch: int,
    smoothing: float,
    seed: int,
) -> tuple[Any, dict[str, float]]:
    """Trains `model` for `epochs` epochs with batches of `batch` tokens on either side.

    `tx_of(steps)` gives the optimizer of a run of so many steps. Every epoch reports the loss on the pairs to validate
    with, in nats a token and without smoothing. Returns the last weights, and {"validation_loss": nats}. Saves the
    vocabulary, and the figure "curves".
    """
    run.facts |= {"dataset": pairs.name, "source": pairs.source}
    if run.folder:
        tokenizer.save(run.folder)
    source, target = encoded(tokenizer, pairs.train)
    batches, steps_per_epoch, left_out = bucketed(source, target, lengths=LENGTHS, tokens=batch, group=GROUP, seed=seed)
    if left_out:
        run.say(
            f"{left_out} of {len(source)} pairs are left out: they are longer than {LENGTHS[-1]} tokens, or too few"
        )
    steps = epochs * steps_per_epoch
    held_source, held_target = encoded(tokenizer, pairs.validation)
    longest = max(map(len, [*held_source, *held_target]))
    held = (padded(held_source, longest), padded(held_target, longest + 1))
    tx = tx_of(steps)

    def forward(state: train.State, batch: Any) -> Any:
        source, target = batch
        logits = model.apply({"params": state.params}, source, target[:, :-1])
        real = target[:, 1:] != tokens.PAD
        nll = losses.cross_entropy(logits.reshape(-1, logits.shape[-1]), target[:, 1:].reshape(-1))
        return jnp.where(real, nll.reshape(real.shape), 0).sum(1), real.sum(1)

    def measure(outputs: Any) -> dict[str, Any]:
        nll, count = outputs
        return {"validation_loss": float(np.sum(nll) / np.sum(count))}

    state, outputs = run.fit(
        lambda key: init(model, tx, key),
        train.make_step(losses.sequence(model, smoothing), tx),
        batches,
        steps=steps,
        keys=train.seed_keys(seed),
        predict=train.in_batches(forward, held, size=64),
        measure=measure,
        evaluate_every=steps_per_epoch,
        report_every=GROUP,
    )
    run.figure("curves", plot.curves(run.history, steps_per_epoch, held_out="validation"))
    return state.params, measure(outputs)


def encoded(tokenizer: tokens.BPE, pairs: Pairs) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Source sentences with an end, and target sentences between a start and an end, as int32 [S] and [T + 1]."""
    source, target = (tokenizer.encode_batch(list(side)) for side in zip(*pairs, strict=True))
    start, end = np.array([tokens.START], np.int32), np.array([tokens.END], np.int32)
    return [np.concatenate([s, end]) for s in source], [np.concatenate([start, t, end]) for t in target]


def translator(
    run: Run, model: Any, params: Any, tokenizer: tokens.BPE, *, beams: int = 4, alpha: float = 0.6, batch: int = 32
) -> Callable[[Sequence[str]], list[str]]:
    """`sentences -> translations`, by beam search over batches of about the same length.

    A translation ends at one and a half times the tokens of its bucket, and ten.
    """

    def search(params: Any, source: Any) -> Any:
        length = source.shape[1] * 3 // 2 + 10
        variables = {"params": params}
        memory, cache = model.apply(variables, source, length, method="start")
        cache = jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0) if leaf.ndim else leaf, cache)

        def step(token: Any, cache: Any) -> Any:
            return model.apply(variables, token, memory, cache, method="step")

        found, _ = beam_search(
            step, cache, batch=len(source), beams=beams, length=length, start=tokens.START, end=tokens.END,
            vocab=tokenizer.size, alpha=alpha,
        )  # fmt: skip
        return found[:, 0]

    def translate(sentences: Sequence[str]) -> list[str]:
        source, _ = encoded(tokenizer, [(sentence, "") for sentence in sentences])
        found: list[str] = [""] * len(source)
        size = min(batch, len(source))
        # What is longer than the last bucket goes to the next power of two.
        lengths = np.array([next((L for L in LENGTHS if len(s) <= L), 1 << (len(s) - 1).bit_length()) for s in source])
        for length in np.unique(lengths).tolist():
            rows = np.flatnonzero(lengths == length)
            for at in range(0, len(rows), size):
                some = np.resize(rows[at : at + size], size)  # the last batch is filled up with what it has
                array = padded([source[row] for row in some], length)
                out = run.timed("translate", run.compiled(search, params, array), params, array)
                for row, ids in zip(rows[at : at + size], np.asarray(out), strict=False):
                    found[row] = tokenizer.decode(ids)
        return found

    return translate


def learnt(folder: Path, model: Any, tx: optax.GradientTransformation, say: Callable[[str], None]) -> Any:
    """The weights that the run in `folder` ended with. Raises UserError if it has saved none."""
    return checkpoint.newest(folder, init(model, tx, jax.random.key(0)), say).params


def tested(run: Run, pairs: Parallel, translate: Callable[[Sequence[str]], list[str]]) -> dict[str, float]:
    """BLEU (percent) on the pairs to test with, counted by sacrebleu; its signature goes into the record.

    The translations are saved as translations.txt, a line each.
    """
    source, reference = zip(*pairs.test, strict=True)
    hypotheses = translate(source)
    bleu, run.facts["signature"] = metrics.bleu(hypotheses, reference)
    run.text("translations", "".join(line.replace("\n", " ") + "\n" for line in hypotheses))
    return {"bleu": bleu}
