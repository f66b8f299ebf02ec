"""What experiments on one text share: reading it as tokens, training on windows of it, writing to the terminal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlc import batches, checkpoint, plot, tokens, train
from dlc import config as configs
from dlc.data import text
from dlc.errors import UserError
from dlc.run import Run

Tokenizer = tokens.Characters | tokens.BPE


def read(run: Run, dataset: str, file: Path | None, encoding: Literal["characters", "bpe"], vocab: int) -> Any:
    """The text, the user's `file` or else the data set, its vocabulary, which is saved, and two runs of tokens.

    Returns (tokenizer, tokens to train on, tokens to validate with), int32 [N] both. `vocab` is the size of "bpe".
    """
    corpus = text.read(file) if file else text.corpus(dataset)
    run.facts |= {"dataset": corpus.name, "source": corpus.source}
    if encoding == "characters":
        tokenizer: Tokenizer = tokens.Characters.of(corpus.train + corpus.validation)
    else:
        tokenizer = tokens.train_bpe([corpus.train], vocab)
    if run.folder:
        tokenizer.save(run.folder)
    return tokenizer, tokenizer.encode(corpus.train), tokenizer.encode(corpus.validation)


def init(model: Any, tx: optax.GradientTransformation, key: Any) -> train.State:
    """The state before the first step."""
    return train.init(model.init(key, jnp.ones((1, 1), jnp.int32))["params"], tx, key)


def fit(
    run: Run,
    model: Any,
    tx: optax.GradientTransformation,
    loss_fn: train.LossFn,
    forward: Callable[[Any, Any], Any],
    learn: np.ndarray,
    held: np.ndarray,
    *,
    context: int,
    batch: int,
    steps: int,
    evaluate_every: int,
    seed: int,
) -> tuple[Any, dict[str, float]]:
    """Trains `model` on `batch` windows of `context` tokens (and the one after them) of `learn`, drawn at random.

    `forward(params, window)` is the loss of each token that counts, or NaN, in windows [B, context + 1]; the mean over
    all windows of `held`, side by side, is the validation loss. Returns the last weights and {"validation_loss": nats}.
    Saves the figure "curves".
    """

    def predict(state: train.State, window: Any) -> Any:
        return forward(state.params, window)

    def measure(nll: Any) -> dict[str, Any]:
        return {"validation_loss": float(np.nanmean(np.asarray(nll, np.float64)))}

    state, nll = run.fit(
        lambda key: init(model, tx, key),
        train.windows(train.make_step(loss_fn, tx), learn, context),
        batches.random_starts(len(learn), context, batch, seeds=(seed,)),
        steps=steps,
        keys=train.seed_keys(seed),
        predict=train.in_batches(predict, batches.windows(held, context), size=64),
        measure=measure,
        evaluate_every=evaluate_every,
    )
    run.figure("curves", plot.curves(run.history, held_out="validation"))
    return state.params, measure(nll)


def known(
    run: Run,
    folder: Path,
    name: str,
    kind: type,
    network: Callable[[Any, int], Any],
    optimizer: Callable[[Any], optax.GradientTransformation],
    published: Callable[[Path], tuple[Any, Any]],
) -> tuple[Any, Any, Any]:
    """(model, weights, vocabulary) in `folder`: of a run of experiment `name`, or what `published` reads.

    A run's model and optimizer are made anew from its configuration, a `kind`, by `network(config, vocab)` and
    `optimizer(config)`. Raises UserError for whatever is missing there, or of another kind.
    """
    if not _is_run(folder):
        model, variables = published(folder)
        tokenizer = tokens.load(folder if folder.is_dir() else folder.parent)
        if tokenizer.size > model.config.vocab:
            raise UserError(
                f"the vocabulary in {folder} has {tokenizer.size:,} tokens and the model {model.config.vocab:,}: "
                "they do not belong together"
            )
        return model, variables["params"], tokenizer
    config, tokenizer = configs.load(folder, name, kind), tokens.load(folder)
    model = network(config, tokenizer.size)
    state = checkpoint.newest(folder, init(model, optimizer(config), jax.random.key(0)), run.say)
    return model, state.params, tokenizer


def attention(run: Run, model: Any, params: Any, tokenizer: Tokenizer, ids: Any) -> None:
    """Draws what four heads of the last layer attend to in the tokens `ids` [1, T]: the figure "attention"."""
    _, kept = model.apply({"params": params}, ids, mutable=["intermediates"])
    (weights,) = kept["intermediates"][f"block{model.config.layers - 1}"]["attention"]["weights"]
    pieces = tokenizer.pieces(ids[0])
    heads = {f"head {i + 1}": np.asarray(head) for i, head in enumerate(weights[0, :4])}
    run.figure("attention", plot.attention(heads, pieces, pieces))


def stream(tokenizer: Tokenizer) -> Callable[[Any], None]:
    """A function that prints the tokens [1] it is called with, one after another, as far as they make whole letters."""
    ids: list[int] = []  # those of a letter that is not whole yet

    def emit(token: Any) -> None:
        ids.append(int(token[0]))
        letters = tokenizer.decode(ids)
        if not letters.endswith("\ufffd") or len(ids) > 4:  # a letter has four bytes at most
            print(letters, end="", flush=True)
            ids.clear()

    return emit


def _is_run(folder: Path) -> bool:
    """Whether a run has written `folder`; published weights have a config.json, too."""
    try:
        return "experiment" in json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
