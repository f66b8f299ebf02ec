"""Many small runs in one program: a sweep of learning rates, or several seeds, with the learning curve of each.

Shapes: R runs, K steps, B batch, E evaluations, N examples or tokens.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from dlc import batches, costs, losses, process, train
from dlc.analysis import power_law, trials
from dlc.errors import UserError
from dlc.models.gpt import GPT, GPTConfig
from dlc.run import plot
from dlc.run.loop import count_operations
from dlc.run.run import Run
from dlc.tasks import text

TRIES = 2  # runs at each rate of a sweep
Optimiser = Callable[[Any], optax.GradientTransformation]  # rate -> transformation


@dataclass(frozen=True)
class Problem:
    """What is learnt, and from what.

    Attributes:
        init: `init(key) -> variables`.
        step: `step(tx)` is the training step. Its batches are rows of the data.
        rows: `rows(seed, steps, examples) -> [K, B]`, the batches of a run that sees that many examples, or all (None).
        evaluate: `evaluate(state) -> numbers`, on what is held out.
        examples: how many a run sees, unless it is said for each.
    """

    init: Callable[[Any], Any]
    step: Callable[[optax.GradientTransformation], train.Step]
    rows: Callable[[int, int, int | None], np.ndarray]
    evaluate: Callable[[train.State], dict[str, Any]]
    examples: int | None = None


@dataclass(frozen=True)
class Length:
    """How long each run trains, and how many steps there are between evaluations."""

    steps: int
    every: int

    def __post_init__(self) -> None:
        if self.every < 1 or self.steps < 1:
            raise UserError("the training has no steps: give it at least as many examples as a batch has")
        if self.steps % self.every:
            raise UserError(
                f"{self.steps} steps cannot be evaluated every {self.every}: choose a multiple of {self.every} steps"
            )

    @property
    def places(self) -> np.ndarray:
        """The steps after which there is an evaluation, [E]."""
        return np.arange(self.every, self.steps + 1, self.every)


def of_images(
    pool: dict[str, np.ndarray], held: dict[str, Any], model: Any, prepare: Any, batch: int, augment: Any = None
) -> Problem:
    """Classification of images; each run draws its examples from the `pool`, and their order, by its seed.

    `held` has by name what is held out, each {"image", "label"}: {"test": ...} gives `test_loss` and `test_error`.
    `prepare` maps pixels to what the model takes. `augment(key, batch)` changes the pixels that are trained on.
    """
    loss_fn = losses.classify(model, prepare)

    def rows(seed: int, steps: int, examples: int | None) -> np.ndarray:
        if examples and examples > len(pool["label"]):
            raise UserError(f"{examples:,} examples cannot be drawn from {len(pool['label']):,}: choose fewer")
        mine = np.random.default_rng((seed, 0)).permutation(len(pool["label"]))[:examples]
        return mine[batches.minibatches(len(mine), batch, shuffle=True, seeds=(seed,))(0, steps)].astype(np.int32)

    return Problem(
        init=jax.jit(lambda key: model.init(key, prepare(pool["image"][:1]))),
        step=lambda tx: train.on_device(train.make_step(loss_fn, tx), pool, augment),
        rows=rows,
        evaluate=_named({name: train.evaluation(loss_fn, part, size=500) for name, part in held.items()}),
    )


def held_out(examples: dict[str, np.ndarray], count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All but the last `count` examples, or the last fifth of a small set, and those."""
    some = min(count, len(examples["label"]) // 5)
    return {k: v[:-some] for k, v in examples.items()}, {k: v[-some:] for k, v in examples.items()}


def of_text(tokens: np.ndarray, held: np.ndarray, model: Any, context: int, batch: int) -> Problem:
    """The next of the `tokens` [N], in windows of `context`. `validation_loss` is that of windows [W, context + 1].

    A run that sees fewer tokens sees a stretch of the text that its seed chooses.
    """
    loss_fn = losses.next_token(model)

    def rows(seed: int, steps: int, examples: int | None) -> np.ndarray:
        seen = examples or len(tokens)
        if seen > len(tokens):
            raise UserError(f"a stretch of {seen:,} tokens is longer than the text, of {len(tokens):,}: choose fewer")
        begin = np.random.default_rng((seed, 0)).integers(len(tokens) - seen + 1)
        return (begin + batches.random_starts(seen, context, batch, (seed,))(0, steps)).astype(np.int32)

    return Problem(
        init=jax.jit(lambda key: model.init(key, jnp.ones((1, 1), jnp.int32))),
        step=lambda tx: train.windows(train.make_step(loss_fn, tx), tokens, context),
        rows=rows,
        evaluate=_named({"validation": train.evaluation(loss_fn, {"tokens": held}, size=64)}),
    )


def of_corpus(run: Run, name: str, sizes: dict[str, Any], batch: int) -> Problem:
    """The characters of a text by a small GPT of these `sizes`; 64 windows of its last tenth are held out."""
    tokenizer, learnt, held = text.read(run, name, None, "characters", 0)
    model, context = GPT(GPTConfig(vocab=tokenizer.size, use_bias=False, **sizes)), sizes["context"]
    held = batches.windows(held, context)
    return of_text(learnt, held[:: max(1, len(held) // 64)][:64], model, context, batch)


def _named(evaluations: dict[str, Any]) -> Partial:
    """Several evaluations as one, whose numbers begin with their names."""

    def evaluate(evaluations: dict[str, Any], state: train.State) -> dict[str, Any]:
        found = {name: evaluation(state) for name, evaluation in evaluations.items()}
        return {f"{name}_{what}": value for name, numbers in found.items() for what, value in numbers.items()}

    return Partial(evaluate, evaluations)


def begin(variables: dict[str, Any], tx: optax.GradientTransformation, key: Any) -> train.State:
    """The state before the first step."""
    aux = {name: collection for name, collection in variables.items() if name != "params"}
    return train.init(variables["params"], tx, key, aux=aux or None)


def cost(problem: Problem) -> tuple[int, int]:
    """The number of weights, and the operations of a training step: two for each multiply-accumulate."""
    tx = optax.sgd(1.0)
    state = jax.eval_shape(lambda key: begin(problem.init(key), tx, key), jax.random.key(0))
    return costs.parameters(state.params), 2 * costs.macs(problem.step(tx), state, problem.rows(0, 1, None)[0])


def learner(run: Run, problem: Problem, optimiser: Optimiser, length: Length) -> Callable[..., dict[str, np.ndarray]]:
    """`learn(rates, seeds, examples=None)`: the evaluations [R, E] by name of run r with rate r and seed r.

    Run r sees `examples[r]` examples, if they are given. All runs are one program, which is compiled once for each
    number of runs. On a CPU each core takes a share of them, one after another: a small network does not keep two cores
    busy.
    """
    tx = optax.inject_hyperparams(lambda rate: optimiser(rate))(1.0)
    step = problem.step(tx)
    every = train.for_each_seed(Partial(_One(length.every), step, problem.evaluate), (0, 0))
    cores = process.cores() if jax.default_backend() == "cpu" else 1

    @jax.jit
    @jax.vmap
    def ready(variables: dict[str, Any], rate: Any, key: Any) -> train.State:
        state = begin(variables, tx, key)
        return state._replace(opt_state=state.opt_state._replace(hyperparams={"rate": rate}))

    def start(rates: np.ndarray, seeds: Any) -> train.State:
        keys = [jax.random.key(int(seed)) for seed in seeds]
        variables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(problem.init(key) for key in keys))
        return ready(variables, rates, jnp.stack(keys))

    def learn(rates: Any, seeds: Any, examples: Any = None) -> dict[str, np.ndarray]:
        some = examples or [problem.examples] * len(seeds)
        rows = np.stack([problem.rows(int(seed), length.steps, n) for seed, n in zip(seeds, some, strict=True)])
        states = run.clock.timed("start", start, np.array(rates, np.float32), seeds)
        runs, parts = len(rows), min(cores, len(rows))
        filled = np.minimum(np.arange(-(-runs // parts) * parts), runs - 1).reshape(parts, -1)  # the last run, again
        shares = [jax.tree.map(lambda leaf, i=i: leaf[i], (states, jnp.asarray(rows))) for i in filled]
        program = run.clock.compiled(every, *shares[0])
        one, batch = jax.tree.map(lambda leaf: leaf[0], shares[0])
        count_operations(run, step, one, batch[0], runs * length.steps)

        def together() -> list[Any]:
            with ThreadPoolExecutor(parts) as pool:
                return list(pool.map(lambda share: jax.block_until_ready(program(*share)), shares))

        found = run.clock.timed("train", together)
        run.trained = True
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:runs], *found)

    return learn


@dataclass(frozen=True)
class _One:
    """One run: its evaluations [E] after every `every` steps of the batches [K, ...]."""

    every: int

    def __call__(self, step: train.Step, evaluate: Any, state: train.State, rows: Any) -> Any:
        def group(state: train.State, rows: Any) -> Any:
            state, _ = train.scanned(step)(state, rows)
            return state, evaluate(state)

        return jax.lax.scan(group, state, rows.reshape(-1, self.every, *rows.shape[1:]))[1]


def several(config: Any) -> range:
    """The seeds of a configuration. Raises UserError if there is only one, which has no spread."""
    if config.seeds < 2:
        raise UserError(f"--seeds must be at least 2, because one run has no spread, not {config.seeds}")
    return range(config.seed, config.seed + config.seeds)


class Target(NamedTuple):
    """What a run is to reach: `name`, one of the numbers of the evaluation, at most `value`."""

    name: str
    value: float


class Best(NamedTuple):
    """What `at_best_rate` measured. Steps are those to the target, inf for a run that did not reach it."""

    swept: np.ndarray  # [rates], the mean of the steps at each rate
    rate: float  # the best one
    steps: np.ndarray  # [S], steps at the best rate
    places: np.ndarray  # [E], the steps of the evaluations
    curves: np.ndarray  # [S, E], what the target is about
    evaluations: dict[str, np.ndarray]  # [S, E] by name


def at_best_rate(
    run: Run,
    problem: Problem,
    optimiser: Optimiser,
    rates: Sequence[float] | np.ndarray,
    seeds: Sequence[int],
    length: Length,
    target: Target,
) -> Best:
    """`TRIES` runs at each of the `rates`, and then runs with all `seeds` at the rate that needs the fewest steps.

    The sweep has seeds of its own, so that the runs at the best rate were not chosen. If no rate always reaches the
    target, the best one ends closest to it.
    """
    rates, learn = np.asarray(rates, float), learner(run, problem, optimiser, length)
    tries = [max(seeds) + 1000 + i for i in range(TRIES)]
    swept = learn(np.repeat(rates, TRIES), tries * len(rates))[target.name].reshape(len(rates), TRIES, -1)
    needed = trials.steps_to(length.places, swept, target.value).mean(1)
    rate = float(rates[np.lexsort((np.nan_to_num(swept[..., -1].mean(1), nan=np.inf), needed))[0]])
    found = learn([rate] * len(seeds), seeds)
    steps = trials.steps_to(length.places, found[target.name], target.value)
    return Best(needed, rate, steps, length.places, found[target.name], found)


def compared(
    run: Run,
    entries: dict[str, tuple[Problem, Optimiser, Any]],
    seeds: Sequence[int],
    length: Length,
    target: Target,
) -> dict[str, Best]:
    """`at_best_rate` of several by name, each (problem, optimiser, rates), as they are said when they are done."""
    found = {}
    for name, (problem, optimiser, rates) in entries.items():
        best = found[name] = at_best_rate(run, problem, optimiser, rates, seeds, length, target)
        arrived, last = best.steps[np.isfinite(best.steps)], best.curves[:, -1].mean()
        took = f"{arrived.mean():.0f} steps, " if len(arrived) else ""
        run.say(f"{name}: rate {best.rate:.2g}, {took}{target.name.replace('_', ' ')} {last:.3g} at the end")
    return found


def draw(axes: Any, found: dict[str, Best], target: float, unit: str, against: str) -> None:
    """On two axes: learning curves at the best rates, and steps to the target, a dot for each seed.

    Curves are the mean and range of the seeds. Each bar says which share of the steps of `against` it takes, with the
    interval of that.
    """
    curves, bars = axes
    for place, (name, best) in enumerate(found.items()):
        color = plot.COLORS[place]
        curves.plot(best.places, best.curves.mean(0), color=color)
        curves.fill_between(best.places, best.curves.min(0), best.curves.max(0), color=color, alpha=0.2, linewidth=0)
        known = best.steps[np.isfinite(best.steps)]
        ratio, low, high = trials.ratio_interval(best.steps, found[against].steps)
        said = "" if name == against or not np.isfinite(high) else f": {ratio:.2f} ({low:.2f} to {high:.2f})"
        if len(known) < len(best.steps):
            said = f": {len(known)} of {len(best.steps)} arrive"
        bars.barh(place, known.mean() if len(known) else 0, height=0.36, color=color, alpha=0.4)
        bars.plot(known, np.full(len(known), place), "o", color=color, markersize=3)
        bars.annotate(
            f"{name}, rate {best.rate:.2g}{said}", (0, place), (3, 11), textcoords="offset points",
            fontsize=plot.SMALL, color=color, fontweight="bold",
        )  # fmt: skip
    curves.axhline(target, color="black", linestyle="--", linewidth=0.9)
    curves.set(xlabel="step", ylabel=unit, xlim=(0, None))
    bars.set(
        xlabel=f"steps to the dashed line, and the share of {against}'s",
        ylim=(len(found) - 0.6, -0.75),
        yticks=[],
        xlim=(0, None),
    )
    for axis in axes:
        axis.grid(alpha=0.25)


def draw_values(axis: Any, values: dict[str, np.ndarray]) -> None:
    """Values [S] by name, the highest mean on top: a dot for each seed, the mean, and its interval of 95 %."""
    names = sorted(values, key=lambda name: -values[name].mean())
    for place, name in enumerate(names):
        mean, low, high = trials.mean_interval(values[name])
        axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=plot.INK, capsize=4, markersize=5)
        axis.plot(values[name], np.full(len(values[name]), place + 0.22), ".", color=plot.ACCENT, alpha=0.6)
        said = f"{mean:.2f} ({low:.2f} to {high:.2f})"
        axis.annotate(said, (mean, place), (0, 7), textcoords="offset points", ha="center", fontsize=plot.SMALL)
    axis.margins(x=0.2)
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.7))
    axis.grid(alpha=0.25)


def draw_law(axis: Any, x: np.ndarray, losses: np.ndarray, what: str, color: str) -> None:
    """Losses [P, S] against x [P], which is called `what`: a dot for each seed, and the power law of their means."""
    law, ends = power_law.fit(x, losses), np.geomspace(x[0], x[-1])
    axis.plot(x, losses, "o", color=color, markersize=3, alpha=0.6)
    axis.plot(ends, law(ends), color="black", linewidth=1)
    axis.set(xscale="log", yscale="log", xlabel=what)
    axis.set_title(f"loss ~ {what}^-{law.exponent:.3f} ({law.low:.3f} to {law.high:.3f})", fontsize=plot.SMALL)
    if x[-1] < 100 * x[0]:
        axis.set_xticks(x, [f"{value:,.0f}" for value in x], fontsize=plot.SMALL)
        axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.25)
