"""The transformer translates English into French: captions of photographs, a vocabulary shared by both languages.

Claim: attention alone, without recurrence, translates, and better than recurrent networks: 41.8 BLEU on the paper's
English to French.

Source: Vaswani et al. 2017, "Attention is all you need", https://arxiv.org/abs/1706.03762. The captions are Multi30k
(Elliott et al. 2016 and 2017), test_2016_flickr; the paper's own set is a thousand times larger, so this model is
smaller than its base, its norms come before the branches, and the rate falls to zero within the few epochs. BLEU is
sacrebleu's, on text as people write it.

Expect: 56.31 BLEU on two CPU cores, in 50 minutes beside other work.

    python -m experiments.attention.translate
    python -m experiments.attention.translate --source FILE --target FILE     lines that translate each other
    python -m experiments.attention.translate --weights RUN --sentence "A dog runs through the snow."
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
from dlc.models.transformer import Transformer, TransformerConfig
from dlc.run import Run


@dataclass(frozen=True)
class Config:
    dataset: Literal["multi30k", "numbers"] = "multi30k"
    source: Path | None = None  # a text file of your own, a sentence a line, instead of the dataset,
    target: Path | None = None  # and its translation
    weights: Path | None = None  # the folder of a run that has trained: translate with what it has learnt
    sentence: tuple[str, ...] = ()  # to be translated at the end; with --weights nothing else is done then
    vocab: int = 4000
    layers: int = 3  # of the encoder, and of the decoder
    heads: int = 4
    width: int = 256
    hidden: int = 512
    dropout: float = 0.1
    norm_first: bool = True
    epochs: int = 10
    batch: int = 2048  # tokens on either side
    lr: float = 2e-3
    warmup: float = 0.1  # the share of the steps in which the rate rises; then it falls to zero
    smoothing: float = 0.1
    beams: int = 4
    alpha: float = 0.6  # of the length penalty
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation

    def __post_init__(self) -> None:
        positive(self, "vocab", "layers", "heads", "width", "hidden", "epochs", "batch", "lr", "beams")
        not_negative(self, "alpha", "seed")
        share(self, "dropout", "warmup", "smoothing")
        if self.weights:
            only(self, "--weights", "weights", "sentence", "beams", "alpha", "source", "target")
        if not all(sentence.strip() for sentence in self.sentence):
            raise UserError("a --sentence is empty: write one to translate")
        if (self.source is None) != (self.target is None):
            raise UserError("--source and --target are two files, a line of one translating that of the other")


SMOKE = Config("numbers", vocab=400, layers=1, heads=2, width=32, hidden=64, epochs=1, batch=1024, beams=2)


def main(config: Config, run: Run) -> dict:
    sizes = configs.load(config.weights, "attention.translate", Config) if config.weights else config
    source, target = config.source or sizes.source, config.target or sizes.target
    pairs = None if config.weights and config.sentence else translation.pairs(sizes.dataset, source, target)
    tokenizer = tokens.load(config.weights) if config.weights else translation.vocabulary(pairs, config.vocab)
    model = Transformer(
        TransformerConfig(
            tokenizer.size, sizes.layers, sizes.heads, sizes.width, sizes.hidden, sizes.dropout, sizes.norm_first,
            sizes.dtype,
        )
    )  # fmt: skip

    def optimizer(steps: int) -> optax.GradientTransformation:
        rate = optim.triangle(config.lr, steps, config.warmup)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.98, eps=1e-9))

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
    attend(run, model, params, tokenizer, sentences[0], translations[0])
    return figures


def attend(run: Run, model: Transformer, params: Any, tokenizer: tokens.BPE, sentence: str, found: str) -> None:
    """Draws what each head of the last layers attends to while `sentence` becomes `found`."""
    (source,), (target,) = translation.encoded(tokenizer, [(sentence, found)])
    pair = jnp.asarray(source)[None], jnp.asarray(target)[None, :-1]
    _, kept = model.apply({"params": params}, *pair, mutable=["intermediates"])
    last = model.config.layers - 1
    read, written = tokenizer.pieces(source), tokenizer.pieces(target)
    for name, layer, part, rows, columns in (
        ("encoder", f"encoder_{last}", "attention", read, read),
        ("decoder", f"decoder_{last}", "attention", written[:-1], written[:-1]),
        ("alignment", f"decoder_{last}", "cross_attention", written[1:], read),
    ):
        (weights,) = kept["intermediates"][layer][part]["weights"]
        heads = {f"head {i + 1}": np.asarray(head) for i, head in enumerate(weights[0])}
        run.figure(name, plot.attention(heads, rows, columns))


if __name__ == "__main__":
    launch(main, Config(), SMOKE)
