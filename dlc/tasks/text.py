"""What experiments on one text share: reading it as tokens, training on windows of it, writing to the terminal."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlc import generate, hosts, optim, sharding, tokens, train
from dlc.batches import minibatches, padded, random_starts
from dlc.data import text, token_records
from dlc.data.stream import Batches
from dlc.errors import UserError, printable
from dlc.run import plot
from dlc.run.fit import Plan, evaluation, start
from dlc.run.fit import fit as fit_plan
from dlc.run.flags import Bound
from dlc.run.run import Run
from dlc.weights import chat_prompt, end_tokens

Tokenizer = tokens.Characters | tokens.BPE
PRIOR = 30  # pseudo-counts that are added to the words after each word, in proportion to how frequent they are
Probability = Annotated[float, Bound(lambda p: 0 < p <= 1, "must be greater than 0 and at most 1, not {}")]
Context = Annotated[int, Bound(lambda length: length > 1, "must be greater than 1, not {}")]


def read(run: Run, dataset: str, file: Path | None, encoding: Literal["characters", "bpe"], vocab: int) -> Any:
    """The text as tokens: the user's `file` or else the data set. Saves the vocabulary with the run.

    Returns (tokenizer, tokens to train on, tokens to validate with), int32 [N] both. `vocab` is the size of "bpe". If
    training begins from weights, the vocabulary is theirs.
    """

    def new(corpus: text.Corpus) -> Tokenizer:
        if encoding == "characters":
            return tokens.Characters.of(corpus.train + corpus.validation)
        return tokens.train_bpe([corpus.train], vocab)

    corpus, tokenizer = _opened(run, dataset, file, new)
    return tokenizer, tokenizer.encode(corpus.train), tokenizer.encode(corpus.validation)


def read_lines(run: Run, dataset: str, file: Path | None, vocab: int, length: int) -> Any:
    """The lines of the text as rows of words, int32 [N, length], padded with PAD; a longer line has several rows.

    Returns (tokenizer, rows to train on, rows to validate with), and is otherwise like `read`. Raises UserError if the
    weights to begin from know characters only.
    """

    def rows(part: str) -> np.ndarray:
        lines = tokenizer.encode_batch(part.split("\n"))
        return padded([line[at : at + length] for line in lines for at in range(0, len(line), length)], length)

    corpus, tokenizer = _opened(run, dataset, file, lambda corpus: tokens.train_words([corpus.train], vocab))
    if isinstance(tokenizer, tokens.Characters):
        raise UserError(f"{run.init_from} knows characters and not words: begin with the weights of an attention.bert")
    return tokenizer, rows(corpus.train), rows(corpus.validation)


def _opened(run: Run, dataset: str, file: Path | None, new: Callable[[text.Corpus], Tokenizer]) -> Any:
    """The text, and its vocabulary, which is saved with the run."""
    corpus = text.read(file) if file else text.corpus(dataset)
    run.facts |= {"dataset": corpus.name, "source": corpus.source}
    tokenizer = inherited_vocabulary(run) or new(corpus)
    if run.folder:
        tokenizer.save(run.folder)
    return corpus, tokenizer


def inherited_vocabulary(run: Run) -> Any:
    """The vocabulary of the weights that `--init-from` names, which know no other tokens; None without that option.

    Raises UserError if it does not lie beside them.
    """
    if run.init_from is None:
        return None
    kept = run.checkpoints.folder.parent if run.resume and run.checkpoints else None  # which all processes know
    if kept and (kept / tokens.FILE).is_file():
        return tokens.load(kept)
    return tokens.load(run.init_from if run.init_from.is_dir() else run.init_from.parent)


@dataclass(frozen=True)
class Windows:
    """How long to train: `steps` batches of `batch` windows of `context` tokens, and the token after each window.

    Without a context, the rows of an array are the windows.
    """

    context: int | None
    batch: int
    steps: int
    evaluate_every: int
    seed: int = 0
    rate: optax.Schedule | float | None = None  # of learning, for the log
    parts: int = 1  # of a batch, one after another

    @classmethod
    def of(cls, config: Any, rate: optax.Schedule, context: int | None = None) -> "Windows":
        """Those of an experiment's configuration."""
        numbers = config.batch, config.steps, config.evaluate_every, config.seed
        return cls(context, *numbers, rate, config.accumulate)


