"""Small runs of three kinds, as experiments that can be started, killed and resumed: python -m tests.torture._runs.

Claim: a run that was killed and resumed is the run that was not.

    parts      three networks that are trained one after another, two seeds at once, each with a folder of its own
    stream     examples that worker processes make while the network learns
    players    two networks that learn against each other
"""

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax
from runs import two_networks

from dlc import data, losses, train
from dlc.data.stream import Batches
from dlc.models.mlp import MLP
from dlc.prepare import mean_and_std, standardise
from dlc.run.fit import Plan, fit, start
from dlc.run.flags import Free, NotNegative
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import images


@dataclass(frozen=True)
class Config:
    kind: Literal["parts", "stream", "players"] = "parts"  # of the run
    workers: Free[NotNegative[int]] = 2  # processes that make the examples of a stream
    seed: NotNegative[int] = 0  # of all random numbers


def parts(config: Config, run: Run) -> dict[str, Any]:
    digits = data.load("digits")
    prepare = standardise(*mean_and_std(digits.train["image"]))
    epochs = images.Epochs(8, 100, True, config.seed, 2, 0.02)
    errors = {}
    for hidden in ((), (8,), (16,)):
        task = images.Task(digits, MLP(hidden, 10), prepare)
        name = "-".join(map(str, hidden)) or "none"
        errors[f"{name}_error"] = images.fit(run.part(name), task, optax.sgd(0.02), epochs)[1]["test_error"]
    return errors


def noisy(example: tuple[np.ndarray, Any], rng: np.random.Generator) -> dict[str, Any]:
    image, label = example
    return {"image": np.float32(image) / 16 + rng.normal(0, 0.1, image.shape).astype("f4"), "label": np.int32(label)}


def stream(config: Config, run: Run) -> dict[str, Any]:
    digits = data.load("digits")
    model, tx = MLP((8,), 10), optax.adam(0.01)
    examples = list(zip(digits.train["image"], digits.train["label"], strict=True))
    run.keep(model)

    def init(key: Any, begun: Any = None) -> train.State:
        return train.init(model.init(key, jnp.zeros((1, *digits.train["image"].shape[1:])))["params"], tx, key)

    def evaluate(state: train.State) -> dict[str, Any]:
        return {"norm": optax.global_norm(state.params)}

    batches = Batches(examples, noisy, batch=32, seed=config.seed, workers=config.workers)
    with contextlib.closing(batches):
        state = start(run, partial(init), train.seed_keys(config.seed, 1), model)
        step = train.make_step(losses.classify(model), tx)
        state = fit(run, state, step, batches, Plan(200, evaluate_every=10, report_every=5), evaluate)
    run.keep(model, train.variables_of(state))
    return evaluate(state)


def players(config: Config, run: Run) -> dict[str, Any]:
    _, generator = two_networks(run, steps=600)
    return {"mean": generator.params["mean"], "scale": generator.params["scale"]}


def trained(config: Config, run: Run) -> dict[str, Any]:
    return {"parts": parts, "stream": stream, "players": players}[config.kind](config, run)


if __name__ == "__main__":
    launch(trained, Config(), Config())
