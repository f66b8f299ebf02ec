"""The T-C problem: what the net sees, that places are alike, and the kinds of receptive fields."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.history import t_c

RNG = np.random.default_rng(0)


def test_no_pair_of_cells_tells_the_letters_apart():
    def distances(letter):
        return Counter(((a - b) ** 2).sum() for a, b in itertools.combinations(np.argwhere(letter), 2))

    assert t_c.T.sum() == t_c.C.sum() == 5
    assert distances(t_c.T) == distances(t_c.C)


def test_windows_are_those_of_a_convolution_whose_edges_meet():
    image, field = RNG.normal(size=(1, t_c.SIDE, t_c.SIDE)).astype("f4"), RNG.normal(size=9).astype("f4")
    around = jnp.pad(image, ((0, 0), (1, 1), (1, 1)), mode="wrap")[..., None]
    expected = jax.lax.conv_general_dilated(
        around, field.reshape(3, 3, 1, 1), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(t_c.windows(image) @ field, expected.reshape(1, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("silent", [0, 1])
def test_the_answer_does_not_depend_on_the_place(silent):
    net = jnp.asarray(RNG.normal(size=12), jnp.float32)
    places = [
        t_c.answer(net, t_c.windows(t_c.retina(t_c.T, *place)), silent) for place in np.ndindex(t_c.SIDE, t_c.SIDE)
    ]
    np.testing.assert_allclose(places, np.broadcast_to(places[0], (25, 4)), rtol=1e-5)


FIELDS = {
    "on centre": "--- -+- ---",
    "bar": "-+- -+- -+-",
    "compactness": "+++ +++ +++",
    "something else": "+-+ --- ---",
}


@pytest.mark.parametrize("name", FIELDS)
def test_kinds_do_not_depend_on_sign_and_rotation(name):
    field = np.array([1.0 if sign == "+" else -1.0 for sign in FIELDS[name].replace(" ", "")])
    for turn, sign in itertools.product(range(4), (1, -1)):
        turned = sign * np.rot90(field.reshape(3, 3), turn).ravel()
        assert t_c.KINDS[t_c.kind(turned)] == name


@pytest.mark.parametrize("bar", ["+++ --- ---", "+-- -+- --+", "--- ++- ---", "--- -+- +--", "-+- --+ ---"])
def test_a_bar_is_a_straight_line_of_two_or_three_neighbours(bar):
    assert t_c.kind(np.array([1.0 if sign == "+" else -1.0 for sign in bar.replace(" ", "")])) == 1


def test_few_of_all_signs_are_one_of_the_three_kinds():
    kinds = Counter(t_c.kind(np.array(signs)) for signs in itertools.product((1.0, -1.0), repeat=9))
    assert kinds == {0: 2, 1: 56, 2: 18, 3: 436}  # of 512


@pytest.mark.parametrize("silent", [0, 1])
def test_nets_learn_from_one_place_to_tell_the_letters_everywhere(silent):
    is_t, config = np.arange(8) < 4, t_c.Config(steps=2000)
    seen = t_c.windows(np.concatenate([t_c.retina(t_c.T), t_c.retina(t_c.C)]))
    elsewhere = t_c.windows(np.concatenate([t_c.retina(t_c.T, 3, 4), t_c.retina(t_c.C, 3, 4)]))
    learn = jax.jit(jax.vmap(lambda key: t_c.learnt(config, key, seen, is_t, silent)))
    tell = jax.vmap(lambda net: ((t_c.answer(net, elsewhere, silent) > 0.5) == is_t).all())
    first, last = learn(jax.vmap(jax.random.key)(jnp.arange(10)))
    assert tell(first).sum() <= 1
    assert tell(last).sum() >= 7
