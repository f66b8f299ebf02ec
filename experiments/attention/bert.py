"""BERT reads a text in both directions and says which words were masked.

Claim: a model that sees the words on both sides learns to tell those that are hidden; BERT-base guesses them with a
perplexity of 3.99.

Source: Devlin, Chang, Lee, Toutanova 2018, "BERT: pre-training of deep bidirectional transformers for language
understanding", https://arxiv.org/abs/1810.04805, section 3.1 (task 1) and table 6. The paper read 3.3 billion words for
days; this reads one small text for minutes, without its second task, in a model that fits. The settings are untuned.

Expect: 5.615 nats in nine minutes on two CPU cores, where an even guess has 7.6: it has only begun to learn.

    python -m experiments.attention.bert
    python -m experiments.attention.bert --text FILE --sentence "To be or not to [MASK]"
    python -m experiments.attention.bert --weights FOLDER      BERT's own as Hugging Face publishes it, or a run's
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlc import language, losses, optim, tokens, weights
from dlc.config import not_negative, only, positive, share
from dlc.errors import UserError
from dlc.launch import launch
from dlc.models.bert import BertConfig, BertMaskedLM
from dlc.run import Run


@dataclass(frozen=True)
class Config:
    dataset: Literal["tiny_shakespeare", "python"] = "tiny_shakespeare"
    text: Path | None = None  # a text file of your own instead
    weights: Path | None = None  # guess with these instead of training: a folder with BERT's, or a run of this
    sentence: str = "How are you [MASK] today?"  # whose masked word is guessed at the end
    vocab: int = 2048
    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 64
    dropout: float = 0.1
    rate: float = 0.15  # of the tokens that are masked
    steps: int = 2000
    batch: int = 32
    lr: float = 2e-3
    warmup: float = 0.1  # the share of the steps in which the rate rises; then it falls to zero
    weight_decay: float = 0.01  # of matrices alone
    evaluate_every: int = 500  # steps
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights are float32

    def __post_init__(self) -> None:
        positive(self, "vocab", "layers", "heads", "width", "context", "steps", "batch", "lr", "evaluate_every")
        not_negative(self, "weight_decay", "seed")
        share(self, "dropout", "warmup", "rate")
        if self.weights:
            only(self, "--weights", "weights", "sentence")
        if self.sentence.count("[MASK]") != 1:
            raise UserError(
                f"--sentence must have one [MASK], and {self.sentence!r} has {self.sentence.count('[MASK]')}"
            )


SMOKE = Config("python", vocab=400, layers=1, heads=2, width=32, context=32, steps=200, batch=8)


def main(config: Config, run: Run) -> dict:
    if config.weights:
        model, params, tokenizer = language.known(
            run, config.weights, "attention.bert", Config, network, optimizer, weights.load_bert_masked_lm
        )
        figures: dict = {}
    else:
        tokenizer, learn, held = language.read(run, config.dataset, config.text, "bpe", config.vocab)
        model = network(config, tokenizer.size)

        def forward(params: Any, window: Any) -> Any:
            key = jax.random.fold_in(jax.random.key(0), window.sum())  # the same places every time
            hidden, chosen = losses.mask_tokens(key, window, tokens.MASK, tokenizer.size, config.rate)
            logits = model.apply({"params": params}, hidden, mask=window != tokens.PAD)
            nll = losses.cross_entropy(logits.reshape(-1, tokenizer.size), window.reshape(-1))
            return jnp.where(chosen.reshape(-1), nll, jnp.nan).reshape(window.shape)

        params, figures = language.fit(
            run, model, optimizer(config), losses.masked_token(model, tokens.MASK, tokenizer.size, config.rate),
            forward, learn, held, context=config.context - 1,  # and one token more
            batch=config.batch, steps=config.steps,
            evaluate_every=config.evaluate_every, seed=config.seed,
        )  # fmt: skip
    guess(run, model, params, tokenizer, config.sentence)
    return figures


def guess(run: Run, model: BertMaskedLM, params: Any, tokenizer: tokens.BPE, sentence: str) -> None:
    """Says the five words that the model holds most likely at the mask, and draws what its last layer looks at."""
    before, after = sentence.split("[MASK]")
    published = "[MASK]" in tokenizer.tokenizer.get_vocab()
    mask = tokenizer.id("[MASK]") if published else tokens.MASK
    start, end = ([tokenizer.id("[CLS]")], [tokenizer.id("[SEP]")]) if published else ([], [])
    # In our vocabularies the space before a word is a part of it, and so of what is masked.
    left, right = tokenizer.encode(before if published else before.rstrip()), tokenizer.encode(after)
    ids = jnp.concatenate([jnp.asarray(part, jnp.int32) for part in (start, left, [mask], right, end)])[None]
    logits = model.apply({"params": params}, ids)
    place = len(start) + len(left)
    probability = np.asarray(jax.nn.softmax(logits[0, place]))
    best = probability.argsort()[::-1][:5]
    run.say(sentence)
    for piece, i in zip(tokenizer.pieces(best), best, strict=True):
        run.say(f"  {probability[i]:6.1%}  {piece.strip() or repr(piece)}")
    language.attention(run, model, params, tokenizer, ids)


def network(config: Config, vocab: int) -> BertMaskedLM:
    return BertMaskedLM(
        BertConfig(
            vocab, config.context, layers=config.layers, heads=config.heads, width=config.width,
            hidden=4 * config.width, dropout=config.dropout, dtype=config.dtype,
        )
    )  # fmt: skip


def optimizer(config: Config) -> optax.GradientTransformation:
    rate = optim.triangle(config.lr, config.steps, config.warmup)
    adam = optax.adamw(rate, eps=1e-6, weight_decay=config.weight_decay, mask=optim.matrices)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


if __name__ == "__main__":
    launch(main, Config(), SMOKE)
