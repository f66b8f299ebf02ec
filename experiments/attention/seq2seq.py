"""A recurrent network translates English into French, and learns without being told which words belong together.

Claim: a recurrent translator that may look back at the source learns on its own to align words as people would (figure
3).

Source: Bahdanau, Cho, Bengio 2014, "Neural machine translation by jointly learning to align and translate",
https://arxiv.org/abs/1409.0473. The captions are Multi30k's (Elliott et al. 2016 and 2017), test_2016_flickr. The
paper's data set is 400 times larger, so this model is smaller than its RNNsearch, and Adam with a rate that falls to
zero replaces Adadelta. BLEU and chrF are sacrebleu's, on untokenised text.

Expect: 48.82 BLEU and 66.17 chrF on two CPU cores, in 40 minutes beside other work.

    python -m experiments.attention.seq2seq
    python -m experiments.attention.seq2seq --source FILE --target FILE     lines that translate each other
    python -m experiments.attention.seq2seq --weights RUN --sentences "A dog runs through the snow."
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
import optax

from dlc import tokens
from dlc.models.seq2seq import Seq2Seq, Seq2SeqConfig
from dlc.run import plot
from dlc.run.flags import NotNegative, Positive, Share, Shown
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import pairs, text


@dataclass(frozen=True)
class Config:
    dataset: Literal["multi30k", "numbers"] = "multi30k"  # the data set
    source: Shown[Path | None] = None  # a text file of your own, a sentence a line; instead of the data set
    target: Shown[Path | None] = None  # its translation, line by line
    sentences: Shown[tuple[pairs.Sentence, ...]] = ()  # to translate at the end; with --weights nothing else is done
    vocab: Positive[int] = 4000  # size of the vocabulary
    embedding: Positive[int] = 256  # size of the vector of a token
    width: Positive[int] = 256  # size of the vectors between layers; of both directions, and of the decoder
    maxout: Positive[int] = 128  # units before the output
    dropout: Share = 0.2  # share of the activations that are zero in training
    epochs: Positive[int] = 5  # passes over the training set
    batch_tokens: Positive[int] = 1024  # tokens in a batch, on either side
    lr: Positive[float] = 2e-3  # the highest learning rate
    warmup: Share = 0.1  # share of the steps before the rate is highest; then it falls to zero
    smoothing: Share = 0.1  # share of each target that is spread evenly over all classes
    beams: Shown[Positive[int]] = 4  # hypotheses that the search keeps
    alpha: Shown[NotNegative[float]] = 0.6  # exponent of the length penalty
    seed: NotNegative[int] = 0  # of all random numbers
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation


SMOKE = Config("numbers", vocab=400, embedding=32, width=32, maxout=32, epochs=1, batch_tokens=1024, beams=2)


def train(config: Config, run: Run) -> dict:
    found = pairs.read(config.dataset, config.source, config.target)
    tokenizer = pairs.vocabulary(run, found, config.vocab)
    sizes = tokenizer.size, config.embedding, config.width, config.maxout
    model = Seq2Seq(Seq2SeqConfig(*sizes, config.dropout, config.dtype))
    recipe = pairs.Recipe(config.epochs, config.batch_tokens, config.lr, config.warmup, config.smoothing, config.seed)
    variables, figures = pairs.fit(run, found, tokenizer, model, optax.adam, recipe)
    search = pairs.Search(config.beams, config.alpha, config.sentences)
    return figures | pairs.show(run, found, model, variables, tokenizer, search, align)


def show(config: Config, run: Run, model: Seq2Seq, variables: dict) -> dict:
    found = None if config.sentences else pairs.read(config.dataset, config.source, config.target)
    search = pairs.Search(config.beams, config.alpha, config.sentences)
    return pairs.show(run, found, model, variables, text.tokenizer_of(run.weights, model), search, align)


def align(run: Run, model: Seq2Seq, variables: dict, tokenizer: tokens.BPE, sentence: str, translation: str) -> None:
    """Draws which words of `sentence` each word of `translation` was made from."""
    (source,), (target,) = pairs.encoded(tokenizer, [(sentence, translation)])
    pair = jnp.asarray(source)[None], jnp.asarray(target)[None, :-1]
    kept = text.intermediates(model, variables, *pair)
    (weights,) = kept["weights"]
    read, written = tokenizer.pieces(source), tokenizer.pieces(target)
    run.figure("alignment", plot.attention({"": np.asarray(weights[0])}, written[1:], read))


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show, parallel=True)
