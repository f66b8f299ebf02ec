"""Fooling images: a network is certain that it sees digits in images where people see none.

Claim (mnist): images evolve that a network takes for digits with a median confidence of at least 99.99 % within 200
generations, by pixels as genes and by networks that draw.

Source: Nguyen, Yosinski, Clune 2015, "Deep neural networks are easily fooled", figures 4 and 5, with the mutations of
its section 2. Whole runs of MAP-Elites are one compiled program each. The paper's LeNet is the lecture's convnet here.
Gradient ascent follows the logarithm of the confidence, by Adam, from an image of noise.

Expect: the median digit is certain to one part in ten thousand after 71 ± 6 generations of pixels and 8 ± 1 of networks
that draw (CPPN), over three runs; a second network agrees on two thirds of the former and on all of the latter. About
a minute on two CPU cores.

    python -m experiments.insight.fooling
    python -m experiments.insight.fooling --seeds 10
    python -m experiments.insight.fooling --weights RUN
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dlc import train as training
from dlc.analysis import fooling
from dlc.run.flags import NotNegative, Positive, Shown
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import attacks
from dlc.tasks.subjects import Subject, given, trained


@dataclass(frozen=True)
class Config:
    dataset: Shown[Literal["mnist", "digits"]] = "mnist"  # the data set
    generations: Shown[Positive[int]] = 200  # generations of each run
    children: Shown[Positive[int]] = 200  # images in a generation
    seed: Shown[NotNegative[int]] = 0  # of all random numbers
    seeds: Shown[Positive[int]] = 3  # number of runs, the first with `seed`; trained at once


SMOKE = Config(dataset="digits", generations=10, children=20, seeds=2)
SURE = 0.9999


def train(config: Config, run: Run) -> dict:
    subject, judge = trained(run, config.dataset), trained(run, config.dataset, seed=1)
    return fool(config, run, subject, judge)


def show(config: Config, run: Run, model: Any, variables: dict) -> dict:
    subject = given(run, model, variables, config.dataset)
    return fool(config, run, subject)


def fool(config: Config, run: Run, subject: Subject, judge: Subject | None = None) -> dict:
    """Evolves, draws, and measures; `judge` is another network, if there is one, which is asked what it sees."""
    shape, classes = subject.image.shape[1:], np.arange(len(subject.classes))
    keys = training.seed_keys(config.seed, config.seeds)
    score = functools.partial(confidence, subject)
    images, history = {}, {}
    for name, encoding in {"direct": fooling.direct(shape), "CPPN": fooling.cppn(shape)}.items():
        run.say(f"{name} encoding: {config.seeds} runs of {config.generations} generations ...")
        evolve = functools.partial(fooling.map_elites, encoding=encoding, score=score, generations=config.generations)
        elites, history[name] = jax.jit(training.for_each_seed(lambda key: evolve(key, children=config.children)))(keys)  # noqa: B023
        images[name] = jax.vmap(jax.vmap(encoding.pixels))(elites)
    run.say("gradient ascent ...")
    logits = functools.partial(subject.apply, subject.variables)
    ascend = training.for_each_seed(lambda key: fooling.ascend(key, logits, shape))
    images["gradient"] = jax.jit(ascend)(keys)

    own = {name: np.stack([np.diag(score(run)) for run in found]) for name, found in images.items()}
    fools = {
        name: [(confidence(judge, run).argmax(-1) == classes).mean() for run in found]
        for name, found in (images.items() if judge else ())
    }
    noise = np.asarray(score(jax.random.uniform(keys[0], (1000, *shape), maxval=255.0))).max(-1)
    words = {
        name: [
            f"{label}: {'> 99.99 %' if p > SURE else f'{100 * p:.2f} %'}"
            for label, p in zip(subject.classes, runs[0], strict=True)
        ]
        for name, runs in own.items()
    }
    first = {name: runs[0] for name, runs in images.items()}
    run.figure("fooling", attacks.fooled(first, words, history, SURE))
    median = {name: np.median(values, axis=1) for name, values in own.items()}
    for name in ("direct", "CPPN"):
        if median[name].min() < SURE:
            run.miss(f"{name} encoding: a run's median confidence is {median[name].min():.2%}, below {SURE:.2%}")
    run.facts |= {"dataset": subject.name, "seeds": config.seeds}
    return {
        **{f"{name.lower()}_confidence": values for name, values in median.items()},
        **{f"{name.lower()}_generations": until_sure(values) for name, values in history.items()},
        **{f"{name.lower()}_fools_another": values for name, values in fools.items()},
        "noise_confidence": np.median(noise),
    }


def confidence(subject: Subject, pixels: Any) -> Any:
    """The probability of each class, for images of 0 to 255."""
    return jax.nn.softmax(subject.apply(subject.variables, pixels).astype(jnp.float32))


def until_sure(history: Any) -> np.ndarray:
    """For each run, the generations [S] until half of the classes had a confidence of 99.99 %; all if none had."""
    reached = np.median(history, axis=-1) >= SURE
    return np.where(reached.any(1), reached.argmax(1) + 1, history.shape[1])


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show)
