"""BERT reads a text in both directions and says which words were masked.

Claim: a model that sees the words on both sides learns to guess those that are hidden.

Source: Devlin, Chang, Lee, Toutanova 2018, "BERT: pre-training of deep bidirectional transformers for language
understanding", https://arxiv.org/abs/1810.04805, section 3.1 (task 1) and table 6. The paper read 3.3 billion words for
days, and guesses with a perplexity of 3.99. This reads one small text for minutes, without the second task, in a small
model. The settings are untuned.

Expect: 5.615 nats, a perplexity of 274.4, in nine minutes on two CPU cores. An even guess among 2,000 tokens has a
perplexity of 2,000: the model has only begun to learn.

    python -m experiments.attention.bert
    python -m experiments.attention.bert --text FILE --masked-sentence "To be or not to [MASK]"
    python -m experiments.attention.bert --weights RUN         or a folder with BERT's weights
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import optax

from dlc import losses, optim, tokens
from dlc.batches import windows
from dlc.models.bert import BertConfig, BertMaskedLM
from dlc.run.flags import Bound, NotNegative, Positive, Share, Shown
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import text
from dlc.tasks.text import Context
from dlc.train import in_batches

Sentence = Annotated[str, Bound(lambda text: text.count("[MASK]") == 1, "must have exactly one [MASK]: {}")]


@dataclass(frozen=True)
class Config:
    dataset: Literal["tiny_shakespeare", "python"] = "tiny_shakespeare"  # the data set
    text: Path | None = None  # a text file of your own; instead of the data set
    masked_sentence: Shown[Sentence] = "How are you [MASK] today?"  # its [MASK] is guessed at the end
    vocab: Positive[int] = 2048  # size of the vocabulary
    layers: Positive[int] = 4  # number of blocks
    heads: Positive[int] = 4  # attention heads in each block
    width: Positive[int] = 128  # size of the vectors between layers
    context: Context = 64  # tokens that the model sees at once
    dropout: Share = 0.1  # share of the activations that are zero in training
    mask_share: Share = 0.15  # of the tokens
    steps: Positive[int] = 2000  # training steps
    batch: Positive[int] = 32  # examples in a batch; windows of the text
    lr: Positive[float] = 2e-3  # the highest learning rate
    warmup: Share = 0.1  # share of the steps before the rate is highest; then it falls to zero
    weight_decay: NotNegative[float] = 0.01  # share of each weight lost in a step, divided by lr; of matrices only
    evaluate_every: Positive[int] = 500  # steps between evaluations
    seed: NotNegative[int] = 0  # of all random numbers
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights are float32


SMOKE = Config("python", vocab=400, layers=1, heads=2, width=32, context=32, steps=200, batch=8)


def network(config: Config, vocab: int) -> BertMaskedLM:
    sizes = {"layers": config.layers, "heads": config.heads, "width": config.width, "hidden": 4 * config.width}
    return BertMaskedLM(BertConfig(vocab, config.context, dropout=config.dropout, dtype=config.dtype, **sizes))


def optimizer(config: Config, rate: optax.Schedule) -> optax.GradientTransformation:
    adam = optax.adamw(rate, eps=1e-6, weight_decay=config.weight_decay, mask=optim.matrices)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


def masked(window: Any, tokenizer: tokens.BPE, rate: float) -> dict[str, Any]:
    """Windows [W, T] of the validation text with the same places masked in every evaluation."""

    def mask(_: Any, some: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(0), some.sum())
        return losses.mask_tokens(key, some, tokenizer.mask, tokenizer.size, rate)

    read, chosen = jax.jit(in_batches(mask, window, size=64))(None)
    return {"tokens": window, "masked": read, "chosen": chosen}


def train(config: Config, run: Run) -> dict:
    tokenizer, learn, held = text.read(run, config.dataset, config.text, "bpe", config.vocab)
    text.masked_sentence(config.masked_sentence, tokenizer, config.context)  # raises before training if it does not fit
    model = network(config, tokenizer.size)
    held = masked(windows(held, config.context - 1), tokenizer, config.mask_share)
    loss_fn = losses.masked_token(model, tokenizer.mask, tokenizer.size, config.mask_share)
    rate = optim.triangle(config.lr, config.steps, config.warmup)
    plan = text.Windows(config.context - 1, config.batch, config.steps, config.evaluate_every, config.seed, rate)
    variables, figures = text.fit(run, model, optimizer(config, rate), loss_fn, learn, held, plan)
    guess(config, run, model, variables, tokenizer)
    return figures | {"validation_perplexity": np.exp(figures["validation_loss"])}  # the paper's unit


def show(config: Config, run: Run, model: BertMaskedLM, variables: dict) -> dict:
    text.draw_curves(run)
    guess(config, run, model, variables, text.tokenizer_of(run.weights, model))
    return {}


def guess(config: Config, run: Run, model: BertMaskedLM, variables: dict, tokenizer: tokens.BPE) -> None:
    """Prints the five words that the model finds most likely at the mask, and draws what its last layer attends to."""
    ids, place = text.masked_sentence(config.masked_sentence, tokenizer, model.config.context)
    probability = np.asarray(jax.nn.softmax(jax.jit(model.apply)(variables, ids)[0, place]))
    best = probability.argsort()[::-1][:5]
    run.say(config.masked_sentence)
    for piece, i in zip(tokenizer.pieces(best), best, strict=True):
        run.say(f"  {probability[i]:6.1%}  {piece.strip() or repr(piece)}")
    text.draw_attention(run, model, variables, tokenizer, ids)


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show)
