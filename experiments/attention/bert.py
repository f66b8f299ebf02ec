"""BERT reads captions of photographs in both directions and says which words were hidden.

Claim: a model that sees all words on both sides guesses a hidden word better than the words beside it tell.

Source: Devlin, Chang, Lee, Toutanova 2018, "BERT: pre-training of deep bidirectional transformers for language
understanding", https://arxiv.org/abs/1810.04805, section 3.1 (task 1) and table 6. The paper read 3.3 billion words for
days, and guesses pieces of words with a perplexity of 3.99. This reads the 29,000 English captions of Multi30k for
minutes, without the second task. A token is a whole word. Every word of the unseen captions is hidden once.

Expect: 48.53 % of the hidden words (perplexity 13.27), in 18 minutes on two busy CPU cores. Counts of words guess
44.15 % (21.65) from the two neighbours, 28.93 % (56.08) from the word before, and 13.36 % by always saying "a".

    python -m experiments.attention.bert
    python -m experiments.attention.bert --text FILE --masked-sentences "To be or not to [MASK]"
    python -m experiments.attention.bert --weights RUN         or a folder with BERT's weights
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import optax

from dlc import losses, optim, tokens
from dlc.models.bert import BertConfig, BertMaskedLM
from dlc.run.flags import Bound, Free, NotNegative, Positive, Share, Shown
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import text
from dlc.tasks.text import Context

Sentence = Annotated[str, Bound(lambda text: text.count("[MASK]") == 1, "must have exactly one [MASK]: {}")]

SENTENCES = (
    "A man in a [MASK] shirt.",
    "Two dogs [MASK] in the snow.",
    "A woman is riding a [MASK] down the street.",
    "The little boy is holding his mother's [MASK].",
    "A [MASK] plays the guitar on stage.",
)


@dataclass(frozen=True)
class Config:
    dataset: Literal["multi30k", "tiny_shakespeare", "python"] = "multi30k"  # the data set
    text: Path | None = None  # a text file of your own; instead of the data set
    masked_sentences: Shown[tuple[Sentence, ...]] = SENTENCES  # the word at the [MASK] of each is guessed at the end
    vocab: Positive[int] = 3000  # size of the vocabulary
    layers: Positive[int] = 4  # number of blocks
    heads: Positive[int] = 4  # attention heads in each block
    width: Positive[int] = 128  # size of the vectors between layers
    context: Context = 24  # tokens that the model sees at once
    dropout: Share = 0.0  # share of the activations that are zero in training
    mask_share: Share = 0.3  # of the tokens, in training; the paper's is 0.15
    steps: Positive[int] = 2200  # training steps
    batch: Positive[int] = 64  # examples in a batch; lines of the text
    accumulate: Positive[int] = 1  # parts of a batch, computed one after another; with as much memory as one needs
    remat: Free[bool] = False  # compute activations again in the backward pass instead of keeping them
    optimizer: Literal["adamw", "muon"] = "muon"  # the optimizer; Muon is for matrices, with Adam for the rest
    lr: Positive[float] = 0.02  # the highest learning rate; of Adam beside Muon 0.15 of it
    warmup: Share = 0.1  # share of the steps before the rate is highest; then it falls to zero
    weight_decay: NotNegative[float] = 0.01  # share of each weight lost in a step, divided by lr; of matrices only
    evaluate_every: Positive[int] = 200  # steps between evaluations
    seed: NotNegative[int] = 0  # of all random numbers
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights are float32


SMOKE = Config("python", vocab=400, layers=1, heads=2, width=32, context=32, steps=200, batch=8)


def network(config: Config, vocab: int) -> BertMaskedLM:
    sizes = {"layers": config.layers, "heads": config.heads, "width": config.width, "hidden": 4 * config.width}
    kinds = {"dropout": config.dropout, "dtype": config.dtype, "remat": config.remat}
    return BertMaskedLM(BertConfig(vocab, config.context, **sizes, **kinds))


def optimizer(config: Config, rate: optax.Schedule) -> optax.GradientTransformation:
    if config.optimizer == "muon":
        return optim.muon_for_kernels(rate, 0.15, weight_decay=config.weight_decay)
    adam = optax.adamw(rate, eps=1e-6, weight_decay=config.weight_decay, mask=optim.matrices)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


def train(config: Config, run: Run) -> dict:
    tokenizer, learn, held = text.read_lines(run, config.dataset, config.text, config.vocab, config.context)
    for sentence in config.masked_sentences:  # raises before training if one does not fit
        text.masked_sentence(sentence, tokenizer, config.context)
    model = network(config, tokenizer.size)
    held = text.hidden(held, tokenizer, 0.15)
    loss_fn = losses.masked_token(model, tokenizer.mask, tokenizer.size, config.mask_share, (tokens.UNKNOWN,))
    rate = optim.triangle(config.lr, config.steps, config.warmup)
    plan = text.Windows.of(config, rate)
    variables, measured = text.fit(run, model, optimizer(config, rate), loss_fn, learn, held, plan)
    guess(config, run, model, variables, tokenizer)
    perplexity = float(np.exp(measured["validation_loss"]))
    figures = {"validation_accuracy": 1 - measured["validation_error"], "validation_perplexity": perplexity}
    return figures | text.counted(learn, held, tokenizer)


def show(config: Config, run: Run, model: BertMaskedLM, variables: dict) -> dict:
    text.draw_curves(run)
    guess(config, run, model, variables, text.tokenizer_of(run.weights, model))
    return {}


def guess(config: Config, run: Run, model: BertMaskedLM, variables: dict, tokenizer: tokens.BPE) -> None:
    """Prints the five most likely words at each mask, and draws what the last layer attends to in the first."""
    apply, run.facts["examples"] = jax.jit(model.apply), []
    for sentence in config.masked_sentences:
        ids, place = text.masked_sentence(sentence, tokenizer, model.config.context)
        probability = np.asarray(jax.nn.softmax(apply(variables, ids)[0, place]))
        best = probability.argsort()[::-1][:5]
        words = zip(tokenizer.pieces(best), best, strict=True)
        guesses = ", ".join(f"{piece.strip() or repr(piece)} {probability[i]:.0%}" for piece, i in words)
        run.say(f"{sentence}\n  {guesses}")
        run.facts["examples"].append({"sentence": sentence, "guesses": guesses})
        if sentence == config.masked_sentences[0]:
            text.draw_attention(run, model, variables, tokenizer, ids)


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show, parallel=True)
