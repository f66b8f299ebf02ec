"""The transformer translates English into French: captions of photographs, a vocabulary shared by both languages.

Claim: attention alone, without recurrence, translates, and better than recurrent networks.

Source: Vaswani et al. 2017, "Attention is all you need", https://arxiv.org/abs/1706.03762. The captions are Multi30k's
(Elliott et al. 2016 and 2017), test_2016_flickr. The paper's data set is a thousand times larger (41.8 BLEU there), so
this model is smaller than its base, its norms come before the branches, and the rate falls to zero within the few
epochs. BLEU and chrF are sacrebleu's, on untokenised text.

Expect: 56.31 BLEU on two CPU cores, in 50 minutes on a busy machine.

    python -m experiments.attention.translate
    python -m experiments.attention.translate --source FILE --target FILE     lines that translate each other
    python -m experiments.attention.translate --weights RUN --sentences "A dog runs through the snow."
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
import optax

from dlc import tokens
from dlc.models.transformer import Transformer, TransformerConfig
from dlc.run import plot
from dlc.run.flags import Free, NotNegative, Positive, Share, Shown
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
    layers: Positive[int] = 3  # number of blocks; of the encoder, and of the decoder
    heads: Positive[int] = 4  # attention heads in each block
    width: Positive[int] = 256  # size of the vectors between layers
    feedforward: Positive[int] = 512  # units of the dense part of a block
    dropout: Share = 0.1  # share of the activations that are zero in training
    norm_first: bool = True  # norms before the branches; the paper's come after
    epochs: Positive[int] = 10  # passes over the training set
    batch_tokens: Positive[int] = 2048  # tokens in a batch, on either side
    accumulate: Positive[int] = 1  # parts of a batch, computed one after another; with as much memory as one needs
    remat: Free[bool] = False  # compute activations again in the backward pass instead of keeping them
    lr: Positive[float] = 2e-3  # the highest learning rate
    warmup: Share = 0.1  # share of the steps before the rate is highest; then it falls to zero
    smoothing: Share = 0.1  # share of each target that is spread evenly over all classes
    beams: Shown[Positive[int]] = 4  # hypotheses that the search keeps
    alpha: Shown[NotNegative[float]] = 0.6  # exponent of the length penalty
    seed: NotNegative[int] = 0  # of all random numbers
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation


SMOKE = Config("numbers", vocab=400, layers=1, heads=2, width=32, feedforward=64, epochs=1, batch_tokens=1024, beams=2)


def train(config: Config, run: Run) -> dict:
    found = pairs.read(config.dataset, config.source, config.target)
    tokenizer = pairs.vocabulary(run, found, config.vocab)
    sizes = tokenizer.size, config.layers, config.heads, config.width, config.feedforward
    model = Transformer(TransformerConfig(*sizes, config.dropout, config.norm_first, config.dtype, remat=config.remat))
    adam = partial(optax.adam, b2=0.98, eps=1e-9)  # section 5.3
    numbers = config.epochs, config.batch_tokens, config.lr, config.warmup, config.smoothing
    recipe = pairs.Recipe(*numbers, config.seed, config.accumulate)
    variables, figures = pairs.fit(run, found, tokenizer, model, adam, recipe)
    search = pairs.Search(config.beams, config.alpha, config.sentences)
    return figures | pairs.show(run, found, model, variables, tokenizer, search, attend)


def show(config: Config, run: Run, model: Transformer, variables: dict) -> dict:
    found = None if config.sentences else pairs.read(config.dataset, config.source, config.target)
    search = pairs.Search(config.beams, config.alpha, config.sentences)
    return pairs.show(run, found, model, variables, text.tokenizer_of(run.weights, model), search, attend)


def attend(run: Run, model: Transformer, variables: dict, tokenizer: tokens.BPE, sentence: str, found: str) -> None:
    """Draws what each head of the last layers attends to while `sentence` becomes `found`."""
    (source,), (target,) = pairs.encoded(tokenizer, [(sentence, found)])
    pair = jnp.asarray(source)[None], jnp.asarray(target)[None, :-1]
    kept = text.intermediates(model, variables, *pair)
    last = model.config.layers - 1
    read, written = tokenizer.pieces(source), tokenizer.pieces(target)
    for name, layer, part, rows, columns in (
        ("encoder", f"encoder_{last}", "attention", read, read),
        ("decoder", f"decoder_{last}", "attention", written[:-1], written[:-1]),
        ("alignment", f"decoder_{last}", "cross_attention", written[1:], read),
    ):
        (weights,) = kept[layer][part]["weights"]
        heads = {f"head {i + 1}": np.asarray(head) for i, head in enumerate(weights[0])}
        run.figure(name, plot.attention(heads, rows, columns))


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show, parallel=True)
