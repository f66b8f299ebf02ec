"""A race: every seed is trained as it would be alone, timed apart, and read back when the run is resumed."""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_run import finish, start

from dlc import batches, train
from dlc.race import race
from dlc.run import Run


@dataclass(frozen=True)
class Config:
    seed: int = 0


TX = optax.sgd(0.1)
DATA = np.arange(24, dtype=np.float32)


def loss_fn(params, aux, batch, key):
    loss = jnp.mean((params["w"] - batch) ** 2) + 0.1 * params["w"] * jax.random.normal(key)
    return loss, (aux, {})


def run_of(tmp_path=None, resume=False, **options):
    run = Run(tmp_path, resume)
    init = lambda key: train.init({"w": jax.random.normal(key)}, TX, key)  # noqa: E731
    step = train.on_device(train.make_step(loss_fn, TX), DATA)
    found = race(
        run, init, step, lambda numbers: batches.minibatches(24, 6, True, numbers),
        answer=lambda state: state.params["w"] * jnp.ones(2), steps=8, evaluate_every=4, **options,
    )  # fmt: skip
    run.close()
    return run, found


def test_together_or_one_after_another_each_seed_is_the_same():
    _, apart = run_of(seeds=3)
    _, together = run_of(seeds=3, at_once=3)
    _, pairs = run_of(seeds=4, at_once=2)
    _, alone = run_of(seed=2)
    assert apart.outputs.shape == (3, 2)
    assert [len(found.seconds) for found in (apart, together, pairs, alone)] == [3, 1, 2, 1]
    np.testing.assert_array_equal(apart.outputs, together.outputs)
    np.testing.assert_array_equal(apart.outputs, pairs.outputs[:3])
    np.testing.assert_array_equal(apart.outputs[2:], alone.outputs)
    assert len(np.unique(apart.outputs)) == 3
    assert apart.seeds_per_second == pytest.approx(3 / sum(apart.seconds))


def test_the_clock_holds_start_training_and_answer_alone(tmp_path):
    def slowly(outputs):
        time.sleep(0.5)
        return {}

    run, found = run_of(tmp_path, seeds=2, predict=lambda state: state.params["w"], measure=slowly)
    assert max(found.seconds) < 0.5  # two evaluations of half a second each are outside, and so is compiling
    first, second = run.parts
    assert first.seconds["evaluate"] >= 1
    assert first.seconds["compile"] > 0
    assert second.seconds["compile"] == 0  # the programs of the first
    assert all(seconds > 0 for seconds in found.seconds)
    result = run.finish("x", "claim", Config(), {"w": found.outputs[:, 0]}, "")
    assert result["seeds"] == [0, 1]
    assert result["seconds"]["train"] == pytest.approx(sum(p.seconds["train"] for p in run.parts), abs=2e-3)


def test_seeds_that_do_not_divide_into_heats_are_named():
    with pytest.raises(ValueError, match="3 seeds are not a multiple of 2 at once"):
        run_of(seeds=3, at_once=2)


def test_parts_survive_a_later_mistake(tmp_path):
    """Both networks are built before any trains; and a folder in which a part has trained is never deleted."""
    words = ["experiments.cifar10.resnet", "--smoke", "--depth", "8", "9", "--variant", "residual", "--out", tmp_path]
    code, _, err = finish(start(*words))
    assert (code, "a depth of 9 is not 6n + 2" in err) == (2, True)
    assert "step" not in err
    words = [
        "experiments.cifar10.resnet",
        "--smoke",
        "--variant",
        "plain",
        "residual",
        "--lr",
        "1e30",
        "--out",
        tmp_path,
    ]
    code, _, err = finish(start(*words))
    assert (code, "the loss became" in err or "no longer finite" in err) == (4, True)
    assert list(tmp_path.glob("*/*/plain-8/log.jsonl"))


def test_finished_parts_are_read_back(tmp_path):
    first, before = run_of(tmp_path, seeds=2)
    second, after = run_of(tmp_path, resume=True, seeds=2)
    np.testing.assert_array_equal(before.outputs, after.outputs)
    # Nothing was trained: the seconds of training are those that the log has kept.
    kept = [part.history[-1]["seconds"]["train"] for part in first.parts]
    assert [part.seconds["train"] for part in second.parts] == kept


def test_a_target_that_was_not_reached_is_said_and_ends_with_5(tmp_path):
    words = ["experiments.cifar10.record", "--smoke", "--epochs", "1", "--filters", "0.001", "--out", tmp_path]
    code, out, err = finish(start(*words))
    assert code == 5
    last = err.strip().splitlines()[-1]
    assert last.startswith("not reached: the test accuracy is ")
    assert last.endswith("%, below the target of 94 %")
    assert "test accuracy" in out
    assert list(tmp_path.glob("*/*/result.json"))  # nothing is lost


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--depth", "21"], "a depth of 21 is not 6n + 2: choose one of 8, 14, 20, ..."),
        (["--augment", "blur"], "blur"),
        (["--batch", "2000"], "a batch of 2000 cannot be drawn from 1437 examples: choose 1 to 1437"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, tmp_path):
    code, _, err = finish(start("experiments.cifar10.resnet", "--dataset", "digits32", *words, "--out", tmp_path))
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("*/*/log.jsonl"))
