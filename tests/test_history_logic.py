"""Threshold units: what one of them computes, and that two layers compute everything."""

import numpy as np
import pytest

from experiments.history import threshold_logic as logic

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("inputs", "functions"), [(1, 4), (2, 14), (3, 104), (4, 1882)])  # OEIS A000609
def test_one_unit_computes_as_many_functions_as_there_are_threshold_functions(inputs, functions):
    found = logic.by_one_unit(inputs)
    assert len(found) == functions
    if inputs < 4:  # the run itself proves it for four inputs
        assert set(found) == set(np.flatnonzero(~logic.impossible(inputs)))
    for number, unit in list(found.items())[::8]:
        np.testing.assert_array_equal(logic.computed([unit], logic.rows(inputs)), logic.truth_tables(inputs)[number])


def test_xor_and_its_negation_are_what_one_unit_lacks():
    x, y = logic.rows(2).T
    lacking = logic.truth_tables(2)[logic.impossible(2)]
    assert {tuple(truth) for truth in lacking} == {tuple(x != y), tuple(x == y)}


@pytest.mark.parametrize("inputs", [1, 2, 3, 6, 9])
def test_two_layers_compute_every_function(inputs):
    some = logic.truth_tables(inputs) if inputs < 4 else RNG.integers(0, 2, (10, 2**inputs))
    for truth in some:
        net = logic.built(truth)
        np.testing.assert_array_equal(logic.computed(net, logic.rows(inputs)), truth)
        assert len(net[0][1]) <= 2 ** (inputs - 1)  # hidden units: the rows of the rarer value


def test_the_names_are_those_of_the_functions():
    x, y = logic.rows(2).T
    said = {
        "AND": x & y,
        "OR": x | y,
        "XOR": x ^ y,
        "not x": 1 - x,
        "x, not y": x & (1 - y),
        "x implies y": (1 - x) | y,
    }
    tables = {name: logic.truth_tables(2)[number] for number, name in logic.NAMES.items()}
    assert len(tables) == 16
    for name, truth in said.items():
        np.testing.assert_array_equal(tables[name], truth, err_msg=name)