def fit(
    run: Run,
    model: Any,
    tx: optax.GradientTransformation,
    loss_fn: train.LossFn,
    learn: np.ndarray | Batches,
    held: dict[str, Any],
    windows: Windows,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Trains `model` on windows of the tokens `learn` [N], drawn at random, on its rows [N, T] in random order, or on
    batches of windows as they come.

    The validation loss is that of `loss_fn` over all rows of `held`, {"tokens": [W, context + 1]} and whatever else the
    loss reads. Returns the variables and {"validation_loss": nats, ...}. Saves the weights and the figure "curves".
    """
    run.keep(model)
    tx = optim.accumulated(tx, windows.parts)

    def init(key: Any, begun: Any = None) -> train.State:
        variables = begun or model.init(key, jnp.ones((1, 1), jnp.int32))
        return train.init(variables["params"], tx, key)

    state = start(run, init, train.seed_keys(windows.seed), model)
    measure = evaluation(run, loss_fn, held, state)
    last: dict[str, float] = {}

    def evaluate(state: train.State) -> dict[str, float]:
        last.update({f"validation_{name}": float(value) for name, value in measure(state).items()})
        return last

    step, seeds = train.make_step(loss_fn, tx), (windows.seed,)
    if isinstance(learn, Batches):
        batches: Any = learn
    elif windows.context:
        step = train.windows(step, learn, windows.context)
        batches = random_starts(len(learn), windows.context, windows.batch, seeds)
    else:
        step = train.on_device(step, {"tokens": learn})
        batches = minibatches(len(learn), windows.batch, shuffle=True, seeds=seeds)
    plan = Plan(windows.steps, windows.evaluate_every, rate=windows.rate)
    step = train.in_parts(step, windows.parts)
    with contextlib.closing(learn) if isinstance(learn, Batches) else contextlib.nullcontext():
        state = fit_plan(run, state, step, batches, plan, evaluate)
    draw_curves(run)
    variables = {"params": sharding.whole(state.params)}
    run.keep(model, variables)
    return variables, last or evaluate(state)


def packed(run: Run, config: Any, windows: Windows) -> tuple[Tokenizer, Batches, np.ndarray]:
    """What `python -m dlc.data --records` wrote to the folder `config.records`.

    These are the vocabulary, batches of windows to train on, and the windows that are held out.

    The batches, {"tokens": int32 [count, B, context + 1]}, are read when they are needed, in one order of all windows
    in each pass. The windows that are held out are int32 [W, context + 1]. Saves the vocabulary with the run.

    Raises UserError if there is a `config.text`, too, or if the windows have another length, or another vocabulary than
    the weights to begin from; DataDamaged if a file differs from what was written.
    """
    if config.text:
        raise UserError("--records and --text are two data sets: give one of them")
    folder = config.records
    found = token_records.opened(folder)
    if found.context != windows.context:
        raise UserError(f"{folder} has windows of {found.context} tokens: give --context {found.context}, or pack anew")
    known = inherited_vocabulary(run)
    if known is not None and not tokens.same(known, found.tokenizer):
        raise UserError(
            f"{folder} was packed with another vocabulary than that of {run.init_from}: pack the texts with "
            f"--tokenizer {run.init_from}"
        )
    run.facts |= {"dataset": found.name, "source": found.source}
    if run.folder:
        found.tokenizer.save(run.folder)
    if run.mesh:
        sharding.fits(windows.batch, run.mesh)
    place = sharding.split(run.mesh, axis=1) if run.mesh else None
    learn = Batches(found.train, token_records.example, batch=windows.batch, seed=windows.seed, sharding=place)
    return found.tokenizer, learn, np.stack([found.validation[i] for i in range(len(found.validation))])


def draw_curves(run: Run) -> None:
    """Saves the figure "curves" from the log of the run, or of the run that is shown."""
    if run.history:
        run.figure("curves", plot.curves(run.history, held_out="validation", unit="nats a token"))


def tokenizer_of(weights: Path, model: Any) -> Tokenizer:
    """The vocabulary that lies beside the weights of `model`. Raises UserError if it is missing or too large."""
    tokenizer = tokens.load(weights if weights.is_dir() else weights.parent)
    if tokenizer.size > model.config.vocab:
        raise UserError(
            f"the vocabulary in {weights} has {tokenizer.size:,} tokens and the model {model.config.vocab:,}: "
            "they do not belong together"
        )
    return tokenizer


def hidden(rows: np.ndarray, tokenizer: tokens.BPE, share: int | float) -> dict[str, np.ndarray]:
    """Rows [N, T] for an evaluation in which every word is hidden behind a mask once, with that `share` at a time.

    Returns {"tokens", "masked", "chosen"}, [K N, T] with K the number of masks of a row. UNKNOWN is never hidden.
    Raises UserError if there is nothing to hide.
    """
    masks = max(1, round(1 / share))
    turn = np.random.default_rng(0).random(rows.shape).argsort(1) % masks
    known = ~np.isin(rows, (tokens.PAD, tokens.UNKNOWN))
    if not known.any():
        raise UserError("no word of the text to validate with is in the vocabulary: take a longer text")
    chosen = np.concatenate([(turn == i) & known for i in range(masks)])
    text = np.tile(rows, (masks, 1))
    return {"tokens": text, "masked": np.where(chosen, tokenizer.mask, text), "chosen": chosen}


def counted(learn: np.ndarray, held: dict[str, np.ndarray], tokenizer: tokens.BPE) -> dict[str, float]:
    """How well counts of the words in rows `learn` [N, T] guess the hidden words of `held`: accuracy and perplexity.

    "frequent" knows only how frequent each word w is; "bigram" also the word l before it; "neighbours" also the word r
    after it. The beginning and the end of a row count as words. A neighbour that is hidden, too, tells nothing. With c
    for counts,

        p(w | l) = (c(l w) + PRIOR p(w)) / (c(l) + PRIOR),    p(w | l, r) ~ p(w | l) p(r | w)
    """
    V, mask = tokenizer.size, tokenizer.mask
    line = np.pad(learn, ((0, 0), (1, 1)), constant_values=tokens.PAD)
    pairs = np.zeros((V, V), np.float32)
    np.add.at(pairs, (line[:, :-1], line[:, 1:]), 1)
    pairs[tokens.PAD, tokens.PAD] = 0
    count = pairs.sum(1)
    share = (count + 1) / (count + 1).sum()
    possible = ~np.isin(np.arange(V), (tokens.PAD, tokens.UNKNOWN))
    rows = np.pad(held["masked"], ((0, 0), (1, 1)), constant_values=tokens.PAD)
    places = np.nonzero(held["chosen"])
    hits: dict[str, list[np.ndarray]] = {name: [] for name in ("frequent", "bigram", "neighbours")}
    nats: dict[str, list[np.ndarray]] = {name: [] for name in hits}
    for i, j in zip(*(np.array_split(place, 1 + len(place) // 1000) for place in places), strict=True):
        word, before, after = held["tokens"][i, j], rows[i, j], rows[i, j + 2]
        left = (pairs[before] + PRIOR * share) / (count[before] + PRIOR)[:, None]
        left = np.where((before == mask)[:, None], share, left)
        right = (pairs[:, after].T + PRIOR * share[after][:, None]) / (count + PRIOR)
        right = np.where((after == mask)[:, None], 1, right)
        for name, p in (("frequent", np.tile(share, (len(i), 1))), ("bigram", left), ("neighbours", left * right)):
            p = p * possible / (p * possible).sum(1, keepdims=True)
            hits[name].append(p.argmax(1) == word)
            nats[name].append(-np.log(p[np.arange(len(i)), word]))
    accuracy = {f"{name}_accuracy": float(np.concatenate(each).mean()) for name, each in hits.items()}
    return accuracy | {f"{name}_perplexity": float(np.exp(np.concatenate(each).mean())) for name, each in nats.items()}


def masked_sentence(sentence: str, tokenizer: tokens.BPE, context: int) -> tuple[Any, int]:
    """The tokens of a sentence with one [MASK], int32 [1, T], and the place of the mask.

    Raises UserError if there are more than `context`.
    """
    before, after = sentence.split("[MASK]")
    published = "[MASK]" in tokenizer.tokenizer.get_vocab()
    mask = tokenizer.id("[MASK]") if published else tokens.MASK
    start, end = ([tokenizer.id("[CLS]")], [tokenizer.id("[SEP]")]) if published else ([], [])
    # In our vocabularies the space before a word belongs to it, and so to what is masked.
    left = tokenizer.encode(before if published else before.rstrip())
    right = tokenizer.encode(after)
    ids = jnp.concatenate([jnp.asarray(part, jnp.int32) for part in (start, left, [mask], right, end)])[None]
    if ids.size > context:
        raise UserError(
            f"the {ids.size} tokens of the masked sentence do not fit into a context of {context}: shorten it"
        )
    return ids, len(start) + len(left)


def intermediates(model: Any, variables: Any, *inputs: Any) -> dict[str, Any]:
    """What the modules of `model` keep of a call, such as their attention weights."""
    apply = jax.jit(lambda *arguments: model.apply(*arguments, mutable=["intermediates"])[1])
    return apply(variables, *inputs)["intermediates"]


def draw_attention(run: Run, model: Any, variables: Any, tokenizer: Tokenizer, ids: Any) -> None:
    """Draws what four heads of the last layer attend to in the tokens `ids` [1, T]: the figure "attention"."""
    kept = intermediates(model, variables, ids)
    (weights,) = kept[f"block{model.config.layers - 1}"]["attention"]["weights"]
    pieces = tokenizer.pieces(ids[0])
    heads = {f"head {i + 1}": np.asarray(head) for i, head in enumerate(weights[0, :4])}
    run.figure("attention", plot.attention(heads, pieces, pieces))


class Prompt(NamedTuple):
    """What a model is to continue."""

    text: str
    ids: Any  # int32 [1, P]
    stop: tuple[int, ...]  # tokens that end what it writes


def prompt(weights: Path | None, tokenizer: Tokenizer, said: str, chat: bool = False) -> Prompt:
    """The text `said` as the beginning of a text or, in a `chat`, as what the user says to the model.

    Raises UserError if the tokenizer does not know its characters, or if the weights have no chat template.
    """
    if weights is None:
        return Prompt(said, tokenizer.prompt(said)[None], ())
    folder = weights if weights.is_dir() else weights.parent
    stop = end_tokens(folder, tokenizer)
    if not chat:
        return Prompt(said, tokenizer.prompt(said)[None], stop)
    asked = chat_prompt(folder, [{"role": "user", "content": said}])
    return Prompt(f"{said}\n\n", tokenizer.encode(asked)[None], stop)


def write(run: Run, model: Any, variables: Any, tokenizer: Tokenizer, prompt: Prompt, options: dict[str, Any]) -> Any:
    """Continues the prompt on the terminal, of several processes on the lead's. Returns all tokens, [1, P + length].

    `options` are those of `sample`.
    """
    context = model.config.context
    if prompt.ids.size > context:
        run.say(f"the prompt has {prompt.ids.size} tokens and the context {context}: the model reads the last ones")
    if hosts.lead():
        print(printable(prompt.text), end="")
    emit = stream(tokenizer, prompt.ids[0]) if hosts.lead() else None
    sample = partial(generate.sample, model, variables["params"], prompt.ids, stop=prompt.stop, emit=emit, **options)
    written = run.clock.timed("generate", sample)
    jax.effects_barrier()
    if hosts.lead():
        print("\n")
    return written


def stream(tokenizer: Tokenizer, before: Any = ()) -> Callable[[Any], None]:
    """A function that prints the tokens [1] it is called with, as soon as they make up whole letters.

    The text of a token may depend on the one `before` it: some vocabularies leave out the space that begins a text.
    """
    shown = [int(token) for token in before[-1:]]  # the last on the terminal
    ids: list[int] = []  # of a letter that is still incomplete

    def emit(token: Any) -> None:
        ids.append(int(token[0]))
        letters = tokenizer.decode(shown + ids)[len(tokenizer.decode(shown)) :]
        if not letters.endswith("\ufffd") or len(ids) > 4:  # a letter has at most four bytes
            print(printable(letters), end="", flush=True)  # a model may have learnt what a terminal obeys
            shown[:] = ids
            ids.clear()

    return emit
