"""Rows of batches: in order, or shuffled as a function of seed and epoch. tests/test_translation.py has the buckets."""

import numpy as np
import pytest

from dlc import batches
from dlc.errors import UserError

N, B = 40, 8  # examples, and those of a batch


def test_minibatches_go_through_the_set_in_its_own_order_and_drop_the_rest():
    rows = batches.minibatches(7, 3)(0, 4)
    np.testing.assert_array_equal(rows, [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5]])
    assert rows.dtype == np.int32


def test_shuffled_minibatches_are_a_new_permutation_each_epoch_and_a_function_of_the_step():
    of = batches.minibatches(N, B, shuffle=True)
    epochs = [of(0, 5), of(5, 5)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch.ravel()), np.arange(N))
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(np.concatenate([of(0, 3), of(3, 7)]), np.concatenate(epochs))
    np.testing.assert_array_equal(
        batches.minibatches(N, B, True, seeds=(4, 5))(2, 2)[:, 1], batches.minibatches(N, B, True, seeds=(5,))(2, 2)
    )


@pytest.mark.parametrize("batch", [0, -1, N + 1])
def test_a_batch_that_cannot_be_filled_is_refused(batch):
    with pytest.raises(UserError, match=f"a batch of {batch} cannot be drawn from {N} examples: choose 1 to {N}"):
        batches.minibatches(N, batch)


@pytest.mark.parametrize("seeds", [(4,), (4, 5)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_shapes_of_batches_are_known_before_they_are_made(seeds, shuffle):
    for of in (batches.minibatches(N, B, shuffle, seeds), batches.random_starts(N, 6, B, seeds)):
        made, like = of(3, 4), of.like(3, 4)
        assert (like.shape, like.dtype) == (made.shape, made.dtype)
