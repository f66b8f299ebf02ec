"""A race: every seed is trained as it would be alone, timed apart, and read back when the run is resumed."""

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cli import here

from dlc import batches, sharding, train
from dlc.run import clock, loop, record
from dlc.run.fit import Plan
from dlc.run.plan import Planned
from dlc.run.run import Run
from dlc.tasks.race import Contest, race

assert here  # a fixture


@dataclass(frozen=True)
class Config:
    seed: int = 0


TX = optax.sgd(0.1)
DATA = np.arange(24, dtype=np.float32)


def loss_fn(params, aux, batch, key):
    loss = jnp.mean((params["w"] - batch) ** 2) + 0.1 * params["w"] * jax.random.normal(key)
    return loss, (aux, {})


def run_of(tmp_path=None, resume=False, predict=None, measure=lambda outputs: {}, where=None, **seeds):
    run = Run(tmp_path, resume, **(where or {}))
    contest = Contest(
        init=lambda key: train.init({"w": jax.random.normal(key)}, TX, key),
        step=train.on_device(train.make_step(loss_fn, TX), DATA),
        batches=lambda numbers: batches.minibatches(24, 6, True, numbers),
        plan=Plan(8, evaluate_every=4),
        answer=lambda state: state.params["w"] * jnp.ones(2),
        predict=predict,
        measure=measure,
    )
    found = race(run, contest, **seeds)
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


class Time:
    """A clock that moves only when it is told to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 0.001
        return self.now


def test_the_clock_covers_only_start_training_and_answer(tmp_path, monkeypatch):
    time = Time()
    for module in (clock, loop):
        monkeypatch.setattr(module, "time", time)

    def slowly(outputs):
        time.now += 1000
        return {}

    run, found = run_of(tmp_path, seeds=2, predict=lambda state: state.params["w"], measure=slowly)
    assert max(found.seconds) < 1  # two evaluations of a thousand seconds each are outside, and so is compiling
    first, second = (part.clock.seconds for part in run.parts)
    assert first["evaluate"] >= 2000
    assert first["compile"] > 0
    assert second["compile"] == 0  # the programs of the first
    assert all(seconds > 0 for seconds in found.seconds)
    result = record.finish(run, "x", "claim", Config(), {"w": found.outputs[:, 0]}, "")
    assert result["seeds"] == [0, 1]
    assert result["seconds"]["train"] == pytest.approx(first["train"] + second["train"], abs=2e-3)


def test_the_heat_before_the_first_on_a_gpu_lies_on_the_mesh_and_is_not_planned(monkeypatch):
    """It shares its programs with the heats that are timed."""
    monkeypatch.setattr(sys.modules[race.__module__], "jax", SimpleNamespace(default_backend=lambda: "gpu"))
    mesh = sharding.mesh("data=2")
    _, found = run_of(where={"mesh": mesh}, predict=lambda state: state.params["w"])
    assert found.outputs.shape == (1, 2)
    with pytest.raises(Planned):
        run_of(where={"mesh": mesh, "plan": True}, predict=lambda state: state.params["w"], measure=pytest.fail)


def test_seeds_that_do_not_divide_into_heats_are_named():
    with pytest.raises(ValueError, match="3 seeds are not a multiple of 2 at once"):
        run_of(seeds=3, at_once=2)


def test_parts_survive_a_later_mistake(tmp_path, here):
    """Both networks are built before any trains; and a folder in which a part has trained is never deleted."""
    resnet = ("experiments.cifar10.resnet", "--smoke", "--out", tmp_path)
    code, _, err = here(*resnet, "--depths", 8, 9, "--variants", "residual")
    assert (code, "a depth of 9 is not 6n + 2" in err) == (2, True)
    assert "step" not in err
    code, _, err = here(*resnet, "--variants", "plain", "residual", "--lr", "1e30")
    assert (code, "the loss became" in err or "no longer finite" in err) == (4, True)
    assert list(tmp_path.glob("*/*/plain-8/log.jsonl"))


def test_finished_parts_are_read_back(tmp_path):
    first, before = run_of(tmp_path, seeds=2)
    second, after = run_of(tmp_path, resume=True, seeds=2)
    np.testing.assert_array_equal(before.outputs, after.outputs)
    # Nothing was trained: the seconds of training are those that the log has kept.
    kept = [part.history[-1]["seconds"]["train"] for part in first.parts]
    assert [part.clock.seconds["train"] for part in second.parts] == kept


def test_a_target_that_was_not_reached_is_said_and_ends_with_5(tmp_path, here):
    words = ("--smoke", "--epochs", 1, "--lr-filters", 0.001, "--out", tmp_path)
    code, out, err = here("experiments.cifar10.airbench", *words)
    assert code == 5
    last = err.strip().splitlines()[-1]
    assert last.startswith("not reached: the test accuracy is ")
    assert last.endswith("%, below the target of 94 %")
    assert "test accuracy" in out
    assert list(tmp_path.glob("*/*/result.json"))  # nothing is lost


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--depths", "21"], "a depth of 21 is not 6n + 2: choose one of 8, 14, 20, ..."),
        (["--augment", "blur"], "blur"),
        (["--batch", "2000"], "a batch of 2000 cannot be drawn from 1437 examples: choose 1 to 1437"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, tmp_path, here):
    code, _, err = here("experiments.cifar10.resnet", "--dataset", "digits32", *words, "--out", tmp_path)
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("*/*/log.jsonl"))
