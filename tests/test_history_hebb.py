"""Hebb's rule and recall."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc.errors import UserError
from dlc.run import flags
from experiments.history import hebb

RNG = np.random.default_rng(0)


def patterns(count, units=40):
    return jnp.asarray(RNG.choice([-1.0, 1.0], (count, units)), jnp.float32)


def energy(weights, states):
    return -np.einsum("ki,ij,kj->k", states, weights, states) / 2


def test_units_that_were_active_together_are_connected():
    weights = hebb.learnt(jnp.array([[1.0, 1.0, -1.0], [1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(weights, [[0, 2 / 3, 0], [2 / 3, 0, 0], [0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("wrong", [0, 4, 12, 18])
def test_a_single_pattern_is_recalled_from_any_cue_that_is_mostly_right(wrong):
    (pattern,) = patterns(1)
    cue = pattern.at[RNG.permutation(40)[:wrong]].multiply(-1)
    weights = hebb.learnt(pattern[None])
    np.testing.assert_array_equal(hebb.recalled(weights, cue[None])[0], pattern)
    np.testing.assert_array_equal(hebb.recalled(weights, -cue[None])[0], -pattern)  # and the opposite of one


def test_recall_descends_and_ends_where_no_unit_wants_to_change():
    weights, cues = hebb.learnt(patterns(12)), patterns(30)
    before, after = cues, hebb.recalled(weights, cues, sweeps=1)
    assert (energy(weights, after) <= energy(weights, before) + 1e-5).all()
    end = hebb.recalled(weights, cues)
    np.testing.assert_array_equal(hebb.recalled(weights, end, sweeps=1), end)


def test_overlaps_fall_with_load_and_errors():
    keys = jax.vmap(jax.random.key)(jnp.arange(20))
    found = hebb.overlaps(40, np.array([1, 4, 16]), (0.0, 0.2), keys)
    assert found.shape == (3, 20, 2)
    np.testing.assert_array_equal(found[0], 1)
    mean = found.mean(1)
    assert mean[1, 0] > 0.95 > 0.8 > mean[2, 0]
    assert (mean[:, 0] >= mean[:, 1]).all()


def test_the_letters_have_forty_cells_and_are_recalled():
    learnt, cues, recalled = hebb.letters(0).swapaxes(0, 1)
    assert learnt.shape == (3, 8, 5)
    assert ((learnt != cues).sum((1, 2)) == 8).all()
    np.testing.assert_array_equal(recalled, learnt)


def test_nets_are_large_enough_for_a_pattern():
    flags.check(hebb.Config(nets=(40,)))
    with pytest.raises(UserError, match=r"^--nets must be at least 40, not 5$"):
        flags.check(hebb.Config(nets=(40, 5)))
