"""A recurrent network translates English into French, and learns by itself which word belongs to which.

Claim: a recurrent translator that may look back at the source learns by itself to align words as people would (figure
3).

Source: Bahdanau, Cho, Bengio 2014, "Neural machine translation by jointly learning to align and translate",
https://arxiv.org/abs/1409.0473. The captions are Multi30k's (Elliott et al. 2016 and 2017), test_2016_flickr; the
paper's set is 400 times larger, so this model is smaller than its RNNsearch, and Adam with a rate that falls to zero
stands in for Adadelta. BLEU is sacrebleu's, on text as people write it.

Expect: 50.00 BLEU on two CPU cores, in nine minutes.

    python -m experiments.attention.seq2seq
    python -m experiments.attention.seq2seq --source FILE --target FILE     lines that translate each other
    python -m experiments.attention.seq2seq --weights RUN --sentence "A dog runs through the snow."
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax

from dlc import config as configs
from dlc import optim, plot, tokens, translation
from dlc.config import not_negative, only, positive, share
from dlc.errors import UserError
from dlc.launch import launch
from dlc.models.seq2seq import Seq2Seq, Seq2SeqConfig
from dlc.run import Run


@dataclass(frozen=True)
class Config:
    dataset: Literal["multi30k", "numbers"] = "multi30k"
    source: Path | None = None  # a text file of your own, a sentence a line, instead of the dataset,
    target: Path | None = None  # and its translation
    weights: Path | None = None  # the folder of a run that has trained: translate with what it has learnt
    sentence: tuple[str, ...] = ()  # to be translated at the end; with --weights nothing else is done then
    vocab: int = 4000
    embedding: int = 256
    width: int = 256  # of each direction of the encoder, and of the decoder
    maxout: int = 128
    dropout: float = 0.2
    epochs: int = 5
    batch: int = 1024  # tokens on either side
    lr: float = 2e-3
    warmup: float = 0.1  # the share of the steps in which the rate rises; then it falls to zero
    smoothing: float = 0.1
    beams: int = 4
    alpha: float = 0.6  # of the length penalty
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation

    def __post_init__(self) -> None:
        positive(self, "vocab", "embedding", "width", "maxout", "epochs", "batch", "lr", "beams")
        not_negative(self, "alpha", "seed")
        share(self, "dropout", "warmup", "smoothing")
        if self.weights:
            only(self, "--weights", "weights", "sentence", "beams", "alpha", "source", "target")
        if not all(sentence.strip() for sentence in self.sentence):
            raise UserError("a --sentence is empty: write one to translate")
        if (self.source is None) != (self.target is None):
            raise UserError("--source and --target are two files, a line of one translating that of the other")


SMOKE = Config("numbers", vocab=400, embedding=32, width=32, maxout=32, epochs=1, batch=1024, beams=2)


def main(config: Config, run: Run) -> dict:
    sizes = configs.load(config.weights, "attention.seq2seq", Config) if config.weights else config
    source, target = config.source or sizes.source, config.target or sizes.target
    pairs = None if config.weights and config.sentence else translation.pairs(sizes.dataset, source, target)
    tokenizer = tokens.load(config.weights) if config.weights else translation.vocabulary(pairs, config.vocab)
    model = Seq2Seq(
        Seq2SeqConfig(tokenizer.size, sizes.embedding, sizes.width, sizes.maxout, sizes.dropout, sizes.dtype)
    )

    def optimizer(steps: int) -> optax.GradientTransformation:
        rate = optim.triangle(config.lr, steps, config.warmup)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    if config.weights:
        params, figures = translation.learnt(config.weights, model, optimizer(1), run.say), {}
    else:
        params, figures = translation.fit(
            run, pairs, tokenizer, model, optimizer,
            epochs=config.epochs, batch=config.batch, smoothing=config.smoothing, seed=config.seed,
        )  # fmt: skip

    translate = translation.translator(run, model, params, tokenizer, beams=config.beams, alpha=config.alpha)
    if pairs:
        figures |= translation.tested(run, pairs, translate)
    sentences = config.sentence or (pairs.test[0][0],)
    translations = translate(sentences)
    for sentence, found in zip(sentences, translations, strict=True):
        run.say(f"{sentence}\n  -> {found}")
    align(run, model, params, tokenizer, sentences[0], translations[0])
    return figures


def align(run: Run, model: Seq2Seq, params: Any, tokenizer: tokens.BPE, sentence: str, found: str) -> None:
    """Draws which words of `sentence` each word of `found` was made from."""
    (source,), (target,) = translation.encoded(tokenizer, [(sentence, found)])
    pair = jnp.asarray(source)[None], jnp.asarray(target)[None, :-1]
    _, kept = model.apply({"params": params}, *pair, mutable=["intermediates"])
    (weights,) = kept["intermediates"]["weights"]
    read, written = tokenizer.pieces(source), tokenizer.pieces(target)
    run.figure("alignment", plot.attention({"": np.asarray(weights[0])}, written[1:], read))


if __name__ == "__main__":
    launch(main, Config(), SMOKE)
