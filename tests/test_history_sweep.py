"""Many runs in one program are the runs that they would be alone, and the best rate is the one that arrives first."""

from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from dlc import train
from dlc.errors import UserError
from dlc.layers import flatten
from dlc.prepare import standardise
from dlc.run.run import Run
from dlc.tasks import sweep

RNG = np.random.default_rng(0)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(3)(flatten(x))


def made(count, seed):
    label = np.random.default_rng(seed).integers(3, size=count).astype(np.int32)
    image = np.random.default_rng(seed + 1).integers(80, size=(count, 2, 2, 1))
    image[:, 0, 0, 0] += 60 * label
    return {"image": image.astype(np.uint8), "label": label}


POOL, HELD = made(64, 0), made(30, 5)
PROBLEM = sweep.of_images(POOL, {"test": HELD}, Linear(), standardise(0.0), batch=8)
LENGTH = sweep.Length(12, 4)


def test_runs_are_those_of_their_own():
    rates, seeds = [0.1, 1.0, 1.0], [3, 3, 4]
    together = sweep.learner(Run(), PROBLEM, optax.sgd, LENGTH)(rates, seeds)
    assert {name: values.shape for name, values in together.items()} == {"test_loss": (3, 3), "test_error": (3, 3)}
    for i, (rate, seed) in enumerate(zip(rates, seeds, strict=True)):
        tx = optax.sgd(rate)
        state = train.init(PROBLEM.init(jax.random.key(seed))["params"], tx, jax.random.key(seed))
        rows = PROBLEM.rows(seed, 12, None)
        state, _ = train.fit(PROBLEM.step(tx), state, list(rows))
        np.testing.assert_allclose(PROBLEM.evaluate(state)["test_loss"], together["test_loss"][i, -1], rtol=1e-5)


def test_a_run_sees_only_its_examples_and_others_with_another_seed():
    few = [PROBLEM.rows(seed, 40, 16) for seed in (0, 1)]
    assert [len(np.unique(rows)) for rows in few] == [16, 16]
    assert set(few[0].flat) != set(few[1].flat)
    np.testing.assert_array_equal(few[0], PROBLEM.rows(0, 40, 16))
    assert len(np.unique(PROBLEM.rows(0, 40, None))) == 64
    assert set(few[0].flat) == set(PROBLEM.rows(0, 2, 16).flat)  # each epoch shows all of them


def test_a_stretch_of_a_text_is_as_long_as_was_said():
    text = np.arange(1000, dtype=np.int32)
    problem = sweep.of_text(text, text[:9].reshape(1, 9), Linear(), 8, batch=4)
    starts = problem.rows(0, 50, 100)
    assert starts.shape == (50, 4)
    assert np.ptp(starts) < 100 - 8
    assert problem.rows(0, 500, None).max() > 900


def test_the_best_rate_arrives_first_and_is_run_with_seeds_of_its_own():
    target = sweep.Target("test_loss", 0.9)
    best = sweep.at_best_rate(Run(), PROBLEM, optax.sgd, [1e-4, 2.0], range(2), sweep.Length(40, 4), target)
    assert best.rate == 2.0
    assert best.swept[0] == np.inf
    assert np.isfinite(best.steps).all()
    assert best.curves.shape == (2, 10)
    assert not np.allclose(*best.curves)
    nothing = sweep.at_best_rate(Run(), PROBLEM, optax.sgd, [1e-4, 0.1], range(2), LENGTH, replace_target(target, -1.0))
    assert nothing.rate == 0.1  # ends closest
    assert np.isinf(nothing.steps).all()


def replace_target(target, value):
    return target._replace(value=value)


def test_cost_counts_weights_and_operations():
    weights, operations = sweep.cost(PROBLEM)
    assert weights == 4 * 3 + 3
    assert operations == 2 * 2 * (8 * 4 * 3)  # forward, and the kernel's gradient; pixels need none


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: sweep.Length(10, 4), "10 steps cannot be evaluated every 4: choose a multiple of 4 steps"),
        (lambda: PROBLEM.rows(0, 1, 65), "65 examples cannot be drawn from 64: choose fewer"),
        (lambda: replace(PROBLEM).rows(0, 1, 4), "a batch of 8 cannot be drawn from 4 examples"),
        (
            lambda: sweep.of_text(np.arange(50), np.zeros((1, 9)), Linear(), 8, 4).rows(0, 1, 51),
            "a stretch of 51 tokens is longer than the text, of 50: choose fewer",
        ),
    ],
)
def test_bad_input(wrong, said):
    with pytest.raises(UserError, match=said):
        wrong()
