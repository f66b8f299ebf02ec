"""Three runs that are not image classification, and a way to kill each of them. Used by test_loop.py.

python runs.py KIND FOLDER DONE     trains, and kills itself after DONE steps
"""

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlc import train
from dlc.run.fit import Plan, fit
from dlc.run.loop import count_operations, training
from dlc.run.run import Run

TX = optax.adam(0.05)


def killed(run: Run, done: int, at: int) -> None:
    """Ends this process as a power cut would, once `at` steps are done."""
    if done == at:
        run.checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)


def two_networks(run: Run, kill: int = 0, steps: int = 60) -> Any:
    """A generator of numbers against a critic: a state of two `State`s, two losses, none called `loss`."""

    def critic_loss(params, aux, batch, key):
        real, fake = batch
        score = lambda x: params["w"] * x + params["c"] * x**2  # noqa: E731
        return -jax.nn.log_sigmoid(score(real)).mean() - jax.nn.log_sigmoid(-score(fake)).mean(), (aux, {})

    def generator_loss(params, critic, batch, key):
        fake = params["mean"] + params["scale"] * jax.random.normal(key, (16,))
        score = critic["w"] * fake + critic["c"] * fake**2
        return -jax.nn.log_sigmoid(score).mean(), (critic, {"fake": fake})

    learn_critic, learn_generator = (train.make_step(loss, TX) for loss in (critic_loss, generator_loss))

    def step(state, batch):
        critic, generator = state
        generator, made = learn_generator(generator._replace(aux=critic.params), None)
        critic, told = learn_critic(critic, (batch, jax.lax.stop_gradient(made["fake"])))
        return (critic, generator), {"critic_loss": told["loss"], "generator_loss": made["loss"]}

    keys = jax.random.split(jax.random.key(0))
    critic = train.init({"w": jnp.float32(0.1), "c": jnp.float32(0)}, TX, keys[0])
    generator = train.init({"mean": jnp.float32(0), "scale": jnp.float32(1)}, TX, keys[1], aux=critic.params)

    def batches(first, count):
        return np.stack([np.random.default_rng(i).normal(3, 1, 16) for i in range(first, first + count)], dtype="f4")

    def evaluate(state):
        killed(run, int(state[0].step), kill)
        return {"mean": state[1].params["mean"]}

    return fit(run, (critic, generator), step, batches, Plan(steps, evaluate_every=10, report_every=5), evaluate)


def without_data(run: Run, kill: int = 0) -> Any:
    """The pixels of a dream: the step makes what it needs, and there is no loss."""

    def step(state, batch):
        assert batch is None
        noise = jax.random.normal(jax.random.fold_in(state["key"], state["count"]), state["pixels"].shape)
        pixels = state["pixels"] * 0.9 + 0.1 * noise
        return {**state, "pixels": pixels, "count": state["count"] + 1}, {"brightness": pixels.mean()}

    def evaluate(state):
        killed(run, int(state["count"]), kill)
        return {"contrast": state["pixels"].std()}

    state = {"pixels": jnp.zeros((4, 4)), "count": jnp.int32(0), "key": jax.random.key(3), "empty": jnp.zeros((0, 2))}
    return fit(run, state, step, None, Plan(43, evaluate_every=10, report_every=4), evaluate)


def replay(run: Run, kill: int = 0) -> Any:
    """A loop of Python's own: an environment on the host, a replay buffer in the state, and a compiled step."""

    def loss_fn(params, aux, batch, key):
        x, y = batch
        return jnp.mean((params["w"] * x - y) ** 2), (aux, {})

    learn = jax.jit(train.make_step(loss_fn, TX))
    learner = train.init({"w": jnp.float32(0)}, TX, jax.random.key(0))
    state = {"learner": learner, "buffer": np.zeros((32, 2), np.float32), "position": np.float32(1)}
    batch = np.zeros(8, np.float32), np.zeros(8, np.float32)
    count_operations(run, train.make_step(loss_fn, TX), learner, batch, 60)
    with training(run, state, steps=60) as loop:
        state = loop.state
        for done in range(loop.done + 1, 61):
            position = np.float32(np.sin(3 * state["position"] + done))
            buffer = np.array(state["buffer"])
            buffer[done % 32] = position, 2 * position
            drawn = buffer[np.random.default_rng(done).integers(32, size=8)]
            learner, metrics = learn(state["learner"], (drawn[:, 0], drawn[:, 1]))
            state = {"learner": learner, "buffer": buffer, "position": position}
            loop.report(done, metrics, examples=8)
            if loop.due(done, every=10):
                loop.evaluate(done, lambda state: {"w": state["learner"].params["w"]}, state)
                loop.save(done, state)
            killed(run, done, kill)
    return state


KINDS = {"two_networks": two_networks, "without_data": without_data, "replay": replay}

if __name__ == "__main__":
    kind, folder, done = sys.argv[1:]
    with contextlib.closing(Run(Path(folder))) as run:
        KINDS[kind](run, int(done))
